"""Mean, second moment and cosine of the estimates against their closed forms, under fixed keys."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import estimators, ops
from zojax.directions import Gaussian, LowRank, Rademacher, Sparse, Sphere
from zojax.perturb import PerturbSpec

M, N = 6, 5  # one matrix, so that d = 30
CURVATURE = jnp.linspace(0.5, 2.0, M * N).reshape(M, N)
PARAMS = {"w": jax.random.normal(jax.random.key(1), (M, N))}
KEYS = 4000


def quadratic(params):
    return jnp.sum(CURVATURE * jnp.square(ops.value(params["w"]))) / 2


GRADIENT = np.asarray(jax.grad(quadratic)(PARAMS)["w"], np.float64)


def low_rank_moment(rank):
    """E |g|^2 / |grad|^2 for z = A B^T / sqrt(r), whose entries are uncorrelated but not independent.

    E_A [<A, G B>^2 tr(A S A^T)] = m |G B|^2 tr S + 2 tr(G B S B^T G^T) with S = B^T B, and over B
    E [|G B|^2 tr S] = r |G|^2 (n r + 2) and E [B S B^T] = r (r + n + 1) I; divided by r^2.
    """
    return (M * (N * rank + 2) + 2 * (rank + N + 1)) / rank


# On a quadratic a central difference is exact, so that g = (grad . z) z:
# E |g|^2 / |grad|^2 = E (u . z)^2 |z|^2 for a unit vector u.
SECOND_MOMENT = {
    Gaussian(): M * N + 2,
    Rademacher(): M * N,  # |z|^2 = d
    Sphere(): M * N,  # |z|^2 = d
    LowRank(rank=1): low_rank_moment(1),  # (m + 2) (n + 2)
    LowRank(rank=3): low_rank_moment(3),
}
directions = pytest.mark.parametrize("direction", SECOND_MOMENT, ids=str)


def estimates(direction, make=estimators.spsa, *, count=KEYS, seed=0, value_fn=quadratic, **options):
    """Estimates of the gradient at PARAMS for many run keys, float64 [count, M * N]."""

    def estimate(key):
        estimator = make(2.0**-5, PerturbSpec(direction=direction), key=key, **options)
        return estimator.update(None, estimator.init(PARAMS), PARAMS, value_fn=value_fn)[0]["w"]

    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(estimate))(keys), np.float64).reshape(count, -1)


def standard_errors(samples, expected):
    return (samples.mean(0) - expected) / (samples.std(0) / math.sqrt(len(samples)))


@directions
def test_two_sided_mean_and_second_moment(direction):
    g = estimates(direction)
    # 30 coordinates under fixed keys: P(any beyond 4) = 2e-3 before the keys were chosen.
    assert np.abs(standard_errors(g, GRADIENT.ravel())).max() < 4
    ratio = np.sum(g**2, axis=1) / np.sum(GRADIENT**2)
    assert abs(standard_errors(ratio, SECOND_MOMENT[direction])) < 4
    assert ratio.std() / math.sqrt(KEYS) < 0.08 * SECOND_MOMENT[direction]  # d + 2 is told from 2 d


@pytest.mark.parametrize("direction", [Rademacher(), Sphere()], ids=str)
def test_each_estimate_lies_on_its_sphere(direction):
    # g = (grad . z) z with |z|^2 = d, so that |g|^2 = d (g . grad) for every single key.
    g = estimates(direction, count=200)
    inner = g @ GRADIENT.ravel()
    # The rounding of a loss of about 20 over 2 eps = 2^-4 in grad . z, squared: 1e-4 of a root mean square of 55.
    np.testing.assert_allclose(np.sum(g**2, axis=1), M * N * inner, rtol=1e-3, atol=1e-3 * np.mean(inner))


@pytest.mark.parametrize("direction", [Gaussian(), Rademacher()], ids=str)
def test_one_sided_mean(direction):
    # (f(w + e z) - f(w)) / e = grad . z + e / 2 z^T H z: the second term times z has no mean, as z -> -z shows.
    g = estimates(direction, estimators.forward, num_samples=2)
    assert np.abs(standard_errors(g, GRADIENT.ravel())).max() < 4


def test_the_sparse_mean_is_the_gradient_of_the_small_weights():
    g = estimates(Sparse(inner=Gaussian(), fraction=0.4))
    small = np.abs(np.asarray(PARAMS["w"])).ravel() <= np.quantile(np.abs(PARAMS["w"]), 0.4)
    assert small.sum() == 12
    assert not g[:, ~small].any()
    assert np.abs(standard_errors(g[:, small], GRADIENT.ravel()[small])).max() < 4


def test_fzoo_points_downhill_and_does_not_know_the_losss_scale():
    g = estimates(Rademacher(), estimators.fzoo, num_samples=8, count=500)
    scaled = estimates(Rademacher(), estimators.fzoo, num_samples=8, count=500, value_fn=lambda p: 1024 * quadratic(p))
    np.testing.assert_allclose(g, scaled, rtol=1e-5, atol=1e-6)  # a power of two changes exponents alone
    # c_i = rise / std, std about |grad| eps: the mean points along the gradient at a length of about 1.
    mean = g.mean(0)
    cosine = mean @ GRADIENT.ravel() / np.linalg.norm(mean) / np.linalg.norm(GRADIENT)
    assert cosine > 0.95  # 500 estimates of cosine sqrt(8 / 38) each leave a sine of about 0.1
    assert 0.7 < np.linalg.norm(mean) < 1.5


@pytest.mark.parametrize("direction", [Gaussian(), Rademacher()], ids=str)
@pytest.mark.parametrize("q", [2, 8])
def test_more_probes_divide_the_variance(direction, q):
    g = estimates(direction, num_samples=q, count=600, probes="batch")
    error = np.sum((g - GRADIENT.ravel()) ** 2, axis=1) / np.sum(GRADIENT**2)
    # E |g - grad|^2 = (second moment - 1) |grad|^2 / q for independent probes.
    assert abs(standard_errors(error, (SECOND_MOMENT[direction] - 1) / q)) < 4
    cosine = g @ GRADIENT.ravel() / np.linalg.norm(g, axis=1) / np.linalg.norm(GRADIENT)
    # sqrt(q / (d + q)) is the root of the mean square to O(1 / d): 5 % of it at d = 30, plus 4 standard errors.
    expected = math.sqrt(q / (M * N + q))
    root, error = np.sqrt(np.mean(cosine**2)), np.std(cosine**2) / math.sqrt(600) / 2 / expected
    assert abs(root - expected) < 0.05 * expected + 4 * error


def test_the_bias_is_of_second_order_in_eps():
    """On sum w^3 at 0 the gradient is 0 and the estimate is e^2 on average, in every coordinate."""
    cubic = lambda params: jnp.sum(ops.value(params["w"]) ** 3)  # noqa: E731
    w = jnp.zeros((2, 2))

    def bias(eps):
        def estimate(key):
            estimator = estimators.spsa(eps, key=key)
            return estimator.update(None, estimator.init({"w": w}), {"w": w}, value_fn=cubic)[0]["w"]

        return np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(3), 2000)))

    # f(+-e z) = +-e^3 sum z for signs z, so c = e^2 sum z and E c z = e^2.
    for eps in (0.5, 0.25):
        g = bias(eps).reshape(2000, -1)
        assert np.abs(standard_errors(g, eps**2)).max() < 4
