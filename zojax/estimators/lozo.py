"""LOZO: low-rank probes with one factor kept for a while, and momentum in that factor's coordinates."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from zojax.estimators._base import TWO_SIDED, Eps, Estimator, Probes, Scalars, bound, finite_differences
from zojax.estimators._subspace import (
    Subspace,
    leaf_key,
    low_rank_spec,
    normal,
    period_leaves,
    rank_of,
    unflatten,
)
from zojax.perturb import Perturbed, PerturbSpec

Params = Any


class LozoState(NamedTuple):
    """State of `lozo`.

    Attributes:
      count: number of steps taken.
      key: the run's key; never changes.
      last: scalars of the last step.
      masks: as in `EstimatorState`.
      momentum: of each matrix [..., m, r], of other leaves in full, in float32; None without momentum.
    """

    count: Int[Array, ""]
    key: Key[Array, ""]
    last: Scalars
    masks: Params
    momentum: Params


def lozo(
    eps: Eps,
    spec: PerturbSpec | None = None,
    *,
    every: int = 50,
    momentum: float = 0.0,
    num_samples: int = 1,
    key: Key[Array, ""],
    probes: Probes = "turn",
) -> Estimator:
    """Two-point probes along U V^T / sqrt(r), with V drawn once in `every` steps.

    z_i = U_i V^T / sqrt(r) for a matrix, U_i [m, r] and V [n, r] normal; normal in full for a vector.
    c_i = [f(w + eps z_i) - f(w - eps z_i)] / (2 eps),    g = (1 / q) sum_i c_i z_i

    V belongs to a period of `every` steps and is addressed by its number, not stored. With momentum b the average is
    kept in the coordinates of V, which costs m r numbers a matrix instead of m n:

    N <- b N + (1 - b) (1 / q) sum_i c_i U_i / sqrt(r),    g = N V^T;    N <- N V_old^T V / n when V changes.

    Args:
      eps: as for `spsa`.
      spec: with direction `LowRank(rank=r)`, rules, stacked leaves; None: rank 2.
      every: steps for which V is kept, at least 1.
      momentum: b, in [0, 1); 0 for none. An optimiser with momentum after the estimator would keep it in full.
      num_samples: q; all probes of a step share V, so the estimate's rank is r whatever q.
      key: typed key of the run.
      probes: as for `spsa`.

    Returns:
      Estimator.

    Raises:
      ValueError: if an argument is out of its range, or the spec's direction is not `LowRank`.

    Example:
      >>> from zojax import ops
      >>> estimator = lozo(1e-2, every=10, momentum=0.9, key=jax.random.key(0))
      >>> params = {"w": jnp.ones((8, 4))}
      >>> loss = lambda p: jnp.sum(ops.dot(jnp.eye(8), p["w"]) ** 2)
      >>> g, state = estimator.update(None, estimator.init(params), params, value_fn=loss)
      >>> state.momentum["w"].shape, int(jnp.linalg.matrix_rank(g["w"]))
      ((8, 2), 2)

    References:
      LOZO, arXiv 2410.07698, of which this is U V^T / r for an eps that is sqrt(r) times as large. The momentum starts
      at 0. The released code draws a new V between the probe and the update of the steps on which V changes.
    """
    if every < 1:
        raise ValueError(f"every: {every}; an integer of at least 1 is needed")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: {momentum}; a number in [0, 1) is needed")
    spec = low_rank_spec(spec, "lozo", rank=2)
    options: dict[str, Any] = dict(eps=eps, num_samples=num_samples, key=key, probes=probes)
    plain = finite_differences(TWO_SIDED, spec=spec, **options)

    def init_fn(params: Params) -> LozoState:
        state: Any = plain.init(params)
        if not momentum:
            return LozoState(*state, momentum=None)
        leaves = period_leaves(spec, params, state, 0, every)
        start = [jnp.zeros((*w.shape[:-1], rank_of(w)) if rank_of(w) else w.shape) for w in leaves]
        return LozoState(*state, momentum=unflatten(params, start))

    def right_factors(params: Params, state: Any, step: Int[Array, ""]) -> list[Any]:
        leaves = period_leaves(spec, params, state, step, every)
        return [normal(leaf_key(w), 1, w, -1, rank_of(w)) if rank_of(w) else None for w in leaves]

    def bind(params: Params, state: Any) -> Estimator:
        right = right_factors(params, state, state.count)
        directions = Subspace(spec=spec, left=_left, own=right, right=right)

        def rule(params, state, scalars, weights, used):
            del scalars, used
            left = directions.sum_left(params, state, weights)
            if not momentum:
                return directions.gradient(params, left), {}
            average = jax.tree.leaves(state.momentum)
            changes = (state.count % every == 0) & (state.count > 0)
            carried = lax.cond(
                changes,
                lambda: _carried(average, right_factors(params, state, state.count - 1), right),
                lambda: average,
            )
            average = [momentum * old + (1 - momentum) * new for old, new in zip(carried, left, strict=True)]
            return directions.gradient(params, average), {"momentum": unflatten(params, average)}

        return finite_differences(TWO_SIDED, spec=directions, rule=rule, **options)

    return bound(init_fn, bind)


def _left(key: Key[Array, ""], w: Perturbed, own: Any) -> Float[Array, "..."]:
    del own
    return normal(key, 0, w, -2, rank_of(w)) / math.sqrt(rank_of(w))


def _carried(momentum: list[Array], old: list[Any], new: list[Any]) -> list[Array]:
    """N V_old^T V_new / n: since V^T V is about n I, this is nearly the N' whose N' V_new^T is closest to N V_old^T."""

    def leaf(average: Array, old: Any, new: Any) -> Array:
        if new is None:
            return average
        turn = jnp.einsum("...nr,...ns->...rs", old, new, precision=lax.Precision.HIGHEST) / new.shape[-2]
        return jnp.einsum("...mr,...rs->...ms", average, turn, precision=lax.Precision.HIGHEST)

    return [leaf(*row) for row in zip(momentum, old, new, strict=True)]
