"""Causal self-attention in integers over a window of past frames, whole or a chunk at a time."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from zojax.accelerator import primitives, products
from zojax.accelerator.device import Accelerator
from zojax.accelerator.emulate import Emulated, Format, Mode, Value, quantise
from zojax.accelerator.fixed_point import Rescale, rescale
from zojax.accelerator.linear import FullyConnected, LinearPlan, fully_connected, fully_connected_layer
from zojax.accelerator.softmax import PROBABILITY, SoftmaxPlan, softmax, softmax_plan
from zojax.accelerator.transfers import lacks, leave

__all__ = [
    "Attention",
    "AttentionPlan",
    "AttentionState",
    "AttentionWeights",
    "attention",
    "attention_layer",
    "attention_plan",
]


class AttentionState(NamedTuple):
    """What attention carries from chunk to chunk.

    Attributes:
      key: [batch, window - 1, heads * d], of the last frames.
      value: the same.
      count: number of frames seen.
    """

    key: Value
    value: Value
    count: Int32[Array, ""]


class AttentionWeights(NamedTuple):
    """The float parameters of attention, each a kernel [d_in, d_out] and a bias [d_out].

    Attributes:
      query: from the input to queries.
      key: to keys.
      value: to values.
      output: from the mixed values.
    """

    query: tuple[Float[Array, "d_in width"], Float[Array, "width"]]
    key: tuple[Float[Array, "d_in width"], Float[Array, "width"]]
    value: tuple[Float[Array, "d_in width_v"], Float[Array, "width_v"]]
    output: tuple[Float[Array, "width_v d_out"], Float[Array, "d_out"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """The formats of attention and the factors between them.

    Attributes:
      query: linear plan to queries, of a format without zero point.
      key: to keys, likewise.
      value: to values, likewise.
      output: linear plan of the mixed values.
      scores: constants of the softmax.
      scores_rescale: s_query s_key / (sqrt(d) s_scores).
      mixed_rescale: s_probability s_value / s_mixed.
      heads: number of heads.
      window: how many frames a frame sees, itself included.

    Example:
      >>> [field.name for field in dataclasses.fields(AttentionPlan)][-2:]
      ['heads', 'window']
    """

    query: LinearPlan
    key: LinearPlan
    value: LinearPlan
    output: LinearPlan
    scores: SoftmaxPlan
    scores_rescale: Rescale
    mixed_rescale: Rescale
    heads: int = dataclasses.field(metadata=dict(static=True))
    window: int = dataclasses.field(metadata=dict(static=True))


def attention_plan(
    query: LinearPlan,
    key: LinearPlan,
    value: LinearPlan,
    output: LinearPlan,
    *,
    scores: Format,
    width: int,
    heads: int,
    window: int,
) -> AttentionPlan:
    """The plan of attention, made on the host; factors in float64.

    Args:
      query: plan to queries.
      key: plan to keys.
      value: plan to values.
      output: plan of the mixed values; its input format is theirs.
      scores: 8-bit format of the scores after the division by sqrt(d).
      width: of all queries together, heads d.
      heads: number of heads; divides the width.
      window: how many frames a frame sees, itself included.

    Returns:
      AttentionPlan.

    Raises:
      ValueError: if a number does not fit, or queries, keys or values have a zero point.

    Example:
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> from zojax.accelerator.linear import linear_plan
      >>> f = symmetric_format(127.0)
      >>> attention_plan(*[linear_plan(f, f, f)] * 4, scores=f, width=2, heads=3, window=2)
      Traceback (most recent call last):
      ...
      ValueError: heads: 3 for a width of 2; a divisor is needed
    """
    if heads < 1 or width % heads:
        raise ValueError(f"heads: {heads} for a width of {width}; a divisor is needed")
    if window < 1:
        raise ValueError(f"window: {window}; at least 1 is needed")
    for name, plan in (("query", query), ("key", key), ("value", value)):
        if zero := int(jax.device_get(plan.output.zero)):
            raise ValueError(f"{name}: a zero point of {zero}; a product of activations takes none")
    s_query, s_key, s_value, s_mixed, s_scores = (
        float(jax.device_get(f.scale)) for f in (query.output, key.output, value.output, output.input, scores)
    )
    return AttentionPlan(
        query=query,
        key=key,
        value=value,
        output=output,
        scores=softmax_plan(scores),
        scores_rescale=rescale(s_query * s_key / (math.sqrt(width // heads) * s_scores)),
        mixed_rescale=rescale(float(np.asarray(PROBABILITY.scale)) * s_value / s_mixed),
        heads=heads,
        window=window,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention with several heads in one of the modes.

    Attributes:
      plan: formats and factors.
      query: layer to queries.
      key: layer to keys.
      value: layer to values.
      output: layer of the mixed values.

    Example:
      >>> [field.name for field in dataclasses.fields(Attention)]
      ['plan', 'query', 'key', 'value', 'output']
    """

    plan: AttentionPlan
    query: FullyConnected
    key: FullyConnected
    value: FullyConnected
    output: FullyConnected


def attention_layer(weights: AttentionWeights, plan: AttentionPlan, mode: Mode) -> Attention:
    """Attention from float weights; in the emulation mode gradients reach them.

    Args:
      weights: float parameters.
      plan: formats and factors.
      mode: "float", "emulation" or "integer".

    Returns:
      Attention.

    Example:
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> from zojax.accelerator.linear import linear_plan
      >>> f = symmetric_format(127.0)
      >>> plan = attention_plan(*[linear_plan(f, f, f)] * 4, scores=f, width=2, heads=1, window=2)
      >>> attention_layer(AttentionWeights(*[(jnp.eye(2), jnp.zeros(2))] * 4), plan, "integer").key.weight.tolist()
      [[1, 0], [0, 1]]
    """
    plans = (plan.query, plan.key, plan.value, plan.output)
    query, key, value, output = (
        fully_connected_layer(kernel, bias, linear, mode) for (kernel, bias), linear in zip(weights, plans, strict=True)
    )
    return Attention(plan=plan, query=query, key=key, value=value, output=output)


def attention(
    x: Value, p: Attention, accelerator: Accelerator, state: AttentionState | None = None
) -> tuple[Value, AttentionState]:
    """softmax(q k / sqrt(d)) v of each head over the frame and those before it in a window.

    Scores are 8-bit, probabilities 8-bit (`softmax`), their products with values in the accumulator, frame by frame in
    the order of time; so a frame's result does not depend on the chunk it came in.

    Args:
      x: [batch, time, d_in] in the format of the three layers' input.
      p: the layers, of the same mode.
      accelerator: whose arithmetic; it may lack "softmax", or "attention" as a whole.
      state: what an earlier call returned; None: the start.

    Returns:
      ([batch, time, d_out] in the output layer's format, state): chunks of any length give what the whole gives.

    Example:
      >>> from zojax.accelerator import TFLITE
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> from zojax.accelerator.linear import linear_plan
      >>> f = symmetric_format(127.0)
      >>> plan = attention_plan(*[linear_plan(f, f, f)] * 4, scores=f, width=1, heads=1, window=2)
      >>> layer = attention_layer(AttentionWeights(*[(jnp.eye(1), jnp.zeros(1))] * 4), plan, "integer")
      >>> attention(jnp.int8([[[0], [60]]]), layer, TFLITE)[0].tolist()
      [[[0], [60]]]
    """
    q, k, v = (fully_connected(x, layer, accelerator) for layer in (p.query, p.key, p.value))
    if state is None:
        nothing, mode = jnp.zeros((x.shape[0], p.plan.window - 1, p.key.weight.shape[-1])), primitives.mode_of(x)
        state = AttentionState(
            key=quantise(nothing, p.plan.key.output, mode),
            value=quantise(nothing, p.plan.value.output, mode),
            count=jnp.int32(0),
        )
    keys, values = primitives.concatenate(state.key, k), primitives.concatenate(state.value, v)
    if lacks(accelerator, "attention"):
        inside = dataclasses.replace(accelerator, lacks=accelerator.lacks - {"attention", "softmax"})
        mixed = leave("attention", lambda q, k, v: _mix(q, k, v, state.count, p, inside), q, keys, values)
    else:
        mixed = _mix(q, keys, values, state.count, p, accelerator)
    time = x.shape[1]
    new = AttentionState(
        key=primitives.rearrange(keys, lambda a: a[:, time:]),
        value=primitives.rearrange(values, lambda a: a[:, time:]),
        count=state.count + time,
    )
    return fully_connected(mixed, p.output, accelerator), new


def _mix(q: Value, keys: Value, values: Value, count: Array, p: Attention, accelerator: Accelerator) -> Value:
    """The mixed values [batch, time, heads * d] in the output layer's input format."""
    time, plan = q.shape[1], p.plan
    window = plan.window
    # Each frame's window on its own, [batch, time, heads, window, d]: tiles of a narrow accumulator then lie alike in
    # every chunk.
    at = jnp.arange(time)[:, None] + jnp.arange(window)

    def windows(a: Array) -> Array:
        a = a[:, at].reshape(a.shape[0], time, window, plan.heads, a.shape[2] // plan.heads)
        return jnp.swapaxes(a, 2, 3)

    queries = primitives.rearrange(q, lambda a: a.reshape(*a.shape[:2], plan.heads, 1, a.shape[2] // plan.heads))
    keys = primitives.rearrange(keys, lambda a: jnp.swapaxes(windows(a), -1, -2))
    values = primitives.rearrange(values, windows)
    scores = products.contract(queries, keys, accelerator)
    if primitives.is_float(scores):
        scores = scores / math.sqrt(queries.shape[-1])
    elif isinstance(scores, Emulated):
        scores = dataclasses.replace(scores, value=scores.value / math.sqrt(queries.shape[-1]))
    of = plan.scores.input
    scores = primitives.requantise(scores, plan.scores_rescale, of, accelerator.requantise)
    scores = primitives.to_format(scores, of)
    # Slot l of frame t holds frame t + l - (window - 1) of the utterance.
    visible = (count + at >= window - 1)[None, :, None, None, :]
    weights = softmax(scores, plan.scores, accelerator, visible)
    mixed = products.contract(weights, values, accelerator, zero=PROBABILITY.zero)
    to = plan.output.input
    mixed = primitives.to_format(primitives.requantise(mixed, plan.mixed_rescale, to, accelerator.requantise), to)
    return primitives.rearrange(mixed, lambda a: a.reshape(*a.shape[:2], a.shape[2] * a.shape[4]))
