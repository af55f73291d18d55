"""Steps that are trained: quantisation-aware training whose scales are weights (LSQ, arXiv 1902.08153)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from zojax.quant.calibration import expand
from zojax.quant.rules import Rule
from zojax.quant.tables import flat, grids, nested, replaced, with_codes

__all__ = ["initial_steps", "learned_step"]

Params = Any


def initial_steps(params: Params, rules: Sequence[Rule]) -> Params:
    """The steps from which training starts: those of the largest magnitudes.

    (The paper starts from 2 mean|w| / sqrt(Q), which clips; at 8 bits the largest magnitude is the better start, and
    the one whose step 0 is post-training quantisation. Ours.)

    Args:
      params: tree of float arrays.
      rules: which leaves, and how many steps each has.

    Returns:
      A tree of the leaves' paths, of scales.

    Raises:
      ValueError: as `quantize_tree`.

    Example:
      >>> initial_steps({"w": jnp.array([[127.0], [1.0]])}, (Rule(pattern="", grid="int8_127"),))["w"].tolist()
      [[1.0]]
    """
    return nested({path: jnp.array(grid.scale) for path, grid in grids(params, rules).items()})


def learned_step(params: Params, steps: Params, rules: Sequence[Rule]) -> Params:
    """A float tree whose forward is on grids of trained steps and whose gradient reaches weights and steps.

        w^ = d round(clip(w / d, -q, q)),    dw^/dw = 1 inside, 0 outside,
        dw^/dd = round(w / d) - w / d inside, -q or q outside, times 1 / sqrt(weights of the step q)

    Args:
      params: tree of float arrays.
      steps: d, of `initial_steps`.
      rules: as there.

    Returns:
      The tree with `FakeQuant` leaves where the rules quantise.

    Raises:
      ValueError: as `quantize_tree`.

    Example:
      >>> rules, params = (Rule(pattern="", grid="int4"),), {"w": jnp.array([[0.7], [0.24]])}
      >>> learned_step(params, {"w": jnp.array([[0.05]])}, rules)["w"].materialize()[:, 0].round(2).tolist()
      [0.3499999940395355, 0.25]
    """
    weights, given = flat(params), flat(steps)
    leaves = {}
    for path, grid in grids(params, rules).items():
        w = weights[path].astype(jnp.float32)
        top = float(grid.grid.span)
        share = 1 / math.sqrt(w.size / given[path].size * top)
        step = jnp.abs(given[path])  # a step that training has turned around
        slowed = step * share + jax.lax.stop_gradient(step * (1 - share))
        held: Array = jax.lax.stop_gradient(step)
        levels = jnp.clip(w / expand(slowed, w.shape), -top, top)
        codes = jnp.round(jax.lax.stop_gradient(levels))
        rounded = levels + jax.lax.stop_gradient(codes - levels)
        leaf = with_codes(rounded * expand(slowed, w.shape), grid, codes)
        leaves[path] = dataclasses.replace(leaf, quantized=dataclasses.replace(leaf.quantized, scale=held))
    return replaced(params, leaves)
