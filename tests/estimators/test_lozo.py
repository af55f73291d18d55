"""LOZO: unbiased low-rank estimates, one V a period, and momentum that equals the dense one within a period."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.estimators.problems import KEY, weights
from tests.estimators.test_statistics import GRADIENT, SECOND_MOMENT, estimates, standard_errors
from zojax import estimators
from zojax.directions import Gaussian, LowRank
from zojax.perturb import PerturbSpec


def test_mean_and_second_moment():
    """Over U and V: those of z = A B^T / sqrt(r)."""
    g = estimates(LowRank(rank=3), estimators.lozo)
    assert np.abs(standard_errors(g, GRADIENT.ravel())).max() < 4
    ratio = np.sum(g**2, axis=1) / np.sum(GRADIENT**2)
    assert abs(standard_errors(ratio, SECOND_MOMENT[LowRank(rank=3)])) < 4


def documented_v(path, shape, rank, period, every):
    """V by the documented keys, drawn by jax.random."""
    key = jax.random.fold_in(jax.random.fold_in(KEY, period * every), np.uint32(2**32 - 2))
    key = jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode())))
    return jax.random.normal(jax.random.fold_in(key, 1), (*shape[:-2], shape[-1], rank))


def run(momentum, steps, *, every=3, rank=2, num_samples=2):
    """Gradients and states of some steps with the same scalars."""
    params = {"matrix": weights()["matrix"], "stack": jnp.ones((2, 3, 5)), "gain": jnp.ones((4,))}
    spec = PerturbSpec(direction=LowRank(rank=rank), stacked=("^stack$",))
    estimator = estimators.lozo(1e-2, spec, every=every, momentum=momentum, num_samples=num_samples, key=KEY)
    update = jax.jit(lambda s, c: estimator.update(None, s, params, scalars=s.last._replace(projected=c)))
    state, rng, rows = estimator.init(params), np.random.default_rng(0), []
    for _ in range(steps):
        before = state
        gradient, state = update(state, jnp.asarray(rng.normal(size=num_samples), jnp.float32))
        rows.append((before, jax.tree.map(lambda x: np.asarray(x, np.float64), gradient), state))
    return rows


def test_v_is_kept_for_a_period_and_addressed_by_it():
    rows = run(0.0, 5)
    for step, (_, gradient, _) in enumerate(rows):
        for name in ("matrix", "stack"):
            right = np.asarray(documented_v(name, gradient[name].shape, 2, step // 3, 3), np.float64)
            # Rows of the gradient lie in the span of V's columns: what a projection leaves is float32 rounding.
            solution = np.linalg.pinv(right) @ np.swapaxes(gradient[name], -1, -2)
            rest = np.swapaxes(gradient[name], -1, -2) - right @ solution
            assert np.abs(rest).max() < 1e-5 * np.abs(gradient[name]).max()


def test_momentum_is_the_average_of_the_gradients_within_a_period():
    plain, averaged = run(0.0, 3), run(0.75, 3)
    total = None
    for (_, gradient, _), (_, found, _) in zip(plain, averaged, strict=True):
        total = (
            jax.tree.map(lambda x: 0.25 * x, gradient)
            if total is None
            else jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, total, gradient)
        )
        # float32 sums of a few terms of size one
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, total)


def test_momentum_is_carried_over_by_the_two_factors():
    plain, averaged = run(0.0, 4), run(0.75, 4)
    before, gradient = averaged[3][0], averaged[3][1]
    for name in ("matrix", "stack"):
        shape = gradient[name].shape
        old, new = (np.asarray(documented_v(name, shape, 2, period, 3), np.float64) for period in (0, 1))
        carried = np.asarray(before.momentum[name], np.float64) @ np.swapaxes(old, -1, -2) @ new / shape[-1]
        expected = 0.75 * carried @ np.swapaxes(new, -1, -2) + 0.25 * plain[3][1][name]
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-4, atol=1e-5)
    assert averaged[3][2].momentum["matrix"].shape == (6, 2)  # factored: m r numbers, not m n
    assert averaged[3][2].momentum["stack"].shape == (2, 3, 2)


def test_refusals():
    with pytest.raises(ValueError, match="every: 0"):
        estimators.lozo(1e-2, every=0, key=KEY)
    for momentum in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"momentum: {momentum}"):
            estimators.lozo(1e-2, momentum=momentum, key=KEY)
    with pytest.raises(ValueError, match=r"spec.direction: Gaussian\(\); lozo needs LowRank"):
        estimators.lozo(1e-2, PerturbSpec(direction=Gaussian()), key=KEY)
