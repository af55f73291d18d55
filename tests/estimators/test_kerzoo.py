"""KerZOO: no second-order bias, and its price in variance."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from tests.estimators.test_statistics import GRADIENT, SECOND_MOMENT, estimates, standard_errors
from zojax import estimators, ops
from zojax.directions import Gaussian, Rademacher


def test_mean_and_second_moment():
    """6.25 times the second moment of spsa, on a quadratic, where both are exact."""
    for direction in (Rademacher(), Gaussian()):
        g = estimates(direction, estimators.kerzoo, count=12_000)
        assert np.abs(standard_errors(g, GRADIENT.ravel())).max() < 4
        ratio = np.sum(g**2, axis=1) / np.sum(GRADIENT**2)
        expected = 6.25 * SECOND_MOMENT[direction]
        assert abs(standard_errors(ratio, expected)) < 4
        assert ratio.std() / math.sqrt(len(ratio)) < 0.05 * expected


def test_the_second_order_bias_is_gone():
    """On sum w^3 at 0, whose gradient is 0, spsa finds eps^2 in every coordinate; here r^3 K(r) has no mean."""
    cubic = lambda params: jnp.sum(ops.value(params["w"]) ** 3)  # noqa: E731
    params, eps = {"w": jnp.zeros((2, 2))}, 0.5

    def bias(make):
        def estimate(key):
            estimator = make(eps, key=key)
            return estimator.update(None, estimator.init(params), params, value_fn=cubic)[0]["w"]

        keys = jax.random.split(jax.random.key(3), 20_000)
        return np.asarray(jax.jit(jax.vmap(estimate))(keys), np.float64).reshape(len(keys), -1)

    assert np.abs(standard_errors(bias(estimators.spsa), eps**2)).max() < 4
    g = bias(estimators.kerzoo)
    assert np.abs(standard_errors(g, 0)).max() < 4
    assert (g.std(0) / math.sqrt(len(g))).max() < eps**2 / 10  # so that eps^2 would be seen


def test_radii_are_uniform_and_their_own_for_every_probe_and_step():
    params = {"w": jnp.ones(3)}
    estimator = estimators.kerzoo(1e-2, num_samples=500, key=jax.random.key(1))
    state = estimator.init(params)
    loss = lambda p: jnp.sum(ops.value(p["w"]))  # noqa: E731
    measure = jax.jit(lambda s: estimator.measure(params, s, loss))
    first, second = (measure(state._replace(count=jnp.int32(step))).norm for step in (0, 1))
    radii = np.sort(np.concatenate([first, second]).astype(np.float64))
    assert len(np.unique(radii)) == 1000
    # Kolmogorov-Smirnov: P(D > 1.95 / sqrt(n)) = 1e-3.
    assert np.abs(radii - (2 * (np.arange(1000) + 0.5) / 1000 - 1)).max() / 2 < 1.95 / math.sqrt(1000)
    # A worker that begins at probe 200 takes its radii from there.
    part = jax.jit(lambda s: estimator.measure(params, s, loss, num_samples=3, first_probe=200))(state)
    np.testing.assert_array_equal(part.norm, first[200:203])
