"""GQ, the general quantiser: centroids that move by themselves, soft at first and hard in the end, 8 bits to 1.

The paper (arXiv 2210.09188) has softmax annealing over centroids in a mu-law space, a bit depth for each layer, and
ablations of the allocation of bits and of the frequency of quantisation. Its equations are not public: those below, the
start of the centroids and the schedule are this project's own.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zojax.quant.cosine import lloyd_max
from zojax.quant.qarray import QArray
from zojax.quant.rules import Rule
from zojax.quant.tables import (
    Depth,
    assign,
    code_table,
    depths,
    flat,
    grids,
    magnitude,
    nested,
    replaced,
    with_codes,
)

__all__ = [
    "Annealing",
    "allocate",
    "general",
    "initial_centroids",
    "inverse_mu_law",
    "merged_levels",
    "mu_law",
    "sensitivity",
    "soft_assignment",
    "uniform_centroids",
]

Params = Any

MU = 255.0


def mu_law(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """F(x) = sign(x) ln(1 + mu |x|) / ln(1 + mu), mu = 255.

    Args:
      x: in [-1, 1].

    Returns:
      In [-1, 1].

    Example:
      >>> round(float(mu_law(jnp.float32(0.02098))), 3)
      0.333
    """
    return jnp.sign(x) * jnp.log1p(MU * jnp.abs(x)) / math.log1p(MU)


def inverse_mu_law(z: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """F^-1(z) = sign(z) ((1 + mu)^|z| - 1) / mu.

    Args:
      z: in [-1, 1].

    Returns:
      In [-1, 1].

    Example:
      >>> [round(x, 5) for x in inverse_mu_law(jnp.array([-1.0, 0.0, 1 / 3])).tolist()]
      [-1.0, 0.0, 0.02098]
    """
    return jnp.sign(z) * jnp.expm1(jnp.abs(z) * math.log1p(MU)) / MU


def uniform_centroids(bits: int) -> Float[Array, "n"]:
    """Centroids at equal distances of the mu-law space, from -1 to 1; at one bit the magnitude c of -c and c.

    Args:
      bits: 1 to 7.

    Returns:
      [2^bits], or [1].

    Example:
      >>> [round(x, 5) for x in inverse_mu_law(uniform_centroids(2)[2:]).tolist()]
      [0.02098, 1.0]
    """
    return jnp.ones(1) if bits == 1 else jnp.linspace(-1.0, 1.0, 2**bits)


def centroid_values(z: Float[Array, "n"]) -> Float[Array, "m"]:
    """All centroids, sorted; within the grid."""
    z = jnp.sort(jnp.concatenate([-jnp.abs(z), jnp.abs(z)]) if z.shape[0] == 1 else z)
    # The gradient passes, so that a centroid that has left the grid can come back.
    return z + jax.lax.stop_gradient(jnp.clip(z, -1.0, 1.0) - z)


def soft_assignment(
    x: Float[Array, "*s"], z: Float[Array, "n"], sharpness: Float[Array, ""] | float
) -> Float[Array, "*s"]:
    """sum_k A_k z_k,    A_k = softmax_k(-a |x - z_k|): x drawn to its centroids, all the way for a large a.

    Args:
      x: weights in the mu-law space.
      z: centroids.
      sharpness: a times the distance of uniform centroids, so that a number means the same at each depth.

    Returns:
      As x.

    Example:
      >>> z = jnp.array([-1.0, 1.0])
      >>> [round(float(soft_assignment(jnp.float32(0.2), z, a)), 2) for a in (0.0, 4.0, 100.0)]
      [0.0, 0.38, 1.0]
    """
    a = sharpness * (z.shape[0] - 1) / 2
    weights = jax.nn.softmax(-a * jnp.abs(x[..., None] - z), axis=-1)
    return jnp.sum(weights * z, axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annealing:
    """From soft to hard: the sharpness grows geometrically over the first steps, then each weight has one level.

    Attributes:
      steps: soft steps; 0: hard from the beginning.
      start: sharpness at the first step.
      end: sharpness at the last soft step.
      every: in soft steps, quantise at each so manieth step and leave the 8-bit weights as they are at the others.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> [round(float(Annealing(steps=100, start=2.0, end=32.0).sharpness(step)), 2) for step in (0, 50, 100)]
      [2.0, 8.0, 32.0]
    """

    steps: int
    start: float = 2.0
    end: float = 32.0
    every: int = 1

    def __post_init__(self):
        if self.steps < 0 or self.every < 1 or not 0 < self.start <= self.end:
            raise ValueError(
                f"steps, every, start, end: {self.steps}, {self.every}, {self.start}, {self.end}; steps from 0, every "
                "from 1 and 0 < start <= end are needed"
            )

    def sharpness(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """The sharpness at a step."""
        share = jnp.clip(jnp.asarray(step, jnp.float32) / max(self.steps, 1), 0, 1)
        return self.start * jnp.exp(share * math.log(self.end / self.start))

    def phase(self, step: Int[Array, ""]) -> Int[Array, ""]:
        """0: not quantised at this step, 1: soft, 2: hard."""
        return jnp.where(step >= self.steps, 2, (step % self.every == 0).astype(jnp.int32))


def initial_centroids(
    params: Params,
    rules: Sequence[Rule],
    allocation: Sequence[Depth],
    *,
    start: Literal["uniform", "lloyd_max"] = "uniform",
) -> Params:
    """The centroids of a tree's leaves, to be trained beside it; on the host. Leaves of 8 bits have none.

    Args:
      params: tree of float arrays.
      rules: which leaves, and their scales.
      allocation: their bits.
      start: "uniform" in the mu-law space, at one bit the mean magnitude; or "lloyd_max", the levels of least squared
        error for these weights.

    Returns:
      A tree of the leaves' paths, an array of the mu-law space each: [2^bits], or [1] at one bit.

    Raises:
      ValueError: as `quantize_tree` and `depths`.

    Example:
      >>> rules = (Rule(pattern="kernel", grid="int8_127"), Rule(pattern="", grid=None))
      >>> params = {"a": {"kernel": jnp.eye(2)}, "b": jnp.ones(2)}
      >>> jax.tree.map(jnp.shape, initial_centroids(params, rules, (Depth(pattern="", bits=3),)))
      {'a': {'kernel': (8,)}}
    """
    found, weights = grids(params, rules), flat(params)

    def leaf(path: str, bits: int) -> Array:
        x = jnp.asarray(weights[path], jnp.float32) / magnitude(found[path])
        if bits == 1:
            return mu_law(jnp.mean(jnp.abs(x)))[None]
        if start == "uniform":
            return uniform_centroids(bits)
        return mu_law(jnp.asarray(lloyd_max(np.asarray(x), 2**bits), jnp.float32))

    bits_of = depths(list(found), allocation)
    return nested({path: leaf(path, bits) for path, bits in bits_of.items() if bits < 8})


def general(
    params: Params,
    centroids: Params,
    rules: Sequence[Rule],
    *,
    step: Int[Array, ""] | None = None,
    annealing: Annealing | None = None,
) -> Params:
    """A float tree whose forward is quantised by moving centroids and whose gradient reaches weights and centroids.

        x = w / s,    soft: w^ = s F^-1(sum_k A_k z_k),    hard: w^ = s round(F^-1(z_k) g) / g, k the nearest to F(x)

    s is the largest magnitude of a column, without gradient; g is the last code of the grid. In the soft phase the
    gradient is that of the formula, and w^ is rounded to the grid on top of it, as the accelerator holds it. In the
    hard phase it passes straight through to w, and to z_k through the table.

    Args:
      params: tree of float arrays.
      centroids: of `initial_centroids`.
      rules: as there.
      step: of the training, for the annealing; None: hard, what is exported.
      annealing: the schedule; needed with a step.

    Returns:
      The tree with `FakeQuant` leaves where the rules quantise.

    Raises:
      ValueError: as `quantize_tree`.

    Example:
      >>> rules = (Rule(pattern="", grid="int8_127"),)
      >>> params = {"w": jnp.array([[0.9], [-0.1], [0.02], [1.0]])}
      >>> z = initial_centroids(params, rules, (Depth(pattern="", bits=2),))
      >>> general(params, z, rules)["w"].quantized.qvalue[:, 0].tolist()
      [127, -3, 3, 127]
    """
    found, trained, weights = grids(params, rules), flat(centroids), flat(params)
    leaves = {}
    for path, grid in found.items():
        w = weights[path].astype(jnp.float32)
        if path not in trained:
            leaves[path] = with_codes(w, grid, grid.qvalue)
        elif step is None:
            leaves[path] = with_codes(*_hard(w, trained[path], grid))
        else:
            assert annealing is not None
            phases = (_plain, functools.partial(_soft, sharpness=annealing.sharpness(step)), _hard)
            branches = [lambda w, z, of=of, grid=grid: of(w, z, grid)[::2] for of in phases]
            value, codes = jax.lax.switch(annealing.phase(step), branches, w, trained[path])
            leaves[path] = with_codes(value, grid, codes)
    return replaced(params, leaves)


# Each gives (the float whose gradient counts, the leaf's grid, its codes).


def _plain(w: Array, z: Array, grid: QArray) -> tuple[Array, QArray, Array]:
    del z
    return w, grid, grid.qvalue.astype(jnp.int32)


def _soft(w: Array, z: Array, grid: QArray, *, sharpness: Array) -> tuple[Array, QArray, Array]:
    # The softmax holds an array of the weight's size for each centroid: it is made again for the gradient.
    drawn = jax.checkpoint(soft_assignment)(mu_law(w / magnitude(grid)), centroid_values(z), sharpness)
    x = inverse_mu_law(drawn)
    return x * magnitude(grid), grid, code_table(x, grid).astype(jnp.int32)


def _hard(w: Array, z: Array, grid: QArray) -> tuple[Array, QArray, Array]:
    values = centroid_values(z)
    index = assign(mu_law(w / magnitude(grid)), values)
    levels = inverse_mu_law(values)
    moved = levels - jax.lax.stop_gradient(levels)  # 0, with the gradient of the table
    codes = code_table(levels, grid).astype(jnp.int32)
    return w + magnitude(grid) * jnp.take(moved, index), grid, jnp.take(codes, index)


def merged_levels(params: Params, centroids: Params, rules: Sequence[Rule]) -> Int[Array, ""]:
    """How many levels are lost, in all leaves together, because two of a table became one code of the grid.

    Args:
      params: tree of float arrays.
      centroids: of `initial_centroids`.
      rules: as there.

    Returns:
      int32 scalar.

    Example:
      >>> rules, params = (Rule(pattern="", grid="int8_127"),), {"w": jnp.eye(2)}
      >>> int(merged_levels(params, {"w": uniform_centroids(4)}, rules))  # 0.0018 and -0.0018 are both 0
      1
    """
    found = grids(params, rules)
    lost = [
        jnp.sum(jnp.diff(code_table(inverse_mu_law(centroid_values(z)), found[path])) == 0)
        for path, z in flat(centroids).items()
    ]
    return sum(lost, start=jnp.int32(0)).astype(jnp.int32)


def sensitivity(
    value_fn: Callable[[Params], Any], params: Params, rules: Sequence[Rule], *, bits: Sequence[int]
) -> dict[str, dict[int, float]]:
    """By how much the loss rises when one leaf alone has fewer bits: levels of least squared error, nothing trained.

    Args:
      value_fn: the loss of a tree, of `FakeQuant` leaves too; called once and once more for each leaf and depth.
      params: tree of float arrays.
      rules: which leaves.
      bits: the depths to try, below 8.

    Returns:
      {path: {bits: rise over the loss with 8 bits everywhere}}.

    Raises:
      ValueError: as `initial_centroids`.

    Example:
      >>> rules, params = (Rule(pattern="", grid="int8_127"),), {"w": jnp.array([[1.0], [0.4], [-0.9], [-0.1]])}
      >>> value_fn = lambda p: jnp.sum((p["w"].materialize() - params["w"]) ** 2)
      >>> rises = sensitivity(value_fn, params, rules, bits=(1, 2))
      >>> rises["w"][1] > rises["w"][2] > -1e-6
      True
    """
    program, paths = jax.jit(value_fn), list(grids(params, rules))

    def value(centroids: Params) -> float:  # trees of one structure, so that it compiles once
        return float(program(general(params, centroids, rules)))

    base = value({})
    rises: dict[str, dict[int, float]] = {path: {} for path in paths}
    for depth in bits:
        every = flat(initial_centroids(params, rules, (Depth(pattern="", bits=depth),), start="lloyd_max"))
        for path in paths:
            rises[path][depth] = value(nested({path: every[path]})) - base
    return rises


def allocate(
    rises: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], *, average_bits: float
) -> dict[str, int]:
    """A depth for each leaf so that weights have so many bits on average.

    Greedy, from 8 bits everywhere: of all steps down to a depth that was tried, the one that raises the loss least for
    a bit saved, until the average is reached. (The paper has an ablation of the allocation; this search is ours.)

    Args:
      rises: of `sensitivity`.
      sizes: weights of each leaf.
      average_bits: to be reached.

    Returns:
      {path: bits}.

    Raises:
      ValueError: if the depths that were tried do not go so low.

    Example:
      >>> rises = {"a": {4: 0.1, 2: 1.0}, "b": {4: 0.2, 2: 0.3}}
      >>> allocate(rises, {"a": 100, "b": 100}, average_bits=3.0)
      {'a': 4, 'b': 2}
    """
    chosen = dict.fromkeys(rises, 8)
    total = sum(sizes[path] for path in rises)

    def average() -> float:
        return sum(chosen[path] * sizes[path] for path in rises) / total

    while average() > average_bits:
        steps = []
        for path, rise in rises.items():
            now = rise.get(chosen[path], 0.0)
            for depth in rise:
                if depth < chosen[path]:
                    saved = (chosen[path] - depth) * sizes[path]
                    steps.append(((rise[depth] - now) / saved, path, depth))
        if not steps:
            raise ValueError(f"average_bits: {average_bits}; the least that was tried gives {average():.3f}")
        _, path, depth = min(steps)
        chosen[path] = depth
    return chosen
