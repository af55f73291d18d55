"""MeZO-SVRG: the formula against dense noise, an anchor that changes when it should, and less variance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.estimators.problems import KEY
from zojax import estimators, ops
from zojax.diagnostics import AutoEps
from zojax.directions import Sparse
from zojax.perturb import PerturbSpec

D, ROWS, BATCH = 12, 64, 4
RNG = np.random.default_rng(5)
X = jnp.asarray(RNG.normal(size=(ROWS, D)), jnp.float32)
Y = jnp.asarray(X @ RNG.normal(size=D) + 3 * RNG.normal(size=ROWS), jnp.float32)
PARAMS = {"w": jnp.asarray(RNG.normal(size=D), jnp.float32)}


def loss(params, rows):
    return jnp.mean(jnp.square(X[rows] @ ops.value(params["w"]) - Y[rows])) / 2


def pair(rows):
    return lambda params: (loss(params, rows), loss(params, jnp.arange(ROWS)))


def gradient(w, rows):
    x, y = np.asarray(X, np.float64)[rows], np.asarray(Y, np.float64)[rows]
    return x.T @ (x @ np.asarray(w, np.float64) - y) / len(rows)


def noise(step, probe):
    key = jax.random.fold_in(jax.random.fold_in(KEY, step), probe)
    return np.asarray(PerturbSpec().noise(PARAMS, key)["w"], np.float64)


def test_every_step_is_its_formula():
    """A central difference of a quadratic is exact, so that c = z . gradient."""
    estimator = estimators.mezo_svrg(2.0**-4, every=3, num_samples=2, key=KEY)
    step = jax.jit(lambda p, s, rows: estimator.update(None, s, p, value_fn=pair(rows)))
    params, state = PARAMS, estimator.init(PARAMS)
    anchors, rng = [], np.random.default_rng(0)
    for count in range(5):
        rows = rng.integers(0, ROWS, BATCH)
        w = np.asarray(params["w"], np.float64)
        if count % 3 == 0:
            anchor, first = w, count
        whole = sum(noise(first, i) * (noise(first, i) @ gradient(anchor, np.arange(ROWS))) for i in range(2)) / 2
        change = gradient(w, rows) - gradient(anchor, rows)
        expected = whole + sum(noise(count, i) * (noise(count, i) @ change) for i in range(2)) / 2
        found, state = step(params, state, jnp.asarray(rows))
        # Losses of about 30 in differences over 2 eps, twice.
        np.testing.assert_allclose(found["w"], expected, atol=2.0**-20 * 30 / 2.0**-4 * 4)
        np.testing.assert_array_equal(state.anchor["w"], anchor.astype(np.float32))
        params = {"w": params["w"] - 0.05 * found["w"]}
        anchors.append(state.anchor["w"])
    assert not np.array_equal(anchors[2], anchors[3])


def test_the_estimate_at_the_anchor_is_that_of_the_whole_set_for_every_batch():
    """Between anchors, before the weights have moved, the batch has no part in the estimate."""
    estimator = estimators.mezo_svrg(2.0**-4, every=100, key=KEY)
    _, state = estimator.update(None, estimator.init(PARAMS), PARAMS, value_fn=pair(jnp.arange(4)))
    update = jax.jit(lambda s, rows: estimator.update(None, s, PARAMS, value_fn=pair(rows))[0]["w"])
    found = [update(state, jnp.asarray(rows)) for rows in ([1, 2, 3, 4], [9, 8, 7, 6])]
    np.testing.assert_array_equal(*found)
    z = noise(0, 0)
    np.testing.assert_allclose(found[0], z * (z @ gradient(PARAMS["w"], np.arange(ROWS))), atol=2e-3)


def test_a_compiled_evaluation_runs_one_of_the_two_losses():
    """An anchor loss of many layers stands once in the program, in the branch of the anchor's steps."""
    estimator = estimators.mezo_svrg(2.0**-4, every=5, key=KEY)

    def value_fn(params):
        w = ops.value(params["w"])
        return jnp.sum(jnp.sin(w)), jnp.sum(jnp.exp(w))

    state = estimator.init(PARAMS)
    program = jax.jit(lambda s: estimator.measure(PARAMS, s, value_fn)).lower(state).compile().as_text()
    assert program.count(" exponential(") == 1  # once, for both sides in turn
    assert program.count(" sine(") == 2  # at the weights, and at the anchor


def test_it_has_less_variance_near_the_anchor_than_spsa():
    moved = {"w": PARAMS["w"] + 0.05}
    batches = jnp.asarray(RNG.integers(0, ROWS, (400, BATCH)))

    def error(make_one, value, state_of):
        def one(rows, count):
            state = state_of._replace(count=count)
            return make_one.update(None, state, moved, value_fn=value(rows))[0]["w"]

        g = jax.jit(jax.vmap(one))(batches, 1 + jnp.arange(400))
        return float(jnp.mean(jnp.sum((g - g.mean(0)) ** 2, axis=1)))

    svrg = estimators.mezo_svrg(2.0**-4, every=10**6, num_samples=1, key=KEY)
    _, anchored = svrg.update(None, svrg.init(PARAMS), PARAMS, value_fn=pair(jnp.arange(4)))
    spsa = estimators.spsa(2.0**-4, key=KEY)
    plain = error(spsa, lambda rows: lambda p: loss(p, rows), spsa.init(PARAMS))
    assert error(svrg, pair, anchored) < plain / 20


def test_it_converges_where_the_batch_noise_would_keep_spsa_away():
    tx = estimators.chain(estimators.mezo_svrg(2.0**-4, every=10, num_samples=4, key=KEY), optax.sgd(0.02))
    batches = jnp.asarray(RNG.integers(0, ROWS, (600, BATCH)))

    def step(carry, rows):
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=pair(rows))
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, batches))((PARAMS, tx.init(PARAMS)))
    x, y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    excess = float(loss(params, jnp.arange(ROWS))) - np.mean((x @ best - y) ** 2) / 2
    start = float(loss(PARAMS, jnp.arange(ROWS))) - np.mean((x @ best - y) ** 2) / 2
    assert excess < 0.02 * start


def test_refusals():
    with pytest.raises(ValueError, match="every: 0"):
        estimators.mezo_svrg(1e-2, every=0, key=KEY)
    for eps in ("auto", AutoEps()):
        with pytest.raises(ValueError, match="eps: mezo_svrg takes a number or a schedule"):
            estimators.mezo_svrg(eps, key=KEY)
    for spec in (PerturbSpec(direction=Sparse()), PerturbSpec(rules=(("w", Sparse()),))):
        with pytest.raises(ValueError, match="its mask would differ"):
            estimators.mezo_svrg(1e-2, spec, key=KEY)
    estimator = estimators.mezo_svrg(1e-2, key=KEY)
    with pytest.raises(ValueError, match="value_fn: mezo_svrg needs a pair"):
        estimator.measure(PARAMS, estimator.init(PARAMS), lambda p: loss(p, jnp.arange(4)))
