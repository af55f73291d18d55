"""The pruned transducer loss: a cheap joiner says where the paths run, the full one is evaluated there alone."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from zojax.losses.transducer.cells import check_blank
from zojax.losses.transducer.joined import Joiner, Params, joined_log_probs
from zojax.losses.transducer.lattice import posteriors
from zojax.losses.transducer.loss import PLAIN, TransducerSpec, loss_of_log_probs, penalised

__all__ = ["PrunedLoss", "band_starts", "pruned_scales", "pruned_transducer_loss"]


class PrunedLoss(NamedTuple):
    """What the two joiners cost.

    Attributes:
      simple: loss of the additive joiner over the whole lattice.
      pruned: loss of the full joiner over the bands.
      starts: the least u of each frame's band.
    """

    simple: Float[Array, "batch"]
    pruned: Float[Array, "batch"]
    starts: Int[Array, "batch frames"]


def pruned_transducer_loss(
    joiner: Joiner,
    params: Params,
    encoded: Float[Array, "batch frames d"],
    predicted: Float[Array, "batch symbols e"],
    simple_encoded: Float[Array, "batch frames classes"],
    simple_predicted: Float[Array, "batch symbols classes"],
    labels: Int[Array, "batch labels"],
    frame_lengths: Int[Array, "batch"],
    label_lengths: Int[Array, "batch"],
    *,
    blank: int,
    band: int,
    chunk: int,
    spec: TransducerSpec = PLAIN,
) -> PrunedLoss:
    """The loss of a simple joiner, and that of the full joiner on `band` symbols a frame (arXiv 2206.13236).

        simple: x(t, u, k) = simple_encoded(t, k) + simple_predicted(u, k)

    whose normaliser is a product of matrices. Its posteriors choose the bands, and no gradient goes through the choice.
    With a band of labels + 1 or more the second loss is `fused_transducer_loss`. Train on a weighted sum of the two
    (`pruned_scales`).

    Args:
      joiner: as in `joined_log_probs`; predicted comes as [batch, chunk, band, e].
      params: as in `joined_log_probs`.
      encoded: the encoder's output.
      predicted: the predictor's output after 0, 1, .. U labels.
      simple_encoded: the encoder's output projected to the classes.
      simple_predicted: the predictor's output projected to the classes.
      labels: as in `transducer_loss`.
      frame_lengths: as in `transducer_loss`.
      label_lengths: as in `transducer_loss`.
      blank: as in `transducer_loss`.
      band: symbols a frame, 2 or more. An utterance must not have more than (band - 1) labels a frame: with more, no
        path stays inside and its pruned loss is inf.
      chunk: frames of which logits exist at a time.
      spec: the variant; the simple joiner is no HAT.

    Returns:
      Both losses and the bands.

    Raises:
      ValueError: if blank, band or chunk do not fit.

    Example:
      >>> joiner = lambda w, a, b: jnp.tanh(a + b) @ w
      >>> acoustic, words = jnp.ones((1, 5, 3)), jnp.ones((1, 3, 3))
      >>> lengths = (jnp.array([5]), jnp.array([2]))
      >>> args = (acoustic, words, jnp.zeros((1, 5, 4)), jnp.zeros((1, 3, 4)), jnp.array([[1, 2]]), *lengths)
      >>> loss = pruned_transducer_loss(joiner, jnp.ones((3, 4)), *args, blank=0, band=2, chunk=2)
      >>> bool(loss.pruned[0] > loss.simple[0])  # both joiners are uniform here, and the bands hold fewer paths
      True
    """
    if band < 2:
        raise ValueError(f"band: {band}; 2 symbols a frame are the least that lets a path go up")
    simple = _simple_log_probs(simple_encoded, simple_predicted, labels, blank)
    simple_loss = loss_of_log_probs(*simple, frame_lengths, label_lengths, spec=spec)
    log_blank, log_label = lax.stop_gradient(simple)
    weights = (log_blank, penalised(log_label, frame_lengths, spec))
    by_blank, by_label = posteriors(
        weights, frame_lengths, label_lengths, spec.lattice, implementation=spec.implementation
    )
    band = min(band, predicted.shape[1])
    starts = band_starts(by_blank + by_label, frame_lengths, label_lengths, band=band)
    in_band = joined_log_probs(
        joiner,
        params,
        encoded,
        predicted,
        labels,
        frame_lengths,
        label_lengths,
        blank=blank,
        chunk=chunk,
        hat=spec.hat,
        starts=starts,
        band=band,
    )
    place = jnp.arange(predicted.shape[1]) - starts[..., None]
    inside = (place >= 0) & (place < band)
    index = jnp.clip(place, 0, band - 1)
    log_blank, log_label = (jnp.where(inside, jnp.take_along_axis(x, index, axis=-1), -jnp.inf) for x in in_band)
    pruned_loss = loss_of_log_probs(log_blank, log_label, frame_lengths, label_lengths, spec=spec)
    return PrunedLoss(simple_loss, pruned_loss, starts)


def _simple_log_probs(encoded: Array, predicted: Array, labels: Array, blank: int) -> tuple[Array, Array]:
    """log P(blank), log P(next label) of the sum of the two, normalised at each node."""
    check_blank(blank, encoded.shape[-1])
    dtype = jnp.promote_types(encoded.dtype, jnp.float32)
    encoded, predicted = encoded.astype(dtype), predicted.astype(dtype)
    tops = [lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True)) for x in (encoded, predicted)]
    parts = [jnp.exp(x - top) for x, top in zip((encoded, predicted), tops, strict=True)]
    total = jnp.einsum("btk,buk->btu", *parts, precision=lax.Precision.HIGHEST)
    # Where the two peaks lie so far apart that no product is left, any large norm will do: the node is unlikely.
    norm = jnp.log(jnp.maximum(total, jnp.finfo(dtype).tiny)) + tops[0] + tops[1].transpose(0, 2, 1)
    log_blank = encoded[..., blank, None] + predicted[:, None, :, blank] - norm
    index = jnp.clip(jnp.pad(labels, ((0, 0), (0, 1))), 0, encoded.shape[-1] - 1)
    of_encoded = jnp.take_along_axis(encoded, jnp.broadcast_to(index[:, None], norm.shape), axis=-1)
    of_predicted = jnp.take_along_axis(predicted, index[..., None], axis=-1)[..., 0]
    return log_blank, of_encoded + of_predicted[:, None] - norm


def band_starts(
    through: Float[Array, "batch frames symbols"],
    frame_lengths: Int[Array, "batch"],
    label_lengths: Int[Array, "batch"],
    *,
    band: int,
) -> Int[Array, "batch frames"]:
    """The band of each frame that holds the most probability, mended so that a path can run through all of them.

    The starts begin at 0, never fall, rise by band - 1 at most from frame to frame, and end so that the last band holds
    the last label. (That the greatest share is taken and then mended is the paper's; how it is mended is ours: a
    running minimum from the end, then the least rise that keeps neighbours in reach.)

    Args:
      through: the probability of passing each node.
      frame_lengths: int32 frames of each utterance.
      label_lengths: int32 labels of each utterance.
      band: symbols a frame.

    Returns:
      int32 starts.

    Example:
      >>> through = jnp.eye(4)[None]
      >>> band_starts(through, jnp.array([4]), jnp.array([3]), band=2).tolist()
      [[0, 0, 1, 2]]
    """
    _, frames, symbols = through.shape
    sums = jnp.pad(jnp.cumsum(through, axis=-1), ((0, 0), (0, 0), (1, 0)))
    best = jnp.argmax(sums[..., band:] - sums[..., : symbols + 1 - band], axis=-1).astype(jnp.int32)
    last = jnp.maximum(label_lengths + 1 - band, 0)[:, None].astype(jnp.int32)
    t = jnp.arange(frames, dtype=jnp.int32)
    best = jnp.where(t >= frame_lengths[:, None] - 1, last, jnp.minimum(best, last))
    best = lax.cummin(best, axis=1, reverse=True)
    reach = (band - 1) * t
    best = jnp.minimum(best, reach)
    return lax.cummax(best - reach, axis=1, reverse=True) + reach


def pruned_scales(step: Int[Array, ""] | int, *, warmup: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How much the two losses count: simple 1 -> 0.5 and pruned 0.1 -> 1 over the warm-up, linearly (icefall's recipe).

    Args:
      step: the step.
      warmup: steps of warm-up; the recipes take 2000.

    Returns:
      (scale of the simple loss, scale of the pruned loss).

    Example:
      >>> [round(float(s), 3) for s in pruned_scales(1000, warmup=2000)]
      [0.75, 0.55]
    """
    done = jnp.clip(jnp.asarray(step, jnp.float32) / warmup, 0, 1)
    return 1 - 0.5 * done, 0.1 + 0.9 * done
