"""The transducer loss and its variants, from logits or straight from the joiner."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zojax.losses.transducer.cells import node_log_probs
from zojax.losses.transducer.joined import Joiner, Params, joined_log_probs
from zojax.losses.transducer.latency import expected_emission
from zojax.losses.transducer.lattice import MONOTONIC, STANDARD, Lattice, path_cost

__all__ = ["TransducerSpec", "fused_transducer_loss", "loss_of_log_probs", "transducer_loss"]


@dataclass(frozen=True, kw_only=True)
class TransducerSpec:
    """Which transducer, and what is added to its loss.

    Attributes:
      monotonic: a label takes a frame, as a blank does: one symbol a frame. An utterance with more labels than frames
        then has no path, and a loss of inf.
      hat: blank or not is a decision of its own, before that for a label (hybrid autoregressive transducer, arXiv
        2003.07705).
      delay_penalty: delta: a label at frame t has delta ((T - 1) / 2 - t) added to its log-probability (arXiv
        2211.00490). A true loss.
      expected_latency: weight of the mean expected emission frame of an utterance's labels, added to the loss (see
        `expected_emission`; ours). A true loss.
      fast_emit: lambda: the gradient through label arcs is multiplied by 1 + lambda (FastEmit, arXiv 2010.11148). The
        value stays -ln P: this is the gradient of *no* function (its Jacobian is not symmetric), and `is_true_loss` is
        False.
      implementation: of the recursion: "reference" (a scan), "tpu" or "gpu"; None: the first that supports the
        arguments on the platform that the program is lowered for (see `zojax.kernels.transducer_lattice`).

    Raises:
      ValueError: if a weight is negative.

    Example:
      >>> TransducerSpec(delay_penalty=0.01).is_true_loss, TransducerSpec(fast_emit=0.01).is_true_loss
      (True, False)
    """

    monotonic: bool = False
    hat: bool = False
    delay_penalty: float = 0.0
    expected_latency: float = 0.0
    fast_emit: float = 0.0
    implementation: str | None = None

    def __post_init__(self):
        for name in ("delay_penalty", "expected_latency", "fast_emit"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)}; 0 or more is needed")

    @property
    def is_true_loss(self) -> bool:
        """Whether the gradient is that of the value.

        Zeroth-order estimators see values alone: what changes the gradient and not the value is lost on them.
        """
        return self.fast_emit == 0

    @property
    def lattice(self) -> Lattice:
        """The arcs: blank, label."""
        return MONOTONIC if self.monotonic else STANDARD


PLAIN = TransducerSpec()


def transducer_loss(
    logits: Float[Array, "batch frames symbols classes"],
    labels: Int[Array, "batch labels"],
    frame_lengths: Int[Array, "batch"],
    label_lengths: Int[Array, "batch"],
    *,
    blank: int,
    spec: TransducerSpec = PLAIN,
) -> Float[Array, "batch"]:
    """-ln P(labels | frames) of each utterance, the sum over all alignments (arXiv 1211.3711).

        P = sum over paths of prod of P(blank | t, u) and P(label u + 1 | t, u)

    Exact, with a gradient in closed form: the posteriors of the arcs against the softmax of each node. The softmax is
    never stored; beside the logits and their gradient, memory is a few numbers a node.

    Padding, in frames, labels or whole utterances of 0 frames, may hold anything, NaN included; it costs nothing and
    its gradient is 0. A reference without labels costs the blanks. Logits of -inf are probabilities of 0; where they
    leave no path at all the loss is inf and the gradient 0.

    Args:
      logits: unnormalised, of any float dtype; symbols = labels + 1.
      labels: classes; past label_lengths anything.
      frame_lengths: int32 frames of each utterance, 0 to frames.
      label_lengths: int32 labels of each utterance, 0 to labels.
      blank: index of the blank among the classes; there is no default, for conventions differ.
      spec: the variant.

    Returns:
      float32 [batch] in nats (float64 for float64 logits), not normalised by any length.

    Raises:
      ValueError: if blank is not a class or the number of symbols is not that of labels and one.

    Example:
      >>> lengths = (jnp.array([1]), jnp.array([2]))
      >>> loss = transducer_loss(jnp.zeros((1, 1, 3, 4)), jnp.array([[1, 2]]), *lengths, blank=0)
      >>> round(float(jnp.exp(-loss[0]) * 64), 4)  # one path: label, label, blank, each of 1/4
      1.0
    """
    if logits.shape[2] != labels.shape[1] + 1:
        raise ValueError(f"logits: {logits.shape[2]} symbols with {labels.shape[1]} labels; labels + 1 are needed")
    next_labels = jnp.pad(labels, ((0, 0), (0, 1)))[:, None]
    log_probs = node_log_probs(logits, next_labels, blank=blank, hat=spec.hat)
    return loss_of_log_probs(*log_probs, frame_lengths, label_lengths, spec=spec)


def fused_transducer_loss(
    joiner: Joiner,
    params: Params,
    encoded: Float[Array, "batch frames d"],
    predicted: Float[Array, "batch symbols e"],
    labels: Int[Array, "batch labels"],
    frame_lengths: Int[Array, "batch"],
    label_lengths: Int[Array, "batch"],
    *,
    blank: int,
    chunk: int,
    spec: TransducerSpec = PLAIN,
) -> Float[Array, "batch"]:
    """`transducer_loss` of the joiner's logits, of which no more than `chunk` frames exist at a time.

    Args:
      joiner: pure function (params, encoded [batch, chunk, 1, d], predicted [batch, 1, symbols, e]) -> logits; see
        `joined_log_probs`.
      params: its parameters, differentiable, or a tree with leaf types such as `Perturbed` for a forward.
      encoded: the encoder's output.
      predicted: the predictor's output after 0, 1, .. U labels.
      labels: as in `transducer_loss`.
      frame_lengths: as in `transducer_loss`.
      label_lengths: as in `transducer_loss`.
      blank: as in `transducer_loss`.
      chunk: frames of which logits exist at a time.
      spec: the variant.

    Returns:
      float32 [batch].

    Raises:
      ValueError: as `joined_log_probs`.

    Example:
      >>> joiner = lambda w, a, b: jnp.tanh(a + b) @ w
      >>> args = (jnp.ones((1, 5, 3)), jnp.ones((1, 2, 3)), jnp.array([[1]]), jnp.array([5]), jnp.array([1]))
      >>> loss = fused_transducer_loss(joiner, jnp.ones((3, 4)), *args, blank=0, chunk=2)
      >>> round(float(jnp.exp(-loss[0]) * 4**6), 3)  # five paths of six symbols
      5.0
    """
    log_probs = joined_log_probs(
        joiner, params, encoded, predicted, labels, frame_lengths, label_lengths, blank=blank, chunk=chunk, hat=spec.hat
    )
    return loss_of_log_probs(*log_probs, frame_lengths, label_lengths, spec=spec)


def loss_of_log_probs(
    log_blank: Float[Array, "batch frames symbols"],
    log_label: Float[Array, "batch frames symbols"],
    frame_lengths: Int[Array, "batch"],
    label_lengths: Int[Array, "batch"],
    *,
    spec: TransducerSpec = PLAIN,
) -> Float[Array, "batch"]:
    """The loss from what `node_log_probs` and `joined_log_probs` return.

    Args:
      log_blank: log-probability of the blank at each node.
      log_label: log-probability of the next label at each node.
      frame_lengths: as in `transducer_loss`.
      label_lengths: as in `transducer_loss`.
      spec: the variant; hat, which concerns the log-probabilities, has no effect here.

    Returns:
      float32 [batch].

    Example:
      >>> half = jnp.log(jnp.full((1, 2, 2), 0.5))
      >>> loss = loss_of_log_probs(half, half, jnp.array([2]), jnp.array([1]), spec=TransducerSpec(monotonic=True))
      >>> round(float(jnp.exp(-loss[0])), 4)  # two paths of two symbols
      0.5
    """
    log_label = penalised(log_label, frame_lengths, spec)
    latency = 0.0
    if spec.expected_latency:
        frames = expected_emission((log_blank, log_label), frame_lengths, label_lengths, spec.lattice)
        latency = spec.expected_latency * frames
    if spec.fast_emit:
        log_label = _scaled_gradient(log_label, 1 + spec.fast_emit)
    weights, how = (log_blank, log_label), spec.implementation
    return path_cost(weights, frame_lengths, label_lengths, spec.lattice, implementation=how) + latency


def penalised(log_label: Array, frame_lengths: Array, spec: TransducerSpec) -> Array:
    """The label arcs with the delay penalty on them."""
    if not spec.delay_penalty:
        return log_label
    middle = (frame_lengths[:, None, None].astype(log_label.dtype) - 1) / 2
    frames = jnp.arange(log_label.shape[1], dtype=log_label.dtype)[:, None]
    return log_label + spec.delay_penalty * (middle - frames)


@jax.custom_vjp
def _scaled_gradient(x, factor):
    return x


_scaled_gradient.defvjp(lambda x, factor: (x, factor), lambda factor, cotangent: (factor * cotangent, None))
