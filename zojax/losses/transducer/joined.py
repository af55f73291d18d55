"""The log-probabilities of a lattice straight from the joiner, a few frames at a time: no B x T x U x V anywhere."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from zojax.losses.transducer.cells import check_blank, log_probs_and_norms, logits_cotangent

__all__ = ["Joiner", "joined_log_probs"]

Params = Any
Joiner = Callable[[Params, Float[Array, "batch chunk 1 d"], Float[Array, "batch #chunk symbols e"]], Array]
"""joiner(params, encoded [batch, chunk, 1, d], predicted [batch, 1 or chunk, symbols, e]) -> logits
[batch, chunk, symbols, classes]: a function of two activations that broadcast against each other."""


def joined_log_probs(
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
    hat: bool = False,
    starts: Int[Array, "batch frames"] | None = None,
    band: int | None = None,
) -> tuple[Float[Array, "batch frames width"], Float[Array, "batch frames width"]]:
    """`node_log_probs` of the joiner's logits, made for `chunk` frames at a time and forgotten.

    Differentiable in params, encoded and predicted. The backward pass makes the logits of a chunk once more, and needs
    memory for one chunk of them and its gradient. Padding, in frames or labels, is set to 0 before the joiner sees it.

    Leaf types in params go through to the joiner. Where they make noise (`Perturbed`), each chunk makes it anew, so
    take larger chunks for a forward alone.

    Args:
      joiner: pure function (params, encoded [batch, chunk, 1, d], predicted [batch, 1 or chunk, symbols, e]) ->
        logits [batch, chunk, symbols, classes]; one object for all calls, or every call compiles.
      params: its parameters, any tree.
      encoded: the encoder's output.
      predicted: the predictor's output after 0, 1, .. U labels.
      labels: classes of the utterances' labels; symbols = labels + 1.
      frame_lengths: int32 frames of each utterance.
      label_lengths: int32 labels of each utterance.
      blank: index of the blank among the classes.
      chunk: frames of which logits exist at a time.
      hat: as in `node_log_probs`.
      starts: with band: the least u of each frame for which logits are made, increasing by up to band - 1.
      band: how many u a frame has, up to symbols; None: all.

    Returns:
      (log P(blank), log P(next label)) at (t, u), or at (t, starts + 0, 1, .. band - 1).

    Raises:
      ValueError: if chunk, band, blank or the number of labels do not fit.

    Example:
      >>> joiner = lambda w, a, b: jnp.tanh(a + b) @ w
      >>> w, a, b = jnp.ones((3, 4)), jnp.ones((1, 5, 3)), jnp.ones((1, 3, 3))
      >>> args = (jnp.array([[1, 2]]), jnp.array([5]), jnp.array([2]))
      >>> lp_blank, lp_label = joined_log_probs(joiner, w, a, b, *args, blank=0, chunk=2)
      >>> lp_blank.shape, round(float(jnp.exp(lp_label[0, 0, 0])), 4)
      ((1, 5, 3), 0.25)
    """
    symbols = predicted.shape[1]
    if labels.shape[1] + 1 != symbols:
        raise ValueError(f"predicted: {symbols} symbols with {labels.shape[1]} labels; one more than labels is needed")
    if chunk < 1:
        raise ValueError(f"chunk: {chunk} frames; at least 1 is needed")
    if (band is None) != (starts is None):
        raise ValueError(f"band, starts: band is {band} and starts {'None' if starts is None else 'given'}; give both")
    if band is not None and not 1 <= band <= symbols:
        raise ValueError(f"band: {band}; 1 to {symbols}, the labels and one, is needed")
    next_labels = jnp.pad(labels, ((0, 0), (0, 1)))
    static = (joiner, blank, hat, min(chunk, encoded.shape[1]), band)
    return _joined(static, params, encoded, predicted, (next_labels, frame_lengths, label_lengths, starts))


def _frames(x: Array, start: Array, chunk: int) -> Array:
    return lax.dynamic_slice_in_dim(x, start, chunk, axis=1)


def _logits(static, params, encoded, predicted, at: Array, integers) -> tuple[Array, Array]:
    """The logits of the frames of a chunk, and the labels of their label arcs."""
    joiner, blank, _, chunk, band = static
    next_labels, frame_lengths, label_lengths, starts = integers
    inside = at + jnp.arange(chunk) < frame_lengths[:, None]
    encoded = jnp.where(inside[..., None], encoded, 0)
    real = jnp.arange(predicted.shape[1]) <= label_lengths[:, None]
    predicted = jnp.where(real[..., None], predicted, 0)[:, None]
    next_labels = next_labels[:, None]
    if band is not None:
        rows = _frames(starts, at, chunk)[..., None] + jnp.arange(band)
        batch = jnp.arange(rows.shape[0])[:, None, None]
        predicted, next_labels = predicted[batch, 0, rows], next_labels[batch, 0, rows]
    logits = joiner(params, encoded[:, :, None], predicted)
    check_blank(blank, logits.shape[-1])
    return logits, next_labels


def _starts(frames: int, chunk: int) -> tuple[Array, Array]:
    """Numbers of chunks and their first frames; the last chunk is moved back to lie inside, and so overlaps."""
    first = jnp.arange(0, frames, chunk)
    return first, jnp.minimum(first, frames - chunk)


def _evaluate(static, params, encoded, predicted, integers):
    """Both log-probabilities and both norms of every node."""
    _, blank, hat, chunk, band = static
    batch, frames, _ = encoded.shape
    width = band or predicted.shape[1]

    def step(found, at):
        logits, labels = _logits(static, params, _frames(encoded, at, chunk), predicted, at, integers)
        pair, norms = log_probs_and_norms(logits, labels, blank, hat)
        new = (*pair, *norms)
        return tuple(lax.dynamic_update_slice_in_dim(f, x, at, axis=1) for f, x in zip(found, new, strict=True)), None

    dtype = jax.eval_shape(
        lambda: log_probs_and_norms(
            *_logits(static, params, encoded[:, :chunk], predicted, jnp.int32(0), integers), blank, hat
        )
    )[0][0].dtype
    empty = (jnp.zeros((batch, frames, width), dtype),) * 4
    found, _ = lax.scan(step, empty, _starts(frames, chunk)[1])
    return found


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _joined(static, params, encoded, predicted, integers):
    return _evaluate(static, params, encoded, predicted, integers)[:2]


def _joined_forward(static, params, encoded, predicted, integers):
    found = _evaluate(static, params, encoded, predicted, integers)
    return found[:2], (params, encoded, predicted, integers, found[2:])


def _joined_backward(static, kept, cotangents):
    _, blank, hat, chunk, _ = static
    params, encoded, predicted, integers, norms = kept
    leaves, tree = jax.tree.flatten(params)
    floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def step(sums, now):
        first, at = now
        of_floats, of_encoded, of_predicted = sums

        def logits_of(values, encoded, predicted):
            whole = list(leaves)
            for i, value in zip(floats, values, strict=True):
                whole[i] = value
            return _logits(static, jax.tree.unflatten(tree, whole), encoded, predicted, at, integers)

        values = [leaves[i] for i in floats]
        logits, pull, labels = jax.vjp(logits_of, values, _frames(encoded, at, chunk), predicted, has_aux=True)
        # A frame that the chunk before has seen has been counted.
        new = (at + jnp.arange(chunk) >= first)[:, None]
        of_blank, of_label = (jnp.where(new, _frames(c, at, chunk), 0) for c in cotangents)
        top, log_sum = (_frames(n, at, chunk) for n in norms)
        gradient = logits_cotangent(logits, labels, (top, log_sum), (of_blank, of_label), blank, hat)
        values, frames, symbols = pull(gradient)
        of_floats = [s + v.astype(s.dtype) for s, v in zip(of_floats, values, strict=True)]
        frames += _frames(of_encoded, at, chunk)
        of_encoded = lax.dynamic_update_slice_in_dim(of_encoded, frames, at, axis=1)
        return (of_floats, of_encoded, of_predicted + symbols.astype(of_predicted.dtype)), None

    def sum_of(x):  # sums over chunks in float32 at least
        return jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))

    sums = ([sum_of(leaves[i]) for i in floats], jnp.zeros_like(encoded), sum_of(predicted))
    (of_floats, of_encoded, of_predicted), _ = lax.scan(step, sums, _starts(encoded.shape[1], chunk))
    gradients: list[Any] = [np.zeros(leaf.shape, jax.dtypes.float0) for leaf in leaves]
    for i, gradient in zip(floats, of_floats, strict=True):
        gradients[i] = gradient.astype(leaves[i].dtype)
    return jax.tree.unflatten(tree, gradients), of_encoded, of_predicted.astype(predicted.dtype), None


_joined.defvjp(_joined_forward, _joined_backward)
