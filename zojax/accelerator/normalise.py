"""Layer normalisation and squeeze-and-excitation in integers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from zojax.accelerator import _wide, nonlinear, primitives
from zojax.accelerator._wide import i32, u32
from zojax.accelerator.device import Accelerator
from zojax.accelerator.emulate import Emulated, Format, Mode, Value, emulated, quantise, value_of
from zojax.accelerator.fixed_point import Rescale, rdpot, requantise, rescale
from zojax.accelerator.linear import SUM_HIGH, SUM_LOW, FullyConnected, fully_connected
from zojax.accelerator.transfers import lacks, leave

__all__ = [
    "LayerNorm",
    "LayerNormPlan",
    "SqueezeExcite",
    "layer_norm",
    "layer_norm_layer",
    "layer_norm_plan",
    "squeeze_excite",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNormPlan:
    """The formats of a layer normalisation.

    Attributes:
      input: format of what is normalised, at most 16 bits; its scale cancels, but for the guard.
      gain: 16-bit format of the gain, without zero point.
      output: format of the result.
      rescale: s_gain / s_output.
      guard: variance, in squares of codes, that stands for one below 1; int32.
      epsilon: added to the variance in the float mode, and where the operator runs outside.

    Example:
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> f = symmetric_format(1.0, 16)
      >>> int(layer_norm_plan(f, f, f).guard)
      1
    """

    input: Format
    gain: Format
    output: Format
    rescale: Rescale
    guard: Int32[Array, "..."]
    epsilon: float = dataclasses.field(default=1e-6, metadata=dict(static=True))


def layer_norm_plan(
    input: Format, gain: Format, output: Format, *, guard: int = 1, epsilon: float = 1e-6
) -> LayerNormPlan:
    """The plan of a layer normalisation, made on the host.

    Args:
      input: format of what is normalised.
      gain: format of the gain; scales broadcast against it.
      output: format of the result.
      guard: variance, in squares of codes, that stands for one below 1.
      epsilon: of the float mode.

    Returns:
      LayerNormPlan.

    Raises:
      ValueError: as `rescale`.

    Example:
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> f = symmetric_format(1.0, 16)
      >>> layer_norm_plan(f, f, f).rescale.multiplier.tolist() == 2**30
      True
    """
    by = np.asarray(jax.device_get(gain.scale), np.float64) / np.asarray(jax.device_get(output.scale), np.float64)
    return LayerNormPlan(
        input=input, gain=gain, output=output, rescale=rescale(by), guard=jnp.int32(guard), epsilon=epsilon
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """A layer normalisation in one of the modes.

    Attributes:
      plan: formats and factor.
      gain: [..., n].
      bias: [..., n], with the scale of the gain times 2^-10.

    Example:
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> f = symmetric_format(1.0, 16)
      >>> layer_norm_layer(jnp.ones(4), jnp.zeros(4), layer_norm_plan(f, f, f), "integer").gain.tolist()
      [32767, 32767, 32767, 32767]
    """

    plan: LayerNormPlan
    gain: Value
    bias: Value


def layer_norm_layer(
    gain: Float[Array, "*axes n"], bias: Float[Array, "*axes n"], plan: LayerNormPlan, mode: Mode
) -> LayerNorm:
    """A layer normalisation from float parameters; in the emulation mode gradients reach them.

    Args:
      gain: float gain.
      bias: float bias.
      plan: formats and factor.
      mode: "float", "emulation" or "integer".

    Returns:
      LayerNorm.

    Example:
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> f = symmetric_format(1.0, 16)
      >>> layer_norm_layer(jnp.ones(1), jnp.ones(1), layer_norm_plan(f, f, f), "integer").bias.tolist()
      [33553408]
    """
    sums = Format(scale=jnp.asarray(plan.gain.scale * 2.0**-10), low=SUM_LOW, high=SUM_HIGH)
    return LayerNorm(plan=plan, gain=quantise(gain, plan.gain, mode), bias=quantise(bias, sums, mode))


def _moments(x: Array) -> tuple[Array, tuple[Array, Array]]:
    """(1024 mean, 2^20 variance) of int16 codes along the last axis, the second as a 64-bit pair."""
    n = x.shape[-1]
    if n >= 2**16:
        raise ValueError(f"layer_norm: {n} values; fewer than 65,536 are needed for sums in 32 bits")
    total = jnp.sum(x, axis=-1, keepdims=True)
    # trunc(1024 total / n) without 64 bits: the quotient and the rest apart, of one sign.
    whole = jax.lax.div(total, jnp.int32(n))
    mean = whole * 1024 + jax.lax.div((total - whole * n) * 1024, jnp.int32(n))
    squares = x * x
    low = jnp.sum(u32(squares & 0xFFFF), axis=-1, keepdims=True)
    high = jnp.sum(u32(squares >> 16), axis=-1, keepdims=True)
    # 2^20 / n is rounded down, as in the kernels that this follows: exact for powers of two.
    share = jnp.uint32(2**20 // n)
    mean_of_squares = _wide.add(
        _wide.multiply_unsigned(low, share), _wide.shift_left_16(_wide.multiply_unsigned(high, share))
    )
    square_of_mean = _wide.multiply(mean, mean)
    return mean, _wide.add((i32(mean_of_squares[0]), mean_of_squares[1]), _wide.negate(square_of_mean))


def _inverse_deviation(variance: tuple[Array, Array], guard: Array, how: str) -> Rescale:
    """1 / deviation of codes, from 2^20 times their variance."""
    if how == "newton":
        # The variance in whole squares of codes, truncated towards zero: rounded down it is below 1 with it.
        whole = _wide.shift_right(variance, jnp.int32(20))
        return nonlinear.inverse_sqrt(jnp.where(whole < 1, guard, whole))
    # isqrt (ours): 2^(10 + e) times the deviation, e as large as lets the radicand stay below 2^31.
    high, low = variance
    small = (high == 0) & (low <= jnp.uint32(2**31 - 1))
    radicand = jnp.where(small, i32(low), 0)
    room = jnp.where(small, (i32(jax.lax.clz(jnp.maximum(radicand, 1))) - 1) // 2, 0)
    down = jnp.where(small, 0, (33 - i32(jax.lax.clz(u32(high)))) // 2 + 1)
    scaled = jnp.where(small, radicand << (2 * room), _wide.shift_right(variance, jnp.maximum(2 * down, 1)))
    scaled = jnp.where((high < 0) | ((high == 0) & (low < 2**20)), -1, scaled)
    by = nonlinear.reciprocal(jnp.maximum(nonlinear.isqrt(jnp.maximum(scaled, 1)), 1))
    guarded = nonlinear.reciprocal(jnp.maximum(nonlinear.isqrt(guard), 1))
    shift = by.shift + 10 + room - down
    return Rescale(
        multiplier=jnp.where(scaled < 0, guarded.multiplier, by.multiplier),
        shift=jnp.where(scaled < 0, guarded.shift, shift),
    )


def _integers(x: Array, gain: Array, bias: Array, plan: LayerNormPlan, accelerator: Accelerator) -> Array:
    x = i32(x)
    mean, variance = _moments(x)
    inverse = _inverse_deviation(variance, plan.guard, accelerator.normaliser)
    normalised = requantise(1024 * x - mean, inverse, accelerator.recurrent)  # 1024 times the normal deviate
    scaled = rdpot(normalised * i32(gain) + bias, 10)
    y = requantise(scaled, plan.rescale, accelerator.recurrent)
    return plan.output.clip(y + plan.output.zero)


def _floats(x: Array, gain: Array, bias: Array, epsilon: float | Array) -> Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + epsilon) * gain + bias


def layer_norm(x: Value, p: LayerNorm, accelerator: Accelerator) -> Value:
    """(x - mean) / deviation * gain + bias along the last axis.

    Sums in 64 bits, the mean in 1/1024 of a code; 1 / deviation by the accelerator's `normaliser`: "newton" takes the
    variance in whole squares of codes (as TFLite's LSTM), "isqrt" an integer square root of 2^20 times the variance
    and a reciprocal. The gradient is that of the float function at the emulated point.

    Args:
      x: [*batch, n], at most 16 bits.
      p: the layer, of the same mode.
      accelerator: whose arithmetic; it may lack "layer_norm".

    Returns:
      [*batch, n] in the plan's output format.

    Raises:
      ValueError: if n is 65,536 or more.

    Example:
      >>> from zojax.accelerator import TFLITE
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> f = symmetric_format(8.0, 16, power_of_two=True)
      >>> layer = layer_norm_layer(jnp.ones(2), jnp.zeros(2), layer_norm_plan(f, f, f), "integer")
      >>> layer_norm(jnp.int16([100, 300]), layer, TFLITE).tolist()
      [-4096, 4096]
    """
    mode, plan = primitives.mode_of(x), p.plan
    if mode == "float":
        return _floats(x, p.gain, p.bias, plan.epsilon)
    if lacks(accelerator, "layer_norm"):

        def outside(x):
            bias_scale = Format(scale=jnp.asarray(plan.gain.scale * 2.0**-10), low=SUM_LOW, high=SUM_HIGH)
            gain, bias = value_of(p.gain, plan.gain), value_of(p.bias, bias_scale)
            return quantise(_floats(value_of(x, plan.input), gain, bias, plan.epsilon), plan.output, mode)

        return leave("layer_norm", outside, x)
    if not isinstance(x, Emulated):
        return _integers(x, p.gain, p.bias, plan, accelerator)
    codes = _integers(x.codes, p.gain.codes, p.bias.codes, plan, accelerator)
    # The guard keeps the derivative finite where all codes are equal.
    variance = jnp.max(x.scale) ** 2
    smooth = _floats(x.value, p.gain.value, p.bias.value, 2.0**-10 * variance)
    inside = (codes > plan.output.low) & (codes < plan.output.high)
    return emulated(codes, jnp.where(inside, smooth, 0), plan.output.scale, plan.output.zero)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SqueezeExcite:
    """Squeeze-and-excitation over time: y = x * sigmoid(W2 relu(W1 mean(x) + b1) + b2), the mean up to now.

    Attributes:
      squeeze: layer of the mean, in the format of x, with a rectifier.
      excite: layer to gates in Q3.12.

    Example:
      >>> [field.name for field in dataclasses.fields(SqueezeExcite)]
      ['squeeze', 'excite']
    """

    squeeze: FullyConnected
    excite: FullyConnected


def squeeze_excite(
    x: Value, p: SqueezeExcite, accelerator: Accelerator, state: tuple[Value, Array] | None = None
) -> tuple[Value, tuple[Value, Array]]:
    """Channels of each frame scaled by gates that are computed from the mean of all frames so far.

    The sum is kept in int32; the mean is the sum times a reciprocal of the count, requantised.

    Args:
      x: [batch, time, channels] in the format of the squeezing layer's input.
      p: the layers, of the same mode.
      accelerator: whose arithmetic; it may lack "squeeze_excite".
      state: (sum [batch, channels], number of frames) that an earlier call returned; None: the start.

    Returns:
      (y in the format of x, state): chunks of any length give what the whole gives.

    Example:
      >>> from zojax.accelerator import TFLITE
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> from zojax.accelerator.emulate import Q3_12
      >>> from zojax.accelerator.linear import fully_connected_layer, linear_plan
      >>> f = symmetric_format(127.0)
      >>> p = SqueezeExcite(
      ...     squeeze=fully_connected_layer(jnp.eye(1), None, linear_plan(f, f, f), "integer", relu=True),
      ...     excite=fully_connected_layer(jnp.eye(1), None, linear_plan(f, f, Q3_12), "integer"),
      ... )
      >>> squeeze_excite(jnp.int8([[[100], [4]]]), p, TFLITE)[0].tolist()
      [[[100], [4]]]
    """
    if lacks(accelerator, "squeeze_excite"):
        inside = dataclasses.replace(accelerator, lacks=accelerator.lacks - {"squeeze_excite"})
        return leave("squeeze_excite", lambda x: squeeze_excite(x, p, inside, state), x)
    mode, of = primitives.mode_of(x), p.squeeze.plan.input
    before, count = state if state is not None else (_no_sum(x, of, mode), jnp.int32(0))
    counts = count + jnp.arange(1, x.shape[1] + 1, dtype=jnp.int32)[:, None]
    if mode == "float":
        total = before[:, None] + jnp.cumsum(x, axis=1)
        mean = total / counts
    else:
        codes = primitives.codes_of(x)
        total = primitives.codes_of(before)[:, None] + jnp.cumsum(i32(codes) - of.zero, axis=1)
        by = nonlinear.reciprocal(counts)
        mean = of.clip(requantise(total, by, accelerator.requantise) + of.zero)
        if isinstance(x, Emulated):
            total = emulated(total, before.value[:, None] + jnp.cumsum(x.value, axis=1), of.scale)
            mean = emulated(mean, total.value / counts, of.scale, of.zero)
    gate = primitives.sigmoid(
        fully_connected(fully_connected(mean, p.squeeze, accelerator), p.excite, accelerator), accelerator
    )
    y = primitives.gated(x, gate, of)
    # Of a chunk without frames the sum is what it was.
    sums = primitives.concatenate(primitives.rearrange(before, lambda a: a[:, None]), total)
    return y, (primitives.rearrange(sums, lambda a: a[:, -1]), count + x.shape[1])


def _no_sum(x: Value, of: Format, mode: Mode) -> Value:
    shape = (x.shape[0], x.shape[-1])
    if mode == "float":
        return jnp.zeros(shape, jnp.float32)
    zeros = jnp.zeros(shape, jnp.int32)
    return emulated(zeros, jnp.zeros(shape, jnp.float32), of.scale) if mode == "emulation" else zeros
