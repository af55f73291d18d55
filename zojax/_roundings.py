"""The joint distribution of two stochastic roundings of one normal, as integers to compare 16 random bits with.

A normal u lies in cell k (k <= u / D < k + 1) with fraction f, and both roundings are k or k + 1, the latter with
probability f. So the first one has probabilities

    P(j) = int_(cell j) (1 - f) phi + int_(cell j - 1) f phi

and the second one is beside the first, one level up or down, or equal to it. To draw codes from these numbers takes
some comparisons of an integer; to make the normal and round it takes five times as long.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int8, UInt32

WHOLE = 2**16  # the drawn integers lie below


class Tables(NamedTuple):
    """Integers out of 2^16; the levels are -n..n.

    Attributes:
      steps: the first rounding is -n + the number of these that are at most the first integer, 2 n of them, rising.
      down: by level of the first rounding: the second is one lower where the second integer is below this,
        and, for the mirrored level, one higher where 2^16 - 1 minus that integer is.
    """

    steps: tuple[int, ...]
    down: tuple[int, ...]

    def first(self, one: UInt32[Array, "*s"]) -> Int8[Array, "*s"]:
        """The first rounding, from its integers."""
        levels = len(self.down) // 2
        return self._by_level(range(-levels, levels + 1), one).astype(jnp.int8)

    def second(self, one: UInt32[Array, "*s"], two: UInt32[Array, "*s"]) -> Int8[Array, "*s"]:
        """The second rounding of the same normals, from both integers."""
        two = two.astype(jnp.int32)
        lower, higher = two < self._by_level(self.down, one), WHOLE - 1 - two < self._by_level(self.down[::-1], one)
        return self.first(one) + higher.astype(jnp.int8) - lower.astype(jnp.int8)

    def _by_level(self, values: Sequence[int], one: Array) -> Array:
        """values[level of the first rounding] without a lookup, which would be slower than these comparisons."""
        reached = [one.astype(jnp.int32) >= step for step in self.steps]
        terms = [jnp.where(r, new - old, 0) for r, (old, new) in zip(reached, itertools.pairwise(values), strict=True)]
        return functools.reduce(jnp.add, terms, jnp.int32(values[0]))

    @property
    def probabilities(self) -> np.ndarray:
        """Of the levels -n..n for the first rounding."""
        return np.diff([0, *self.steps, WHOLE]) / WHOLE

    @property
    def product_moment(self) -> float:
        """E[j_1 j_2] in units of a level squared."""
        level = np.arange(len(self.down)) - len(self.down) // 2
        mean_of_second = level + (np.array(self.down)[::-1] - np.array(self.down)) / WHOLE
        return float(np.sum(self.probabilities * level * mean_of_second))


@functools.cache
def tables(levels: int, step: float) -> Tables:
    """The tables for levels -levels..levels that are `step` apart; what lies beyond the outermost counts to it."""
    # Gauss-Legendre inside each cell, where the integrands are analytic: exact to rounding in float64.
    nodes, weights = np.polynomial.legendre.leggauss(32)
    fraction, weights = (nodes + 1) / 2, weights / 2
    cell = np.arange(-levels, levels)[:, None]
    density = step * np.exp(-0.5 * (step * (cell + fraction)) ** 2) / math.sqrt(2 * math.pi) * weights
    lower, upper = density @ (1 - fraction), density @ fraction  # cell k's share of level k and of level k + 1
    differ = density @ (fraction * (1 - fraction))
    beyond = 0.5 * math.erfc(step * levels / math.sqrt(2))
    mass = np.concatenate([lower, [beyond]]) + np.concatenate([[beyond], upper])
    # Rounded on one side and mirrored: the mean is 0 exactly.
    side = np.round(mass[levels + 1 :] * WHOLE).astype(int)
    counts = [*side[::-1], WHOLE - 2 * side.sum(), *side]
    down = np.round(np.concatenate([[0.0], differ]) / mass * WHOLE).astype(int)
    return Tables(tuple(np.cumsum(counts)[:-1].tolist()), tuple(down.tolist()))
