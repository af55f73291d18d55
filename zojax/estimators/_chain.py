"""`optax.chain` with an estimator at its head."""

from typing import Any

import jax
import optax

from zojax import ops
from zojax.estimators._base import Estimator

Params = Any


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
      >>> import jax.numpy as jnp
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
