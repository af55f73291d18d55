"""What keeps a bad measurement out of the weights, acting on the scalars of a step, not on the gradient tree."""

from collections.abc import Callable

import jax.numpy as jnp

from zojax.estimators._base import Estimator, Scalars


def clip_projected(estimator: Estimator, max_abs: float) -> Estimator:
    """Clips each projected gradient to [-max_abs, max_abs].

    Args:
      estimator: an estimator or a chain headed by one.
      max_abs: bound of |c_i|.

    Returns:
      Estimator.

    Raises:
      ValueError: if the bound is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from zojax import estimators
      >>> estimator = clip_projected(estimators.spsa(1e-2, key=jax.random.key(0)), 0.5)
      >>> params = jnp.ones((3,))
      >>> scalars = estimator.measure(params, estimator.init(params), lambda p: 100 * p.materialize().sum())
      >>> float(abs(scalars.projected[0]))
      0.5

    References:
      QZO, arXiv 2505.13430, clips the directional derivative.
    """
    if not max_abs > 0:
        raise ValueError(f"max_abs: {max_abs}; a positive bound is needed")
    return _on_scalars(estimator, lambda s: s._replace(projected=jnp.clip(s.projected, -max_abs, max_abs)))


def skip_nonfinite(estimator: Estimator) -> Estimator:
    """Replaces projected gradients that are not finite by 0, and with them the probe's part of the step.

    A stateful chain still moves by its momentum and decay. `optax.apply_if_finite` would look at the gradient tree,
    and so make it resident.

    Args:
      estimator: an estimator or a chain headed by one.

    Returns:
      Estimator.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from zojax import estimators
      >>> estimator = skip_nonfinite(estimators.spsa(1e-2, key=jax.random.key(0)))
      >>> params = jnp.ones((3,))
      >>> scalars = estimator.measure(params, estimator.init(params), lambda p: p.materialize().sum() * jnp.nan)
      >>> float(scalars.projected[0])
      0.0
    """
    return _on_scalars(
        estimator, lambda s: s._replace(projected=jnp.where(jnp.isfinite(s.projected), s.projected, 0.0))
    )


def _on_scalars(estimator: Estimator, change: Callable[[Scalars], Scalars]) -> Estimator:
    # Both changes are idempotent, so scalars that were changed when measured may be changed again when applied.
    def update_fn(updates, state, params=None, *, value_fn=None, scalars=None, **extra_args):
        if value_fn is not None and scalars is None:
            scalars, value_fn = estimator.measure(params, state, value_fn), None
        if scalars is not None:
            scalars = change(scalars)
        return estimator.update(updates, state, params, value_fn=value_fn, scalars=scalars, **extra_args)

    def measure(params, state, value_fn, **options):
        return change(estimator.measure(params, state, value_fn, **options))

    return Estimator(estimator.init, update_fn, measure)
