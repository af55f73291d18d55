"""What a step does to the weights and which noise it takes, for every direction."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.estimators.problems import DIRECTIONS, KEY, flat, make, regression, weights
from zojax import estimators, ops
from zojax.estimators import Scalars
from zojax.perturb import PerturbSpec

every_dtype = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])


def cosine(a, b):
    a, b = flat(a), flat(b)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@every_dtype
def test_a_thousand_probes_leave_the_weights_alone(dtype):
    tx = estimators.chain(make("spsa", num_samples=2, eps=1e-3), optax.sgd(0.0))
    params = weights(dtype)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=regression)
        return (optax.apply_updates(params, updates), state), state[0].last.projected

    (end, _), projected = jax.jit(lambda c: jax.lax.scan(step, c, length=500))((params, tx.init(params)))
    chex.assert_trees_all_equal(end, params)
    assert np.unique(np.asarray(projected)).size > 900  # and a thousand different probes there were


@pytest.mark.parametrize(
    ("direction", "dtype"),
    [
        *((direction, jnp.bfloat16) for direction in DIRECTIONS.values()),
        *((DIRECTIONS["gaussian"], dtype) for dtype in (jnp.float32, jnp.float16)),
    ],
)
def test_the_update_is_parallel_to_the_probe(direction, dtype):
    """What a forward really sees, w(+) - w(-) through ops, points where the update goes, leaf by leaf."""
    spec, params, eps = PerturbSpec(direction=direction), {**weights(dtype), "bias": jnp.zeros(4, dtype)}, 1e-3
    estimator = estimators.spsa(eps, spec, key=KEY)
    state = estimator.init(params)

    @jax.jit
    def both(params, state):
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.count), 0)

        def seen(scale):
            leaves = spec.perturb(params, key, scale, state.masks)
            # an identity product sees the matrix as a layer does
            return {name: ops.dot(jnp.eye(6), w) if w.ndim == 2 else ops.value(w) for name, w in leaves.items()}

        probe = jax.tree.map(jnp.subtract, seen(jnp.float32(eps)), seen(jnp.float32(-eps)))
        scalars = Scalars(jnp.ones(1), jnp.float32(0), jnp.float32(eps), jnp.ones(1))
        return probe, estimator.update(None, state, params, scalars=scalars)[0]

    probe, update = both(params, state)
    for name in params:
        # .37 is what a gain of 1.0 in bfloat16 would show if the probe were added to it in its own precision.
        assert cosine(probe[name], update[name]) > 0.999, name


def test_streams_differ_over_leaves_probes_and_steps():
    params = {name: jnp.zeros((64, 64)) for name in "ab"}
    estimator = make("spsa", num_samples=2)

    @jax.jit
    def noise(step, probe):
        state = estimator.init(params)._replace(count=step)
        scalars = Scalars(jax.nn.one_hot(probe, 2), jnp.float32(0), jnp.float32(1), jnp.ones(2))
        return estimator.update(None, state, params, scalars=scalars)[0]

    z = [jnp.ravel(noise(jnp.int32(s), i)[name]) * 2 for s in range(3) for i in range(2) for name in "ab"]
    correlation = np.stack(z) @ np.stack(z).T / 4096 - np.eye(len(z))
    assert np.abs(correlation).max() < 4.5 / 64  # 66 pairs of 4096 signs: standard error 1/64


def test_a_float64_loss_keeps_the_state_in_float32():
    with jax.enable_x64(True):
        estimator, params = make("spsa", eps=1e-7), {"w": jnp.linspace(-1, 1, 5, dtype=jnp.float64)}
        state = estimator.init(params)
        loss = lambda p: jnp.sum(p["w"].materialize() ** 2)  # noqa: E731
        _, end = jax.jit(lambda p, s: estimator.update(None, s, p, value_fn=loss))(params, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, end)
        # eps = 1e-7 is out of reach of float32 losses, where the quotient would be off by 1.
        z = PerturbSpec().noise(params, jax.random.fold_in(jax.random.fold_in(KEY, 0), 0))["w"]
        assert float(end.last.projected[0]) == pytest.approx(float(2 * params["w"] @ z), abs=1e-6)
