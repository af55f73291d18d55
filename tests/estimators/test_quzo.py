"""QuZO on a quadratic over quantised weights: Q-RGE2 is unbiased, Q-RGE1 is not, both by their closed forms."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.estimators.problems import KEY, make, regression, weights
from tests.test_directions import squared
from zojax import estimators, ops
from zojax.directions import LowRank, Rounded, Sparse, Sphere
from zojax.perturb import PerturbSpec
from zojax.quant import quantize

M, N = 6, 5
CURVATURE = jnp.linspace(0.5, 2.0, M * N).reshape(M, N)
EPS = 2.0**-5


def quadratic(params):
    # Through a product, as a layer uses its weights; the identity leaves it exact.
    return jnp.sum(CURVATURE * jnp.square(ops.dot(jnp.eye(M), params["w"]))) / 2


def leaf(grid):
    """Weights on the grid where a probe of codes is unbiased.

    Away from the ends, which a code leaves one way only; and on a float8 grid away from powers of two, above which
    codes lie twice as far apart as below: the two sides of a probe are rounded with unequal variance there, which a
    quadratic sees.
    """
    normal = jax.random.normal(jax.random.key(1), (M, N))
    w = quantize(jnp.concatenate([normal, 1.6 * jnp.abs(normal).max(0, keepdims=True)]), grid)
    codes = w.qvalue[:M]
    if w.grid.float_type:
        codes = jnp.where(codes % 8 == 0, codes + 1, codes)
    return dataclasses.replace(w, qvalue=codes)


def estimates(grid, probe, bits, independent, *, count, **options):
    """Estimates for many run keys and the gradient at the dequantised weights, float64, flat."""
    params = {"w": leaf(grid)}
    spec = PerturbSpec(probe=probe)

    def estimate(key):
        estimator = estimators.quzo(EPS, spec, bits=bits, independent=independent, key=key, **options)
        return estimator.update(None, estimator.init(params), params, value_fn=quadratic)[0]["w"]

    keys = jax.random.split(jax.random.key(0), count)
    g = np.asarray(jax.jit(jax.vmap(estimate))(keys), np.float64).reshape(count, -1)
    gradient = jax.grad(quadratic)({"w": params["w"].materialize()})["w"]
    return g, np.asarray(gradient, np.float64).ravel()


def standard_errors(samples, expected):
    return (samples.mean(0) - expected) / (samples.std(0) / math.sqrt(len(samples)))


@pytest.mark.parametrize(
    ("grid", "probe", "bits"),
    [
        ("int8_127", "beside", 4),
        ("int8_127", "codes", 4),
        ("int4", "beside", 3),
        ("int4", "codes", 3),
        ("fp8_e4m3", "beside", 4),
        ("fp8_e4m3", "codes", 3),
    ],
)
def test_independent_roundings_are_unbiased_and_a_shared_one_is_not(grid, probe, bits):
    """E[g] = E[u_1 u_2] gradient; on a quadratic the central difference is exact.

    40,000 keys tell the bias of 5 % at 4 bits (and of 15 % at 3) from 0 by more than 4 standard errors of 0.8 %.
    """
    means = {}
    for independent in (True, False):
        g, gradient = estimates(grid, probe, bits, independent, count=40_000)
        factor = Rounded(bits=bits).product_moment if independent else squared(Rounded(bits=bits))
        # 30 coordinates and a projection: P(any beyond 4) = 2e-3 before the keys were chosen.
        assert np.abs(standard_errors(g, factor * gradient)).max() < 4
        along = g @ gradient / (gradient @ gradient)
        assert abs(standard_errors(along, factor)) < 4
        means[independent] = along
    assert abs(standard_errors(means[True], 1)) < 4
    assert standard_errors(means[False], 1) > 4


@pytest.mark.parametrize("probe", ["beside", "codes"])
def test_more_probes_divide_the_variance(probe):
    error = {}
    for q in (1, 4):
        g, gradient = estimates("int8_127", probe, 4, True, count=6000, num_samples=q)
        error[q] = np.sum((g - gradient) ** 2, axis=1)
    ratio = error[1].mean() / error[4].mean()
    relative = math.hypot(*(e.std() / e.mean() / math.sqrt(len(e)) for e in error.values()))
    assert abs(ratio / 4 - 1) < 4 * relative
    assert relative < 0.05  # so that 4 is told from 3 and 5


def test_one_bit_is_spsa_along_signs():
    params = weights()
    quzo, spsa = make("quzo_1_bit"), make("spsa")
    step = [
        jax.jit(lambda s, e=e: e.update(None, s, params, value_fn=regression))(e.init(params)) for e in (quzo, spsa)
    ]
    chex.assert_trees_all_equal(step[0][0], step[1][0])


def test_the_probe_moves_along_another_rounding_than_the_update():
    params = {"w": jnp.zeros((32, 8))}
    for independent in (True, False):
        estimator = estimators.quzo(1.0, independent=independent, key=KEY)
        state = estimator.init(params)
        seen = []
        estimator.measure(params, state, lambda p, seen=seen: seen.append(p["w"]) or jnp.float32(0))
        leaf = PerturbSpec(direction=seen[0].direction).perturb(
            params, jax.random.fold_in(jax.random.fold_in(KEY, 0), 0), jnp.float32(1)
        )["w"]
        scalars = state.last._replace(projected=jnp.ones(1))
        update = estimator.update(None, state, params, scalars=scalars)[0]["w"]
        assert np.array_equal(leaf.noise(), update) != independent
        assert np.abs(leaf.noise() - update).max() < 2 * Rounded(bits=4).step  # of one normal both


def test_refusals():
    for direction in (Sphere(), LowRank(), Rounded(bits=3)):
        with pytest.raises(ValueError, match=r"spec.direction: .*quzo has a direction of its own"):
            estimators.quzo(1e-2, PerturbSpec(direction=direction), key=KEY)
    for bits in (0, 9):
        with pytest.raises(ValueError, match=f"bits: {bits}"):
            estimators.quzo(1e-2, bits=bits, key=KEY)
    sparse = PerturbSpec(direction=Sparse(fraction=0.3))
    estimator = estimators.quzo(1e-2, sparse, key=KEY)
    params = {"w": jnp.arange(1.0, 11.0)}
    state = estimator.init(params)
    g = estimator.update(None, state, params, scalars=state.last._replace(projected=jnp.ones(1)))[0]["w"]
    assert not g[3:].any()
