"""Integers and their emulation: formats, and a value that is codes and float at once.

Every operator of this package runs in three modes, told by the type of what it is given:

    float       float arrays: the real function
    emulation   `Emulated` values: the integers of the accelerator, and the float that they stand for, with gradients
    integer     integer arrays: what the accelerator computes

In emulation the float is always scale * (code - zero): equality with the integer mode holds by construction, operator
by operator. Gradients are those of the real function at the emulated point: straight through roundings, zero where
a tensor was clamped, the true derivative of sigmoid and tanh.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zojax.accelerator._wide import i32
from zojax.quant.grids import Grid
from zojax.rounding import nearest

__all__ = [
    "Q0_7",
    "Q3_12",
    "Emulated",
    "Format",
    "Mode",
    "activation_format",
    "quantise",
    "symmetric_format",
    "value_of",
]

Mode = Literal["float", "emulation", "integer"]
"""In which of the three ways values and weights are held."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """The integers of a tensor and what they mean: value = scale * (code - zero), low <= code <= high.

    Attributes:
      scale: float32, a scalar or one a channel (last axis).
      zero: int32 scalar.
      low: least code.
      high: greatest code.

    Example:
      >>> from zojax.quant import get_grid
      >>> Format.on_grid(get_grid("int8_127"), jnp.float32(0.1)).low
      -127
    """

    scale: Float[Array | np.ndarray, "..."]
    zero: Int[Array | np.ndarray, "..."] = dataclasses.field(default_factory=lambda: np.array(0, np.int32))
    low: int = dataclasses.field(default=-128, metadata=dict(static=True))
    high: int = dataclasses.field(default=127, metadata=dict(static=True))

    @classmethod
    def on_grid(cls, grid: Grid, scale: Float[Array, "..."]) -> "Format":
        """The format of a symmetric integer grid of `zojax.quant`."""
        if grid.float_type or grid.asymmetric:
            raise ValueError(f"grid: {grid.name}; a symmetric integer grid is needed")
        return cls(scale=scale, low=grid.low, high=grid.high)

    @property
    def dtype(self):
        """The narrowest of int8, int16 and int32 that holds the codes."""
        bits = max(-self.low - 1, self.high).bit_length() + 1
        return jnp.int8 if bits <= 8 else jnp.int16 if bits <= 16 else jnp.int32

    def clip(self, codes: Int[Array, "..."]) -> Int[Array, "..."]:
        """Codes clamped to the format and in its type."""
        return jnp.clip(codes, self.low, self.high).astype(self.dtype)

    def encode(self, values: Float[Array, "..."]) -> Int[Array, "..."]:
        """The codes nearest to values, ties to even; beyond the ends they saturate."""
        levels = nearest(values.astype(jnp.float32) / self.scale) + self.zero.astype(jnp.float32)
        # A float beyond int32 has no defined integer; 2^30 is far outside of what float32 counts exactly.
        return self.clip(jnp.clip(levels, max(self.low, -(2.0**30)), min(self.high, 2.0**30)).astype(jnp.int32))

    def decode(self, codes: Int[Array, "..."]) -> Float[Array, "..."]:
        """The values of codes, float32."""
        return jnp.asarray(self.scale) * (i32(codes) - self.zero).astype(jnp.float32)


def symmetric_format(largest, bits: int = 8, *, power_of_two: bool = False) -> Format:
    """A format without zero point whose greatest code stands for the largest magnitude, computed on the host.

    8 bits: -127 .. 127 (int8_127 of `zojax.quant`); 16 bits: -32767 .. 32767. With a power of two the full range
    -2^(b-1) .. 2^(b-1) - 1, and the scale is the least power of two that reaches the magnitude, Qm.f.

    Args:
      largest: largest magnitude, positive; a scalar or one a channel.
      bits: 2 to 32.
      power_of_two: whether the scale must be one.

    Returns:
      Format.

    Raises:
      ValueError: if the magnitude is not positive and finite, or the width is none of these.

    Example:
      >>> float(symmetric_format(10.0, 16, power_of_two=True).scale) == 2.0**-11
      True
    """
    largest = np.asarray(largest, np.float64)
    if not (np.all(np.isfinite(largest)) and np.all(largest > 0)):
        raise ValueError(f"largest: {largest.tolist()}; positive, finite numbers are needed")
    if not 2 <= bits <= 32:
        raise ValueError(f"bits: {bits}; 2 to 32 is needed")
    top = 2 ** (bits - 1) - 1
    if power_of_two:
        scale = np.exp2(np.ceil(np.log2(largest / (top + 1))))
        return Format(scale=np.asarray(scale, np.float32), low=-top - 1, high=top)
    return Format(scale=np.asarray(largest / top, np.float32), low=-top, high=top)


def activation_format(low: float, high: float, bits: int = 8) -> Format:
    """An asymmetric format of a range that is widened to hold 0, which gets a code of its own; on the host.

    Args:
      low: least value.
      high: greatest value.
      bits: 2 to 16.

    Returns:
      Format.

    Raises:
      ValueError: if the range is empty or the width is none of these.

    Example:
      >>> f = activation_format(0.0, 6.0)
      >>> f.encode(jnp.array([0.0, 3.0, 9.0])).tolist()
      [-128, 0, 127]
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits: {bits}; 2 to 16 is needed")
    low, high = min(low, 0.0), max(high, 0.0)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low, high: {low}, {high}; a finite range is needed")
    least, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = np.float32((high - low) / (2**bits - 1))
    zero = int(np.clip(np.round(least - low / scale), least, top))
    return Format(scale=np.asarray(scale), zero=np.array(zero, np.int32), low=least, high=top)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Emulated:
    """Codes and the float for which they stand: value = scale * (codes - zero), with gradients to what made it.

    Attributes:
      codes: integers.
      value: float32 of the same shape, which carries the gradient.
      scale: float32, broadcastable.
      zero: int32, broadcastable.

    Example:
      >>> x = quantise(jnp.array([0.26, 9.0]), symmetric_format(1.27), "emulation")
      >>> x.codes.tolist(), [round(v, 3) for v in x.value.tolist()]
      ([26, 127], [0.26, 1.27])
    """

    codes: Int[Array, "..."]
    value: Float[Array, "..."]
    scale: Float[Array, "..."]
    zero: Int[Array, "..."]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)

    def map(self, move) -> "Emulated":
        """Codes and value both moved by a function that rearranges elements and no scale varies along."""
        return dataclasses.replace(self, codes=move(self.codes), value=move(self.value))


Value = Any
"""A float array, an `Emulated` or an integer array: the mode in which an operator runs."""

Q3_12 = Format(scale=np.array(2.0**-12, np.float32), zero=np.array(0, np.int32), low=-(2**15), high=2**15 - 1)
"""16 bits with 3 before the point: what sigmoid and tanh take."""

Q0_7 = Format(scale=np.array(2.0**-7, np.float32), zero=np.array(0, np.int32), low=-128, high=127)
"""8 bits, all behind the point."""


@jax.custom_jvp
def follow(exact: Float[Array, "*s"], smooth: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The value of `exact` with the gradient of `smooth`."""
    del smooth
    return exact


@follow.defjvp
def _(primals, tangents):
    return follow(*primals), tangents[1]


def emulated(codes: Array, smooth: Array, scale: Any, zero: Any = 0) -> Emulated:
    """The value of codes, whose gradient is that of `smooth`."""
    scale = jax.lax.stop_gradient(jnp.asarray(scale, jnp.float32))
    zero = jnp.asarray(zero, jnp.int32)
    exact = scale * (i32(codes) - zero).astype(jnp.float32)
    return Emulated(codes=codes, value=follow(exact, jnp.broadcast_to(smooth, exact.shape)), scale=scale, zero=zero)


def quantise(values: Float[Array, "..."], to: Format, mode: Mode) -> Value:
    """A tensor as a mode holds it: values as they are, `Emulated`, or codes.

    The gradient of an emulated tensor passes straight through the rounding and is zero where it was clamped: more than
    half a step outside.

    Args:
      values: float array.
      to: the format.
      mode: "float", "emulation" or "integer".

    Returns:
      Float array, Emulated, or integers.

    Raises:
      ValueError: if the mode is none of these.

    Example:
      >>> f = symmetric_format(1.27)
      >>> jax.grad(lambda x: quantise(x, f, "emulation").value.sum())(jnp.array([0.26, 9.0])).tolist()
      [1.0, 0.0]
    """
    if mode == "float":
        return values
    if mode not in ("emulation", "integer"):
        raise ValueError(f'mode: {mode!r}; "float", "emulation" or "integer" is needed')
    codes = to.encode(jax.lax.stop_gradient(values))
    if mode == "integer":
        return codes
    levels = jax.lax.stop_gradient(values) / to.scale + to.zero.astype(jnp.float32)
    inside = (levels >= to.low - 0.5) & (levels <= to.high + 0.5)
    return emulated(codes, jnp.where(inside, values, 0), to.scale, to.zero)


def value_of(x: Value, of: Format) -> Float[Array, "..."]:
    """The float of a value in any mode.

    Args:
      x: float array, Emulated, or integers.
      of: the format of integers.

    Returns:
      float32.

    Example:
      >>> value_of(jnp.int8([4]), symmetric_format(127.0)).tolist()
      [4.0]
    """
    if isinstance(x, Emulated):
        return x.value
    return x if jnp.issubdtype(x.dtype, jnp.floating) else of.decode(x)
