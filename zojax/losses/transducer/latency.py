"""When labels are emitted: on average over all alignments, and on the best one."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zojax.losses.transducer.lattice import Lattice, Weights, posteriors

__all__ = ["Alignment", "best_alignment", "emission_frames", "expected_emission"]


class Alignment(NamedTuple):
    """The most probable path.

    Attributes:
      frames: the frame at which each label is emitted; -1 past the labels of an utterance, and where no path exists.
      log_prob: log-weight of the path; -inf where none exists.
    """

    frames: Int[Array, "batch labels"]
    log_prob: Float[Array, "batch"]


def best_alignment(
    weights: Weights,
    frame_lengths: Int[Array, "batch"],
    label_lengths: Int[Array, "batch"],
    lattice: Lattice,
) -> Alignment:
    """The path of greatest weight (forced alignment); of equal ones, that which takes the blank last.

    Args:
      weights: (log P(blank), log P(next label)) [batch, T, U + 1], from `node_log_probs` or `joined_log_probs`.
      frame_lengths: int32 frames of each utterance.
      label_lengths: int32 labels of each utterance.
      lattice: STANDARD, MONOTONIC or another of one blank and one label arc.

    Returns:
      Frames of the labels and log-weight of the path.

    Example:
      >>> from zojax.losses.transducer.lattice import STANDARD
      >>> blank = jnp.log(jnp.full((1, 3, 2), 0.5))
      >>> label = jnp.log(jnp.array([0.1, 0.7, 0.2]))[None, :, None] + jnp.zeros((1, 3, 2))
      >>> best_alignment((blank, label), jnp.array([3]), jnp.array([1]), STANDARD).frames.tolist()
      [[1]]
    """
    blank, label = posteriors(weights, frame_lengths, label_lengths, lattice, "best")
    exists = (blank + label).max((1, 2)) > 0
    log_prob = (jnp.where(blank > 0, weights[0], 0) + jnp.where(label > 0, weights[1], 0)).sum((1, 2))
    at = jnp.round(_moments(label)).astype(jnp.int32)
    frames = jnp.where(_is_label(at, label_lengths) & exists[:, None], at, -1)
    empty = frame_lengths == 0
    return Alignment(frames, jnp.where(exists | empty, log_prob, -jnp.inf))


def emission_frames(
    weights: Weights,
    frame_lengths: Int[Array, "batch"],
    label_lengths: Int[Array, "batch"],
    lattice: Lattice,
) -> Float[Array, "batch labels"]:
    """The expected frame of each label over all alignments.

        E[t_u] = sum_t t P(label u is emitted at t | labels)

    Args:
      weights: as in `best_alignment`.
      frame_lengths: int32 frames of each utterance.
      label_lengths: int32 labels of each utterance.
      lattice: as in `best_alignment`.

    Returns:
      Frames, counted from 0; 0 past the labels of an utterance, and where no path exists.

    Example:
      >>> from zojax.losses.transducer.lattice import STANDARD
      >>> half = jnp.log(jnp.full((1, 3, 2), 0.5))
      >>> round(float(emission_frames((half, half), jnp.array([3]), jnp.array([1]), STANDARD)[0, 0]), 4)
      1.0
    """
    return _moments(posteriors(weights, frame_lengths, label_lengths, lattice)[1])


def expected_emission(
    weights: Weights,
    frame_lengths: Int[Array, "batch"],
    label_lengths: Int[Array, "batch"],
    lattice: Lattice,
) -> Float[Array, "batch"]:
    """The mean of `emission_frames` over an utterance's labels, differentiable in the weights; ours.

    The gradient of an expectation under a path distribution is a covariance. It is had without differentiating through
    the recursion backwards: with weights w + delta t on label arcs, E[sum t] is the derivative of log P in delta, so
    that the gradient of E is the tangent of the posteriors in the direction t.

    Args:
      weights: as in `best_alignment`.
      frame_lengths: int32 frames of each utterance.
      label_lengths: int32 labels of each utterance.
      lattice: as in `best_alignment`.

    Returns:
      Frames; 0 for utterances without labels.

    Example:
      >>> from zojax.losses.transducer.lattice import STANDARD
      >>> half = jnp.log(jnp.full((1, 3, 2), 0.5))
      >>> round(float(expected_emission((half, half), jnp.array([3]), jnp.array([1]), STANDARD)[0]), 4)
      1.0
    """
    return _expected_emission(lattice, weights, frame_lengths, label_lengths)


def _moments(emitted: Array) -> Array:
    """Sum over t of t times what is emitted there, [batch, labels]."""
    return jnp.einsum("t,btu->bu", jnp.arange(emitted.shape[1], dtype=emitted.dtype), emitted[:, :, :-1])


def _is_label(x: Array, label_lengths: Array) -> Array:
    return jnp.arange(x.shape[1]) < label_lengths[:, None]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _expected_emission(lattice, weights, frame_lengths, label_lengths):
    emitted = _differentiable_posteriors(lattice, weights, frame_lengths, label_lengths)[1]
    return _moments(emitted).sum(1) / jnp.maximum(label_lengths, 1)


def _differentiable_posteriors(lattice, weights, frame_lengths, label_lengths):
    return posteriors(weights, frame_lengths, label_lengths, lattice, implementation="reference")


def _forward(lattice, weights, frame_lengths, label_lengths):
    blank, label = weights
    frames = jnp.broadcast_to(jnp.arange(label.shape[1], dtype=label.dtype)[:, None], label.shape)
    found, tangents = jax.jvp(
        lambda w: _differentiable_posteriors(lattice, w, frame_lengths, label_lengths),
        (weights,),
        ((jnp.zeros_like(blank), frames),),
    )
    labels = jnp.maximum(label_lengths, 1)
    return _moments(found[1]).sum(1) / labels, (tangents, labels)


def _backward(lattice, kept, cotangent):
    del lattice
    tangents, labels = kept
    return tuple((cotangent / labels)[:, None, None] * x for x in tangents), None, None


_expected_emission.defvjp(_forward, _backward)
