"""EGGROLL: populations of low-rank probes, evaluated as one batched forward."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from zojax.directions import LowRank
from zojax.estimators._base import TWO_SIDED, Differences, Eps, Estimator, Probes, finite_differences
from zojax.estimators._subspace import (
    leaf_key,
    leaves_of,
    low_rank_spec,
    rank_of,
    unflatten,
    update_noise,
)
from zojax.factored import outer
from zojax.perturb import PerturbSpec

Params = Any


def eggroll(
    eps: Eps,
    spec: PerturbSpec | None = None,
    *,
    num_samples: int = 16,
    antithetic: bool = True,
    shaping: Literal["scores", "none"] = "scores",
    key: Key[Array, ""],
    probes: Probes = "batch",
) -> Estimator:
    """Evolution strategies along low-rank directions: a population of weights w +- eps E_i, and a step along good ones.

    E = A B^T / sqrt(r) for a matrix, normal in full for a vector. A member's product is
    x w + (eps / sqrt(r)) (x A) B^T, so that under `probes="batch"` the whole population takes part in one product x w,
    and the weights are held once.

    "scores": s_j = (l_j - mean) / deviation over the losses of all members;  c_i = (s_i+ - s_i-) / 2, or s_i where the
    population is not antithetic. The step then depends neither on the loss's scale nor, to first order, on eps.
    "none": c_i = (l_i+ - l_i-) / (2 eps), or q / (q - 1) (l_i - mean) / eps, both unbiased up to O(eps^2).
    g = (1 / q) sum_i c_i E_i

    The directions are new in every step. Up to rank q r = 16 the sum is fused into the update; beyond, it is a matrix
    product for each leaf, of which one leaf's gradient is the result.

    Args:
      eps: as for `spsa` (the method's sigma).
      spec: with direction `LowRank(rank=r)`, rules, stacked leaves; None: rank 1.
      num_samples: q, the number of directions; the population is twice that where it is antithetic.
      antithetic: whether each direction is tried with both signs.
      shaping: "scores" or "none".
      key: typed key of the run.
      probes: "batch": the population in one forward; "pair" and "turn": in the memory of fewer.

    Returns:
      Estimator.

    Raises:
      ValueError: if an argument is out of its range, or the spec's direction is not `LowRank`.

    Example:
      >>> from zojax import ops
      >>> estimator = eggroll(1e-2, num_samples=4, key=jax.random.key(0))
      >>> params = {"w": jnp.ones((8, 4))}
      >>> loss = lambda p: jnp.sum(ops.dot(jnp.eye(8), p["w"]) ** 2)
      >>> g, state = estimator.update(None, estimator.init(params), params, value_fn=loss)
      >>> bool(jnp.sum(g["w"] * params["w"]) > 0)
      True

    References:
      EGGROLL, arXiv 2511.16652. Ours: embeddings move too, scores are taken over the members of a step, and
      "none" subtracts the mean of the others' losses where the population is not antithetic.
    """
    if shaping not in ("scores", "none"):
        raise ValueError(f'shaping: {shaping!r}; "scores" or "none" is needed')
    if not antithetic and num_samples < 2:
        raise ValueError(f"num_samples: {num_samples}; a population that is not antithetic needs at least 2")
    spec = low_rank_spec(spec, "eggroll", rank=1)

    def scores(losses, base, step_eps):
        del base, step_eps
        # Equal losses carry no signal; the floor keeps 0 / 0 out.
        scaled = (losses - jnp.mean(losses)) / jnp.maximum(jnp.std(losses), np.float32(2.0**-126))
        return (scaled[:, 0] - scaled[:, 1]) / 2 if antithetic else scaled[:, 0]

    def differences(losses, base, step_eps):
        if antithetic:
            return TWO_SIDED.projected(losses, base, step_eps)
        q = losses.shape[0]
        if q < 2:
            raise ValueError(f"num_samples: {q}; a population that is not antithetic needs at least 2")
        return (losses[:, 0] - jnp.mean(losses)) / step_eps * (q / (q - 1))

    def rule(params, state, scalars, weights, used):
        del scalars
        return _population_sum(spec, params, state, weights, used), {}

    return finite_differences(
        Differences(
            base=False,
            sides=(1.0, -1.0) if antithetic else (1.0,),
            projected=scores if shaping == "scores" else differences,
        ),
        eps=eps,
        spec=spec,
        num_samples=num_samples,
        key=key,
        probes=probes,
        rule=rule,
    )


def _population_sum(spec: PerturbSpec, params: Params, state: Any, weights: Float[Array, "q"], q: int) -> Params:
    """sum_i weights_i E_i: for a matrix the product of all left factors beside one another and all right ones."""
    step_key = jax.random.fold_in(state.key, state.count)

    def leaves(index) -> list[Any]:
        return leaves_of(spec, params, jax.random.fold_in(step_key, jnp.uint32(index)), state.masks)

    def factors(index) -> list[Any]:
        return [
            w.direction.factors(leaf_key(w), w.full_shape) if isinstance(w.direction, LowRank) else None
            for w in leaves(index)
        ]

    def others(index) -> list[Any]:
        return [None if rank_of(w) else weights[index] * update_noise(w) for w in leaves(index)]

    pairs = jax.vmap(factors)(jnp.arange(q, dtype=jnp.uint32))
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: others(0)))
    rest = lax.fori_loop(0, q, lambda index, total: jax.tree.map(jnp.add, total, others(index)), zeros)

    def product(pair) -> Array:
        left, right = pair
        rank = left.shape[-1]
        left = left * (weights / math.sqrt(rank)).reshape(q, *(1,) * (left.ndim - 1))
        # [q, ..., m, r] -> [..., m, q r]
        left, right = (jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], q * rank) for x in (left, right))
        return outer(left, right)

    return unflatten(params, [z if pair is None else product(pair) for pair, z in zip(pairs, rest, strict=True)])
