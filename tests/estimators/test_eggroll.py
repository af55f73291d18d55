"""EGGROLL: a population is two-point probes along low-rank directions, shaped, summed as one product."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.estimators.problems import KEY, flat, largest_intermediate, make, regression, weights
from tests.estimators.test_statistics import (
    GRADIENT,
    KEYS,
    PARAMS,
    SECOND_MOMENT,
    estimates,
    quadratic,
    standard_errors,
)
from zojax import estimators, ops
from zojax.directions import Gaussian, LowRank, Rademacher
from zojax.estimators import Scalars
from zojax.perturb import PerturbSpec


@pytest.mark.parametrize("q", [3, 20])
def test_without_shaping_it_is_two_point_probes_of_the_same_directions(q):
    """On both sides of the rank from which the sum is a matrix product."""
    params = {**weights(), "stack": jnp.ones((2, 3, 5)), "bias": jnp.zeros((2, 4))}
    spec = PerturbSpec(direction=LowRank(rank=2), stacked=("^stack$", "^bias$"), rules=(("gain", Rademacher()),))
    loss = lambda p: regression(p) + sum(jnp.sum(jnp.sin(ops.value(p[name]))) for name in ("stack", "bias"))  # noqa: E731
    population = estimators.eggroll(1e-2, spec, num_samples=q, shaping="none", key=KEY)
    turns = estimators.spsa(1e-2, spec, num_samples=q, key=KEY)
    state = population.init(params)
    scalars, expected = (jax.jit(lambda s, e=e: e.measure(params, s, loss))(state) for e in (population, turns))
    # The rounding of a loss of about 20 in differences over 2 eps.
    np.testing.assert_allclose(scalars.projected, expected.projected, atol=2.0**-20 * 20 / 1e-2)
    gradient, end = jax.jit(lambda s: population.update(None, s, params, scalars=scalars))(state)
    assert int(end.count) == 1

    @jax.jit
    def noise():
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(KEY, 0), i))(jnp.arange(q))
        return jax.vmap(lambda key: spec.noise(params, key))(keys)

    dense = jax.tree.map(lambda z: np.einsum("q...,q->...", np.float64(z), np.float64(scalars.projected)) / q, noise())
    # Sums of q float32 terms of size 10 or so.
    np.testing.assert_allclose(flat(gradient), flat(dense), atol=2.0**-20 * np.abs(scalars.projected).max() * 8)
    assert np.abs(flat(dense)).max() > 1


def test_one_sided_without_shaping_is_unbiased():
    g = estimates(LowRank(rank=1), estimators.eggroll, num_samples=4, antithetic=False, shaping="none", count=3 * KEYS)
    assert np.abs(standard_errors(g, GRADIENT.ravel())).max() < 4
    # A baseline that counted a member's own loss would shrink the mean by 1 / 4.
    along = g @ GRADIENT.ravel() / np.sum(GRADIENT**2)
    assert along.std() / math.sqrt(len(along)) < 0.25 / 6


@pytest.mark.parametrize("q", [1, 4])
def test_mean_and_second_moment_of_antithetic_populations(q):
    g = estimates(LowRank(rank=1), estimators.eggroll, num_samples=q, shaping="none")
    assert np.abs(standard_errors(g, GRADIENT.ravel())).max() < 4
    ratio = np.sum(g**2, axis=1) / np.sum(GRADIENT**2)
    # Independent members: E |g|^2 = (moment + q - 1) / q of |grad|^2.
    assert abs(standard_errors(ratio, (SECOND_MOMENT[LowRank(rank=1)] + q - 1) / q)) < 4


def test_scores_do_not_know_the_losss_scale_nor_eps():
    options = dict(num_samples=8, count=500)
    g = estimates(LowRank(rank=1), estimators.eggroll, **options)
    scaled = estimates(LowRank(rank=1), estimators.eggroll, value_fn=lambda p: 1024 * quadratic(p), **options)
    np.testing.assert_allclose(g, scaled, rtol=1e-4, atol=1e-4)  # a power of two changes exponents alone
    mean = g.mean(0)
    # E[g] = grad / |grad| for a large population: unit length, whatever eps. Of 8 directions the deviation that is
    # measured strays by a quarter.
    assert 0.7 < np.linalg.norm(mean) < 1.5
    assert mean @ GRADIENT.ravel() / np.linalg.norm(mean) / np.linalg.norm(GRADIENT) > 0.95


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_the_step_does_not_scale_with_eps(factor):
    linear = lambda p: jnp.sum(ops.value(p["w"]) * GRADIENT.astype(np.float32))  # noqa: E731

    def one(eps):
        estimator = estimators.eggroll(eps, num_samples=6, key=KEY)
        return jax.jit(lambda s: estimator.update(None, s, PARAMS, value_fn=linear)[0]["w"])(estimator.init(PARAMS))

    # A linear loss has no second order; losses of size 10 over eps / 4 * |grad|.
    np.testing.assert_allclose(one(2.0**-5 * factor), one(2.0**-5), rtol=1e-3, atol=1e-3)


def test_every_step_has_directions_of_its_own():
    params = {"w": jnp.zeros((64, 32))}
    estimator = estimators.eggroll(1e-2, num_samples=2, key=KEY)
    state = estimator.init(params)
    unit = Scalars(jnp.array([1.0, 0.0]), jnp.float32(0), jnp.float32(1), jnp.ones(2))
    noise = jax.jit(lambda s, c: estimator.update(None, s, params, scalars=c)[0]["w"])
    z = [noise(state._replace(count=jnp.int32(step)), unit) for step in range(4)]
    z += [noise(state, unit._replace(projected=jnp.array([0.0, 1.0])))]
    first = [np.linalg.svd(np.asarray(x))[0][:, 0] for x in z]
    # The left factors, of 64 normals each: cosines of standard error 1 / 8.
    cosine = np.abs(np.stack(first) @ np.stack(first).T - np.diag([x @ x for x in first]))
    assert cosine.max() < 4 / 8
    # and each has rank one
    assert {int(np.linalg.matrix_rank(x, tol=1e-3)) for x in z} == {1}


def test_a_population_multiplies_by_the_weights_once():
    """The weights are no operand of a batched product, and nothing of the population times their size is made."""
    params, q = {"w": jnp.zeros((48, 40))}, 6
    x = jnp.ones((5, 48))
    estimator = estimators.eggroll(1e-2, num_samples=q, key=KEY)
    measure = lambda p, s: estimator.measure(p, s, lambda t: jnp.sum(ops.dot(x, t["w"]) ** 2))  # noqa: E731
    # No more than the activations of the population.
    assert largest_intermediate(measure, params, estimator.init(params)) <= 2 * q * 5 * 48


def test_equal_losses_move_nothing():
    params = weights()
    estimator = make("eggroll")
    g, _ = estimator.update(None, estimator.init(params), params, value_fn=lambda p: jnp.float32(3))
    assert not flat(g).any()


def test_a_large_population_finds_the_gradient():
    """With q = 512 directions in 30 dimensions the estimate itself is the gradient, up to its length."""
    estimator = estimators.eggroll(2.0**-7, num_samples=512, key=KEY)
    g = jax.jit(lambda s: estimator.update(None, s, PARAMS, value_fn=quadratic)[0])(estimator.init(PARAMS))["w"]
    cosine = float(jnp.sum(g * GRADIENT) / jnp.linalg.norm(g) / np.linalg.norm(GRADIENT))
    # cosine^2 is about q / (q + moment - 1), .91 for q = 512 and (m + 2) (n + 2) = 56.
    assert cosine > 0.92


def test_refusals():
    with pytest.raises(ValueError, match=r"spec.direction: Gaussian\(\); eggroll needs LowRank"):
        estimators.eggroll(1e-2, PerturbSpec(direction=Gaussian()), key=KEY)
    with pytest.raises(ValueError, match="num_samples: 1; a population that is not antithetic"):
        estimators.eggroll(1e-2, num_samples=1, antithetic=False, key=KEY)
    estimator = estimators.eggroll(1e-2, num_samples=2, antithetic=False, shaping="none", key=KEY)
    with pytest.raises(ValueError, match="num_samples: 1"):
        estimator.measure(PARAMS, estimator.init(PARAMS), quadratic, num_samples=1)


def test_shaping_composes_with_optax():
    tx = estimators.chain(make("eggroll"), optax.scale_by_sign(), optax.sgd(1e-2))
    params = weights()
    updates, _ = jax.jit(lambda s: tx.update(None, s, params, value_fn=regression))(tx.init(params))
    np.testing.assert_allclose(np.abs(flat(updates)), 1e-2, rtol=1e-6)
