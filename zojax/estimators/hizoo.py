"""HiZOO: probes shaped by a diagonal of the Hessian that the same probes estimate."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from zojax.directions import Gaussian
from zojax.estimators._base import Differences, Eps, Estimator, Probes, Scalars, bound, finite_differences
from zojax.perturb import Perturbed, PerturbSpec

Params = Any


class HizooScalars(NamedTuple):
    """What a step of `hizoo` measures.

    Attributes:
      projected: as in `Scalars`.
      value: as in `Scalars`.
      eps: as in `Scalars`.
      norm: 1.
      curvature: (l_i+ + l_i- - 2 l_0) / eps^2 of each probe.
    """

    projected: Float[Array, "q"]
    value: Float[Array, ""]
    eps: Float[Array, ""]
    norm: Float[Array, "q"]
    curvature: Float[Array, "q"]


class HizooState(NamedTuple):
    """State of `hizoo`.

    Attributes:
      count: number of steps taken.
      key: the run's key; never changes.
      last: scalars of the last step.
      masks: as in `EstimatorState`.
      diagonal: h, float32 of the weights' shapes: 4 bytes a weight.
    """

    count: Int[Array, ""]
    key: Key[Array, ""]
    last: HizooScalars
    masks: Params
    diagonal: Params


def hizoo(
    eps: Eps,
    spec: PerturbSpec | None = None,
    *,
    smoothing: float = 1e-6,
    num_samples: int = 1,
    key: Key[Array, ""],
    probes: Probes = "turn",
) -> Estimator:
    """Two-point probes along u / sqrt(h), with h an average of estimates of the Hessian's diagonal.

    z_i = u_i / sqrt(h), u_i normal;    c_i = [f(w + eps z_i) - f(w - eps z_i)] / (2 eps),    g = (1 / q) sum_i c_i z_i
    k_i = [f(w + eps z_i) + f(w - eps z_i) - 2 f(w)] / eps^2
    h <- (1 - a) h + a |(1 / q) sum_i (k_i / 2) h u_i^2|,    h = 1 at the start

    q probes cost 2 q + 1 forwards. E[g] is the gradient over h: small steps where the loss is curved. The state holds
    h, 4 bytes a weight, and an update takes as much again for a while: g reads the h that is replaced.

    h settles in proportion to the diagonal: since E[(k / 2) u_j^2] = H_jj / h_j + (1 / 2) tr(H / h), it tends to
    (1 + d / 2) diag(H) where H is diagonal, d the number of weights, over some (1 + d / 2) / a steps.

    Args:
      eps: as for `spsa`.
      spec: with direction `Gaussian` for all leaves (signs have u^2 = 1 and see no diagonal), stacked leaves;
        None: Gaussian.
      smoothing: a, in (0, 1).
      num_samples: q.
      key: typed key of the run.
      probes: "turn" or "batch".

    Returns:
      Estimator, with `HizooScalars`.

    Raises:
      ValueError: if an argument is out of its range, or a direction is not Gaussian.

    Example:
      >>> from zojax import ops
      >>> estimator = hizoo(1e-2, smoothing=0.1, key=jax.random.key(0))
      >>> params = {"w": jnp.ones((4,))}
      >>> loss = lambda p: jnp.sum(ops.value(p["w"]) ** 2)
      >>> g, state = estimator.update(None, estimator.init(params), params, value_fn=loss)
      >>> state.diagonal["w"].shape
      (4,)

    References:
      HiZOO, arXiv 2402.15173, whose code divides the update by the new h. Here it is divided by that of the probe, so
      that it moves along what was measured.
    """
    if not 0 < smoothing < 1:
        raise ValueError(f"smoothing: {smoothing}; a number in (0, 1) is needed")
    spec = PerturbSpec(direction=Gaussian()) if spec is None else spec
    for direction in (spec.direction, *(direction for _, direction in spec.rules)):
        if type(direction) is not Gaussian:
            raise ValueError(f"spec: direction {direction}; hizoo needs Gaussian()")
    options: dict[str, Any] = dict(eps=eps, num_samples=num_samples, key=key, probes=probes)
    plain = finite_differences(_DIFFERENCES, spec=spec, **options)

    def init_fn(params: Params) -> HizooState:
        state: Any = plain.init(params)
        weights = jax.tree.leaves(params, is_leaf=lambda node: hasattr(node, "materialize"))
        structure = jax.tree.structure(params, is_leaf=lambda node: hasattr(node, "materialize"))
        return HizooState(*state, diagonal=structure.unflatten([jnp.ones(w.shape, jnp.float32) for w in weights]))

    def bind(params: Params, state: Any) -> Estimator:
        directions = _Shaped(spec=spec, factor=jax.tree.map(lax.rsqrt, state.diagonal))

        def rule(params, state, scalars, weights, used):
            def total(make: Callable[..., Array], *, apart: bool) -> Params:
                """sum_i make(i, u_i, factor) over the probes."""
                step_key = jax.random.fold_in(state.key, state.count)
                if apart:
                    # One draw for both uses would be stored, an array of the weights' size; so it is made twice.
                    step_key = jax.random.fold_in(state.key, lax.optimization_barrier(state.count))
                sums = None
                for index in range(used):
                    normals = spec.noise(params, jax.random.fold_in(step_key, jnp.uint32(index)))
                    terms = jax.tree.map(functools.partial(make, index), normals, state.diagonal)
                    sums = terms if sums is None else jax.tree.map(jnp.add, sums, terms)
                return sums

            # A curvature that is not finite would stay in the average for ever.
            curvature = jnp.where(jnp.isfinite(scalars.curvature), scalars.curvature, 0.0) / (2 * used)
            gradient = total(lambda i, u, h: weights[i] * (u * lax.rsqrt(h)), apart=False)
            # |mean (k / 2) h u^2| = h |mean (k / 2) u^2|
            mean = total(lambda i, u, h: curvature[i] * jnp.square(u), apart=True)
            diagonal = jax.tree.map(lambda h, k: h * (1 - smoothing + smoothing * jnp.abs(k)), state.diagonal, mean)
            return gradient, {"diagonal": diagonal}

        return finite_differences(_DIFFERENCES, spec=directions, rule=rule, **options)

    return bound(init_fn, bind)


def _projected(losses: Array, base: Array | None, eps: Array) -> Array:
    del base
    return (losses[:, 0] - losses[:, 1]) / (2 * eps)


def _record(scalars: Scalars, losses: Array, base: Any) -> HizooScalars:
    curvature = (losses[:, 0] + losses[:, 1] - 2 * base) / jnp.square(jnp.where(scalars.eps == 0, 1.0, scalars.eps))
    return HizooScalars(*scalars, curvature=curvature)


_DIFFERENCES = Differences(base=True, sides=(1.0, -1.0), projected=_projected, record=_record)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shaped:
    """The directions of a spec times `factor`, element by element; stands for a spec."""

    spec: PerturbSpec
    factor: Params

    def perturb(self, params: Params, key: Key[Array, ""], scale: Array, masks: Params | None = None) -> Params:
        """The tree of leaves "weight + scale * factor * z(key)"."""
        perturbed = self.spec.perturb(params, key, scale, masks)
        leaves, treedef = jax.tree.flatten(perturbed, is_leaf=lambda node: isinstance(node, Perturbed))
        factors = treedef.flatten_up_to(self.factor)
        return treedef.unflatten([dataclasses.replace(w, factor=f) for w, f in zip(leaves, factors, strict=True)])

    def norm_factor(self, params: Params, key: Key[Array, ""], masks: Params | None = None) -> Float[Array, ""]:
        """1: these directions are not scaled."""
        del params, key, masks
        return jnp.float32(1)
