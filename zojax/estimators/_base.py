"""What every finite-difference estimator shares: probes, their evaluation, the lazy gradient, the chain."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from zojax import ops, random
from zojax.diagnostics import AutoEps, choose_eps
from zojax.perturb import PerturbSpec

Params = Any
ValueFn = Callable[[Params], Float[Array, ""]]
Eps = float | Float[Array, ""] | Callable[[Any], Any] | AutoEps | Literal["auto"]
Samples = int | Callable[[Any], Any]
Probes = Literal["turn", "pair", "batch"]


class Scalars(NamedTuple):
    """What a step measures, and all that `update` needs beside the state: the record of a step in a log.

    Attributes:
      projected: weight of each probe's direction in the gradient estimate, mean_i projected_i z_i.
      value: mean of the losses that were measured.
      eps: the eps of this step.
      norm: factor by which each direction was scaled; 1 but for the sphere.
    """

    projected: Float[Array, "q"]
    value: Float[Array, ""]
    eps: Float[Array, ""]
    norm: Float[Array, "q"]


class EstimatorState(NamedTuple):
    """State of a finite-difference estimator: count, key and `last` are the last gradient.

    Attributes:
      count: number of steps taken.
      key: the run's key; never changes.
      last: scalars of the last step.
      masks: thresholds or packed masks of sparse directions, else None at every leaf.
    """

    count: Int[Array, ""]
    key: Key[Array, ""]
    last: Scalars
    masks: Params


class Estimator(optax.GradientTransformationExtraArgs):
    """A zeroth-order estimator: an optax transformation whose update takes `value_fn` or `scalars`.

        estimator.update(updates, state, params, value_fn=f)       # runs forwards, returns a gradient estimate
        scalars = estimator.measure(params, state, f)              # the same in two halves: forwards alone,
        estimator.update(updates, state, params, scalars=scalars)  # and no forward at all

    `updates` is not read (pass None); the estimator heads a chain. As the state is not advanced by `measure`, the
    scalars may be changed, averaged or exchanged in between. `measure` takes `num_samples`, a static number of probes
    that overrides the estimator's own, and `first_probe`, the number of its first probe, for workers that share a step.

    Example:
      >>> from zojax import estimators
      >>> estimator = estimators.spsa(1e-3, key=jax.random.key(0))
      >>> isinstance(estimator, optax.GradientTransformationExtraArgs)
      True
    """

    measure: Callable[..., Any]

    def __new__(cls, init: Any, update: Any, measure: Callable[..., Any]):
        self = super().__new__(cls, init, update)
        self.measure = measure
        return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Differences:
    """The evaluations of a method and what they mean.

    Attributes:
      base: whether the unperturbed loss is evaluated too, first.
      sides: signs at which each probe is evaluated.
      projected: (losses [q, sides], base loss or None, eps) -> [q].
    """

    base: bool
    sides: tuple[float, ...]
    projected: Callable[[Array, Array | None, Array], Array]


def finite_differences(
    differences: Differences,
    *,
    eps: Eps,
    spec: PerturbSpec,
    num_samples: Samples,
    max_samples: int | None,
    key: Key[Array, ""],
    probes: Probes,
) -> Estimator:
    """Makes an estimator of its differences; every argument but the first is documented at `spsa`."""
    auto = AutoEps() if isinstance(eps, str) and eps == "auto" else eps if isinstance(eps, AutoEps) else None
    if isinstance(eps, str) and auto is None:
        raise ValueError(f'eps: {eps!r}; a number, a schedule, AutoEps(...) or "auto" is needed')
    if isinstance(eps, int | float) and not 0 < eps < float("inf"):
        raise ValueError(f"eps: {eps}; a positive number is needed")
    if probes not in ("turn", "pair", "batch"):
        raise ValueError(f'probes: {probes!r}; one of "turn", "pair", "batch" is needed')
    if probes == "pair" and len(differences.sides) < 2:
        raise ValueError('probes: "pair" is for two-sided differences; use "turn" or "batch"')
    if callable(num_samples) and max_samples is None:
        raise ValueError("max_samples: a schedule of num_samples needs an upper bound")
    if callable(num_samples) and probes != "turn":
        raise ValueError('probes: a schedule of num_samples runs its probes in "turn"')
    most = max_samples if callable(num_samples) else num_samples
    if not isinstance(most, int) or most < 1:
        raise ValueError(f"num_samples: {most!r}; an integer of at least 1 is needed")
    two_sided = len(differences.sides) == 2
    schedule = num_samples if callable(num_samples) else None

    def init_fn(params: Params) -> EstimatorState:
        spec.directions(params)
        unknown = Scalars(jnp.zeros(most, jnp.float32), jnp.float32(0), jnp.float32(0), jnp.ones(most, jnp.float32))
        return EstimatorState(jnp.int32(0), random.own(key), unknown, spec.prepare(params))

    def eps_of(params: Params, state: EstimatorState, value_fn: ValueFn) -> Array:
        if auto is not None:
            # A key of its own: number 2^32 - 1 is no probe.
            probe_key = jax.random.fold_in(jax.random.fold_in(state.key, state.count), jnp.uint32(2**32 - 1))
            return lax.cond(
                state.count % auto.every == 0,
                lambda: (
                    choose_eps(value_fn, params, spec, probe_key, auto=auto, masks=state.masks, two_sided=two_sided).eps
                ),
                lambda: state.last.eps,
            )
        return jnp.asarray(eps(state.count) if callable(eps) else eps, jnp.float32)

    def measure(
        params: Params,
        state: EstimatorState,
        value_fn: ValueFn,
        *,
        num_samples: Samples = num_samples,
        first_probe: int = 0,
    ) -> Scalars:
        if schedule is not None and num_samples is not schedule:
            raise ValueError("num_samples: the estimator follows a schedule, which nothing overrides")
        width = most if callable(num_samples) else num_samples
        if width < 1:
            raise ValueError(f"num_samples: {width}; an integer of at least 1 is needed")
        used = jnp.clip(num_samples(state.count), 1, most).astype(jnp.int32) if callable(num_samples) else num_samples
        step_key = jax.random.fold_in(state.key, state.count)
        step_eps = eps_of(params, state, value_fn)

        def probe_key(index) -> Array:
            return jax.random.fold_in(step_key, jnp.uint32(first_probe) + jnp.uint32(index))

        norm = lax.map(lambda index: spec.norm_factor(params, probe_key(index), state.masks), jnp.arange(width))

        def evaluate(index, side) -> Array:
            value = value_fn(spec.perturb(params, probe_key(index), side * step_eps * norm[index], state.masks))
            return _checked_loss(value)

        losses, base = _evaluate(evaluate, differences, probes, width, used)
        projected = differences.projected(losses, base, step_eps) * norm
        valid = jnp.arange(width) < used
        losses = jnp.where(valid[:, None], losses, 0.0)
        total = jnp.sum(losses) + (0.0 if base is None else base)
        count = used * losses.shape[1] + (0 if base is None else 1)
        scalars = Scalars(jnp.where(valid, projected, 0.0), total / count, step_eps, norm)
        return jax.tree.map(lambda x: x.astype(jnp.float32), scalars)  # a float64 loss keeps its precision up to here

    def update_fn(updates, state, params=None, *, value_fn=None, scalars=None, **extra_args):
        del updates, extra_args
        if params is None:
            raise ValueError(
                "params: a zeroth-order estimator needs the parameters; call update(None, state, params, ...)"
            )
        if value_fn is not None and scalars is None:
            scalars = measure(params, state, value_fn)
        elif scalars is None or value_fn is not None:
            raise ValueError("update: exactly one of value_fn and scalars is needed")
        width = scalars.projected.shape[0]
        used = width
        if callable(num_samples) and width == most:
            used = jnp.clip(num_samples(state.count), 1, most).astype(jnp.int32)
        gradient = _gradient(spec, params, state, scalars.projected / used, used)
        fill = most - width
        last = (
            scalars
            if fill <= 0
            else scalars._replace(
                projected=jnp.pad(scalars.projected, (0, fill)),
                norm=jnp.pad(scalars.norm, (0, fill), constant_values=1),
            )
        )
        if fill < 0:  # merged from several workers
            last = last._replace(projected=last.projected[:most], norm=last.norm[:most])
        return gradient, EstimatorState(state.count + 1, state.key, last, state.masks)

    return Estimator(init_fn, update_fn, measure)


def _checked_loss(value: Array) -> Array:
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(f"value_fn: returned shape {value.shape}; a scalar loss is needed")
    if value.dtype.itemsize < 4 or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"value_fn: returned {value.dtype}; a float32 loss is needed, since the difference of two half-precision "
            "losses is 0 at the usual eps"
        )
    return value


def _evaluate(evaluate, differences: Differences, probes: Probes, width: int, used) -> tuple[Array, Array | None]:
    """Losses [width, sides] and the base loss; one compiled forward, whatever the number of probes."""
    sides = jnp.array(differences.sides, jnp.float32)
    if probes == "pair":
        pair = jax.vmap(evaluate, in_axes=(None, 0))
        return lax.map(lambda index: pair(index, sides), jnp.arange(width)), None
    # The unperturbed loss is the point of scale 0 of probe 0: w + 0 z is w, bit for bit.
    points = [(0, 0.0)] * differences.base + [(i, side) for i in range(width) for side in differences.sides]
    index, side = (jnp.array(column) for column in zip(*points, strict=True))
    if probes == "batch":
        losses = jax.vmap(evaluate)(index, side.astype(jnp.float32))
    else:
        dtype = jax.eval_shape(evaluate, index[0], side[0]).dtype
        stop = used * len(differences.sides) + differences.base

        def body(point, losses):
            return losses.at[point].set(evaluate(index[point], side[point].astype(jnp.float32)))

        losses = lax.fori_loop(0, stop, body, jnp.zeros(len(points), dtype))
    base = losses[0] if differences.base else None
    return losses[int(differences.base) :].reshape(width, len(differences.sides)), base


def _gradient(spec: PerturbSpec, params: Params, state: EstimatorState, weights: Array, used) -> Params:
    """sum_i weights_i z_i: elementwise, with no input of the parameters' size, so that it fuses into what follows."""
    step_key = jax.random.fold_in(state.key, state.count)

    def probe(index):
        return spec.noise(params, jax.random.fold_in(step_key, jnp.uint32(index)), state.masks)

    def term(index):
        return jax.tree.map(lambda z: weights[index] * z, probe(index))

    if isinstance(used, int):
        total = term(0)
        for index in range(1, used):
            total = jax.tree.map(jnp.add, total, term(index))
        return total
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: term(0)))
    return lax.fori_loop(0, used, lambda index, total: jax.tree.map(jnp.add, total, term(index)), zeros)


def chain(
    estimator: Estimator,
    *transforms: optax.GradientTransformation,
    rounding: optax.GradientTransformation | None = None,
) -> Estimator:
    """`optax.chain` with an estimator at its head, which keeps `measure`.

    The transforms see float32 parameters, so that their states are float32 also where the weights are of half
    precision (the conversion fuses); `rounding`, if given, stands last and sees the weights as they are.

    Args:
      estimator: the head.
      *transforms: what turns the gradient estimate into an update.
      rounding: a transformation of `zojax.precision`.

    Returns:
      Estimator whose state is a tuple, the head's state first.

    Example:
      >>> from zojax import estimators
      >>> tx = chain(estimators.spsa(1e-3, key=jax.random.key(0)), optax.add_decayed_weights(1e-2), optax.sgd(1e-3))
      >>> params = {"w": jnp.ones((4,))}
      >>> state = tx.init(params)
      >>> loss = lambda p: jnp.sum(p["w"].materialize() ** 2)
      >>> updates, state = tx.update(None, state, params, value_fn=loss)
      >>> updates["w"].shape
      (4,)
    """
    rest = optax.with_extra_args_support(optax.chain(*transforms))
    last = None if rounding is None else optax.with_extra_args_support(rounding)

    def init_fn(params):
        states = (estimator.init(params), rest.init(_float32(params)))
        return states if last is None else (*states, last.init(params))

    def update_fn(updates, state, params=None, *, value_fn=None, scalars=None, **extra_args):
        updates, head = estimator.update(updates, state[0], params, value_fn=value_fn, scalars=scalars, **extra_args)
        updates, middle = rest.update(updates, state[1], _float32(params), **extra_args)
        if last is None:
            return updates, (head, middle)
        updates, end = last.update(updates, state[2], params, **extra_args)
        return updates, (head, middle, end)

    def measure(params, state, value_fn, **options):
        return estimator.measure(params, state[0], value_fn, **options)

    return Estimator(init_fn, update_fn, measure)


def _float32(params: Params) -> Params:
    return jax.tree.map(ops.value, params, is_leaf=lambda node: hasattr(node, "materialize"))
