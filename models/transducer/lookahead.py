"""Look-ahead that is chosen frame by frame: masks, the exact latency, and what training pays for it.

A frame i of a layer has a span r_i in [0, R], a real number; it sees the frames up to i + floor(r_i). Spans are arrays
[b, layers, t], as the encoder `ancat` makes them, and latencies are counted in the encoder's frames.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["LATENCIES", "TEMPERATURES", "LookAheadLoss", "compute", "openness", "waits_for"]

Spans = Float[Array, "b layers t"]
Lengths = Int[Array, " b"]

TEMPERATURES = (2.0, 0.2)
"""Of the soft masks at the first step and after the warm-up, in frames."""


def openness(span: Float[Array, "*#b"], ahead: Int[Array, "*#b"] | int, temperature: Any) -> Float[Array, "*b"]:
    """Logarithm of the soft mask: how much a frame sees of one that is `ahead` of it.

        ln m = ln sigmoid((r - ahead) / temperature) for ahead > 0, else 0

    Its limit at temperature 0 is the hard mask, ahead <= floor(r).

    Args:
      span: r.
      ahead: frames from the one that looks.
      temperature: in frames, positive.

    Returns:
      ln m.

    Example:
      >>> openness(jnp.array([0.5, 2.0]), 2, 0.5).round(2).tolist(), float(openness(jnp.zeros(()), 0, 1.0))
      ([-3.049..., -0.689...], 0.0)
    """
    return jnp.where(jnp.asarray(ahead) > 0, jax.nn.log_sigmoid((span - ahead) / temperature), 0)


def waits_for(spans: Spans, lengths: Lengths) -> Int[Array, "b t"]:
    """The last input frame that each output frame waits for: the exact algorithmic latency, plus the frame itself.

        t(0, i) = i,    t(l, i) = max over k <= i and j <= k + floor(r_k^l) of t(l - 1, j)

    Frames leave a layer in order, so that one waits for those before it, too. That adds nothing to what frames wait for
    that leave the last layer in order: t(L, .) is the running maximum of the reach of each frame by itself. What is
    behind the end of an utterance is not waited for.

    Args:
      spans: of each layer, the first layer first.
      lengths: frames of each utterance.

    Returns:
      t(L, i), at most lengths - 1; behind an utterance's end anything.

    Example:
      >>> waits_for(jnp.array([[[0.0, 2.5, 0.0, 0.0], [1.0, 0.0, 0.9, 1.0]]]), jnp.array([4])).tolist()
      [[3, 3, 3, 3]]
    """
    last = jnp.maximum(lengths - 1, 0)[:, None]
    frames = jnp.arange(spans.shape[-1])
    at = jnp.minimum(frames, last)
    for layer in range(spans.shape[1]):
        reach = jnp.minimum(frames + jnp.floor(spans[:, layer]).astype(jnp.int32), last)
        at = jnp.take_along_axis(at, jax.lax.cummax(reach, axis=1), axis=1)
    return at


def _additive(spans: Spans, lengths: Lengths, reach: int, temperature: Any) -> Float[Array, "b t"]:
    """Sum of the spans of all layers: of spans that are equal, the latency."""
    del lengths, reach, temperature
    return jnp.sum(spans, axis=1)


def _path(spans: Spans, lengths: Lengths, reach: int, temperature: Any) -> Float[Array, "b t"]:
    """Expected reach, where the soft mask is the probability that a frame sees so far, of each frame by itself.

    E(l, i) = sum over k of (m_k - m_{k+1}) E(l - 1, i + k),    m_0 = 1, m_{R+1} = 0
    """
    frames = jnp.arange(spans.shape[-1])

    def expected(seen, masks, below):
        share = masks - jnp.concatenate([masks[1:], jnp.zeros_like(masks[:1])])
        del seen
        return jnp.sum(share * below, axis=0)

    return _walk(spans, lengths, reach, temperature, expected) - frames


def _smooth(spans: Spans, lengths: Lengths, reach: int, temperature: Any) -> Float[Array, "b t"]:
    """A smooth maximum in place of that of `waits_for`, the running one included.

    S(l, i) = ln(sum over k <= i and j of m_{k, j} exp(beta S(l - 1, j))) / beta,    beta = temperature^(-1/2)

    So the maximum becomes hard as the masks do; were beta 1 / temperature, frames that are hardly seen would decide.
    """
    beta = temperature**-0.5

    def maximum(logs, masks, below):
        del masks
        now = jax.nn.logsumexp(logs + beta * below, axis=0)
        return jax.lax.cumlogsumexp(now, axis=1) / beta

    return _walk(spans, lengths, reach, temperature, maximum) - jnp.arange(spans.shape[-1])


def _walk(spans, lengths, reach, temperature, combine) -> Float[Array, "b t"]:
    """From layer to layer: combine(ln m, m, values below), all [reach + 1, b, t], first those of the frame itself."""
    frames, ahead = jnp.arange(spans.shape[-1]), jnp.arange(reach + 1)[:, None, None]
    last = jnp.maximum(lengths - 1, 0)[:, None]
    ends = jnp.clip(frames + ahead, 0, last[None])  # [reach + 1, b, t]
    at = jnp.broadcast_to(jnp.minimum(frames, last).astype(spans.dtype), (spans.shape[0], spans.shape[-1]))
    for layer in range(spans.shape[1]):
        logs = openness(spans[:, layer], ahead, temperature)
        below = jnp.take_along_axis(jnp.broadcast_to(at, ends.shape), ends, axis=2)
        at = combine(logs, jnp.exp(logs), below)
    return at


LATENCIES = {"additive": _additive, "path": _path, "smooth": _smooth}
"""From (spans, lengths, R, temperature) to the latency of each frame, differentiable in the spans."""


def compute(spans: Spans, lengths: Lengths, reach: int, temperature: Any) -> Float[Array, "b t"]:
    """Pairs of frames that attention scores beyond those of causal attention, of all layers, softly counted.

        sum over l and k = 1..R with i + k in the utterance of m_k

    Args:
      spans: of each layer.
      lengths: frames of each utterance.
      reach: R, the largest span.
      temperature: of the soft masks.

    Returns:
      Pairs of each frame.

    Example:
      >>> compute(jnp.full((1, 2, 3), 1.5), jnp.array([3]), 2, 0.01).round(3).tolist()
      [[2.0, 2.0, 0.0]]
    """
    ahead = jnp.arange(1, reach + 1)[:, None, None]
    inside = jnp.arange(spans.shape[-1]) + ahead < lengths[:, None]
    masks = jnp.exp(openness(spans, ahead[..., None], temperature))
    return jnp.sum(jnp.where(inside, jnp.sum(masks, axis=2), 0), axis=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LookAheadLoss:
    """What an utterance pays for looking ahead, beside its nats a label.

        latency * mean over frames of the latency + compute * mean over frames of the pairs

    Ours are the terms and how they begin. Over `warmup` steps the temperature of the soft masks falls from the first of
    `TEMPERATURES` to the last, geometrically; in the middle third of them the two weights grow from 0 to their values.
    With a price from the first step, frames stop looking before they have learned what there is to see, and do not come
    back.

    Attributes:
      kind: of the latency, one of `LATENCIES`: "additive", the spans of all layers; "path", the expected reach;
        "smooth", a smooth maximum over what is reached.
      latency: nats a label that a frame of latency costs.
      compute: nats a label that a pair of frames costs.
      warmup: steps.

    Raises:
      ValueError: if a field is out of range.

    Example:
      >>> price = LookAheadLoss(kind="additive", latency=0.5, warmup=300)
      >>> spans, lengths = jnp.ones((1, 2, 3)), jnp.array([3])
      >>> [price(spans, lengths, 4, step).tolist() for step in (100, 150, None)]
      [[0.0], [0.5], [1.0]]
    """

    kind: str = "path"
    latency: float = 0.0
    compute: float = 0.0
    warmup: int = 0

    def __post_init__(self):
        if self.kind not in LATENCIES:
            raise ValueError(f"LookAheadLoss.kind is {self.kind!r}; it must be one of {', '.join(LATENCIES)}")
        for name in ("latency", "compute", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"LookAheadLoss.{name} is {getattr(self, name)}; it must be 0 or more")

    def temperature(self, step: Any) -> Any:
        """The temperature of the soft masks at a step of training; None: behind the warm-up."""
        first, last = TEMPERATURES
        return first * (last / first) ** self._share(step)

    def __call__(self, spans: Spans, lengths: Lengths, reach: int, step: Any) -> Float[Array, " b"]:
        """What each utterance pays.

        Args:
          spans: of each layer.
          lengths: frames of each utterance.
          reach: R, the largest span.
          step: of training; None: behind the warm-up.

        Returns:
          Nats a label.
        """
        temperature = self.temperature(step)
        real = jnp.arange(spans.shape[-1]) < lengths[:, None]
        price = self.latency * LATENCIES[self.kind](spans, lengths, reach, temperature)
        price = price + self.compute * compute(spans, lengths, reach, temperature)
        mean = jnp.sum(jnp.where(real, price, 0), axis=1) / jnp.maximum(lengths, 1)
        return mean * jnp.clip(3 * self._share(step) - 1, 0, 1)

    def _share(self, step: Any) -> Any:
        """Of the warm-up, in [0, 1]."""
        return 1.0 if step is None or not self.warmup else jnp.minimum(step / self.warmup, 1.0)
