"""What every finite-difference estimator shares: probes, their evaluation, the lazy gradient."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from zojax import random
from zojax.diagnostics import AutoEps, choose_eps
from zojax.perturb import PerturbSpec

Params = Any
ValueFn = Callable[[Params], Float[Array, "*losses"]]
Eps = float | Float[Array, ""] | Callable[[Any], Any] | AutoEps | Literal["auto"]
Samples = int | Callable[[Any], Any]
Probes = Literal["turn", "pair", "batch"]


class Scalars(NamedTuple):
    """What a step measures, and all that `update` needs beside the state: the record of a step in a log.

    Attributes:
      projected: weight of each probe's direction in the gradient estimate, mean_i projected_i z_i.
      value: mean of the losses that were measured.
      eps: the eps of this step.
      norm: factor by which each direction was scaled; 1 but for the sphere and for kernels.
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

    Where value_fn returns several losses (`shape`), they are the last axis of `losses` and the base loss.

    Attributes:
      base: whether the unperturbed loss is evaluated too, first.
      sides: signs at which each probe is evaluated.
      projected: (losses [q, sides], base loss or None, eps) -> [q].
      record: (scalars, losses, base loss or None) -> what the step's record is; the scalars themselves, or more.
      kernel: probes go to a radius r eps, r uniform in [-1, 1], and count kernel(r) times; None: to eps, once.
      shape: of what value_fn returns.
      total: the one loss that stands for what value_fn returned.
    """

    base: bool
    sides: tuple[float, ...]
    projected: Callable[[Array, Array | None, Array], Array]
    record: Callable[[Scalars, Array, Array | None], Any] = lambda scalars, losses, base: scalars
    kernel: Callable[[Array], Array] | None = None
    shape: tuple[int, ...] = ()
    total: Callable[[Array], Array] = lambda losses: losses


TWO_SIDED = Differences(
    base=False, sides=(1.0, -1.0), projected=lambda losses, base, eps: (losses[:, 0] - losses[:, 1]) / (2 * eps)
)

# Numbers that stand in a key where a probe's stands; no probe has them.
AUTO_EPS, FACTORS, RADII = 2**32 - 1, 2**32 - 2, 2**32 - 3

State = Any
"""An EstimatorState, or a NamedTuple with its fields and more."""

Rule = Callable[[Params, State, Any, Array, Any], tuple[Params, dict[str, Any]]]
"""(params, state, scalars, weights [q], number of probes) -> (gradient estimate, fields of the state that change)."""


def finite_differences(
    differences: Differences,
    *,
    eps: Eps,
    spec: Any,
    num_samples: Samples,
    max_samples: int | None = None,
    key: Key[Array, ""],
    probes: Probes,
    rule: Rule | None = None,
) -> Estimator:
    """Makes an estimator of its differences.

    Every argument but these is documented at `spsa`.

    Args:
      differences: the method.
      spec: a PerturbSpec, or what has its methods `perturb` and `norm_factor` (and, without a rule, `noise`).
      rule: what is made of the weights of the probes; None: sum_i weights_i z_i.
    """
    auto = checked_eps(eps)
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
        zero = jnp.float32(0)
        unknown = differences.record(unknown, jnp.zeros((most, len(differences.sides), *differences.shape)), zero)
        return EstimatorState(jnp.int32(0), random.own(key), unknown, spec.prepare(params))

    def measure(
        params: Params,
        state: State,
        value_fn: ValueFn,
        *,
        num_samples: Samples = num_samples,
        first_probe: int = 0,
    ) -> Any:
        if schedule is not None and num_samples is not schedule:
            raise ValueError("num_samples: the estimator follows a schedule, which nothing overrides")
        width = most if callable(num_samples) else num_samples
        if width < 1:
            raise ValueError(f"num_samples: {width}; an integer of at least 1 is needed")
        used = jnp.clip(num_samples(state.count), 1, most).astype(jnp.int32) if callable(num_samples) else num_samples
        step_key = jax.random.fold_in(state.key, state.count)
        total_fn = lambda candidate: differences.total(value_fn(candidate))  # noqa: E731
        step_eps = eps_of_step(eps, auto, total_fn, params, state, spec, two_sided=two_sided)

        def probe_key(index) -> Array:
            return jax.random.fold_in(step_key, jnp.uint32(first_probe) + jnp.uint32(index))

        norm = lax.map(lambda index: spec.norm_factor(params, probe_key(index), state.masks), jnp.arange(width))
        if differences.kernel is not None:
            radius = _radii(step_key, jnp.uint32(first_probe) + jnp.arange(width, dtype=jnp.uint32))
            weight, norm = differences.kernel(radius) * norm, radius * norm
        else:
            weight = norm

        def evaluate(index, side) -> Array:
            value = value_fn(spec.perturb(params, probe_key(index), side * step_eps * norm[index], state.masks))
            return checked_loss(value, differences.shape)

        losses, base = _evaluate(evaluate, differences, probes, width, used)
        projected = differences.projected(losses, base, step_eps) * weight
        valid = jnp.arange(width) < used
        losses = jnp.where(valid.reshape(-1, *(1,) * (losses.ndim - 1)), losses, 0.0)
        total = jnp.sum(differences.total(losses)) + (0.0 if base is None else differences.total(base))
        count = used * losses.shape[1] + (0 if base is None else 1)
        scalars = Scalars(jnp.where(valid, projected, 0.0), total / count, step_eps, norm)
        scalars = differences.record(scalars, losses, base)
        return jax.tree.map(lambda x: x.astype(jnp.float32), scalars)  # a float64 loss keeps its precision up to here

    def default_rule(params, state, scalars, weights, used):
        del scalars
        return _gradient(spec, params, state, weights, used), {}

    def probes_used(state: State, width: int) -> Any:
        if callable(num_samples) and width == most:
            return jnp.clip(num_samples(state.count), 1, most).astype(jnp.int32)
        return width

    return Estimator(init_fn, updating(measure, rule or default_rule, most, probes_used), measure)


def updating(measure: Callable[..., Any], rule: Rule, most: int, used_of: Callable[[State, int], Any]) -> Any:
    """The update function of an estimator that measures by `measure` and makes its estimate by `rule`.

    Args:
      measure: the other half.
      rule: the estimate.
      most: probes of which the state keeps the scalars.
      used_of: (state, probes in the record) -> probes that count.
    """

    def update_fn(updates, state, params=None, *, value_fn=None, scalars=None, **extra_args):
        del updates, extra_args
        require(params)
        if value_fn is not None and scalars is None:
            scalars = measure(params, state, value_fn)
        elif scalars is None or value_fn is not None:
            raise ValueError("update: exactly one of value_fn and scalars is needed")
        used = used_of(state, scalars.projected.shape[0])
        gradient, changes = rule(params, state, scalars, scalars.projected / used, used)
        # The state keeps its shape where scalars come from another number of probes: merged from several workers, say.
        last = jax.tree.map(lambda x: _resized(x, most) if x.ndim else x, scalars)
        return gradient, state._replace(count=state.count + 1, last=last, **changes)

    return update_fn


def checked_eps(eps: Eps) -> AutoEps | None:
    """How eps is measured, if it is; says what is wrong with an eps that is a number."""
    auto = AutoEps() if isinstance(eps, str) and eps == "auto" else eps if isinstance(eps, AutoEps) else None
    if isinstance(eps, str) and auto is None:
        raise ValueError(f'eps: {eps!r}; a number, a schedule, AutoEps(...) or "auto" is needed')
    if isinstance(eps, int | float) and not 0 < eps < float("inf"):
        raise ValueError(f"eps: {eps}; a positive number is needed")
    return auto


def eps_of_step(
    eps: Eps, auto: AutoEps | None, value_fn: ValueFn, params: Params, state: State, spec: Any, *, two_sided: bool
) -> Array:
    """The eps of a step; `auto` is what `checked_eps` returned."""
    if auto is None:
        return jnp.asarray(eps(state.count) if callable(eps) else eps, jnp.float32)
    probe_key = jax.random.fold_in(jax.random.fold_in(state.key, state.count), jnp.uint32(AUTO_EPS))

    def choose():
        return choose_eps(value_fn, params, spec, probe_key, auto=auto, masks=state.masks, two_sided=two_sided).eps

    return lax.cond(state.count % auto.every == 0, choose, lambda: state.last.eps)


def require(params: Params | None) -> None:
    """Says that an update needs the parameters."""
    if params is None:
        raise ValueError("params: a zeroth-order estimator needs the parameters; call update(None, state, params, ...)")


def bound(init: Callable[[Params], Any], bind: Callable[[Params, Any], Estimator]) -> Estimator:
    """An estimator whose directions depend on its state: `bind(params, state)` is the one for a step."""

    def measure(params, state, value_fn, **options):
        return bind(params, state).measure(params, state, value_fn, **options)

    def update_fn(updates, state, params=None, *, value_fn=None, scalars=None, **extra_args):
        require(params)
        estimator = bind(params, state)
        return estimator.update(updates, state, params, value_fn=value_fn, scalars=scalars, **extra_args)

    return Estimator(init, update_fn, measure)


def _resized(x: Array, length: int) -> Array:
    return jnp.pad(x[:length], (0, max(length - x.shape[0], 0)))


def _radii(step_key: Array, probes: Array) -> Array:
    """r of each probe, uniform in [-1, 1)."""
    radii_key = jax.random.fold_in(step_key, jnp.uint32(RADII))
    draw = lambda probe: random.uniform(jax.random.fold_in(radii_key, probe), (), minval=-1.0)  # noqa: E731
    return jax.vmap(draw)(probes)


def checked_loss(value: Any, shape: tuple[int, ...] = ()) -> Array:
    """The loss, which must be of this shape and of at least float32."""
    value = jnp.asarray(value)
    if value.shape != shape:
        needed = f"losses of shape {shape} are" if shape else "a scalar loss is"
        raise ValueError(f"value_fn: returned shape {value.shape}; {needed} needed")
    if value.dtype.itemsize < 4 or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"value_fn: returned {value.dtype}; a float32 loss is needed, since the difference of two half-precision "
            "losses is 0 at the usual eps"
        )
    return value


def _evaluate(evaluate, differences: Differences, probes: Probes, width: int, used) -> tuple[Array, Array | None]:
    """Losses [width, sides] and the base loss; one compiled forward, whatever the number of probes."""
    sides = jnp.array(differences.sides, jnp.float32)
    if probes == "pair" or (probes == "batch" and not differences.base):
        # The sides of a probe share its noise.
        pair = jax.vmap(evaluate, in_axes=(None, 0))
        if probes == "batch":
            return jax.vmap(pair, in_axes=(0, None))(jnp.arange(width), sides), None
        return lax.map(lambda index: pair(index, sides), jnp.arange(width)), None
    # The unperturbed loss is the point of scale 0 of probe 0: w + 0 z is w, bit for bit.
    points = [(0, 0.0)] * differences.base + [(i, side) for i in range(width) for side in differences.sides]
    index, side = (jnp.array(column) for column in zip(*points, strict=True))
    if probes == "batch":
        losses = jax.vmap(evaluate)(index, side.astype(jnp.float32))
    else:
        loss = jax.eval_shape(evaluate, index[0], side[0])
        stop = used * len(differences.sides) + differences.base

        def body(point, losses):
            return losses.at[point].set(evaluate(index[point], side[point].astype(jnp.float32)))

        losses = lax.fori_loop(0, stop, body, jnp.zeros((len(points), *loss.shape), loss.dtype))
    base = losses[0] if differences.base else None
    losses = losses[int(differences.base) :]
    return losses.reshape(width, len(differences.sides), *losses.shape[1:]), base


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
