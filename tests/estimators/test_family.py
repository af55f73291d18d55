"""What holds for every estimator: it updates along what it measured, with fresh noise, and its log makes it again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.estimators.problems import ESTIMATORS, KEY, LOW_RANK, flat, make, protocol, regression, weights
from zojax import estimators, ops, replay
from zojax.perturb import PerturbSpec
from zojax.train.step import make_apply

# Where a probe and its update are one direction: not of another rounding, nor after momentum or shaping.
PARALLEL = [
    name
    for name in ESTIMATORS
    if name not in ("quzo", "fzoo", "eggroll", "eggroll_one_sided", "lozo_momentum", "grzo", "mezo_svrg")
]


def linear(params, slopes):
    """A loss whose slope in every weight is given; matrices are seen through a product, as a layer sees them."""
    seen = [jnp.ravel(ops.dot(jnp.eye(6), params["matrix"])), jnp.ravel(ops.value(params["gain"]))]
    return jnp.concatenate(seen) @ slopes


@pytest.mark.parametrize("name", PARALLEL)
def test_an_update_is_parallel_to_what_was_measured(name):
    """Over seven steps, and so before, on and after those on which LOZO and SubZero change their factors.

    LOZO's released code draws a new factor between the probe and the update of such a step, and then moves along
    a direction that is orthogonal to the measured one.
    """
    params = {"matrix": jnp.zeros((6, 4)), "gain": jnp.zeros((4,))}
    estimator = make(name, num_samples=1, eps=0.5)
    state = jax.jit(estimator.init)(params)

    @jax.jit
    def step(state):
        # Projected gradients of the 28 losses w_j are the direction itself.
        measure = lambda s: estimator.measure(params, state, protocol(name, lambda p: linear(p, s), 1)).projected[0]  # noqa: E731
        seen = jax.vmap(measure)(jnp.eye(28))
        scalars = jax.tree.map(jnp.ones_like, state.last)
        update, state = estimator.update(None, state, params, scalars=scalars)
        return seen, jnp.concatenate([update["matrix"].ravel(), update["gain"].ravel()]), state

    for _ in range(7):
        seen, update, state = step(state)
        for part in (slice(0, 24), slice(24, 28)):
            a, b = np.asarray(seen[part], np.float64), np.asarray(update[part], np.float64)
            assert np.linalg.norm(a) > 1e-3
            assert abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) > 1 - 1e-5


@pytest.mark.parametrize("name", ESTIMATORS)
def test_streams_differ_over_leaves_probes_and_steps(name):
    params = {"a": jnp.zeros((64, 32)), "b": jnp.zeros((64, 32))}
    if name in ("forward", "fzoo"):
        pytest.skip("the update of spsa")
    estimator = make(name, num_samples=2)
    state = jax.jit(estimator.init)(params)

    @jax.jit
    def step(state):
        def noise(probe):
            scalars = state.last._replace(projected=jax.nn.one_hot(probe, 2))
            return estimator.update(None, state, params, scalars=scalars)

        return [noise(i)[0] for i in range(2)], noise(0)[1]

    z = []
    for _ in range(3):
        found, state = step(state)
        z += [jnp.ravel(leaf) for tree in found for leaf in jax.tree.leaves(tree)]
    z = np.stack([x - x.mean() for x in z])
    correlation = np.corrcoef(z) - np.eye(len(z))
    if name == "lozo_momentum":  # the second step contains the first
        correlation = correlation[:4, :4]
    # 66 pairs of 2048 entries; with low rank only the 64 rows of a shared right factor are independent.
    assert np.abs(correlation).max() < 4.5 / np.sqrt(32 if name in LOW_RANK else 2048)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_log_makes_the_run_again(name, tmp_path):
    """Training and replay end in the same bits, over steps on which kept factors, anchors and masks change."""
    tx = estimators.chain(make(name), optax.sgd(1e-3, momentum=0.9))
    params = jax.tree.map(np.asarray, weights())
    init = jax.jit(tx.init)
    measure = jax.jit(lambda p, s: tx.measure(p, s, protocol(name, regression)))
    apply = make_apply(tx)
    fresh = lambda: jax.tree.map(jnp.array, params)  # noqa: E731 (apply donates)
    state = init(fresh())
    header = replay.make_header(KEY, params, state[0].last, estimator=name, noise_format=1)
    writer = replay.LogWriter(tmp_path / "log", header)
    trained = fresh()
    like = jax.eval_shape(measure, trained, state)
    for step in range(1, 8):
        scalars = measure(trained, state)
        writer.append(step, scalars)
        trained, state = apply(trained, state, scalars)
    writer.close()
    log = replay.read(tmp_path / "log")
    again, end = replay.replay(apply, fresh(), init(fresh()), log, like=like)
    assert replay.digest((again, end)) == replay.digest((trained, state))
    assert np.abs(flat(again) - flat(params)).max() > 0


@pytest.mark.parametrize(
    "optimiser",
    [optax.adam(1e-2), optax.sgd(1e-2, momentum=0.9), optax.chain(optax.scale_by_sign(), optax.sgd(1e-2))],
    ids=["ZO-Adam", "momentum", "sign"],
)
def test_adam_momentum_and_sign_are_compositions(optimiser):
    """The chain's updates are those of the optimiser on c z, written out."""
    params = weights()
    tx = estimators.chain(make("spsa", num_samples=1), optimiser)
    state, dense = tx.init(params), optimiser.init(params)
    step = jax.jit(lambda s, c: tx.update(None, s, params, scalars=s[0].last._replace(projected=c)))
    for count, c in enumerate((1.5, -0.25, 3.0)):
        updates, state = step(state, jnp.full(1, c))
        z = PerturbSpec().noise(params, jax.random.fold_in(jax.random.fold_in(KEY, count), 0))
        expected, dense = optimiser.update(jax.tree.map(lambda x, c=c: c * x, z), dense, params)
        np.testing.assert_allclose(flat(updates), flat(expected), rtol=1e-5, atol=1e-8)  # a fused float32 chain


@pytest.mark.parametrize("eps", [2.0**-2, 2.0**-8])
def test_one_sided_estimates_are_not_scaled_by_eps(eps):
    """On a linear loss c = slope . z whatever eps; a released peer is off by its square."""
    params = {"matrix": jnp.zeros((6, 4)), "gain": jnp.zeros((4,))}
    slopes = jnp.linspace(-1, 1, 28)
    estimator = make("forward", num_samples=3, eps=eps)
    scalars = jax.jit(lambda s: estimator.measure(params, s, lambda p: linear(p, slopes)))(estimator.init(params))
    for index in range(3):
        z = PerturbSpec().noise(params, jax.random.fold_in(jax.random.fold_in(KEY, 0), index))
        known = float(jnp.concatenate([z["matrix"].ravel(), z["gain"].ravel()]) @ slopes)
        assert float(scalars.projected[index]) == pytest.approx(known, abs=2.0**-20 * 10 / eps)
