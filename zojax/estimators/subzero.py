"""SubZero: probes in a random subspace of each matrix, whose orthonormal factors are kept for a while."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from zojax import random
from zojax.estimators._base import TWO_SIDED, Eps, Estimator, Probes, Scalars, bound, finite_differences
from zojax.estimators._subspace import Subspace, leaf_key, low_rank_spec, normal, period_leaves, rank_of
from zojax.perturb import Perturbed, PerturbSpec

Params = Any


class SubzeroState(NamedTuple):
    """State of `subzero`.

    Attributes:
      count: number of steps taken.
      key: the run's key; never changes.
      last: scalars of the last step.
      masks: as in `EstimatorState`.
      factors: (U [..., m, r], V [..., n, r]) of each leaf that is a matrix, in their order.
    """

    count: Int[Array, ""]
    key: Key[Array, ""]
    last: Scalars
    masks: Params
    factors: list[Any]


def subzero(
    eps: Eps,
    spec: PerturbSpec | None = None,
    *,
    every: int = 1000,
    num_samples: int = 1,
    key: Key[Array, ""],
    probes: Probes = "turn",
) -> Estimator:
    """Two-point probes along s U Z V^T, with orthonormal U and V drawn once in `every` steps.

    z_i = s U Z_i V^T for a matrix [m, n], Z_i [r, r] normal, U^T U = V^T V = I, s = sqrt(m n) / r;
    normal in full for a vector.    c_i = [f(w + eps z_i) - f(w - eps z_i)] / (2 eps),    g = (1 / q) sum_i c_i z_i

    Over U and V E[z z^T] = I, so that g is unbiased up to O(eps^2); for given factors it is s^2 times the gradient's
    projection U U^T G V V^T. s makes eps and learning rates mean what they do for other directions (ours).

    The factors stand in the state: (m + n) r float32 numbers a matrix. Made from their keys in every program they would
    cost more than a step: with r = 64 the QR decompositions of a small encoder take as long as its forward.

    Args:
      eps: as for `spsa`.
      spec: with direction `LowRank(rank=r)`, rules, stacked leaves; None: rank 24. A matrix with a side shorter than r
        takes that side.
      every: steps for which the factors are kept, at least 1.
      num_samples: as for `spsa`.
      key: typed key of the run.
      probes: as for `spsa`.

    Returns:
      Estimator.

    Raises:
      ValueError: if an argument is out of its range, or the spec's direction is not `LowRank`.

    Example:
      >>> import jax
      >>> from zojax import ops
      >>> estimator = subzero(1e-2, every=10, key=jax.random.key(0))
      >>> params = {"w": jnp.ones((8, 4))}
      >>> loss = lambda p: jnp.sum(ops.dot(jnp.eye(8), p["w"]) ** 2)
      >>> g, state = estimator.update(None, estimator.init(params), params, value_fn=loss)
      >>> [factor.shape for factor in state.factors[0]]
      [(8, 4), (4, 4)]

    References:
      SubZero, arXiv 2410.08989.
    """
    if every < 1:
        raise ValueError(f"every: {every}; an integer of at least 1 is needed")
    spec = low_rank_spec(spec, "subzero", rank=24)
    options: dict[str, Any] = dict(eps=eps, num_samples=num_samples, key=key, probes=probes)
    plain = finite_differences(TWO_SIDED, spec=spec, **options)

    def factors(params: Params, state: Any, step: Any) -> list[Any]:
        return [_orthonormal(w) for w in period_leaves(spec, params, state, step, every) if rank_of(w)]

    def init_fn(params: Params) -> SubzeroState:
        state: Any = plain.init(params)
        return SubzeroState(*state, factors=factors(params, state, 0))

    def bind(params: Params, state: Any) -> Estimator:
        pairs = iter(state.factors)
        own = [next(pairs) if rank_of(w) else None for w in period_leaves(spec, params, state, 0, every)]
        directions = Subspace(spec=spec, left=_left, own=own, right=[pair and pair[1] for pair in own])

        def rule(params, state, scalars, weights, used):
            del scalars, used
            gradient = directions.gradient(params, directions.sum_left(params, state, weights))
            following = state.count + 1
            changed = lax.cond(following % every == 0, lambda: factors(params, state, following), lambda: state.factors)
            return gradient, {"factors": changed}

        return finite_differences(TWO_SIDED, spec=directions, rule=rule, **options)

    return bound(init_fn, bind)


def _orthonormal(w: Perturbed) -> tuple[Array, Array]:
    """U and V: the Q of two normal matrices."""
    rank = min(rank_of(w), *w.full_shape[-2:])
    left, right = (normal(leaf_key(w), number, w, axis, rank) for number, axis in ((0, -2), (1, -1)))
    return jnp.linalg.qr(left)[0], jnp.linalg.qr(right)[0]


def _left(key: Key[Array, ""], w: Perturbed, own: tuple[Array, Array]) -> Float[Array, "..."]:
    """s U Z."""
    rows, columns = w.full_shape[-2:]
    rank = own[0].shape[-1]
    core = random.normal(key, (*w.full_shape[:-2], rank, rank))
    product = jnp.einsum("...mr,...rs->...ms", own[0], core, precision=lax.Precision.HIGHEST)
    return math.sqrt(rows * columns) / rank * product
