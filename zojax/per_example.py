"""A direction for every example of a batch, from one product.

Example i sees the weight base + scale D_i with D_i = U o (r_i s_i^T): one U for all, and signs r_i over the rows and
s_i over the columns (o is elementwise). Its product is x base + scale ((x o r_i) U) o s_i, so that a batch takes two
products with matrices that all examples share, and nothing of their number times the weight's size is ever there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key, UInt32

from zojax import ops, random
from zojax._kept import kept
from zojax.directions import Direction

__all__ = ["PerExample", "map_examples"]

Params = Any

# Leaf keys of the signs; U is drawn from the leaf's key itself, and numbers 1 to 3 belong to roundings.
ROWS, COLUMNS = 4, 5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PerExample:
    """The leaf "base + scale * U o (r_i s_i^T)" of example i; of a vector, "base + scale * u o s_i".

    Signs run over the last two axes. A leaf that a model scans over carries the scanned axis on every field.

    Attributes:
      base: the weight, an array or another leaf type.
      key: typed key of this leaf's noise.
      scale: float32 scalar.
      start: uint32 coordinates of the tile, or None for the origin.
      example: number of the example, set by `map_examples`; None: not set.
      direction: the distribution of U.
      full_shape: shape of the whole leaf of which this is a tile.

    Example:
      >>> from zojax.directions import Rademacher
      >>> leaf = PerExample(base=jnp.zeros((4, 3)), key=jax.random.key(0), scale=jnp.float32(1),
      ...                   direction=Rademacher(), full_shape=(4, 3))
      >>> map_examples(lambda w, x: jnp.sum(ops.dot(x, w)), leaf, jnp.ones((5, 4))).shape
      (5,)
    """

    base: Any
    key: Key[Array, "..."]
    scale: Float[Array, "..."]
    start: Array | None = None
    example: UInt32[Array, "..."] | None = None
    direction: Direction = dataclasses.field(metadata={"static": True})
    full_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self):
        return self.base.dtype

    @property
    def ndim(self) -> int:
        return len(self.base.shape)

    @property
    def _lead(self) -> int:
        """How many axes in front index the slice of a scanned leaf."""
        return len(self.full_shape) - self.ndim

    def shared(self) -> Float[Array, "..."]:
        """U, float32, of the leaf's shape."""
        size = (1,) * self._lead + tuple(self.shape)
        return self.direction.sample(self.key, self.full_shape, start=self.start, size=size).reshape(self.shape)

    def _sign_key(self, number: int) -> Key[Array, ""]:
        if self.example is None:
            raise ValueError(
                "value_fn: a weight is used outside zojax.per_example.map_examples, which says of which example"
            )
        return jax.random.fold_in(jax.random.fold_in(self.key, number), self.example)

    def signs(self, axis: int) -> Float[Array, "n"]:
        """r_i (axis -2) or s_i (axis -1)."""
        shape = (*self.full_shape[: self._lead], self.full_shape[axis])
        start = jnp.zeros(len(shape), jnp.uint32)
        if self.start is not None:
            start = jnp.stack([*(self.start[i] for i in range(self._lead)), self.start[axis]])
        size = (1,) * self._lead + (self.shape[axis],)
        draw = lambda words, at: random.signs(words, shape, start=at, size=size).reshape(size[-1])  # noqa: E731
        return kept(draw, self._sign_key(ROWS if axis == -2 else COLUMNS), start)

    def noise(self) -> Float[Array, "..."]:
        """D_i, float32, of the leaf's shape. Under vmap over examples it is there for each of them."""
        if self.scale.ndim:
            return jax.vmap(PerExample.noise)(self)
        z = self.shared()
        if self.ndim == 0:
            one = random.signs(self._sign_key(COLUMNS), self.full_shape or (1,), start=self.start, size=(1,))
            return z * one.reshape(())
        return z * self.signs(-1) if self.ndim == 1 else z * (self.signs(-2)[:, None] * self.signs(-1))

    def materialize(self) -> Float[Array, "..."]:
        """base + scale D_i in float32: for vectors, and what has no product of its own."""
        scale = self.scale.reshape(self.scale.shape + (1,) * (self.ndim - self.scale.ndim))
        return ops.value(self.base) + scale * self.noise()

    def __jax_array__(self) -> Array:
        return self.materialize()

    def _beside(self) -> Array:
        """U in the precision in which it is multiplied."""
        half = self.base.dtype.itemsize < 4 and jnp.issubdtype(self.base.dtype, jnp.floating)
        return self.shared().astype(self.base.dtype if half else jnp.float32)

    def dot(self, x: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        """x @ (base + scale D_i)."""
        product = ops.dot(x * self.signs(-2), self._beside()) * self.signs(-1)
        return ops.dot(x, self.base) + self.scale * product

    def einsum(self, spec: str, x: Array) -> Array:
        """The contraction of x with base + scale D_i; the weight's last two axes are named in the specification."""
        inputs, output = spec.replace(" ", "").split("->")
        left, right = inputs.split(",")
        moved, after = x, []
        for axis in (-2, -1) if self.ndim > 1 else (-1,):
            letter, signs = right[axis], self.signs(axis)
            if letter in left:  # contracted, or kept beside the batch
                moved = moved * _along(signs, left, letter, x.ndim)
            else:
                after.append((letter, signs))
        product = ops.einsum(spec, moved, self._beside())
        for letter, signs in after:
            product = product * _along(signs, output, letter, product.ndim)
        return ops.einsum(spec, x, self.base) + self.scale * product

    def conv(self, x: Array, **options) -> Array:
        """The convolution of x with base + scale D_i: signs over the channels, shared by the window."""
        rows = jnp.tile(self.signs(-2), options.get("groups", 1))
        product = ops.conv(x * rows, self._beside(), **options) * self.signs(-1)
        return ops.conv(x, self.base, **options) + self.scale * product

    def embed(self, ids: Integer[Array, "*batch"]) -> Float[Array, "*batch d"]:
        """Rows of base + scale D_i; signs and noise are made for these rows alone."""
        size = (1,) * self._lead + tuple(self.shape)
        shared = self.direction.rows(self.key, self.full_shape, ids, start=self.start, size=size)
        at = [] if self.start is None else [self.start[i] for i in range(self._lead)]
        first = jnp.uint32(0) if self.start is None else self.start[-2]
        shape = (*self.full_shape[: self._lead], self.full_shape[-2])
        signs = random.signs_at(self._sign_key(ROWS), shape, (*at, ids.astype(jnp.uint32) + first))
        return ops.embed(self.base, ids) + self.scale * (shared * signs[..., None] * self.signs(-1))


def _along(signs: Array, letters: str, letter: str, ndim: int) -> Array:
    """The signs as an array that broadcasts along one letter of an operand's subscripts."""
    if "." in letters:
        dots, rest = letters.split("...")
        axis = dots.index(letter) if letter in dots else ndim - len(rest) + rest.index(letter)
    else:
        axis = letters.index(letter)
    return signs.reshape(-1, *(1,) * (ndim - 1 - axis))


def map_examples(function: Callable[..., Any], params: Params, batch: Any) -> Any:
    """A function of every example of a batch, each at its own weights: losses for `estimators.per_example`.

    Args:
      function: (weights, example) -> tree of arrays; the example is the batch without its first axis.
      params: tree of weights, with `PerExample` leaves or without.
      batch: tree of arrays [b, ...].

    Returns:
      Tree of arrays [b, ...].

    Example:
      >>> map_examples(lambda w, x: w * x, jnp.float32(2), jnp.arange(3.0)).tolist()
      [0.0, 2.0, 4.0]
    """

    def at(example: Array) -> Params:
        def choose(leaf: Any) -> Any:
            if not isinstance(leaf, PerExample):
                return leaf
            return dataclasses.replace(leaf, example=jnp.broadcast_to(example, leaf.scale.shape))

        return jax.tree.map(choose, params, is_leaf=lambda node: hasattr(node, "materialize"))

    size = jax.tree.leaves(batch)[0].shape[0]
    return jax.vmap(lambda example, row: function(at(example), row))(jnp.arange(size, dtype=jnp.uint32), batch)
