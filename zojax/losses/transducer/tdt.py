"""The token-and-duration transducer: an arc says how many frames it takes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zojax.losses.transducer.cells import node_log_probs
from zojax.losses.transducer.lattice import Lattice, path_cost

__all__ = ["tdt_loss"]


def tdt_loss(
    logits: Float[Array, "batch frames symbols classes"],
    duration_logits: Float[Array, "batch frames symbols durations"],
    labels: Int[Array, "batch labels"],
    frame_lengths: Int[Array, "batch"],
    label_lengths: Int[Array, "batch"],
    *,
    blank: int,
    durations: Sequence[int],
    sigma: float = 0.0,
) -> Float[Array, "batch"]:
    """-ln P(labels | frames) of a token-and-duration transducer (arXiv 2304.06795).

        P(k, n | t, u) = P(k | t, u) exp(-sigma) P(n | t, u)

    A label takes any of the durations, a blank any but 0, and the last symbol is a blank that ends at T.

    Args:
      logits: of the tokens, blank among them.
      duration_logits: one for each of the durations.
      labels: classes; past label_lengths anything.
      frame_lengths: int32 frames of each utterance.
      label_lengths: int32 labels of each utterance.
      blank: index of the blank among the classes.
      durations: frames, different numbers from 0 on.
      sigma: taken off every token's log-probability, so that longer durations win over more symbols (logit
        under-normalisation).

    Returns:
      float32 [batch] in nats; inf where no durations add up to the frames.

    Raises:
      ValueError: if shapes, durations or blank do not fit.

    Example:
      >>> lengths = (jnp.array([2]), jnp.array([0]))
      >>> args = (jnp.zeros((1, 2, 1, 2)), jnp.zeros((1, 2, 1, 2)), jnp.zeros((1, 0), int))
      >>> loss = tdt_loss(*args, *lengths, blank=0, durations=(1, 2))
      >>> round(float(jnp.exp(-loss[0])), 4)  # one blank of two frames, or two of one: 1/4 + 1/16
      0.3125
    """
    if logits.shape[2] != labels.shape[1] + 1:
        raise ValueError(f"logits: {logits.shape[2]} symbols with {labels.shape[1]} labels; labels + 1 are needed")
    if len(set(durations)) != len(durations) or min(durations, default=-1) < 0 or max(durations) == 0:
        raise ValueError(f"durations: {tuple(durations)}; different numbers from 0 on, one of them above, are needed")
    if duration_logits.shape[-1] != len(durations):
        raise ValueError(f"duration_logits: {duration_logits.shape[-1]} for {len(durations)} durations")
    next_labels = jnp.pad(labels, ((0, 0), (0, 1)))[:, None]
    log_blank, log_label = node_log_probs(logits, next_labels, blank=blank)
    log_duration = jax.nn.log_softmax(duration_logits.astype(log_blank.dtype), axis=-1)
    arcs, weights = [], []
    for index, frames in enumerate(durations):
        for is_label, log_token in ((False, log_blank), (True, log_label)):
            if frames or is_label:
                arcs.append((frames, is_label))
                weights.append(log_token - sigma + log_duration[..., index])
    return path_cost(tuple(weights), frame_lengths, label_lengths, Lattice(arcs=tuple(arcs)))
