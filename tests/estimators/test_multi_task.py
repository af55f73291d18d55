"""Several tasks from one probe: what each of them says alone, and one direction for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import estimators, ops
from zojax.directions import Sphere
from zojax.perturb import PerturbSpec

KEY = jax.random.key(8)
WEIGHTS = (0.5, 2.0, 0.0)


def losses(params):
    w = ops.value(params["w"])
    return jnp.stack([jnp.sum(w**2), jnp.sum(jnp.sin(w)), jnp.sum(jnp.cos(w))])


PARAMS = {"w": jnp.linspace(-1.0, 1.0, 24).reshape(6, 4)}


@pytest.mark.parametrize("probes", ["turn", "pair", "batch"])
def test_every_task_has_the_differences_that_it_has_alone(probes):
    spec = PerturbSpec(direction=Sphere())  # whose norm scales projected gradients
    tx = estimators.multi_task(1e-2, spec, weights=WEIGHTS, num_samples=3, key=KEY, probes=probes)
    alone = estimators.spsa(1e-2, spec, num_samples=3, key=KEY, probes=probes)
    state = tx.init(PARAMS)
    found = jax.jit(lambda p, s: tx.measure(p, s, losses))(PARAMS, state)
    single = jax.jit(lambda p, s: [alone.measure(p, s, lambda q, t=t: losses(q)[t]) for t in range(3)])
    for t, scalars in enumerate(single(PARAMS, alone.init(PARAMS))):
        # float32 losses of some units, over 2 eps
        np.testing.assert_allclose(found.by_task[t], scalars.projected, atol=1e-3)
        np.testing.assert_allclose(jnp.mean(found.losses[t]), scalars.value, rtol=1e-5)
    np.testing.assert_allclose(found.projected, np.dot(WEIGHTS, np.stack(found.by_task)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.value, np.dot(WEIGHTS, np.mean(np.stack(found.losses), axis=1)), rtol=1e-5)


def test_the_direction_does_not_depend_on_the_tasks():
    updates = []
    for weights in (WEIGHTS, (1.0,)):
        tx = estimators.multi_task(1e-2, weights=weights, key=KEY)
        tasks = lambda q, count=len(weights): losses(q)[:count]  # noqa: B008, E731
        update = jax.jit(lambda p, s, tx=tx, tasks=tasks: tx.update(None, s, p, value_fn=tasks)[0])
        updates.append(np.asarray(update(PARAMS, tx.init(PARAMS))["w"]))
    np.testing.assert_array_equal(np.abs(np.sign(updates[0])), 1)
    assert len(set((np.sign(updates[0]) * np.sign(updates[1])).ravel())) == 1


def test_eps_is_measured_on_the_weighted_sum():
    """AutoEps sees one loss: with a single task of weight 1 its choice is that of spsa."""
    tx = estimators.multi_task("auto", weights=(0.0, 1.0, 0.0), key=KEY)
    alone = estimators.spsa("auto", key=KEY)
    measure = jax.jit(lambda p, s, t: (tx.measure(p, s, losses).eps, alone.measure(p, t, lambda q: losses(q)[1]).eps))
    found, expected = measure(PARAMS, tx.init(PARAMS), alone.init(PARAMS))
    assert found == expected > 0


@pytest.mark.parametrize("weights", [(), (0.0, 0.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_weights_are_checked(weights):
    with pytest.raises(ValueError, match="weights: "):
        estimators.multi_task(1e-2, weights=weights, key=KEY)


def test_as_many_losses_as_weights():
    tx = estimators.multi_task(1e-2, weights=(1.0, 1.0), key=KEY)
    with pytest.raises(ValueError, match=r"value_fn: returned shape \(3,\); losses of shape \(2,\)"):
        tx.measure(PARAMS, tx.init(PARAMS), losses)
