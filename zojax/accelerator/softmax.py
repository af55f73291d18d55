"""Softmax in integers: differences from the greatest code, exponentials, and a reciprocal of their sum."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from zojax.accelerator import _gemmlowp, nonlinear, primitives
from zojax.accelerator._wide import i32
from zojax.accelerator.device import Accelerator
from zojax.accelerator.emulate import Emulated, Format, Value, emulated, quantise, value_of
from zojax.accelerator.fixed_point import Rescale, rdpot, requantise, rescale, srdhm
from zojax.accelerator.transfers import lacks, leave

__all__ = ["PROBABILITY", "SoftmaxPlan", "softmax", "softmax_plan"]

PROBABILITY = Format(scale=np.array(2.0**-8, np.float32), zero=np.array(-128, np.int32), low=-128, high=127)
"""8 bits for 0 to 255/256: what the softmax gives."""

DIFFERENCE_BITS, SUM_BITS = 5, 12
"""Bits before the point of a difference of scores, and of the sum of exponentials, in gemmlowp's softmax."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxPlan:
    """The constants of a softmax.

    Attributes:
      input: format of the scores, 8 bits.
      beta: what brings a difference of codes to gemmlowp's Q5.26.
      least: differences below it count as minus infinity there.
      table: exp(-i scale) in Q0.15, for accelerators with a table.

    Example:
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> softmax_plan(symmetric_format(127.0)).table[:3].tolist()
      [32767, 12055, 4435]
    """

    input: Format
    beta: Rescale
    least: Int32[Array, ""]
    table: Int32[Array, "256"]


def softmax_plan(input: Format) -> SoftmaxPlan:
    """The plan of a softmax, made on the host.

    Args:
      input: format of the scores, of at most 8 bits and with a scalar scale.

    Returns:
      SoftmaxPlan.

    Raises:
      ValueError: if the format has more than 8 bits, or a scale so small that Q5.26 does not hold a step.

    Example:
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> int(softmax_plan(symmetric_format(12.7)).least)
      -248
    """
    scale = float(jax.device_get(input.scale))
    if input.dtype != jnp.int8:
        raise ValueError(f"input: {input.low} to {input.high}; at most 8 bits are needed")
    factor = min(scale * 2.0 ** (31 - DIFFERENCE_BITS), 2.0**31 - 1)
    if factor < 1:
        raise ValueError(f"input: a scale of {scale}; at least 2^-26 is needed")
    mantissa, exponent = math.frexp(factor)
    # A multiplication by mantissa 2^exponent; the left shift may reach 31, which a Rescale does not take.
    beta = dataclasses.replace(rescale(mantissa), shift=jnp.int32(exponent))
    least = -math.floor((2**DIFFERENCE_BITS - 1) * 2.0 ** (31 - DIFFERENCE_BITS - exponent))
    return SoftmaxPlan(input=input, beta=beta, least=jnp.int32(least), table=nonlinear.exp_table(scale))


def _gemmlowp_softmax(difference: Array, visible: Array, plan: SoftmaxPlan) -> Array:
    """Probabilities times 256 from differences <= 0 of codes."""
    word = _gemmlowp.Word(32)
    visible = visible & (difference >= plan.least)
    safe = jnp.where(visible, difference, 0)
    exponent = srdhm(safe << plan.beta.shift, plan.beta.multiplier)
    exponentials = jnp.where(visible, _gemmlowp.exp_on_negative(word, exponent, DIFFERENCE_BITS), 0)
    total = jnp.sum(rdpot(exponentials, SUM_BITS), axis=-1, keepdims=True)
    inverse, over_unit = _gemmlowp.reciprocal(total, SUM_BITS)
    return rdpot(srdhm(inverse, exponentials), over_unit + 31 - 8)


def _table_softmax(difference: Array, visible: Array, plan: SoftmaxPlan, arithmetic: str) -> Array:
    """The same from a table."""
    exponentials = jnp.where(visible, plan.table[-difference], 0)
    by = nonlinear.reciprocal(jnp.sum(exponentials, axis=-1, keepdims=True))
    return requantise(exponentials, dataclasses.replace(by, shift=by.shift + 8), arithmetic)


def _integers(x: Array, visible: Array, plan: SoftmaxPlan, accelerator: Accelerator) -> Array:
    x = jnp.where(visible, i32(x), plan.input.low)
    difference = x - jnp.max(x, axis=-1, keepdims=True)
    if accelerator.exponential == "gemmlowp":
        y = _gemmlowp_softmax(difference, visible, plan)
    else:
        y = _table_softmax(difference, visible, plan, accelerator.requantise)
    return PROBABILITY.clip(y + PROBABILITY.zero)


def _floats(x: Array, visible: Array) -> Array:
    return jax.nn.softmax(x, axis=-1, where=visible)


def softmax(x: Value, plan: SoftmaxPlan, accelerator: Accelerator, visible: Bool[Array, "..."] | None = None) -> Value:
    """exp(x_i) / sum_j exp(x_j) along the last axis, as 8-bit probabilities.

    With "gemmlowp" exponentials it computes what TFLite's reference kernel does. With a "table" (ours) the exponentials
    are Q0.15 and the quotient is requantised by the accelerator's `requantise` arithmetic.

    Args:
      x: scores [..., n] in the plan's format; n below 4,096 with "gemmlowp", 65,536 with "table".
      plan: constants.
      accelerator: whose arithmetic; it may lack "softmax".
      visible: which scores count, broadcastable; at least one a row. None: all.

    Returns:
      [..., n] in `PROBABILITY`.

    Raises:
      ValueError: if the sum of so many exponentials may overflow.

    Example:
      >>> from zojax.accelerator import TFLITE
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> (softmax(jnp.int8([10, 10, 9]), softmax_plan(symmetric_format(127.0)), TFLITE) + 128).tolist()
      [108, 108, 40]
    """
    limit = 2**SUM_BITS if accelerator.exponential == "gemmlowp" else 2**16
    if x.shape[-1] >= limit:
        raise ValueError(f"softmax: {x.shape[-1]} scores; fewer than {limit} are needed")
    shown = jnp.ones((1,), bool) if visible is None else visible
    mode = primitives.mode_of(x)
    if mode == "float":
        return _floats(x, shown)
    if lacks(accelerator, "softmax"):
        return leave(
            "softmax",
            lambda x: quantise(_floats(value_of(x, plan.input), shown), PROBABILITY, mode),
            x,
        )
    codes = _integers(primitives.codes_of(x), shown, plan, accelerator)
    if not isinstance(x, Emulated):
        return codes
    return emulated(codes, _floats(x.value, shown), PROBABILITY.scale, PROBABILITY.zero)
