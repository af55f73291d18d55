"""What a zeroth-order run should know of itself: the right eps, the right learning rate, the signal in a probe.

Every function here costs forwards only, apart from `gradient_cosine`, which is there for tests and small models.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from zojax.perturb import PerturbSpec

__all__ = [
    "AutoEps",
    "EpsChoice",
    "LearningRateProbe",
    "choose_eps",
    "gradient_cosine",
    "learning_rate_probe",
    "moved_share",
    "signal_to_noise",
]

Params = Any
ValueFn = Callable[[Params], Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoEps:
    """How `eps="auto"` measures eps: when, and over which range.

    Attributes:
      every: steps between two measurements; the first is at step 0.
      smallest: exponent of 2 of the smallest eps tried.
      largest: exponent of 2 of the largest eps tried.
      num_directions: directions averaged over; a measurement costs 2 num_directions (largest - smallest + 1) forwards.

    Example:
      >>> AutoEps(every=500).grid()[0] == 2.0**-18
      True
    """

    every: int = 1000
    smallest: int = -18
    largest: int = -4
    num_directions: int = 2

    def __post_init__(self):
        if self.every < 1 or self.num_directions < 1 or self.largest - self.smallest < 4:
            raise ValueError(f"eps: {self}; every and num_directions are at least 1, the range 4 powers of 2 or more")

    def grid(self) -> list[float]:
        """The values of eps that are tried, ascending."""
        return [2.0**exponent for exponent in range(self.smallest, self.largest + 1)]


class EpsChoice(NamedTuple):
    """Result of `choose_eps`.

    Attributes:
      eps: the eps of the smallest predicted error.
      rounding: standard error of a projected gradient at this eps that comes from rounding in the forward.
      curvature: its error at this eps that comes from higher derivatives of the loss.
      signal: root mean square of the projected gradients at this eps.
    """

    eps: Float[Array, ""]
    rounding: Float[Array, ""]
    curvature: Float[Array, ""]
    signal: Float[Array, ""]


def choose_eps(
    value_fn: ValueFn,
    params: Params,
    spec: PerturbSpec,
    key: Key[Array, ""],
    *,
    auto: AutoEps | None = None,
    masks: Params | None = None,
    two_sided: bool = True,
) -> EpsChoice:
    """Measures the eps at which rounding and curvature spoil a projected gradient least.

    With c(e) the difference quotient at eps = e, rounding adds an error a / e and the next derivative one of b e^p
    (p = 2 two-sided, 1 one-sided). Differences d(e) = c(2 e) - c(e) cancel the signal: at the three smallest e they
    show a, and at the smallest e where d stands out of the rounding four-fold they show b. The minimum of
    (a / e)^2 + (b e^p)^2 is at e^(2 p + 2) = a^2 / (p b^2). A design choice of this library.

    Args:
      value_fn: params -> float32 loss; deterministic, so that both sides of a difference see the same noise.
      params: tree of weights.
      spec: which directions.
      key: typed key of the directions that are measured.
      auto: range and number of directions.
      masks: what `spec.prepare` returned.
      two_sided: whether the estimator takes central differences.

    Returns:
      EpsChoice of float32 scalars.

    Example:
      >>> from zojax import ops
      >>> loss = lambda p: jnp.sum(ops.value(p["w"]) ** 2 + ops.value(p["w"]) ** 3)
      >>> choice = choose_eps(loss, {"w": jnp.ones((10,))}, PerturbSpec(), jax.random.key(0))
      >>> bool((choice.eps > 1e-4) & (choice.eps < 1e-1))
      True
    """
    auto = auto or AutoEps()
    grid = jnp.asarray(auto.grid(), jnp.float32)
    order = 2 if two_sided else 1

    def value_at(direction_key, scale):
        return value_fn(spec.perturb(params, direction_key, scale, masks)).astype(jnp.float32)

    def quotients(index):
        direction_key = jax.random.fold_in(key, index)
        factor = spec.norm_factor(params, direction_key, masks)
        sides = jnp.array([1.0, -1.0 if two_sided else 0.0], jnp.float32)

        def side(point):
            return value_at(direction_key, sides[point % 2] * grid[point // 2] * factor)

        values = lax.map(side, jnp.arange(2 * grid.size)).reshape(grid.size, 2)
        return (values[:, 0] - values[:, 1]) / (grid * (sides[0] - sides[1]))

    c = lax.map(quotients, jnp.arange(auto.num_directions))
    step = jnp.sqrt(jnp.mean(jnp.square(c[:, 1:] - c[:, :-1]), axis=0))
    # Independent errors a/e and a/2e add up to sqrt(1.25) a/e; a loss that rounds to equal values shows none, and then
    # the last place of a float32 is the least that there can be.
    last_place = jnp.float32(2.0**-24) * jnp.maximum(jnp.abs(value_at(key, jnp.float32(0))), 2.0**-100)
    a = jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(step[:3] * grid[:3])) / 1.25), last_place)
    stands_out = step > 4 * np.sqrt(1.25) * a / grid[:-1]
    first = jnp.argmax(stands_out)
    b = jnp.where(jnp.any(stands_out), step[first] / ((2**order - 1) * grid[first] ** order), 0.0)
    best = jnp.where(b > 0, (a / (np.sqrt(order) * jnp.maximum(b, 2.0**-100))) ** (1 / (order + 1)), grid[-1])
    eps = jnp.clip(best, grid[0], grid[-1])
    signal = jnp.sqrt(jnp.mean(jnp.square(c[:, jnp.argmin(jnp.abs(jnp.log(grid / eps)))])))
    return EpsChoice(eps=eps, rounding=a / eps, curvature=b * eps**order, signal=signal)


class LearningRateProbe(NamedTuple):
    """Result of `learning_rate_probe`.

    Attributes:
      rates: the learning rates, ascending.
      change: mean change of the loss by one step at each rate.
      suggested: half the rate of the greatest decrease, 0 where no rate decreases the loss.
    """

    rates: Float[Array, "r"]
    change: Float[Array, "r"]
    suggested: Float[Array, ""]


def learning_rate_probe(
    value_fn: ValueFn,
    params: Params,
    spec: PerturbSpec,
    key: Key[Array, ""],
    *,
    eps: float | Float[Array, ""],
    rates: Any,
    num_probes: int = 8,
    heldout: ValueFn | None = None,
    masks: Params | None = None,
) -> LearningRateProbe:
    """Measures what one two-point step at each learning rate does to the loss, without touching the weights.

    A step along one probe is itself a perturbation: w - lr c z = Perturbed(w, scale = -lr c). Costs
    num_probes (2 + len(rates)) + 1 forwards. A design choice of this library.

    Args:
      value_fn: params -> float32 loss, for the probes.
      params: tree of weights.
      spec: which directions.
      key: typed key.
      eps: scale of the probes.
      rates: learning rates of plain SGD, ascending.
      num_probes: probes averaged over.
      heldout: the loss in which the change is measured, say of another batch; None: value_fn.
      masks: what `spec.prepare` returned.

    Returns:
      LearningRateProbe.

    Example:
      >>> from zojax.perturb import materialized
      >>> loss = materialized(lambda p: jnp.sum(p**2) / 2)
      >>> probe = learning_rate_probe(loss, jnp.ones((10,)), PerturbSpec(), jax.random.key(0),
      ...     eps=1e-2, rates=[0.01, 0.1, 1.0])
      >>> probe.rates.shape
      (3,)
    """
    rates = jnp.asarray(rates, jnp.float32)
    heldout = heldout or value_fn
    start = heldout(params)

    def changes(index):
        probe_key = jax.random.fold_in(key, index)
        factor = spec.norm_factor(params, probe_key, masks)
        sides = lax.map(
            lambda sign: value_fn(spec.perturb(params, probe_key, sign * eps * factor, masks)), jnp.array([1.0, -1.0])
        )
        c = (sides[0] - sides[1]) / (2 * eps) * factor
        return lax.map(lambda rate: heldout(spec.perturb(params, probe_key, -rate * c, masks)) - start, rates)

    change = jnp.mean(lax.map(changes, jnp.arange(num_probes)), axis=0)
    best = jnp.argmin(change)
    return LearningRateProbe(rates, change, jnp.where(change[best] < 0, rates[best] / 2, 0.0))


def signal_to_noise(projected: Float[Array, "q *batches"]) -> Float[Array, ""]:
    """Signal-to-noise ratio of projected gradients that were measured on several batches.

    |mean over batches| over its standard error, root mean square over probes: about 1 where a probe shows nothing but
    the batch's noise.

    Args:
      projected: projected gradients, probes by batches (2 or more), each row for one direction.

    Returns:
      float32 scalar.

    Raises:
      ValueError: if there are fewer than 2 batches.

    Example:
      >>> float(signal_to_noise(jnp.array([[1.0, 3.0]])))
      2.0
    """
    batches = projected.shape[-1] if projected.ndim > 1 else 1
    if batches < 2:
        raise ValueError(f"projected: shape {projected.shape}; 2 batches or more are needed in the last axis")
    mean = jnp.mean(projected, axis=-1)
    error = jnp.std(projected, axis=-1, ddof=1) / np.sqrt(batches)
    return jnp.sqrt(jnp.mean(jnp.square(mean)) / jnp.maximum(jnp.mean(jnp.square(error)), np.float32(2.0**-126)))


def moved_share(before: Params, after: Params) -> Float[Array, ""]:
    """Share of the weights that an update changed.

    Args:
      before: tree of weights.
      after: tree of weights of the same structure.

    Returns:
      float32 scalar in [0, 1].

    Example:
      >>> float(moved_share({"w": jnp.zeros(4)}, {"w": jnp.array([0.0, 1.0, 0.0, 0.0])}))
      0.25
    """
    moved = [
        jnp.sum(a != b, dtype=jnp.float32) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ]
    return jnp.asarray(sum(moved)) / np.float32(sum(leaf.size for leaf in jax.tree.leaves(before)))


def gradient_cosine(value_fn: ValueFn, params: Params, estimate: Params) -> Float[Array, ""]:
    """Cosine between an estimate and `jax.grad`: on demand, for it takes back-propagation.

    Args:
      value_fn: params -> loss.
      params: tree of float arrays.
      estimate: tree of gradients of the same structure.

    Returns:
      float32 scalar; about sqrt(q / (d + q)) for q probes in d dimensions.

    Example:
      >>> w = jnp.array([3.0, 4.0])
      >>> round(float(gradient_cosine(lambda p: jnp.sum(p * p), w, jnp.array([1.0, 0.0]))), 2)
      0.6
    """
    exact = jax.grad(value_fn)(params)
    pairs = list(zip(jax.tree.leaves(exact), jax.tree.leaves(estimate), strict=True))
    inner = sum(jnp.sum(a * b, dtype=jnp.float32) for a, b in pairs)
    norms = [
        jnp.sqrt(sum(jnp.sum(jnp.square(x), dtype=jnp.float32) for x in side)) for side in zip(*pairs, strict=True)
    ]
    return inner / (norms[0] * norms[1])
