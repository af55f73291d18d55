"""The calibration pass: what enters each layer, and the gradient of its weights, for one task at a time."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from zojax import ops
from zojax._observed import observed
from zojax.importance._collect import Grams, Leaves, Nudged, Products
from zojax.importance.scores import Importance, task_score

__all__ = ["Statistics", "calibrate", "importance_scores"]

Params = Any
Loss = Callable[[Params, Params, Any], Float[Array, ""]]
"""(trainable, frozen, batch) -> loss of one task."""

Gradient = Literal["outputs", "backward"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """What calibration knows of one leaf [*lead, m, n].

    Attributes:
      gram: float32 [*lead, b, s, s], the mean of x x' over the inputs of the leaf's products, in blocks.
      gradient: float32 [*lead, m, n], an estimate of the loss's gradient.

    Example:
      >>> found = Statistics(gram=np.ones((1, 2, 2), np.float32), gradient=np.ones((2, 3), np.float32))
      >>> found.gradient.shape
      (2, 3)
    """

    gram: np.ndarray
    gradient: np.ndarray


def calibrate(
    loss: Loss,
    trainable: Params,
    frozen: Params,
    batches: Iterable[Any],
    where: Sequence[str],
    *,
    key: Key[Array, ""],
    gradient: Gradient = "outputs",
    num_probes: int = 4,
    eps: float = 1e-3,
    block: int = 2048,
    tokens: Callable[[Any], Array] | None = None,
) -> Params:
    """Observes the inputs of some layers and estimates the gradients of their weights.

    "outputs": no backward pass. With signs u beside the outputs y = x W of one leaf, all its slices at once,

        c = [f(y + eps u) - f(y - eps u)] / (2 eps),    G = mean over probes of c X' U,

    an unbiased estimate of the gradient X' (df/dY) up to O(eps^2): for L leaves 2 L + 1 forwards a probe. One leaf at
    a time, so that where the loss does not depend on a leaf its estimate is 0 and not the others' noise. "backward":
    one pass of back-propagation a batch.

    Args:
      loss: (trainable, frozen, batch) -> the task's loss; called under `jit`.
      trainable: weights; those that are observed enter the loss through `ops.dot` alone, once a forward.
      frozen: the other weights.
      batches: calibration batches; each shape compiles once.
      where: patterns of the leaves to observe, searched in the paths of trainable.
      key: typed key of the probes.
      gradient: "outputs" or "backward".
      num_probes: a batch, for "outputs".
      eps: size of a probe in units of the outputs.
      block: see `Importance`.
      tokens: batch -> bool, which of the inputs count, of the shape of the layers' inputs without their last axis;
        None: all of them. Padding would only add noise.

    Returns:
      Tree of `Statistics`, None for other leaves.

    Raises:
      ValueError: if an argument is out of its range, a pattern matches no leaf, there are no batches, or a leaf that is
        observed enters no product, another product than `ops.dot`, or (for "outputs") more than one.

    Example:
      >>> params = {"w": jnp.ones((2, 3))}
      >>> loss = lambda trainable, frozen, x: jnp.mean(ops.dot(x, trainable["w"]))
      >>> batches = [jnp.array([[1.0, 0.0], [0.0, 1.0]])]
      >>> found = calibrate(loss, params, {"w": None}, batches, ("w",), key=jax.random.key(0), gradient="backward")
      >>> found["w"].gram.tolist(), found["w"].gradient.shape
      ([[[0.5, 0.0], [0.0, 0.5]]], (2, 3))

    References:
      MaZO, arXiv 2502.11513, for H by rows in proportion to X X' and a gradient without back-propagation; how the
      outputs are probed is ours.
    """
    if gradient not in ("outputs", "backward"):
        raise ValueError(f'gradient: {gradient!r}; "outputs" or "backward" is needed')
    if num_probes < 1 or not 0 < eps < math.inf:
        raise ValueError(f"num_probes: {num_probes} and eps: {eps}; at least 1 and a positive number are needed")
    leaves = Leaves(trainable, where)
    grams, products = Grams(leaves, block), Products(leaves)
    places = {i: place for place, i in enumerate(leaves.paths)}

    def lengths(batch: Any, w: Any) -> Any:
        if tokens is None:
            return None
        mask = jnp.asarray(tokens(batch), jnp.float32)
        return jnp.broadcast_to(mask, (*w.shape[:-2], *mask.shape))

    @jax.jit
    def observe(params: Params, frozen: Params, batch: Any) -> None:
        watched = leaves.replace(params, lambda w, i: observed(w, i, grams, {"counts": lengths(batch, w)}))
        loss(watched, frozen, batch)

    @jax.jit
    def probe(params: Params, frozen: Params, batch: Any, probe_key: Array) -> None:
        def value(scales: Array) -> Array:
            def nudged(w: Any, i: int) -> Any:
                scale = jnp.broadcast_to(scales[places[i]], w.shape[:-2])
                return Nudged(base=w, key=leaves.keys(w, i, probe_key), scale=scale)

            return loss(leaves.replace(params, nudged), frozen, batch)

        alone = eps * jnp.eye(len(places), dtype=jnp.float32)
        values = jax.lax.map(value, jnp.concatenate([alone, -alone])).reshape(2, -1)
        differences = (values[0] - values[1]) / (2 * eps)

        def reporting(w: Any, i: int) -> Any:
            extra = {
                "counts": lengths(batch, w),
                "key": leaves.keys(w, i, probe_key),
                "weight": jnp.broadcast_to(differences[places[i]], w.shape[:-2]),
            }
            return observed(w, i, products, extra)

        loss(leaves.replace(params, reporting), frozen, batch)

    backward = jax.jit(jax.grad(loss))
    count, total = 0, None
    for count, batch in enumerate(batches, start=1):
        observe(trainable, frozen, batch)
        if gradient == "backward":
            found = backward(trainable, frozen, batch)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        else:
            for i in range(num_probes):
                probe(trainable, frozen, batch, jax.random.fold_in(jax.random.fold_in(key, count), i))
        # In turn, so that sums are taken in one order.
        jax.effects_barrier()
    if not count:
        raise ValueError("batches: none; at least one is needed")
    if total is None:
        gradients = products.means(count * num_probes)
    else:
        gradients = {i: np.asarray(g, np.float32) / np.float32(count) for i, g in leaves.chosen(total)}
    means = grams.means()
    return leaves.unflatten({i: Statistics(gram=means[i], gradient=g) for i, g in gradients.items()})


def importance_scores(
    losses: Sequence[Loss],
    trainable: Params,
    frozen: Params,
    batches: Sequence[Iterable[Any]],
    where: Sequence[str],
    options: Importance | None = None,
    *,
    key: Key[Array, ""],
    **calibration: Any,
) -> Params:
    """The scores of MaZO: those of each task, row by row of unit sum, summed over the tasks.

    Host memory: for one task at a time m min(m, block) numbers a matrix for its inputs, beside gradient and sum.

    Args:
      losses: one a task, see `calibrate`.
      trainable: the weights.
      frozen: the other weights.
      batches: calibration batches, one sequence a task.
      where: patterns of the leaves to score.
      options: how scores are made; None: `Importance()`.
      key: typed key; each task folds in its number.
      **calibration: arguments of `calibrate`: gradient, num_probes, eps, tokens.

    Returns:
      Tree of scores [*lead, m, n], None for other leaves: what `score_masks` takes.

    Raises:
      ValueError: as `calibrate`, or if there is not one sequence of batches a task.

    Example:
      >>> from zojax.importance import score_masks
      >>> params = {"w": jnp.ones((4, 2))}
      >>> tasks = [lambda p, frozen, x, i=i: jnp.mean(ops.dot(x, p["w"])[:, i] ** 2) for i in range(2)]
      >>> x = jnp.eye(4) * jnp.array([3.0, 1.0, 2.0, 0.0])
      >>> scores = importance_scores(tasks, params, {"w": None}, [[x], [x]], ("w",), key=jax.random.key(0),
      ...                            gradient="backward")
      >>> score_masks(scores, params, keep=0.5)["w"].tolist()  # bits 0 and 2: the first and the third input
      [[5, 5]]

    References:
      MaZO, arXiv 2502.11513.
    """
    options = options or Importance()
    if not losses or len(losses) != len(batches):
        raise ValueError(f"batches: {len(batches)} sequences for {len(losses)} losses; one for each task is needed")
    total: dict[int, np.ndarray] = {}
    leaves = Leaves(trainable, where)
    score = jax.jit(functools.partial(_score_slices, options))
    for number, (loss, own) in enumerate(zip(losses, batches, strict=True)):
        task_key = jax.random.fold_in(key, number)
        found = calibrate(loss, trainable, frozen, own, where, key=task_key, block=options.block, **calibration)
        weights = dict(leaves.chosen(trainable))
        for i, statistics in leaves.chosen(found):
            value = np.asarray(score(statistics.gradient, statistics.gram, ops.value(weights[i])))
            total[i] = total[i] + value if i in total else value
    return leaves.unflatten(total)


def _score_slices(options: Importance, gradient: Array, gram: Array, weights: Array) -> Array:
    """`task_score` of a leaf [*lead, m, n], one matrix after the other."""
    lead = len(gradient.shape[:-2])
    slices = tuple(x.reshape(-1, *x.shape[lead:]) for x in (gradient, gram, weights))
    scores = jax.lax.map(lambda matrix: task_score(matrix[0], matrix[1], matrix[2], options), slices)
    return scores.reshape(gradient.shape)
