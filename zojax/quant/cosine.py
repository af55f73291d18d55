"""S8BQAT: centroids of least squared error, a regulariser that pulls weights to them, a compressor that snaps them.

Sub-8-bit quantisation-aware training (arXiv 2206.15408) takes Lloyd-Max centroids from a float baseline, adds a
multi-regional absolute-cosine regulariser and invokes a hard compressor periodically. The formula of the regulariser
and the place of the compressor, behind the optimiser, are this project's own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from zojax.quant.calibration import expand
from zojax.quant.rules import Rule
from zojax.quant.tables import Depth, assign, code_table, depths, flat, grids, magnitude, replaced, with_codes
from zojax.trees import path_string

__all__ = ["Table", "absolute_cosine", "compressed", "hard_compressor", "lloyd_max", "penalty", "tables"]

Params = Any


def lloyd_max(
    x: np.ndarray, levels: int, *, weights: np.ndarray | None = None, iterations: int = 500
) -> Float[np.ndarray, "levels"]:
    """Levels of least squared error for numbers, by Lloyd's iteration, on the host in float64.

        borders b_k = (c_k + c_(k+1)) / 2,    c_k = mean of the numbers between b_(k-1) and b_k

    It starts from quantiles and ends where nothing moves: at a local optimum, which for unimodal densities without
    long plateaus is the global one. A level without numbers stays where it is.

    Args:
      x: any numbers.
      levels: 1 or more.
      weights: of the numbers; None: 1 each.
      iterations: at most.

    Returns:
      Sorted levels.

    Raises:
      ValueError: if there are no numbers, or no levels.

    Example:
      >>> lloyd_max(np.array([0.0, 0.2, 1.0, 1.2]), 2).round(3).tolist()
      [0.1, 1.1]
    """
    values = np.asarray(x, np.float64).ravel()
    if levels < 1 or not values.size:
        raise ValueError(f"levels: {levels} for {values.size} numbers; 1 or more of each are needed")
    order = np.argsort(values, kind="stable")
    values = values[order]
    mass = np.ones_like(values) if weights is None else np.asarray(weights, np.float64).ravel()[order]
    # Sums of all numbers up to each: a mean between two borders is a quotient of two differences.
    counts, sums = (np.concatenate([[0.0], np.cumsum(a)]) for a in (mass, mass * values))
    c = values[np.searchsorted(counts[1:], counts[-1] * (np.arange(levels) + 0.5) / levels).clip(0, values.size - 1)]
    for _ in range(iterations):
        ends = np.searchsorted(values, (c[1:] + c[:-1]) / 2, side="right")
        ends = np.concatenate([[0], ends, [values.size]])
        count, total = np.diff(counts[ends]), np.diff(sums[ends])
        moved = np.where(count > 0, total / np.where(count > 0, count, 1), c)
        done = np.max(np.abs(moved - c)) <= 1e-12 * max(np.max(np.abs(c)), 1e-30)
        c = moved
        if done:
            break
    return np.sort(c)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """The levels of a leaf, which do not change: those of a float baseline.

    Attributes:
      codes: of the grid, sorted, each once, float32.
      scale: of the codes, as a `QArray` has it.

    Example:
      >>> Table(codes=jnp.array([-127.0, 127.0]), scale=jnp.ones((1, 1))).codes.shape
      (2,)
    """

    codes: Any
    scale: Any


def tables(params: Params, rules: Sequence[Rule], allocation: Sequence[Depth]) -> dict[str, Table]:
    """The levels of a tree's leaves; on the host, once. Leaves of 8 bits have none.

    Args:
      params: the float baseline.
      rules: which leaves, and their scales.
      allocation: their bits.

    Returns:
      {path: table}.

    Raises:
      ValueError: as `quantize_tree` and `depths`.

    Example:
      >>> rules = (Rule(pattern="", grid="int8_127"),)
      >>> of = tables({"w": jnp.array([[-1.0], [0.0], [0.5], [1.0]])}, rules, (Depth(pattern="", bits=2),))
      >>> of["w"].codes.tolist()
      [-127.0, 0.0, 64.0, 127.0]
    """
    found, weights = grids(params, rules), flat(params)

    def leaf(path: str, bits: int) -> Table:
        x = np.asarray(jnp.asarray(weights[path], jnp.float32) / magnitude(found[path]))
        codes = np.unique(np.asarray(code_table(lloyd_max(x, 2**bits), found[path])))
        return Table(codes=jnp.asarray(codes, jnp.float32), scale=jnp.array(found[path].scale))

    bits_of = depths(list(found), allocation)
    return {path: leaf(path, bits) for path, bits in bits_of.items() if bits < 8}


def _relative(w: Array, table: Table) -> Array:
    """Weights in units of the codes."""
    return w.astype(jnp.float32) / expand(table.scale, w.shape)


def absolute_cosine(x: Float[Array, "*s"], levels: Float[Array, "n"]) -> Float[Array, "*s"]:
    """0 at each level, 1 half-way between two: |sin(pi (x - c_k) / (c_(k+1) - c_k))|; beyond the ends the distance.

    Args:
      x: weights.
      levels: sorted.

    Returns:
      As x.

    Example:
      >>> absolute_cosine(jnp.array([0.0, 0.5, 1.5, 4.0]), jnp.array([0.0, 1.0, 3.0])).round(3).tolist()
      [0.0, 1.0, 0.7070000171661377, 1.0]
    """
    low = jnp.clip(jnp.searchsorted(levels, x, side="right", method="compare_all") - 1, 0, levels.shape[0] - 2)
    below, above = jnp.take(levels, low), jnp.take(levels, low + 1)
    inside = (x >= levels[0]) & (x <= levels[-1])
    share = jnp.where(inside, (x - below) / (above - below), 0.5)
    beyond = jnp.maximum(levels[0] - x, x - levels[-1])
    return jnp.where(inside, jnp.abs(jnp.sin(jnp.pi * share)), beyond)


def penalty(params: Params, of: Mapping[str, Table]) -> Float[Array, ""]:
    """The regulariser of a tree: the mean of `absolute_cosine` over each leaf's weights, summed over leaves.

    Args:
      params: tree of float arrays.
      of: levels, of `tables`.

    Returns:
      float32 scalar.

    Example:
      >>> table = Table(codes=jnp.array([-127.0, 0.0, 127.0]), scale=jnp.full((1, 1), 1 / 127))
      >>> round(float(penalty({"w": jnp.array([[-1.0], [0.0], [0.25], [1.0]])}, {"w": table})), 3)
      0.177
    """
    weights = flat(params)
    each = [jnp.mean(absolute_cosine(_relative(weights[path], table), table.codes)) for path, table in of.items()]
    return sum(each, start=jnp.float32(0))


def compressed(params: Params, of: Mapping[str, Table], rules: Sequence[Rule]) -> Params:
    """A float tree whose forward has each weight at its nearest level and whose gradient passes straight through.

    Args:
      params: tree of float arrays.
      of: levels, of `tables`; a leaf without any has 8 bits.
      rules: as there.

    Returns:
      The tree with `FakeQuant` leaves where the rules quantise.

    Example:
      >>> rules, params = (Rule(pattern="", grid="int8_127"),), {"w": jnp.array([[-1.0], [0.1], [0.6], [1.0]])}
      >>> table = Table(codes=jnp.array([-127.0, 0.0, 127.0]), scale=jnp.full((1, 1), 1 / 127))
      >>> compressed(params, {"w": table}, rules)["w"].quantized.qvalue[:, 0].tolist()
      [-127, 0, 127, 127]
    """
    weights = flat(params)
    leaves = {}
    for path, grid in grids(params, rules).items():
        w, codes = weights[path].astype(jnp.float32), grid.qvalue
        if path in of:
            codes = jnp.take(of[path].codes, assign(_relative(w, of[path]), of[path].codes))
            grid = dataclasses.replace(grid, scale=of[path].scale)
        leaves[path] = with_codes(w, grid, codes)
    return replaced(params, leaves)


class HardCompressorState(NamedTuple):
    """State of `hard_compressor`: the number of updates."""

    count: Int[Array, ""]


def hard_compressor(of: Mapping[str, Table], *, every: int) -> optax.GradientTransformation:
    """Snaps weights to their levels at each so manieth step: the last of a chain, it replaces the update.

        update' = level nearest to (w + update) - w

    Args:
      of: levels, of `tables`; leaves that are not trained are left out.
      every: steps from one to the next.

    Returns:
      The transformation; its update needs the params.

    Raises:
      ValueError: if `every` is not positive.

    Example:
      >>> table = Table(codes=jnp.array([-127.0, 0.0, 127.0]), scale=jnp.full((1, 1), 1 / 127))
      >>> tx, params = hard_compressor({"w": table}, every=2), {"w": jnp.array([[-1.0], [0.2]])}
      >>> update, state = tx.update({"w": jnp.zeros((2, 1))}, tx.init(params), params)
      >>> tx.update(update, state, params)[0]["w"].tolist()
      [[0.0], [-0.20000000298023224]]
    """
    if every < 1:
        raise ValueError(f"every: {every}; 1 or more is needed")

    def init(params: Params) -> HardCompressorState:
        del params
        return HardCompressorState(count=jnp.int32(0))

    def update(updates: Params, state: Any, params: Params | None = None) -> Any:
        if params is None:
            raise ValueError("params: the compressor needs them")
        count = state.count + 1

        def leaf(path: Any, change: Array, w: Array) -> Array:
            table = of.get(path_string(path))
            if table is None:
                return change
            near = jnp.take(table.codes, assign(_relative(w + change, table), table.codes))
            return jnp.where(count % every == 0, near * expand(table.scale, w.shape) - w, change)

        return jax.tree_util.tree_map_with_path(leaf, updates, params), HardCompressorState(count=count)

    return optax.GradientTransformation(init, update)
