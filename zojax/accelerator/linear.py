"""Fully connected layers."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from zojax.accelerator import primitives, products
from zojax.accelerator.device import Accelerator
from zojax.accelerator.emulate import Format, Mode, Value, quantise
from zojax.accelerator.fixed_point import Rescale, rescale, rescale_float32

__all__ = [
    "FullyConnected",
    "LinearPlan",
    "factor",
    "fully_connected",
    "fully_connected_layer",
    "linear_plan",
]

Scales = Literal["float64", "float32_product", "float32"]
"""In which precision the scales of a product become one factor; runtimes differ (see `factor`)."""

SUM_LOW, SUM_HIGH = -(2**31), 2**31 - 1


def factor(x, w, y, scales: Scales) -> np.ndarray:
    """s_x s_w / s_y of float32 scales, on the host.

    The last bits of the factor decide rare roundings, and one runtime computes it in three ways: layers with a scale a
    channel in float64, layers with one scale with a float32 product and a float64 quotient, LSTMs in float32.

    Args:
      x: scale of the input.
      w: scales of the weight.
      y: scale of the output.
      scales: "float64", "float32_product" or "float32".

    Returns:
      float64 array.

    Raises:
      ValueError: if the precision is none of these.

    Example:
      >>> [f"{float(factor(0.1, 0.2, 0.3, how)):.10f}" for how in ("float64", "float32_product", "float32")]
      ['0.0666666660', '0.0666666687', '0.0666666701']
    """
    x, w, y = (np.asarray(jax.device_get(s), np.float32) for s in (x, w, y))
    if scales == "float64":
        return np.asarray(x.astype(np.float64) * w.astype(np.float64) / y.astype(np.float64))
    if scales == "float32_product":
        return np.asarray((x * w).astype(np.float64) / y.astype(np.float64))
    if scales == "float32":
        return np.asarray((x * w / y).astype(np.float64))
    raise ValueError(f'scales: {scales!r}; "float64", "float32_product" or "float32" is needed')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearPlan:
    """The formats of a product with a weight and the factor between them: all but the weights themselves.

    Made on the host by `linear_plan`, once; arrays throughout, so new scales need no new program.

    Attributes:
      input: format of the activations.
      weight: format of the weight; one scale, or one an output channel.
      output: format of the result.
      rescale: s_x s_w / s_y.

    Example:
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> f = symmetric_format(1.0)
      >>> linear_plan(f, f, f).rescale.shift.tolist()
      -6
    """

    input: Format
    weight: Format
    output: Format
    rescale: Rescale


def linear_plan(input: Format, weight: Format, output: Format, *, scales: Scales = "float64") -> LinearPlan:
    """The plan of a product with a weight, made on the host.

    In float32 it may be made in a program as well, of scales that are computed there; the factor is the same.

    Args:
      input: format of the activations, with a scalar scale.
      weight: format of the weight, without zero point.
      output: format of the result, with a scalar scale.
      scales: in which precision the factor is computed, see `factor`.

    Returns:
      LinearPlan.

    Raises:
      ValueError: as `factor` and `rescale`.

    Example:
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> linear_plan(*[symmetric_format(127.0)] * 3).rescale.multiplier.tolist() == 2**30
      True
    """
    if scales == "float32" and any(isinstance(f.scale, Tracer) for f in (input, weight, output)):
        # The barrier keeps the compiler from merging a division by a constant with other factors.
        product = jax.lax.optimization_barrier(jnp.float32(input.scale) * jnp.float32(weight.scale))
        by = rescale_float32(product / output.scale)
    else:
        by = rescale(factor(input.scale, weight.scale, output.scale, scales))
    return LinearPlan(input=input, weight=weight, output=output, rescale=by)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FullyConnected:
    """A fully connected layer in one of the modes.

    Attributes:
      plan: formats and factor.
      weight: [d_in, d_out].
      bias: [d_out] in the scale of the product, the input's zero point folded in.
      relu: whether negative outputs become 0.

    Example:
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> f = symmetric_format(127.0)
      >>> fully_connected_layer(jnp.eye(2), jnp.ones(2), linear_plan(f, f, f), "integer").weight.dtype
      dtype('int8')
    """

    plan: LinearPlan
    weight: Value
    bias: Value
    relu: bool = dataclasses.field(default=False, metadata=dict(static=True))


def weight_and_bias(kernel: Array, bias: Array | None, plan: LinearPlan, mode: Mode) -> tuple[Value, Value]:
    """A kernel and a bias as a mode holds them, the bias with the input's zero point folded in."""
    weight = quantise(kernel, plan.weight, mode)
    sums = Format(scale=jnp.asarray(plan.input.scale * plan.weight.scale), low=SUM_LOW, high=SUM_HIGH)
    bias = jnp.zeros(kernel.shape[-1:], jnp.float32) if bias is None else bias
    return weight, products.fold(quantise(bias, sums, mode), weight, plan.input)


def fully_connected_layer(
    kernel: Float[Array, "d_in d_out"],
    bias: Float[Array, "d_out"] | None,
    plan: LinearPlan,
    mode: Mode,
    *,
    relu: bool = False,
) -> FullyConnected:
    """A layer from float weights; in the emulation mode gradients reach them.

    Args:
      kernel: float weights.
      bias: float bias, or None.
      plan: formats and factor.
      mode: "float", "emulation" or "integer".
      relu: whether negative outputs become 0.

    Returns:
      FullyConnected.

    Example:
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> f = symmetric_format(127.0)
      >>> fully_connected_layer(jnp.eye(2), None, linear_plan(f, f, f), "integer").bias.tolist()
      [0, 0]
    """
    weight, folded = weight_and_bias(kernel, bias, plan, mode)
    return FullyConnected(plan=plan, weight=weight, bias=folded, relu=relu)


def fully_connected(x: Value, p: FullyConnected, accelerator: Accelerator) -> Value:
    """y = x W + b, requantised by the accelerator's `requantise` arithmetic and clamped.

    Args:
      x: [*batch, d_in] in the plan's input format.
      p: the layer, of the same mode.
      accelerator: whose arithmetic.

    Returns:
      [*batch, d_out] in the plan's output format.

    Example:
      >>> from zojax.accelerator import TFLITE
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> f = symmetric_format(127.0)
      >>> layer = fully_connected_layer(2 * jnp.eye(2), jnp.ones(2), linear_plan(f, f, f), "integer")
      >>> fully_connected(jnp.int8([10, 100]), layer, TFLITE).tolist()
      [21, 127]
    """
    total = products.matmul(x, p.weight, p.bias, accelerator)
    y = primitives.requantise(total, p.plan.rescale, p.plan.output, accelerator.requantise)
    y = primitives.to_format(y, p.plan.output)
    return primitives.relu(y, p.plan.output) if p.relu else y
