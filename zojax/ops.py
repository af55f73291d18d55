"""The only functions through which a model touches a weight.

A weight is an array or a *leaf type*: any pytree node with `shape`, `dtype` and `materialize()`, and, where it can
do better than the plain product of what it materialises, methods `dot`, `einsum`, `embed` or `conv`. This module
imports no leaf type: it calls the method if there is one and materialises otherwise, so a model never asks what its
weights are, and the same model runs over float, perturbed or quantised leaves, under `jit`, `scan`, `vmap` and
sharding.

Half precision: the activations are cast to the weight's dtype for the product, the product accumulates in float32
and the result stays float32. A bfloat16 result would round away the very differences that a zeroth-order probe
measures.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer

__all__ = ["conv", "dot", "einsum", "embed", "value"]

Weight = Any
"""An array, or a leaf type as the module's docstring describes it."""


def _method(w: Weight, name: str):
    return None if isinstance(w, jax.Array | np.ndarray) else getattr(w, name, None)


def _operands(x, w):
    """Casts x for a product with w; the third value is the accumulator's dtype."""
    if w.dtype.itemsize < 4:
        x = x.astype(w.dtype)
    return x, w, jnp.promote_types(jnp.promote_types(x.dtype, w.dtype), jnp.float32)


def value(w: Weight) -> Array:
    """The weight as an array of at least float32: gains, biases, tables, initial states.

    Args:
      w: array or leaf of any shape.

    Returns:
      Array of w's shape.

    Example:
      >>> value(jnp.ones((2,), jnp.bfloat16)).dtype
      dtype('float32')
    """
    w = value_as_stored(w)
    return w.astype(jnp.promote_types(w.dtype, jnp.float32)) if w.dtype.itemsize < 4 else w


def value_as_stored(w: Weight) -> Array:
    """The weight as an array in the precision in which it takes part in products (see `value` for the usual one).

    Args:
      w: array or leaf of any shape.

    Returns:
      Array of w's shape.

    Example:
      >>> value_as_stored(jnp.ones((2,), jnp.bfloat16)).dtype
      dtype(bfloat16)
    """
    materialize = _method(w, "materialize")
    return jnp.asarray(w) if materialize is None else materialize()


def dot(x: Float[Array, "*batch d_in"], w: Weight) -> Float[Array, "*batch d_out"]:
    """Matrix product of activations with a weight: y = x w.

    Args:
      x: activations [..., d_in].
      w: weight [d_in, d_out].

    Returns:
      [..., d_out], accumulated in float32 at least.

    Example:
      >>> dot(jnp.ones((2, 3)), jnp.ones((3, 4))).shape
      (2, 4)
    """
    method = _method(w, "dot")
    if method is not None:
        return method(x)
    x, w, accumulate = _operands(x, value_as_stored(w))
    return jnp.dot(x, w, preferred_element_type=accumulate)


def einsum(spec: str, x: Float[Array, "..."], w: Weight) -> Float[Array, "..."]:
    """Einstein summation of activations with one weight.

    Args:
      spec: two-operand specification, e.g. "bsd,dhk->bshk"; the weight is the second operand.
      x: activations.
      w: weight.

    Returns:
      The contraction, accumulated in float32 at least.

    Example:
      >>> einsum("bd,dhk->bhk", jnp.ones((2, 3)), jnp.ones((3, 4, 5))).shape
      (2, 4, 5)
    """
    method = _method(w, "einsum")
    if method is not None:
        return method(spec, x)
    x, w, accumulate = _operands(x, value_as_stored(w))
    return jnp.einsum(spec, x, w, preferred_element_type=accumulate)


def embed(w: Weight, ids: Integer[Array, "*batch"]) -> Float[Array, "*batch d"]:
    """Rows of a table; a perturbed table makes noise for these rows alone.

    Args:
      w: table [rows, d].
      ids: row numbers in [0, rows).

    Returns:
      [..., d], at least float32.

    Example:
      >>> embed(jnp.eye(4), jnp.array([2, 0])).shape
      (2, 4)
    """
    method = _method(w, "embed")
    rows = method(ids) if method is not None else jnp.take(value_as_stored(w), ids, axis=0)
    return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))


def conv(
    x: Float[Array, "batch *spatial c_in"],
    w: Weight,
    *,
    strides: Sequence[int] | int = 1,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    dilation: Sequence[int] | int = 1,
    groups: int = 1,
) -> Float[Array, "batch *out c_out"]:
    """Convolution over the spatial axes, channels last.

    Args:
      x: [batch, *spatial, c_in].
      w: kernel [*window, c_in / groups, c_out].
      strides: steps in each spatial axis, or one for all.
      padding: "VALID", "SAME", or (before, after) for each spatial axis.
      dilation: spacing of the kernel's taps.
      groups: groups of channels; c_in for a depthwise convolution.

    Returns:
      [batch, *out, c_out].

    Raises:
      ValueError: if the ranks of x and w differ.

    Example:
      >>> conv(jnp.ones((1, 8, 3)), jnp.ones((5, 3, 2)), padding=[(4, 0)]).shape
      (1, 8, 2)
    """
    options = dict(strides=strides, padding=padding, dilation=dilation, groups=groups)
    method = _method(w, "conv")
    if method is not None:
        return method(x, **options)
    x, w, accumulate = _operands(x, value_as_stored(w))
    return convolve(x, w, accumulate=accumulate, **options)


def convolve(x: Array, w: Array, *, accumulate: Any, strides, padding, dilation, groups) -> Array:
    """The convolution of `conv` for plain arrays as they are, accumulated in the type `accumulate`.

    Args:
      x: [batch, *spatial, c_in].
      w: [*window, c_in / groups, c_out].
      accumulate: dtype of the sums and of the result.
      strides: as for `conv`, like the rest.
      padding: "VALID", "SAME", or (before, after) for each spatial axis.
      dilation: spacing of the kernel's taps.
      groups: groups of channels.

    Returns:
      [batch, *out, c_out].

    Raises:
      ValueError: if the ranks of x and w differ.

    Example:
      >>> x, w = jnp.ones((1, 8, 3), jnp.int8), jnp.ones((5, 3, 2), jnp.int8)
      >>> y = convolve(x, w, accumulate=jnp.int32, strides=1, padding="VALID", dilation=1, groups=1)
      >>> y.dtype, int(y[0, 0, 0])
      (dtype('int32'), 15)
    """
    rank = x.ndim - 2
    if w.ndim != x.ndim or rank < 1:
        raise ValueError(f"conv: x of shape {x.shape} takes a kernel of {x.ndim} axes, not one of shape {w.shape}")
    spatial = "DHW"[-rank:]
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=(strides,) * rank if isinstance(strides, int) else tuple(strides),
        padding=padding,
        rhs_dilation=(dilation,) * rank if isinstance(dilation, int) else tuple(dilation),
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=groups,
        preferred_element_type=accumulate,
    )
