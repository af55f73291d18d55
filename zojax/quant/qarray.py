"""Quantised weights as leaves of the parameter tree.

A `QArray` holds codes and scales and no float copy. A model multiplies by it through `zojax.ops`, which calls the
methods below: with `activations` the product is one of codes by codes, accumulated in int32 (float32 for float8);
without, the codes meet float activations and the scale follows the product.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, UInt32

from zojax import ops
from zojax.quant import products
from zojax.quant.activations import Activations
from zojax.quant.calibration import Calibration, expand, find_scale
from zojax.quant.grids import Grid, get_grid

__all__ = ["QArray", "quantize"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class QArray:
    """The leaf "scale * (level(code) - zero point)".

    Attributes:
      qvalue: codes, int8 or int4, of the logical shape; first, because Flax compares the first array's shape.
      scale: float32 of the weight's rank: along each axis 1, the axis' length, or a number that divides it (groups).
        May itself be a leaf type: a perturbed scale is what scales-only training probes.
      zero_point: float32 integers of the scale's shape, or None on a symmetric grid.
      activation_scale: the static scale of the activations, or None.
      grid: the codes' grid.
      activations: how activations are quantised for a product, or None for float activations.

    Example:
      >>> w = quantize(jnp.array([[254.0, 3.0], [-65.0, 127.0]]), "int8_127")
      >>> w.qvalue.tolist(), ops.dot(jnp.eye(2), w).tolist()
      ([[127, 3], [-32, 127]], [[254.0, 3.0], [-64.0, 127.0]])
    """

    # Any: transformations of trees put shapes, shardings and numbers in place of the arrays.
    qvalue: Any
    scale: Any
    zero_point: Any = None
    activation_scale: Any = None
    grid: Grid = dataclasses.field(metadata={"static": True})
    activations: Activations | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.qvalue.shape)

    @property
    def ndim(self) -> int:
        return self.qvalue.ndim

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def dtype(self):
        """Of what the leaf stands for: float32."""
        return jnp.dtype(jnp.float32)

    def materialize(self) -> Float[Array, "*s"]:
        """scale * (level - zero point), float32."""
        levels = self.grid.levels(self.qvalue)
        if self.zero_point is not None:
            levels = levels - expand(self.zero_point, self.shape)
        return levels * self._scales()

    def __jax_array__(self) -> Array:
        return self.materialize()

    def dot(self, x: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        """x @ w: codes by codes where activations are quantised."""
        return products.dot(x, self)

    def einsum(self, spec: str, x: Array) -> Array:
        """The contraction of x with w; one scale a tensor for quantised activations."""
        return products.einsum(spec, x, self)

    def conv(self, x: Array, **options) -> Array:
        """The convolution of x with w; one scale a tensor for quantised activations."""
        return products.conv(x, self, **options)

    def embed(self, ids: Integer[Array, "*batch"]) -> Float[Array, "*batch d"]:
        """Rows of a table, float32."""
        return self.rows(ids).materialize()

    def rows(self, ids: Integer[Array, "*batch"]) -> "QArray":
        """Rows of a table, still quantised: a leaf of shape [*batch, d]."""

        def take(per_block: Any) -> Array | None:
            if per_block is None:
                return None
            blocks = jnp.asarray(ops.value(per_block))
            at = ids // (self.shape[0] // blocks.shape[0]) if blocks.shape[0] > 1 else jnp.zeros_like(ids)
            return jnp.take(blocks, at, axis=0)

        return dataclasses.replace(
            self, qvalue=jnp.take(self.qvalue, ids, axis=0), scale=take(self.scale), zero_point=take(self.zero_point)
        )

    def steps(self, by: Float[Array, "*s"], words: UInt32[Array, "*s"]) -> Int[Array, "*s"]:
        """By how many codes, stochastically rounded, a move by `by` goes: see `Grid.steps`.

        Args:
          by: float32, in units of the weight.
          words: uniform random words, one an element.

        Returns:
          int32.
        """
        return self.grid.steps(self.qvalue, by / self._scales(), words)

    def moved(self, by: Float[Array, "*s"], words: UInt32[Array, "*s"]) -> "QArray":
        """The leaf with its codes moved by a stochastically rounded amount.

        On average w + by, where no code saturates.

        Args:
          by: float32, in units of the weight.
          words: uniform random words, one an element.

        Returns:
          A leaf of the same grid and scale.
        """
        return dataclasses.replace(self, qvalue=self.grid.shift(self.qvalue, by / self._scales(), words))

    def beside(self, codes: Int[Array, "*s"], step: float, bits: int) -> "QArray":
        """The leaf "step * codes" by which x is multiplied beside this one, its activations quantised alike.

        Args:
          codes: small integers of this leaf's shape.
          step: what a code is worth.
          bits: of the codes, 2 to 8.

        Returns:
          A leaf.
        """
        grid = get_grid("int8_127" if bits == 8 else f"int{bits}")
        scale = jnp.full((1,) * self.ndim, step, jnp.float32)
        return dataclasses.replace(self, qvalue=codes.astype(grid.dtype), scale=scale, zero_point=None, grid=grid)

    def _scales(self) -> Array:
        return expand(ops.value(self.scale), self.shape)


def quantize(
    w: Float[Array, "*s"],
    grid: str | Grid,
    *,
    blocks: tuple[int, ...] | None = None,
    calibration: Calibration = "absmax",
    power_of_two: bool = False,
    words: UInt32[Array, "*s"] | None = None,
    activations: Activations | None = None,
) -> QArray:
    """Quantises an array.

    code = round(w / scale + zero point), to nearest even or, with words, stochastically.

    Args:
      w: float array.
      grid: a grid or its name.
      blocks: number of blocks with a scale of their own along each axis; None: one scale a column (all axes but the
        last reduced).
      calibration: "absmax" or "mse".
      power_of_two: restrict scales to powers of two.
      words: uniform random words for stochastic rounding.
      activations: how activations are quantised for products with the leaf.

    Returns:
      The leaf.

    Raises:
      ValueError: if the grid is unknown or the blocks do not divide the shape.

    Example:
      >>> quantize(jnp.eye(4), "int4", blocks=(2, 4)).scale.shape
      (2, 4)
    """
    grid = get_grid(grid) if isinstance(grid, str) else grid
    w = jnp.asarray(w, jnp.float32)
    blocks = (1,) * (w.ndim - 1) + tuple(w.shape[-1:]) if blocks is None else blocks
    scale, zero = find_scale(w, grid, blocks, calibration=calibration, power_of_two=power_of_two)
    levels = w / expand(scale, w.shape)
    if zero is not None:
        levels = levels + expand(zero, w.shape)
    return QArray(qvalue=grid.encode(levels, words), scale=scale, zero_point=zero, grid=grid, activations=activations)
