"""GRZO: a direction for every example of the batch, from two forward passes."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from zojax import random
from zojax.directions import Gaussian, Rademacher
from zojax.estimators._base import (
    Eps,
    Estimator,
    EstimatorState,
    Scalars,
    checked_eps,
    checked_loss,
    eps_of_step,
    updating,
)
from zojax.factored import outer
from zojax.per_example import PerExample
from zojax.perturb import Perturbed, PerturbSpec

Params = Any


def per_example(
    eps: Eps,
    spec: PerturbSpec | None = None,
    *,
    batch_size: int,
    normalize: Literal["mean", "std"] = "mean",
    key: Key[Array, ""],
    probes: Literal["turn", "pair"] = "turn",
) -> Estimator:
    """Two-point probes with a direction for each of the B examples of a batch, at the cost of two forwards.

    D_i = U o (r_i s_i^T) for a matrix, u o s_i for a vector: U shared, r_i and s_i signs of example i.
    c_i = [l_i(w + eps D_i) - l_i(w - eps D_i)] / (2 eps),    g = (1 / B) sum_i c_i D_i
    "std" divides the c_i by their standard deviation (with B - 1), as GRZO does: a step that adapts to the slope.

    The directions of two examples are uncorrelated, so that with signs for U

        E |g|^2 = |grad|^2 + (1 / B^2) sum_i (d - 1) |grad_i|^2,

    as if B probes had been measured, each on one example. The value function returns the losses of the examples, [B],
    each at that example's weights: `zojax.per_example.map_examples` turns the loss of one example into it. g estimates
    the gradient of their mean.

    Up to a batch of 16 the sum of B outer products is fused into the update; beyond, it is a matrix product for each
    leaf, of which one leaf's gradient is the result.

    Args:
      eps: as for `spsa`.
      spec: with direction `Rademacher` or `Gaussian` for U, rules to these, stacked leaves; None: Rademacher.
      batch_size: B, the number of losses.
      normalize: "mean" or "std".
      key: typed key of the run.
      probes: "turn": one side after the other; "pair": both as one batched forward.

    Returns:
      Estimator, whose scalars have one entry an example.

    Raises:
      ValueError: if an argument is out of its range, or a leaf has another direction.

    Example:
      >>> from zojax import ops
      >>> from zojax.per_example import map_examples
      >>> estimator = per_example(1e-2, batch_size=5, key=jax.random.key(0))
      >>> params, x = {"w": jnp.ones((4, 3))}, jnp.ones((5, 4))
      >>> value_fn = lambda p: map_examples(lambda p, x: jnp.sum(ops.dot(x, p["w"]) ** 2), p, x)
      >>> g, state = estimator.update(None, estimator.init(params), params, value_fn=value_fn)
      >>> state.last.projected.shape
      (5,)

    References:
      GRZO, arXiv 2606.02857, whose U is normal by default.
    """
    auto = checked_eps(eps)
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size}; at least 1 example is needed")
    if normalize not in ("mean", "std"):
        raise ValueError(f'normalize: {normalize!r}; "mean" or "std" is needed')
    if normalize == "std" and batch_size < 2:
        raise ValueError(f'batch_size: {batch_size}; "std" needs at least 2')
    if probes not in ("turn", "pair"):
        raise ValueError(f'probes: {probes!r}; "turn" or "pair" is needed')
    spec = PerturbSpec() if spec is None else spec
    directions = _PerExampleSpec(spec=spec)

    def init_fn(params: Params) -> EstimatorState:
        directions.perturb(params, key, jnp.float32(0))
        unknown = Scalars(
            jnp.zeros(batch_size, jnp.float32), jnp.float32(0), jnp.float32(0), jnp.ones(batch_size, jnp.float32)
        )
        return EstimatorState(jnp.int32(0), random.own(key), unknown, spec.prepare(params))

    def measure(params, state, value_fn):
        def value(candidate) -> Array:
            return checked_loss(value_fn(candidate), (batch_size,))

        mean = lambda candidate: jnp.mean(value(candidate))  # noqa: E731
        step_eps = eps_of_step(eps, auto, mean, params, state, directions, two_sided=True)
        step_key = jax.random.fold_in(state.key, state.count)
        # The key of the one probe of the step, as that of any other estimator's first.
        probe_key = jax.random.fold_in(step_key, jnp.uint32(0))

        def side(sign) -> Array:
            return value(directions.perturb(params, probe_key, sign * step_eps))

        signs = jnp.array([1.0, -1.0], jnp.float32)
        up, down = jax.vmap(side)(signs) if probes == "pair" else lax.map(side, signs)
        projected = (up - down) / (2 * step_eps)
        if normalize == "std":
            # Equal losses carry no signal; the floor keeps 0 / 0 out.
            projected = projected / jnp.maximum(jnp.std(projected, ddof=1), np.float32(2.0**-126))
        scalars = Scalars(projected, (jnp.mean(up) + jnp.mean(down)) / 2, step_eps, jnp.ones(batch_size))
        return jax.tree.map(lambda x: x.astype(jnp.float32), scalars)

    def rule(params, state, scalars, weights, used):
        del scalars, used
        step_key = jax.random.fold_in(state.key, state.count)
        return directions.sum(params, jax.random.fold_in(step_key, jnp.uint32(0)), weights), {}

    return Estimator(init_fn, updating(measure, rule, batch_size, lambda state, width: width), measure)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PerExampleSpec:
    """A spec whose leaves are `PerExample`."""

    spec: PerturbSpec

    def perturb(self, params: Params, key: Key[Array, ""], scale: Array, masks: Params | None = None) -> Params:
        """The tree of leaves "weight + scale * D_i(key)"."""
        del masks

        def leaf(w: Perturbed) -> PerExample:
            if not isinstance(w.direction, Gaussian | Rademacher) or w.direction.unit_norm:
                raise ValueError(f"spec: direction {w.direction}; per_example needs Rademacher() or Gaussian()")
            return PerExample(
                base=w.base,
                key=w.key,
                scale=w.scale,
                start=w.start,
                direction=w.direction,
                full_shape=w.full_shape,
            )

        return jax.tree.map(leaf, self.spec.perturb(params, key, scale), is_leaf=lambda n: isinstance(n, Perturbed))

    def norm_factor(self, params: Params, key: Key[Array, ""], masks: Params | None = None) -> Float[Array, ""]:
        """1: these directions are not scaled."""
        del params, key, masks
        return jnp.float32(1)

    def sum(self, params: Params, key: Key[Array, ""], weights: Float[Array, "b"]) -> Params:
        """sum_i weights_i D_i."""
        examples = jnp.arange(weights.shape[0], dtype=jnp.uint32)

        def slice_sum(w: PerExample) -> Array:
            def signs(axis: int) -> Float[Array, "n b"]:
                at = lambda example: dataclasses.replace(w, example=example).signs(axis)  # noqa: E731
                return jax.vmap(at, out_axes=-1)(examples)

            if w.ndim == 0:
                terms = jax.vmap(lambda example: dataclasses.replace(w, example=example).noise())(examples)
                return terms @ weights
            if w.ndim == 1:
                return w.shared() * (signs(-1) @ weights)
            return w.shared() * outer(signs(-2) * weights, signs(-1))

        def leaf(w: PerExample) -> Array:
            return jax.vmap(slice_sum)(w) if w.scale.ndim else slice_sum(w)

        perturbed = self.perturb(params, key, jnp.float32(1))
        return jax.tree.map(leaf, perturbed, is_leaf=lambda node: isinstance(node, PerExample))
