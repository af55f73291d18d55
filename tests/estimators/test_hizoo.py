"""HiZOO: estimates over the diagonal, and a diagonal that settles where its closed form says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.estimators.problems import KEY, weights
from tests.estimators.test_statistics import CURVATURE, GRADIENT, PARAMS, M, N, quadratic, standard_errors
from zojax import estimators, ops
from zojax.directions import Gaussian, Rademacher
from zojax.perturb import PerturbSpec

D = M * N
DIAGONAL = jnp.asarray(np.random.default_rng(0).uniform(0.25, 4.0, size=(M, N)), jnp.float32)


def step(key, diagonal=DIAGONAL, **options):
    estimator = estimators.hizoo(2.0**-5, key=key, **options)
    state = estimator.init(PARAMS)._replace(diagonal={"w": diagonal})
    return estimator.update(None, state, PARAMS, value_fn=quadratic)


def many(function, count):
    keys = jax.random.split(jax.random.key(0), count)
    out = jax.jit(jax.vmap(function))(keys)
    return [np.asarray(x, np.float64).reshape(count, -1) for x in out]


def test_the_mean_is_the_gradient_over_the_diagonal():
    (g,) = many(lambda key: (step(key)[0]["w"],), 4000)
    h = np.asarray(DIAGONAL, np.float64)
    assert np.abs(standard_errors(g, (GRADIENT / h).ravel())).max() < 4
    # g = (grad . z) z with z = u / sqrt(h): E |g|^2 = tr(1 / h) grad^T h^-1 grad + 2 |grad / h|^2.
    expected = np.sum(1 / h) * np.sum(GRADIENT**2 / h) + 2 * np.sum((GRADIENT / h) ** 2)
    assert abs(standard_errors(np.sum(g**2, axis=1), expected)) < 4


@pytest.mark.parametrize("q", [1, 3])
def test_one_step_of_the_diagonal_has_its_mean(q):
    """E[(k / 2) h u^2] = H + tr(H / h) h / 2; all k are positive here, so that the absolute value changes nothing."""

    def one(key):
        return (step(key, smoothing=0.5, num_samples=q)[1].diagonal["w"],)

    (found,) = many(one, 6000)
    h, curvature = (np.asarray(x, np.float64) for x in (DIAGONAL, CURVATURE))
    expected = 0.5 * h + 0.5 * (curvature + np.sum(curvature / h) * h / 2)
    assert np.abs(standard_errors(found, expected.ravel())).max() < 4


def test_the_diagonal_is_at_rest_at_a_multiple_of_the_hessians():
    """At (1 + d / 2) diag(H) a step changes it by nothing on average; by a half of it, the mean would move."""
    settled = (1 + D / 2) * CURVATURE
    for share, moves in ((1.0, False), (0.5, True)):
        (found,) = many(lambda key, h=share * settled: (step(key, h, smoothing=0.5)[1].diagonal["w"] / h,), 4000)
        errors = standard_errors(found, 1)
        assert (np.abs(errors).min() > 4) if moves else (np.abs(errors).max() < 4)


def test_the_curvature_is_the_second_difference_along_the_probe():
    params = {
        "matrix": weights()["matrix"],
        "gain": jnp.ones(4),
        "table": jnp.ones((9, 4)),
        "stack": jnp.ones((2, 3, 3)),
    }
    spec = PerturbSpec(direction=Gaussian(), stacked=("^stack$",))
    estimator = estimators.hizoo(2.0**-3, spec, num_samples=2, key=KEY)
    state = estimator.init(params)
    rng = np.random.default_rng(1)
    shaped = jax.tree.map(lambda h: jnp.asarray(rng.uniform(0.5, 2.0, h.shape), jnp.float32), state.diagonal)
    ids = jnp.arange(9)

    def loss(p):
        def layer(total, w):
            return total + jnp.sum(ops.dot(jnp.eye(3), w) ** 2), None

        total = jax.lax.scan(layer, jnp.float32(0), p["stack"])[0]
        total += jnp.sum(ops.dot(jnp.eye(6), p["matrix"]) ** 2) + 3 * jnp.sum(ops.value(p["gain"]) ** 2)
        return total + 2 * jnp.sum(ops.embed(p["table"], ids) ** 2)

    state = state._replace(diagonal=shaped)
    scalars = jax.jit(lambda s: estimator.measure(params, s, loss))(state)
    scale = {"matrix": 2, "gain": 6, "table": 4, "stack": 2}
    for index in range(2):
        u = spec.noise(params, jax.random.fold_in(jax.random.fold_in(KEY, 0), index))
        known = sum(scale[name] * np.sum(np.float64(u[name]) ** 2 / np.float64(shaped[name])) for name in params)
        # Four losses of about 200 over eps^2.
        assert float(scalars.curvature[index]) == pytest.approx(known, abs=4 * 2.0**-22 * 200 * 64)
        slope = sum(
            scale[name] * np.sum(np.float64(u[name]) / np.sqrt(np.float64(shaped[name])) * np.float64(params[name]))
            for name in params
        )
        assert float(scalars.projected[index]) == pytest.approx(slope, abs=2.0**-22 * 400 * 8)


def test_state_holds_four_bytes_a_weight():
    params = weights(jnp.bfloat16)
    state = estimators.hizoo(1e-2, key=KEY).init(params)
    assert sum(x.nbytes for x in jax.tree.leaves(state.diagonal)) == 4 * sum(x.size for x in jax.tree.leaves(params))


def test_a_curvature_that_is_not_finite_is_left_out():
    estimator = estimators.skip_nonfinite(estimators.hizoo(1e-2, smoothing=0.5, key=KEY))
    state = estimator.init(PARAMS)
    scalars = estimator.measure(PARAMS, state, lambda p: quadratic(p) * jnp.nan)
    g, end = estimator.update(None, state, PARAMS, scalars=scalars)
    assert not np.any(g["w"])
    np.testing.assert_array_equal(end.diagonal["w"], np.full((M, N), 0.5, np.float32))


def test_refusals():
    for smoothing in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"smoothing: {smoothing}"):
            estimators.hizoo(1e-2, smoothing=smoothing, key=KEY)
    for spec in (PerturbSpec(), PerturbSpec(direction=Gaussian(), rules=(("w", Rademacher()),))):
        with pytest.raises(ValueError, match=r"spec: direction Rademacher\(\); hizoo needs Gaussian"):
            estimators.hizoo(1e-2, spec, key=KEY)
