"""MeZO-SVRG: two-point probes of a batch, corrected by what the same probes find at an anchor."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from zojax.directions import Sparse
from zojax.estimators._base import Eps, Estimator, EstimatorState, Probes, Scalars, checked_eps, updating
from zojax.estimators.spsa import spsa
from zojax.perturb import PerturbSpec

Params = Any


class SvrgScalars(NamedTuple):
    """What a step of `mezo_svrg` measures.

    Attributes:
      projected: c_i(w) - c_i(anchor) on the step's batch; 0 on the steps that take a new anchor.
      value: mean of the losses at w that were measured.
      eps: as in `Scalars`.
      norm: as in `Scalars`.
      full: c_i(w) on the anchor batch, on the steps that take a new anchor; else 0.
    """

    projected: Float[Array, "q"]
    value: Float[Array, ""]
    eps: Float[Array, ""]
    norm: Float[Array, "q"]
    full: Float[Array, "q"]


class SvrgState(NamedTuple):
    """State of `mezo_svrg`.

    Attributes:
      count: number of steps taken.
      key: the run's key; never changes.
      last: scalars of the last step.
      masks: as in `EstimatorState`.
      anchor: the weights at the last multiple of `every` steps: a copy, in the weights' own dtypes.
      full: projected gradients on the anchor batch, which with the keys of that step are its gradient estimate.
    """

    count: Int[Array, ""]
    key: Key[Array, ""]
    last: SvrgScalars
    masks: Params
    anchor: Params
    full: Float[Array, "q"]


def mezo_svrg(
    eps: Eps,
    spec: PerturbSpec | None = None,
    *,
    every: int = 10,
    num_samples: int = 1,
    key: Key[Array, ""],
    probes: Probes = "turn",
) -> Estimator:
    """Variance-reduced two-point probes.

    Every `every` steps, the first included, an anchor a <- w is taken and probed on the anchor batch (the whole
    training set, or a large part):    g = (1 / q) sum_i C_i Z_i,    C_i = [F(w + eps Z_i) - F(w - eps Z_i)] / (2 eps)
    On the other steps        g = (1 / q) sum_i [c_i(w) - c_i(a)] z_i + (1 / q) sum_i C_i Z_i,
    both c_i on the step's batch and along the same z_i; C_i and Z_i are those of the anchor's step. Nothing of F's
    estimate is stored but the q numbers C_i: the Z_i are made again from that step's key.

    The value function returns a pair: (loss on the step's batch, loss on the anchor batch). Compiled, each evaluation
    runs the one of them that it needs. The anchor batch must stay the same from one anchor to the next.

    The state holds a copy of the weights (their bytes once more). It changes in `update`, which sees the weights, so
    that a log of scalars replays; a step costs 4 q forwards of the batch, or 2 q of the anchor batch.

    Args:
      eps: a number or a schedule, as for `spsa`.
      spec: as for `spsa`, but for `Sparse` directions, whose mask would differ between w and the anchor.
      every: steps between two anchors, at least 1.
      num_samples: q.
      key: typed key of the run.
      probes: as for `spsa`.

    Returns:
      Estimator, with `SvrgScalars`.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> from zojax import ops
      >>> estimator = mezo_svrg(1e-2, every=5, key=jax.random.key(0))
      >>> params = {"w": jnp.ones((4,))}
      >>> loss = lambda p, x: jnp.sum((ops.value(p["w"]) - x) ** 2)
      >>> value_fn = lambda p: (loss(p, 0.1), loss(p, 0.0))
      >>> g, state = estimator.update(None, estimator.init(params), params, value_fn=value_fn)
      >>> state.anchor["w"].tolist(), state.last.projected.tolist()
      ([1.0, 1.0, 1.0, 1.0], [0.0])

    References:
      MeZO-SVRG, arXiv 2404.08080, whose anchor steps have a learning rate of their own.
    """
    if every < 1:
        raise ValueError(f"every: {every}; an integer of at least 1 is needed")
    if checked_eps(eps) is not None:
        raise ValueError(
            "eps: mezo_svrg takes a number or a schedule; an eps that is measured would differ at the anchor"
        )
    spec = PerturbSpec() if spec is None else spec
    for direction in (spec.direction, *(direction for _, direction in spec.rules)):
        if isinstance(direction, Sparse):
            raise ValueError(f"spec: direction {direction}; its mask would differ between the weights and the anchor")
    probe = spsa(eps, spec, num_samples=num_samples, key=key, probes=probes)

    def init_fn(params: Params) -> SvrgState:
        state: Any = probe.init(params)
        full = jnp.zeros(num_samples, jnp.float32)
        anchor = jax.tree.map(lambda w: jnp.array(w, copy=True), params)
        return SvrgState(
            state.count, state.key, SvrgScalars(*state.last, full=full), state.masks, anchor=anchor, full=full
        )

    def plain(state: Any, count: Any = None) -> EstimatorState:
        last = Scalars(state.last.projected, state.last.value, state.last.eps, state.last.norm)
        return EstimatorState(state.count if count is None else count, state.key, last, state.masks)

    def measure(params, state, value_fn, *, num_samples: int = num_samples, first_probe: int = 0):
        options = {"num_samples": num_samples, "first_probe": first_probe}

        def losses(candidate) -> tuple[Array, Array]:
            value = value_fn(candidate)
            if not isinstance(value, tuple | list) or len(value) != 2:
                raise ValueError("value_fn: mezo_svrg needs a pair, the loss on the batch and that on the anchor batch")
            return value[0], value[1]

        def at_anchor() -> SvrgScalars:
            scalars = probe.measure(params, plain(state), lambda p: losses(p)[1], **options)
            none = jnp.zeros_like(scalars.projected)
            return SvrgScalars(none, scalars.value, scalars.eps, scalars.norm, scalars.projected)

        def between() -> SvrgScalars:
            here, there = (
                probe.measure(weights, plain(state), lambda p: losses(p)[0], **options)
                for weights in (params, state.anchor)
            )
            none = jnp.zeros_like(here.projected)
            return SvrgScalars(here.projected - there.projected, here.value, here.eps, here.norm, none)

        return lax.cond(state.count % every == 0, at_anchor, between)

    def rule(params, state, scalars, weights, used):
        takes = state.count % every == 0
        anchor = jax.tree.map(lambda w, a: jnp.where(takes, w, a), params, state.anchor)
        full = jnp.where(takes, scalars.full, state.full[:used])

        def estimate(projected: Array, count: Array) -> Params:
            one = Scalars(projected, scalars.value, scalars.eps, scalars.norm)
            return probe.update(params, plain(state, count), params, scalars=one)[0]

        gradient = jax.tree.map(
            jnp.add, estimate(scalars.projected, state.count), estimate(full, state.count // every * every)
        )
        return gradient, {"anchor": anchor, "full": full}

    return Estimator(init_fn, updating(measure, rule, num_samples, lambda state, width: width), measure)
