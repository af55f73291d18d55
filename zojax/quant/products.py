"""Products of activations with quantised weights.

With quantised activations every product is one of codes: int8 by int8 or int4 accumulated in int32, float8 by float8
accumulated in float32.

On CPU, convolutions alone take the same integers through float32, exactly. Measured on one core with AVX-512 VNNI (jax
0.10.2), XLA's integer convolution took 5 to 270 times as long as that with one-dimensional kernels, and 0.7 of its time
with 3 x 3; an integer einsum 0.4 to 0.7 of a float one's time, but 4 times as long where operands share a batch axis.
"""

import dataclasses
import math
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zojax import ops
from zojax.kernels.quantized_matmul import quantized_matmul
from zojax.quant.calibration import expand
from zojax.quant.grids import get_grid

if TYPE_CHECKING:
    from zojax.quant.qarray import QArray

__all__ = ["conv", "dot", "einsum"]

EXACT = 2**24
"""Integers up to here have a float32 of their own."""


def _weight(w: "QArray") -> Array:
    """The codes of w in the type of the product: that of the activations' grid."""
    assert w.activations is not None
    float_type = get_grid(w.activations.grid).float_type
    if not float_type:
        if w.grid.float_type:
            raise ValueError(f"activations: {w.activations.grid} codes do not multiply {w.grid.name} weights; use fp8")
        return w.qvalue
    if w.grid.float_type:
        return w.grid.stored(w.qvalue)
    if w.qvalue.dtype != jnp.int4:
        raise ValueError(
            f"grid: {w.grid.name} codes in a product with {w.activations.grid} activations; float8 holds integers of "
            "at most 4 bits exactly, so use 4 bits or float8"
        )
    return w.qvalue.astype(jnp.dtype(float_type))


def dot(x: Float[Array, "*batch m"], w: "QArray") -> Float[Array, "*batch n"]:
    """x @ w for a matrix w, with float activations or quantised ones.

    y = s_x [ sum_g s_g (x_q w_q)_g - sum_g (sum x_q)_g s_g z_g - z_x sum_k W ],  g the groups of w's scale and W the
    dequantised weight; the last two terms are there on asymmetric grids alone.

    Args:
      x: activations [..., m].
      w: leaf [m, n].

    Returns:
      float32 [..., n].

    Raises:
      ValueError: if w is no matrix, or its codes and those of the activations do not multiply.

    Example:
      >>> from zojax.quant import Activations, quantize
      >>> w = quantize(jnp.eye(2), "int4", activations=Activations(grid="int8_127"))
      >>> dot(jnp.array([[1.0, 0.5]]), w).round(2).tolist()
      [[1.0, 0.5]]
    """
    if w.ndim != 2:
        raise ValueError(f"dot: a weight of shape {w.shape}; a matrix is needed")
    m, n = w.shape
    scale = ops.value(w.scale)
    if w.activations is None:
        if w.zero_point is None and scale.shape[0] == 1:
            # The scale of a column can wait until after the product.
            return jnp.dot(x.astype(jnp.float32), w.grid.levels(w.qvalue)) * expand(scale, (1, n))[0]
        return jnp.dot(x.astype(jnp.float32), w.materialize())
    codes, x_scale, x_zero = w.activations.quantize(x, w.activation_scale)
    rows = get_grid(w.activations.grid).stored(codes).reshape(-1, m)
    groups = scale.shape[0]
    per_row = jnp.broadcast_to(x_scale, (*x.shape[:-1], 1)).reshape(-1, 1)
    per_column = expand(scale, (groups, n))
    y = quantized_matmul(rows, _weight(w), x_scale=per_row, w_scale=per_column)
    if w.zero_point is not None:
        sums = jnp.sum(rows.astype(jnp.float32).reshape(-1, groups, m // groups), axis=-1)
        zeros = expand(w.zero_point, (groups, n)) * per_column
        y = y - per_row * jnp.dot(sums, zeros, precision=jax.lax.Precision.HIGHEST)
    if x_zero is not None:
        y = y - per_row * jnp.broadcast_to(x_zero, (*x.shape[:-1], 1)).reshape(-1, 1) * jnp.sum(w.materialize(), axis=0)
    return y.reshape(*x.shape[:-1], n)


def einsum(spec: str, x: Float[Array, "..."], w: "QArray") -> Float[Array, "..."]:
    """The contraction of x with w; quantised activations take one scale for all of x.

    Args:
      spec: two-operand specification, the weight second.
      x: activations.
      w: leaf whose scale is constant along the contracted axes, if activations are quantised.

    Returns:
      float32.

    Raises:
      ValueError: if activations are quantised and the scale varies along a contracted axis, or a grid has a zero point.

    Example:
      >>> from zojax.quant import quantize
      >>> einsum("bd,dhk->bhk", jnp.ones((2, 3)), quantize(jnp.ones((3, 4, 5)), "int8_127")).shape
      (2, 4, 5)
    """
    if w.activations is None:
        return jnp.einsum(spec, x.astype(jnp.float32), w.materialize())
    _, right, out = spec.replace("->", ",").replace(" ", "").split(",")
    if "." in right:
        raise ValueError(f"einsum: {spec!r} has an ellipsis in the quantised weight; name its axes")
    scale = expand(ops.value(w.scale), w.shape)
    contracted = [axis for axis, name in enumerate(right) if name not in out]
    if any(scale.shape[axis] != 1 for axis in contracted):
        raise ValueError(f"einsum: {spec!r} contracts an axis along which the scale {scale.shape} varies")
    a, b, x_scale = _codes(x, w)
    accumulate = jnp.float32 if _is_float(w) else jnp.int32
    y = jnp.einsum(spec, a, b, preferred_element_type=accumulate).astype(jnp.float32)
    # The scale in the order and with the axes of the result.
    names = out.replace("...", "." * (y.ndim - len(out) + 3))
    scale = jnp.transpose(scale, contracted + [right.index(name) for name in names if name in right])
    lengths = iter(scale.shape[len(contracted) :])
    return y * scale.reshape([next(lengths) if name in right else 1 for name in names]) * x_scale


def conv(x: Float[Array, "batch *spatial c_in"], w: "QArray", **options) -> Float[Array, "batch *out c_out"]:
    """The convolution of x with w; quantised activations take one scale for all of x.

    Args:
      x: activations, channels last.
      w: kernel [*window, c_in / groups, c_out], with one scale a tensor or an output channel if activations are
        quantised.
      **options: as `zojax.ops.conv`.

    Returns:
      float32.

    Raises:
      ValueError: if activations are quantised and the scale varies inside a channel, or a grid has a zero point.

    Example:
      >>> from zojax.quant import quantize
      >>> conv(jnp.ones((1, 8, 3)), quantize(jnp.ones((5, 3, 2)), "int8_127")).shape
      (1, 4, 2)
    """
    if w.activations is None:
        return ops.conv(x.astype(jnp.float32), w.materialize(), **options)
    scale = expand(ops.value(w.scale), w.shape)
    if any(n != 1 for n in scale.shape[:-1]):
        raise ValueError(f"conv: a scale of shape {scale.shape} varies inside an output channel")
    options = {"strides": 1, "padding": "VALID", "dilation": 1, "groups": 1} | options
    a, b, x_scale = _codes(x, w)
    if _is_float(w):
        y = ops.convolve(a, b, accumulate=jnp.float32, **options)
    else:
        y = _convolve_integers(a, b, **options).astype(jnp.float32)
    return y * scale.reshape(-1) * x_scale


def _is_float(w: "QArray") -> bool:
    assert w.activations is not None
    return bool(get_grid(w.activations.grid).float_type)


def _codes(x: Array, w: "QArray") -> tuple[Array, Array, Array]:
    """Operands of one type, int8 or a float8, for a product with one scale for all activations, and that scale."""
    assert w.activations is not None
    x_grid = get_grid(w.activations.grid)
    if w.zero_point is not None or x_grid.asymmetric:
        raise ValueError("zero_point: einsum and conv of quantised activations need symmetric grids")
    how = w.activations
    if how.per == "token":
        how = dataclasses.replace(how, per="tensor")
    codes, x_scale, _ = how.quantize(x, w.activation_scale)
    a, b = x_grid.stored(codes), _weight(w)
    if not x_grid.float_type:  # no product takes an 8-bit operand beside a 4-bit one
        a, b = a.astype(jnp.int8), b.astype(jnp.int8)
    return a, b, x_scale.reshape(())


def _convolve_integers(a: Array, b: Array, **options) -> Array:
    """int32 sums of int8 codes; on CPU through float32, in pieces of input channels whose sums are exact."""
    integers = partial(ops.convolve, accumulate=jnp.int32, **options)
    window, channels = math.prod(b.shape[:-2]), b.shape[-2]
    depth = EXACT // (128 * 128 * window)
    if depth == 0 or (depth < channels and options["groups"] > 1):
        return integers(a, b)

    def floats(a: Array, b: Array) -> Array:
        total = 0
        for at in range(0, channels, depth):
            piece = a if depth >= channels else a[..., at : at + depth]
            y = ops.convolve(
                piece.astype(jnp.float32),
                b[..., at : at + depth, :].astype(jnp.float32),
                accumulate=jnp.float32,
                **options,
            )
            total += y.astype(jnp.int32)
        return jnp.asarray(total)

    return jax.lax.platform_dependent(a, b, cpu=floats, default=integers)
