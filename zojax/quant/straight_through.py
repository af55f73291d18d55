"""The first-order baseline at the same bits: quantised forwards with straight-through gradients to float weights."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from zojax import ops
from zojax.quant.activations import Activations
from zojax.quant.calibration import expand
from zojax.quant.grids import Grid, get_grid
from zojax.quant.qarray import QArray
from zojax.quant.rules import Rule, quantize_tree

__all__ = ["FakeQuant", "straight_through"]

Params = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeQuant:
    """A float weight whose forward is that of its `QArray` and whose gradient passes through the rounding.

    Forward: the products of `quantized`, codes by codes where activations are quantised, so equal to those of the
    quantised model bit for bit. Backward: with x' and w' the quantised activations and weight,

        dL/dx = (dL/dy w'^T) [x inside],    dL/dw = (x'^T dL/dy) [w inside]

    An element is outside where it saturated: where it lies more than half a step beyond the end of the grid. Scales and
    zero points are constants to the gradient.

    Attributes:
      value: the float master, first, because Flax compares the first array's shape.
      quantized: the master on its grid; made anew from it at every forward (see `straight_through`).

    Example:
      >>> from zojax.quant import quantize
      >>> value = jnp.array([[0.7, 0.22], [-0.44, 0.7]])
      >>> w = FakeQuant(value=value, quantized=quantize(value, "int4"))
      >>> [round(y, 3) for y in ops.dot(jnp.ones(2), w).tolist()]
      [0.3, 0.9]

    References:
      The straight-through estimator: Bengio, Leonard and Courville, arXiv 1308.3432.
    """

    value: Any
    quantized: QArray

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self):
        """Of what the leaf stands for: float32."""
        return self.quantized.dtype

    def materialize(self) -> Float[Array, "*s"]:
        """The quantised weight, float32."""
        return _rounded(self.value, self.quantized)

    def __jax_array__(self) -> Array:
        return self.materialize()

    def dot(self, x: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        """x @ w."""
        return _product(ops.dot, self.quantized.activations, x, self.value, self.quantized)

    def einsum(self, spec: str, x: Array) -> Array:
        """The contraction of x with w."""
        return _product(functools.partial(ops.einsum, spec), self._per_tensor, x, self.value, self.quantized)

    def conv(self, x: Array, **options) -> Array:
        """The convolution of x with w."""
        return _product(functools.partial(ops.conv, **options), self._per_tensor, x, self.value, self.quantized)

    def embed(self, ids: Integer[Array, "*batch"]) -> Float[Array, "*batch d"]:
        """Rows of a table."""
        return _rounded(jnp.take(self.value, ids, axis=0), self.quantized.rows(ids))

    @property
    def _per_tensor(self) -> Activations | None:
        # As `products.einsum` and `products.conv` take them.
        given = self.quantized.activations
        return given if given is None or given.per == "static" else dataclasses.replace(given, per="tensor")


def straight_through(params: Params, rules: Sequence[Rule]) -> Params:
    """Turns a float tree into one whose forward is quantised and whose gradient reaches the floats.

    To be called inside the loss, so that the codes and scales are those of the weights of this step:

        value_fn = lambda t: task.loss(straight_through(merge(t, frozen), rules), batch)[0]

    Args:
      params: tree of float arrays.
      rules: as for `quantize_tree`.

    Returns:
      The tree with a `FakeQuant` leaf where `quantize_tree` gives a `QArray`, and the array itself elsewhere.

    Raises:
      ValueError: as `quantize_tree`.

    Example:
      >>> rules = (Rule(pattern="kernel$", grid="int8_127"), Rule(pattern="bias$", grid=None))
      >>> def loss(params):
      ...     params = straight_through(params, rules)
      ...     return jnp.sum(ops.dot(jnp.ones((1, 2)), params["kernel"]) + params["bias"])
      >>> gradient = jax.grad(loss)({"kernel": jnp.eye(2), "bias": jnp.zeros(2)})
      >>> gradient["kernel"].tolist(), gradient["bias"].tolist()
      ([[1.0, 1.0], [1.0, 1.0]], [1.0, 1.0])
    """
    quantized = quantize_tree(jax.lax.stop_gradient(params), rules)
    return jax.tree.map(
        lambda q, w: FakeQuant(value=w, quantized=q) if isinstance(q, QArray) else w,
        quantized,
        params,
        is_leaf=lambda node: isinstance(node, QArray),
    )


# The quantised leaf goes through `custom_jvp` in parts, since a `QArray` holds no tangents.


def _rounded(value: Array, quantized: QArray) -> Array:
    parts, structure = jax.tree.flatten(quantized)
    return _rounded_parts(structure, value, parts)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _rounded_parts(structure: Any, value: Array, parts: list[Array]) -> Array:
    """The quantised weight; the tangent is that of `value`, where it did not saturate."""
    del value
    return structure.unflatten(parts).materialize()


@_rounded_parts.defjvp
def _(structure, primals, tangents):
    value, quantized = primals[0], structure.unflatten(primals[1])
    return quantized.materialize(), jnp.where(_weight_inside(value, quantized), tangents[0].astype(jnp.float32), 0)


def _product(
    product: Callable[[Array, Any], Array], activations: Activations | None, x: Array, value: Array, quantized: QArray
) -> Array:
    parts, structure = jax.tree.flatten(quantized)
    return _product_parts(product, activations, structure, x, value, parts)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _product_parts(
    product: Callable[[Array, Any], Array],
    activations: Activations | None,
    structure: Any,
    x: Array,
    value: Array,
    parts: list[Array],
) -> Array:
    """product(x, quantised weight), bilinear but for the roundings; the tangent leaves those out."""
    del activations, value
    return product(x, structure.unflatten(parts))


@_product_parts.defjvp
def _(product, activations, structure, primals, tangents):
    x, value, quantized = primals[0], primals[1], structure.unflatten(primals[2])
    x_tangent, tangent = (t.astype(jnp.float32) for t in tangents[:2])
    rounded, inside = _activations(x, activations, quantized.activation_scale)
    by_x = product(jnp.where(inside, x_tangent, 0), quantized.materialize())
    by_w = product(rounded, jnp.where(_weight_inside(value, quantized), tangent, 0))
    return product(x, quantized), by_x + by_w


def _weight_inside(value: Array, quantized: QArray) -> Bool[Array, "..."]:
    levels = value.astype(jnp.float32) / expand(ops.value(quantized.scale), value.shape)
    if quantized.zero_point is not None:
        levels = levels + expand(quantized.zero_point, value.shape)
    return _inside(quantized.grid, levels)


def _activations(x: Array, activations: Activations | None, static: Array | None) -> tuple[Array, Any]:
    """The activations as the product takes them, float32, and which of them did not saturate."""
    x = x.astype(jnp.float32)
    if activations is None:
        return x, True
    grid = get_grid(activations.grid)
    codes, scale, zero = activations.quantize(x, static)
    shift = 0.0 if zero is None else zero
    return scale * (grid.levels(codes) - shift), _inside(grid, x / scale + shift)


def _inside(grid: Grid, levels: Array) -> Bool[Array, "..."]:
    """Whether levels lie within the grid, or no more than half of its last step beyond it."""
    low, above, below, high = grid.levels(jnp.array([grid.low, grid.low + 1, grid.high - 1, grid.high], jnp.int8))
    return (levels >= low - (above - low) / 2) & (levels <= high + (high - below) / 2)
