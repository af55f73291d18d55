"""GRZO: as many directions as examples from two forwards, unbiased, with the variance of as many probes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.estimators.problems import KEY
from zojax import estimators, ops
from zojax.directions import Gaussian, LowRank, Rademacher, Sphere
from zojax.per_example import map_examples
from zojax.perturb import PerturbSpec

B, M, N = 4, 6, 5
D = M * N + N
RNG = np.random.default_rng(3)
ROWS = {
    "x": jnp.asarray(RNG.normal(size=(B, 3, M)), jnp.float32),
    "y": jnp.asarray(RNG.normal(size=(B, 3, N)), jnp.float32),
}
PARAMS = {"w": jnp.asarray(RNG.normal(size=(M, N)), jnp.float32), "b": jnp.asarray(RNG.normal(size=N), jnp.float32)}


def loss(params, row):
    """A quadratic in the weights, so that a central difference is exact."""
    return jnp.mean(jnp.square(ops.dot(row["x"], params["w"]) + ops.value(params["b"]) - row["y"]))


def value_fn(params):
    return map_examples(loss, params, ROWS)


def gradients():
    g = jax.vmap(jax.grad(loss), in_axes=(None, 0))(PARAMS, ROWS)
    return np.concatenate([np.asarray(g["b"], np.float64), np.asarray(g["w"], np.float64).reshape(B, -1)], axis=1)


def estimates(count, direction=None, **options):
    spec = PerturbSpec(direction=direction or Rademacher())

    def estimate(key):
        estimator = estimators.per_example(2.0**-5, spec, batch_size=B, key=key, **options)
        g = estimator.update(None, estimator.init(PARAMS), PARAMS, value_fn=value_fn)[0]
        return jnp.concatenate([g["b"], g["w"].ravel()])

    return np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), count)), np.float64)


def standard_errors(samples, expected):
    return (samples.mean(0) - expected) / (samples.std(0) / math.sqrt(len(samples)))


@pytest.mark.parametrize("direction", [Rademacher(), Gaussian()], ids=str)
def test_mean_and_second_moment(direction):
    g, each = estimates(6000, direction), gradients()
    gradient = each.mean(0)
    # 35 coordinates under fixed keys: P(any beyond 4) = 2e-3 before the keys were chosen.
    assert np.abs(standard_errors(g, gradient)).max() < 4
    squares = np.sum(g**2, axis=1)
    alone, crossed = np.sum(each**2), B**2 * gradient @ gradient - np.sum(each**2)
    # E |g|^2 = (1 / B^2) [E c_i^2 |D_i|^2 + cross terms]: d |g_i|^2 and g_i . g_j for signs, (d + 2) |g_i|^2 and,
    # since E[U^4] = 3, 3 g_i . g_j for normals.
    signs = direction == Rademacher()
    expected = ((D if signs else D + 2) * alone + (1 if signs else 3) * crossed) / B**2
    assert abs(standard_errors(squares, expected)) < 4
    # One probe for the whole batch would have d |grad|^2: told apart.
    assert squares.std() / math.sqrt(len(squares)) < abs(expected - D * gradient @ gradient) / 8


def test_the_scalars_are_the_differences_of_each_example():
    """c_i = D_i . grad_i, with D_i from updates in which one example alone has a weight."""
    estimator = estimators.per_example(2.0**-5, batch_size=B, key=KEY)
    state = estimator.init(PARAMS)
    scalars = jax.jit(lambda s: estimator.measure(PARAMS, s, value_fn))(state)
    update = jax.jit(lambda c: estimator.update(None, state, PARAMS, scalars=state.last._replace(projected=c))[0])
    for example, gradient in enumerate(gradients()):
        one = update(B * jax.nn.one_hot(example, B))
        direction = np.concatenate([one["b"], np.ravel(one["w"])])
        assert set(np.abs(direction)) == {1.0}
        # losses of a few units over 2 eps
        np.testing.assert_allclose(scalars.projected[example], direction @ gradient, atol=2.0**-20 * 10 / 2.0**-5)
    np.testing.assert_allclose(scalars.value, np.mean(value_fn_plain()), rtol=0.1)


def value_fn_plain():
    return jax.vmap(loss, in_axes=(None, 0))(PARAMS, ROWS)


def test_directions_of_two_examples_are_uncorrelated():
    params = {"w": jnp.zeros((64, 32))}
    estimator = estimators.per_example(1e-2, batch_size=3, key=KEY)
    state = estimator.init(params)
    one = jax.jit(lambda c: estimator.update(None, state, params, scalars=state.last._replace(projected=c))[0]["w"])
    z = np.stack([np.ravel(one(jax.nn.one_hot(i, 3))) for i in range(3)])
    # D_i . D_j = (r_i . r_j) (s_i . s_j), of standard error sqrt(64 * 32) in 2048.
    assert np.abs(np.corrcoef(z) - np.eye(3)).max() < 4.5 / math.sqrt(2048)


def test_std_does_not_know_the_losss_scale():
    scaled = lambda params: 1024 * value_fn(params)  # noqa: E731
    estimator = estimators.per_example(2.0**-5, batch_size=B, normalize="std", key=KEY)
    state = estimator.init(PARAMS)
    a, b = (jax.jit(lambda s, f=f: estimator.measure(PARAMS, s, f).projected)(state) for f in (value_fn, scaled))
    np.testing.assert_allclose(a, b, rtol=1e-5)  # a power of two changes exponents alone
    assert float(jnp.std(a, ddof=1)) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("batch", [16, 17])
def test_the_sum_is_the_same_fused_and_as_a_product(batch):
    params = {"w": jnp.zeros((6, 5)), "stack": jnp.zeros((2, 4, 3)), "gain": jnp.zeros(2)}
    spec = PerturbSpec(stacked=("^stack$", "^gain$"))
    estimator = estimators.per_example(1e-2, spec, batch_size=batch, key=KEY)
    state = estimator.init(params)
    update = lambda c: estimator.update(None, state, params, scalars=state.last._replace(projected=c))[0]  # noqa: E731
    weights = jnp.asarray(np.random.default_rng(0).normal(size=batch), jnp.float32)
    total, each = jax.jit(lambda w: (update(w), jax.lax.map(update, jnp.eye(batch))))(weights)
    for name, z in each.items():
        known = np.einsum("b,b...->...", np.float64(weights), np.float64(z))
        np.testing.assert_allclose(total[name], known, atol=1e-5)  # sums of 17 float32 terms below 3


def test_refusals():
    with pytest.raises(ValueError, match="batch_size: 0"):
        estimators.per_example(1e-2, batch_size=0, key=KEY)
    with pytest.raises(ValueError, match='batch_size: 1; "std" needs at least 2'):
        estimators.per_example(1e-2, batch_size=1, normalize="std", key=KEY)
    for direction in (LowRank(), Sphere()):
        with pytest.raises(ValueError, match="per_example needs Rademacher"):
            estimators.per_example(1e-2, PerturbSpec(direction=direction), batch_size=2, key=KEY).init(PARAMS)
    estimator = estimators.per_example(1e-2, batch_size=5, key=KEY)
    with pytest.raises(ValueError, match=r"value_fn: returned shape \(4,\); losses of shape \(5,\) are needed"):
        estimator.measure(PARAMS, estimator.init(PARAMS), value_fn)
