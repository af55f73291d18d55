"""From scores to masks: in each row the same number of weights, those of the largest scores."""

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from zojax import ops, random
from zojax.masks import keep_mask
from zojax.trees import path_string

__all__ = ["magnitude_masks", "random_masks", "row_top_k", "score_masks"]

Params = Any


def row_top_k(scores: Float[Array, "*lead m n"], keep: float) -> Bool[Array, "*lead m n"]:
    """In each row (a column here: the inputs of one output) the k = max(1, round(keep m)) largest scores.

    Exactly k; of equal scores the first ones are taken.

    Args:
      scores: of a kernel, or of stacked ones.
      keep: share of a row, in (0, 1].

    Returns:
      True where the weight moves.

    Raises:
      ValueError: if keep is out of range.

    Example:
      >>> row_top_k(jnp.array([[0.3, 5.0], [0.1, 7.0], [0.2, 6.0]]), 0.6).tolist()
      [[True, False], [False, True], [True, True]]
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep: {keep}; a share of a row, in (0, 1], is needed")
    by_row = jnp.swapaxes(scores, -1, -2)
    count = max(1, int(keep * by_row.shape[-1] + 0.5))
    chosen = jax.lax.top_k(by_row, count)[1].reshape(-1, count)
    flat = jnp.zeros((len(chosen), by_row.shape[-1]), bool)
    flat = flat.at[jnp.arange(len(chosen))[:, None], chosen].set(True)
    return jnp.swapaxes(flat.reshape(by_row.shape), -1, -2)


def score_masks(scores: Params, params: Params, *, keep: float, stacked: Sequence[str] = ()) -> Params:
    """The masks of a tree of scores, one bit a weight, for `PerturbSpec.masks`.

    Where all scores of a row are 0 the magnitudes of its weights decide (ours): of LoRA's first factor no gradient is
    known as long as the second is 0.

    Args:
      scores: tree of scores [*lead, m, n], in the structure of params; None: all of the leaf moves.
      params: the weights.
      keep: see `row_top_k`.
      stacked: patterns of the leaves whose first axis the model scans over, as for `PerturbSpec`.

    Returns:
      Tree of packed words (uint32), None where scores have None.

    Raises:
      ValueError: if keep is out of range, or scores, which are named, are not finite.

    Example:
      >>> params = {"w": jnp.array([[1.0], [2.0]])}
      >>> score_masks(params, params, keep=0.5)["w"].tolist()
      [[2]]
    """

    def leaf(path: str, w: Any, score: Any) -> Array | None:
        if score is None:
            return None
        score = jnp.asarray(score)
        if not bool(jnp.all(jnp.isfinite(score))):
            raise ValueError(f"scores: those of {path!r} are not finite")
        silent = jnp.all(score == 0, axis=-2, keepdims=True)
        return _words(path, w, jnp.where(silent, jnp.abs(ops.value(w)), score), keep, stacked)

    return _map(leaf, params, scores)


def magnitude_masks(params: Params, where: Sequence[str], *, keep: float, stacked: Sequence[str] = ()) -> Params:
    """Masks of the weights that are largest in magnitude: a baseline.

    Args:
      params: the weights.
      where: patterns of the leaves to mask; all of the others move.
      keep: see `row_top_k`.
      stacked: as for `score_masks`.

    Returns:
      Tree of packed words, None for other leaves.

    Raises:
      ValueError: if keep is out of range or a pattern matches no leaf.

    Example:
      >>> magnitude_masks({"w": jnp.array([[1.0], [-2.0]])}, ("w",), keep=0.5)["w"].tolist()
      [[2]]
    """
    chosen = matched(params, where)
    return _map(
        lambda path, w, hit: _words(path, w, jnp.abs(ops.value(w)), keep, stacked) if hit else None, params, chosen
    )


def random_masks(
    params: Params, where: Sequence[str], *, keep: float, key: Key[Array, ""], stacked: Sequence[str] = ()
) -> Params:
    """Masks of as many weights a row, drawn at random: a baseline.

    Args:
      params: the weights.
      where: patterns of the leaves to mask.
      keep: see `row_top_k`.
      key: typed key; each leaf folds in the crc32 of its path.
      stacked: as for `score_masks`.

    Returns:
      Tree of packed words, None for other leaves.

    Raises:
      ValueError: if keep is out of range or a pattern matches no leaf.

    Example:
      >>> words = random_masks({"w": jnp.ones((64, 1))}, ("w",), keep=0.25, key=jax.random.key(0))["w"]
      >>> int(jax.lax.population_count(words).sum())
      16
    """

    def leaf(path: str, w: Any, hit: bool) -> Array | None:
        leaf_key = jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode())))
        return _words(path, w, random.uniform(leaf_key, tuple(w.shape)), keep, stacked) if hit else None

    return _map(leaf, params, matched(params, where))


def matched(params: Params, where: Sequence[str]) -> Params:
    """Which leaves a pattern matches, as a tree of bool.

    Raises:
      ValueError: if a pattern matches no leaf, or a leaf is no matrix.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_weight)
    paths = [path_string(path) for path, _ in flat]
    for pattern in where:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(f"where: the pattern {pattern!r} matches no leaf; the leaves are {', '.join(paths)}")
    hits = [any(re.search(pattern, path) for pattern in where) for path in paths]
    for path, (_, w), hit in zip(paths, flat, hits, strict=True):
        if hit and len(w.shape) < 2:
            raise ValueError(f"where: the leaf {path!r} is of shape {tuple(w.shape)}; a mask by rows needs a matrix")
    return treedef.unflatten(hits)


def _words(path: str, w: Any, scores: Array, keep: float, stacked: Sequence[str]) -> Array:
    words = keep_mask(w, row_top_k(scores, keep), stacked=any(re.search(pattern, path) for pattern in stacked))
    assert words is not None
    return words


def _map(function: Callable[..., Any], params: Params, other: Params) -> Params:
    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_weight)
    pairs = zip(flat, treedef.flatten_up_to(other), strict=True)
    return treedef.unflatten([function(path_string(path), w, x) for (path, w), x in pairs])


def is_weight(node: Any) -> bool:
    return hasattr(node, "materialize")
