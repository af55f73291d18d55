"""Weights with a low-rank term whose factors are there as arrays.

`LowRank` makes its factors where a product needs them. Here they are made beforehand: by methods that keep a factor for
many steps (LOZO, SubZero), and by populations, whose members differ in nothing else.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from zojax import ops

__all__ = ["FUSED_RANK", "Factored", "outer"]

FUSED_RANK = 16
"""Greatest rank at which `outer` is elementwise."""


def outer(left: Float[Array, "*lead m r"], right: Float[Array, "*lead n r"]) -> Float[Array, "*lead m n"]:
    """left right^T.

    Up to `FUSED_RANK` it is written out as a sum of r products, which XLA fuses into what consumes it, so that nothing
    of the product's size is ever there. A greater rank is a matrix product, whose result stays until it is consumed.

    Args:
      left: [..., m, r].
      right: [..., n, r].

    Returns:
      [..., m, n].

    Example:
      >>> outer(jnp.ones((3, 2)), jnp.ones((4, 2))).shape
      (3, 4)
    """
    rank = left.shape[-1]
    if rank > FUSED_RANK:
        return jnp.einsum("...mr,...nr->...mn", left, right, precision=jax.lax.Precision.HIGHEST)
    terms = [left[..., :, None, i] * right[..., None, :, i] for i in range(rank)]
    return functools.reduce(jnp.add, terms)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Factored:
    """The leaf "base + scale * left right^T".

    A product with it is x base + scale (x left) right^T. A leaf that a model scans over carries the scanned axis on
    every field.

    Attributes:
      base: the weight, an array or another leaf type.
      left: float32 [..., m, r].
      right: float32 [..., n, r].
      scale: float32 scalar, or one for every slice of a scanned leaf.

    Example:
      >>> left, right = jnp.ones((2, 1)), jnp.ones((3, 1))
      >>> w = Factored(base=jnp.zeros((2, 3)), left=left, right=right, scale=jnp.float32(0.5))
      >>> ops.dot(jnp.ones((1, 2)), w).tolist()
      [[1.0, 1.0, 1.0]]
    """

    base: Any
    left: Float[Array, "..."]
    right: Float[Array, "..."]
    scale: Float[Array, "..."]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self):
        return self.base.dtype

    @property
    def ndim(self) -> int:
        return len(self.base.shape)

    def noise(self) -> Float[Array, "..."]:
        """left right^T, float32, of the leaf's shape."""
        return outer(self.left, self.right)

    def materialize(self) -> Float[Array, "..."]:
        """base + scale left right^T in float32."""
        scale = self.scale.reshape(self.scale.shape + (1,) * (self.ndim - self.scale.ndim))
        return ops.value(self.base) + scale * self.noise()

    def __jax_array__(self) -> Array:
        return self.materialize()

    def dot(self, x: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        """x @ (base + scale left right^T)."""
        return ops.dot(x, self.base) + self.scale * jnp.dot(jnp.dot(x, self.left), self.right.T)

    def einsum(self, spec: str, x: Array) -> Array:
        """The contraction of x with base + scale left right^T."""
        return self._apply(lambda w: ops.einsum(spec, x, w))

    def conv(self, x: Array, **options) -> Array:
        """The convolution of x with base + scale left right^T."""
        return self._apply(lambda w: ops.conv(x, w, **options))

    def _apply(self, product: Callable[[Any], Array]) -> Array:
        if isinstance(self.base, jax.Array | np.ndarray) and self.base.dtype.itemsize >= 4:
            return product(self.materialize())
        # A base of few bits would round the term away, and one of another type has a product of its own.
        return product(self.base) + self.scale * product(self.noise())

    def embed(self, ids: Integer[Array, "*batch"]) -> Float[Array, "*batch d"]:
        """Rows of base + scale left right^T."""
        return ops.embed(self.base, ids) + self.scale * jnp.dot(jnp.take(self.left, ids, axis=0), self.right.T)
