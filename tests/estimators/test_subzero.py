"""SubZero: orthonormal factors that change when they should, and estimates unbiased over them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.estimators.problems import KEY, weights
from tests.estimators.test_statistics import GRADIENT, PARAMS, M, N, estimates, quadratic, standard_errors
from zojax import estimators
from zojax.directions import Gaussian, LowRank
from zojax.perturb import PerturbSpec


@pytest.mark.parametrize("rank", [1, 3])
def test_mean_and_second_moment(rank):
    g = estimates(LowRank(rank=rank), estimators.subzero)
    assert np.abs(standard_errors(g, GRADIENT.ravel())).max() < 4
    ratio = np.sum(g**2, axis=1) / np.sum(GRADIENT**2)
    # g = s^2 c Q z for r^2 normals z and orthonormal Q with E[Q Q^T] = r^2 / (m n) I: with s^2 = m n / r^2,
    # E |g|^2 = s^4 (r^2 + 2) E |Q^T grad|^2 = m n (1 + 2 / r^2) |grad|^2.
    assert abs(standard_errors(ratio, M * N * (1 + 2 / rank**2))) < 4


def test_with_given_factors_it_is_the_projected_gradient():
    estimator = estimators.subzero(2.0**-5, PerturbSpec(direction=LowRank(rank=3)), every=10**6, key=KEY)
    start = estimator.init(PARAMS)

    def estimate(count):
        return estimator.update(None, start._replace(count=count), PARAMS, value_fn=quadratic)[0]["w"]

    g = np.asarray(jax.jit(jax.vmap(estimate))(jnp.arange(4000)), np.float64).reshape(4000, -1)
    left, right = (np.asarray(factor, np.float64) for factor in start.factors[0])
    expected = M * N / 9 * left @ left.T @ GRADIENT @ right @ right.T
    assert np.abs(standard_errors(g, expected.ravel())).max() < 4


def test_factors_are_orthonormal_and_change_with_the_period():
    params = {"matrix": weights()["matrix"], "stack": jnp.ones((2, 7, 5)), "gain": jnp.ones((4,))}
    spec = PerturbSpec(direction=LowRank(rank=3), stacked=("^stack$",))
    estimator = estimators.subzero(1e-2, spec, every=2, key=KEY)
    state = estimator.init(params)
    update = jax.jit(lambda s: estimator.update(None, s, params, scalars=s.last)[1])
    seen = [state.factors]
    for _ in range(4):
        state = update(state)
        seen.append(state.factors)
    for factors in seen:
        assert [[x.shape for x in pair] for pair in factors] == [[(6, 3), (4, 3)], [(2, 7, 3), (2, 5, 3)]]
        for factor in jax.tree.leaves(factors):
            gram = np.einsum("...mr,...ms->...rs", factor, factor)
            np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-5)
    same = [all(map(np.array_equal, *map(jax.tree.leaves, pair))) for pair in itertools.pairwise(seen)]
    assert same == [True, False, True, False]
    # Layers of a stacked leaf, and leaves, have factors of their own.
    assert not np.allclose(seen[0][1][0][0], seen[0][1][0][1])


def test_a_rank_beyond_a_side_is_that_side():
    estimator = estimators.subzero(1e-2, PerturbSpec(direction=LowRank(rank=64)), key=KEY)
    assert [x.shape for x in estimator.init(weights()).factors[0]] == [(6, 4), (4, 4)]


def test_refusals():
    with pytest.raises(ValueError, match="every: 0"):
        estimators.subzero(1e-2, every=0, key=KEY)
    with pytest.raises(ValueError, match=r"spec.direction: Gaussian\(\); subzero needs LowRank"):
        estimators.subzero(1e-2, PerturbSpec(direction=Gaussian()), key=KEY)
