"""Sums of products in an accelerator's accumulator, in float, emulation and integers."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Int32

from zojax import ops
from zojax.accelerator import primitives
from zojax.accelerator._recurrence import Link, linked
from zojax.accelerator._wide import i32
from zojax.accelerator.device import Accelerator
from zojax.accelerator.emulate import Emulated, Format, Value, emulated
from zojax.accelerator.fixed_point import saturate
from zojax.kernels.quantized_matmul import integer_dot
from zojax.quant.products import _convolve_integers

__all__ = ["accumulate", "contract", "convolve", "fold", "matmul"]


def _operand(x: Array, name: str) -> Array:
    if x.dtype not in (jnp.int8, jnp.int4):
        raise ValueError(f"{name}: {x.dtype} codes in a product; int8 is needed")
    return x.astype(jnp.int8)


def accumulate(
    x: Int[Array, "*batch k"], w: Int[Array, "rows n"], start: Int32[Array, "n"], accelerator: Accelerator
) -> Int32[Array, "*batch n"]:
    """start + x @ w in the accelerator's accumulator.

    At 32 bits the sum is exact. Below, the accumulator begins with the saturated start, and takes the exact sum of one
    tile of products after another, saturating each time (ours: the order of real devices is not public).

    Args:
      x: int8 codes.
      w: int8 codes.
      start: int32, what the accumulator begins with.
      accelerator: whose accumulator.

    Returns:
      int32.

    Raises:
      ValueError: if the codes are wider than int8.

    Example:
      >>> from zojax.accelerator.device import NARROW
      >>> x, w = jnp.full((64,), 127, jnp.int8), jnp.full((64, 1), 127, jnp.int8)
      >>> accumulate(x, w, jnp.int32([100]), NARROW).tolist(), 64 * 127**2 + 100
      ([524287], 1032356)
    """
    x, w = _operand(x, "x"), _operand(w, "w")
    bits, tile = accelerator.accumulator_bits, accelerator.accumulator_tile
    if bits == 32:
        return integer_dot(x, w) + start
    total, k = saturate(start, bits), x.shape[-1]
    for at in range(0, k, tile):
        total = saturate(total + integer_dot(x[..., at : at + tile], w[at : at + tile]), bits)
    return total


def _accumulate_windows(x: Array, w: Array, start: Array, accelerator: Accelerator, strides, groups: int) -> Array:
    """start + the convolution of x with w, in the accelerator's accumulator; taps in row-major order, then channels."""
    x, w = _operand(x, "x"), _operand(w, "w")
    options = dict(strides=strides, padding="VALID", dilation=1, groups=groups)
    bits, tile = accelerator.accumulator_bits, accelerator.accumulator_tile
    if bits == 32:
        return _convolve_integers(x, w, **options) + start
    if groups == 1:
        patches = _patches(x, w.shape[:-2], strides)
        return accumulate(patches, w.reshape(-1, w.shape[-1]), start, accelerator)
    # A tile of the products of one group: the kernel with all else zeroed has the same sum.
    total = saturate(start, bits)
    index = jnp.arange(math.prod(w.shape[:-1])).reshape(*w.shape[:-1], 1)
    for at in range(0, index.size, tile):
        part = jnp.where((index >= at) & (index < at + tile), w, 0)
        total = saturate(total + _convolve_integers(x, part, **options), bits)
    return total


def _patches(x: Array, window: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """[batch, *out, taps * channels]: what each output of a convolution without padding sees."""
    outs = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], window, strides, strict=True)]
    taps = []
    for offset in itertools.product(*map(range, window)):
        ends = [at + (n - 1) * s + 1 for at, n, s in zip(offset, outs, strides, strict=True)]
        taps.append(jax.lax.slice(x, (0, *offset, 0), (x.shape[0], *ends, x.shape[-1]), (1, *strides, 1)))
    return jnp.concatenate(taps, axis=-1)


def fold(bias: Value, w: Value, x: Format) -> Value:
    """The bias with the input's zero point folded in: b - zero * (sum of w over all but its last axis).

    Args:
      bias: int32 codes, or what another mode holds.
      w: weight codes [..., n] of the same mode.
      x: the format of what w multiplies.

    Returns:
      The bias to which sums of raw codes are added.

    Example:
      >>> f = Format(scale=jnp.float32(1), zero=jnp.int32(2))
      >>> fold(jnp.int32([10]), jnp.int8([[1], [3]]), f).tolist()
      [2]
    """
    if primitives.is_float(bias):
        return bias
    moved = -i32(x.zero) * jnp.sum(i32(primitives.codes_of(w)), axis=tuple(range(primitives.codes_of(w).ndim - 1)))
    if isinstance(bias, Emulated):
        return Emulated(codes=bias.codes + moved, value=bias.value, scale=bias.scale, zero=moved)
    return bias + moved


def _product(x: Value, w: Value, bias: Value, integers: Callable, floats: Callable, link: Link | None = None) -> Value:
    if primitives.is_float(x):
        return floats(x, w) + bias
    if not isinstance(x, Emulated):
        return integers(x, w, bias)
    codes = integers(x.codes, w.codes, bias.codes)
    # The products of values on the grid; their sum in float32 is not needed unless it has a gradient.
    smooth = floats(x.value, w.value) if link is None else linked(x.value, link)
    return emulated(codes, smooth + bias.value, x.scale * w.scale)


def matmul(x: Value, w: Value, bias: Value, accelerator: Accelerator, link: Link | None = None) -> Value:
    """bias + x @ w, in the accumulator; the scale is that of x times that of w.

    Args:
      x: [..., k].
      w: [k, n], one scale a column or one for all.
      bias: [n], from `fold`.
      accelerator: whose accumulator.
      link: how gradients leave the product in emulation; None: to x and w.

    Returns:
      Sums [..., n]: int32 codes in the integer modes.

    Example:
      >>> from zojax.accelerator.device import TFLITE
      >>> matmul(jnp.int8([1, 2]), jnp.int8([[3], [4]]), jnp.int32([5]), TFLITE).tolist()
      [16]
    """
    return _product(x, w, bias, lambda x, w, b: accumulate(x, w, b, accelerator), jnp.dot, link)


def contract(x: Value, y: Value, accelerator: Accelerator, *, zero: Any = 0) -> Value:
    """x @ y of two activations with common batch axes, in the accumulator; y has no zero point.

    Args:
      x: [*batch, m, k].
      y: [*batch, k, n].
      accelerator: whose accumulator.
      zero: zero point of x; the accumulator begins with - zero * (sum of y over k).

    Returns:
      Sums [*batch, m, n].

    Example:
      >>> from zojax.accelerator.device import TFLITE
      >>> contract(jnp.int8([[1, 2]]), jnp.int8([[3], [4]]), TFLITE).tolist()
      [[11]]
    """
    bits, tile = accelerator.accumulator_bits, accelerator.accumulator_tile

    def integers(x, y, start):
        x, y = _operand(x, "x"), _operand(y, "y")
        if bits == 32:
            return jnp.matmul(x, y, preferred_element_type=jnp.int32) + start
        total = saturate(start, bits)
        for at in range(0, x.shape[-1], tile):
            part = jnp.matmul(x[..., at : at + tile], y[..., at : at + tile, :], preferred_element_type=jnp.int32)
            total = saturate(total + part, bits)
        return total

    if primitives.is_float(x):
        return jnp.matmul(x, y)
    start = -i32(zero) * jnp.sum(i32(primitives.codes_of(y)), axis=-2, keepdims=True)
    codes = integers(primitives.codes_of(x), primitives.codes_of(y), start)
    return emulated(codes, jnp.matmul(x.value, y.value), x.scale * y.scale) if isinstance(x, Emulated) else codes


def convolve(
    x: Value, w: Value, bias: Value, accelerator: Accelerator, *, strides: tuple[int, ...], groups: int = 1
) -> Value:
    """bias + the convolution of x with w without padding, in the accumulator.

    Args:
      x: [batch, *spatial, c_in].
      w: [*window, c_in / groups, c_out], one scale an output channel or one for all.
      bias: [c_out], from `fold`.
      accelerator: whose accumulator.
      strides: steps in each spatial axis.
      groups: groups of channels; c_in for a depthwise convolution.

    Returns:
      Sums [batch, *out, c_out].

    Example:
      >>> from zojax.accelerator.device import TFLITE
      >>> x, w = jnp.int8([[[1], [2], [3]]]), jnp.int8([[[1]], [[10]]])
      >>> convolve(x, w, jnp.int32([0]), TFLITE, strides=(1,)).tolist()
      [[[21], [32]]]
    """

    def floats(x, w):
        return ops.conv(x, w, strides=strides, groups=groups)

    return _product(x, w, bias, lambda x, w, b: _accumulate_windows(x, w, b, accelerator, strides, groups), floats)
