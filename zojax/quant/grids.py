"""The grids on which quantised weights, activations and directions lie.

"Symmetric int8" names three different grids in shipped software, so every quantiser here names its own. A value is
v = scale * level(code) (+ a zero point on asymmetric grids); codes are small integers. For an integer grid the level
is the code. For a float8 grid the code is the *ordinal* of the float among all floats of its format (0 is 0, 1 the
smallest positive one, -1 the smallest negative one), so that a neighbour on any grid is a step of one code, and an
update is an integer on any grid.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from zojax.precision import round_to
from zojax.rounding import nearest, stochastic

__all__ = ["GRIDS", "Grid", "get_grid"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid of codes.

    Attributes:
      name: the grid's name in configs and checkpoints.
      bits: bits a code.
      low: least code.
      high: greatest code.
      span: level to which the largest magnitude is mapped: scale = absmax / span. On an asymmetric grid the number of
        steps between the least and the greatest value.
      asymmetric: whether codes have a zero point.
      float_type: name of the float8 format whose ordinals the codes are; "" for integer grids.

    Example:
      >>> get_grid("int8_127").span, get_grid("int8_127_5").span, get_grid("int4").high
      (127.0, 127.5, 7)
    """

    name: str
    bits: int
    low: int
    high: int
    span: float
    asymmetric: bool = False
    float_type: str = ""

    @property
    def dtype(self):
        """Type in which codes are held: int4 up to four bits, else int8."""
        return jnp.int4 if self.bits <= 4 else jnp.int8

    def levels(self, codes: Int[Array, "*s"]) -> Float[Array, "*s"]:
        """The levels of codes, float32, in units of the scale.

        Args:
          codes: integers in [low, high].

        Returns:
          float32 array of their shape.

        Example:
          >>> get_grid("fp8_e4m3").levels(jnp.array([0, 1, 126], jnp.int8)).tolist()
          [0.0, 0.001953125, 448.0]
        """
        return self.stored(codes).astype(jnp.float32)

    def stored(self, codes: Int[Array, "*s"]) -> Array:
        """The levels in the type in which a product takes them: int4, int8 or a float8.

        Args:
          codes: integers in [low, high].

        Returns:
          Array of their shape.

        Example:
          >>> get_grid("fp8_e5m2").stored(jnp.array([1], jnp.int8)).dtype
          dtype(float8_e5m2)
        """
        if not self.float_type:
            return codes.astype(self.dtype)
        wide = codes.astype(jnp.int32)
        byte = jnp.where(wide < 0, 0x80 - wide, wide).astype(jnp.uint8)
        return jax.lax.bitcast_convert_type(byte, jnp.dtype(self.float_type))

    def encode(self, levels: Float[Array, "*s"], words: UInt32[Array, "*s"] | None = None) -> Int[Array, "*s"]:
        """Rounds levels to codes, to nearest (ties to even) or stochastically; beyond the ends they saturate.

        Args:
          levels: float32, in units of the scale.
          words: uniform random words, one an element; None: to nearest.

        Returns:
          Codes of the grid's dtype.

        Example:
          >>> get_grid("int4").encode(jnp.array([-9.0, 0.5, 1.5, 2.4])).tolist()
          [-7, 0, 2, 2]
        """
        if self.float_type:
            codes = self._ordinals(round_to(levels, self.float_type))
            return codes if words is None else self._moved(codes, levels - self.levels(codes), words)
        rounded = nearest(levels) if words is None else stochastic(levels, words)
        return jnp.clip(rounded, self.low, self.high).astype(self.dtype)

    def steps(
        self, codes: Int[Array, "*s"], levels: Float[Array, "*s"], words: UInt32[Array, "*s"]
    ) -> Int[Array, "*s"]:
        """By how many codes a move of so many levels goes, stochastically rounded: on average that many levels.

        On an integer grid the step does not look at the ends; on a float8 grid it stops there.

        Args:
          codes: where to start.
          levels: float32, by how much to move.
          words: uniform random words.

        Returns:
          int32.

        Example:
          >>> get_grid("int4").steps(jnp.int4([7, 0]), jnp.array([3.0, -2.0]), jnp.zeros((2,), jnp.uint32)).tolist()
          [3, -2]
        """
        # A rounded sum of code and move would keep 17 bits of the move's fraction, or 20 on a float8 grid.
        if not self.float_type:
            return jnp.clip(stochastic(levels, words), -512, 512).astype(jnp.int32)
        start = self.levels(codes)
        target = start + levels
        # What the sum lost: exact in the order of magnitude (Dekker).
        lost = jnp.where(jnp.abs(levels) > jnp.abs(start), start - (target - levels), levels - (target - start))
        near = self._ordinals(round_to(target, self.float_type))
        rest = (target - self.levels(near)) + lost
        return self._moved(near, rest, words).astype(jnp.int32) - codes.astype(jnp.int32)

    def shift(
        self, codes: Int[Array, "*s"], levels: Float[Array, "*s"], words: UInt32[Array, "*s"]
    ) -> Int[Array, "*s"]:
        """Codes moved by `steps`, saturated at the ends.

        Args:
          codes: where to start.
          levels: float32, by how much to move.
          words: uniform random words.

        Returns:
          Codes of the grid's dtype.

        Example:
          >>> get_grid("int4").shift(jnp.int4([7, 0]), jnp.array([3.0, -2.0]), jnp.zeros((2,), jnp.uint32)).tolist()
          [7, -2]
        """
        target = codes.astype(jnp.int32) + self.steps(codes, levels, words)
        return jnp.clip(target, self.low, self.high).astype(self.dtype)

    def _moved(self, codes: Array, rest: Array, words: Array) -> Array:
        """Ordinals moved on by `rest`, at most one code: by one with the chance of its share of the gap."""
        codes = codes.astype(jnp.int32)
        beyond = jnp.clip(codes + jnp.where(rest < 0, -1, 1), self.low, self.high)
        gap = jnp.abs(self.levels(beyond) - self.levels(codes))
        move = stochastic(jnp.clip(rest / jnp.where(gap > 0, gap, 1.0), -1.0, 1.0), words)
        return jnp.clip(codes + move.astype(jnp.int32), self.low, self.high).astype(jnp.int8)

    def _ordinals(self, values: Array) -> Array:
        byte = jax.lax.bitcast_convert_type(values, jnp.uint8).astype(jnp.int32)
        magnitude = byte & 0x7F
        return jnp.where(byte > 0x7F, -magnitude, magnitude).astype(jnp.int8)


def _integer(bits: int) -> Grid:
    top = 2 ** (bits - 1) - 1
    return Grid(name=f"int{bits}", bits=bits, low=-top, high=top, span=float(top))


def _float8(name: str, float_type: str) -> Grid:
    largest = np.array(jnp.finfo(float_type).max, float_type)
    top = int(largest.view(np.uint8))
    return Grid(name=name, bits=8, low=-top, high=top, span=float(largest), float_type=float_type)


GRIDS: dict[str, Grid] = {
    grid.name: grid
    for grid in (
        *(_integer(bits) for bits in range(2, 8)),
        Grid(name="int8_127", bits=8, low=-127, high=127, span=127.0),
        Grid(name="int8_128", bits=8, low=-128, high=127, span=128.0),
        Grid(name="int8_127_5", bits=8, low=-128, high=127, span=127.5),
        Grid(name="int8_asymmetric", bits=8, low=-128, high=127, span=255.0, asymmetric=True),
        Grid(name="int4_asymmetric", bits=4, low=-8, high=7, span=15.0, asymmetric=True),
        _float8("fp8_e4m3", "float8_e4m3fn"),
        _float8("fp8_e5m2", "float8_e5m2"),
    )
}
"""Grids by name. int8_127: symmetric, -127 to 127, absmax / 127 (TFLite's weights). int8_128: -128 to 127, absmax /
128. int8_127_5: absmax / 127.5 (qwix). int2 to int7: symmetric, the least code left out. fp8: the finite values."""


def get_grid(name: str) -> Grid:
    """The grid of a name.

    Args:
      name: a key of `GRIDS`.

    Returns:
      The grid.

    Raises:
      ValueError: if there is none of that name.

    Example:
      >>> get_grid("int8")
      Traceback (most recent call last):
      ...
      ValueError: grid: 'int8' is not one of int2, int3, int4, int5, int6, int7, int8_127, int8_128, int8_127_5, \
int8_asymmetric, int4_asymmetric, fp8_e4m3, fp8_e5m2
    """
    if name not in GRIDS:
        raise ValueError(f"grid: {name!r} is not one of {', '.join(GRIDS)}")
    return GRIDS[name]
