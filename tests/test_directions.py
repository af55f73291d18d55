"""Directions: zero mean, identity covariance, and one z however it is asked for."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax.directions import Gaussian, LowRank, Rademacher, Sparse, Sphere
from zojax.perturb import PerturbSpec

KEY = jax.random.key(11)
MATRICES = {
    "gaussian": Gaussian(),
    "rademacher": Rademacher(),
    "sphere": Sphere(),
    "low_rank_1": LowRank(rank=1),
    "low_rank_3": LowRank(rank=3),
}
DRAWS = 4000


def moments(sample, count=DRAWS):
    """Mean and second-moment matrix of flattened draws, each with its standard error."""
    z = np.asarray(jax.jit(jax.vmap(sample))(jax.random.split(KEY, count)), np.float64).reshape(count, -1)
    products = np.einsum("ni,nj->nij", z, z)
    return [(x.mean(0), x.std(0) / math.sqrt(count)) for x in (z, products)]


def whitened(spec, params):
    """One draw of the whole tree's direction, norm factor included."""

    def sample(key):
        factor = spec.norm_factor(params, key)
        return jnp.concatenate([factor * z.ravel() for z in jax.tree.leaves(spec.noise(params, key))])

    return sample


@pytest.mark.parametrize("direction", MATRICES.values(), ids=MATRICES.keys())
def test_mean_zero_and_identity_covariance(direction):
    params = {"w": jnp.zeros((3, 4)), "b": jnp.zeros((2,))}
    (mean, mean_error), (second, second_error) = moments(whitened(PerturbSpec(direction=direction), params))
    # 14 means and 105 products: P(any beyond 4.5 standard errors) < 1e-3, for keys that are fixed anyway. The floor is
    # the rounding of float32, where a moment is exact (signs squared).
    assert np.all(np.abs(mean) < 4.5 * mean_error + 1e-6)
    assert np.all(np.abs(second - np.eye(14)) < 4.5 * second_error + 1e-6)


def test_the_sphere_has_radius_sqrt_of_the_number_of_weights():
    params = {"w": jnp.zeros((30, 40)), "b": jnp.zeros((5,))}
    draw = jax.jit(whitened(PerturbSpec(direction=Sphere()), params))
    for seed in range(4):
        norm = float(jnp.linalg.norm(draw(jax.random.key(seed))))
        assert norm == pytest.approx(math.sqrt(1205), rel=1e-6)  # float32 sums of 1205 squares, a few ulp


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_low_rank_has_its_rank_and_factors(rank):
    direction = LowRank(rank=rank)
    z, (A, B) = jax.jit(lambda key: (direction.sample(key, (3, 12, 9)), direction.factors(key, (3, 12, 9))))(KEY)
    # 1e-6 of entries of size one: float32 sums of up to five products
    np.testing.assert_allclose(z, jnp.einsum("lmr,lnr->lmn", A, B) / math.sqrt(rank), atol=2e-6)
    assert all(np.linalg.matrix_rank(np.asarray(layer), tol=1e-4) == rank for layer in z)
    assert not np.allclose(z[0], z[1])  # leading axes index independent matrices


def test_low_rank_draws_its_factors_apart():
    # Peers are known to draw both factors, or all ranks, from one seed.
    A, B = LowRank(rank=4).factors(KEY, (500, 500))
    columns = np.concatenate([np.asarray(A), np.asarray(B)], axis=1).T
    correlation = np.corrcoef(columns) - np.eye(8)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(500)


def test_a_vector_leaf_of_low_rank_takes_the_vector_direction():
    direction = LowRank(rank=2, vector=Rademacher())
    assert direction.for_leaf(1) == Rademacher()
    assert direction.for_leaf(0) == Rademacher()
    assert direction.for_leaf(2) is direction
    assert Sparse(inner=direction).for_leaf(1).inner == Rademacher()


ALL = {**MATRICES, "sparse": Sparse(inner=Gaussian())}


@pytest.mark.parametrize("direction", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize("shape", [(40, 6), (3, 40, 6)])
def test_tiles_and_rows_are_parts_of_the_sample(direction, shape):
    lead = len(shape) - 2
    first = (2,) * lead
    ids = jnp.array([[7, 0], [39, 7]])

    @jax.jit  # the key is an argument: of a constant one, XLA would fold the draws with another log1p
    def parts(key):
        tile = direction.sample(key, shape, start=(*first, 5, 2), size=((1,) * lead) + (30, 3))
        rows = direction.rows(key, shape, ids, start=None if not lead else (*first, 0, 0))
        return direction.sample(key, shape), tile, rows

    whole, tile, rows = parts(KEY)
    layer = whole[2] if lead else whole
    exact = not isinstance(direction, LowRank)
    # LowRank sums rank products, whose contraction may differ between two programs: 2^-22 of an entry of size up to 8.
    tolerance = {"rtol": 0, "atol": 0 if exact else 2e-6}
    np.testing.assert_allclose(tile.reshape(30, 3), layer[5:35, 2:5], **tolerance)
    np.testing.assert_allclose(rows, layer[ids], **tolerance)


@pytest.mark.parametrize("rank", [1, 4])
def test_low_rank_dot_is_the_product(rank):
    direction, shape = LowRank(rank=rank), (3, 40, 6)
    x = jax.random.normal(jax.random.key(1), (2, 5, 40))

    @jax.jit
    def both(key):
        return direction.dot(x, key, shape, start=(1, 0, 0), size=(1, 40, 6)), x @ direction.sample(key, shape)[1]

    # Sums of 40 products of size one: 40 * 2^-24 of |x| |z| ~ 40.
    np.testing.assert_allclose(*both(KEY), atol=1e-4)


def test_two_leaves_of_one_shape_differ():
    params = {"a": jnp.zeros((40, 4)), "b": jnp.zeros((40, 4))}
    for direction in (Rademacher(), LowRank(rank=1)):
        z = jax.jit(PerturbSpec(direction=direction).noise)(params, KEY)
        correlation = np.corrcoef(np.ravel(z["a"]), np.ravel(z["b"]))[0, 1]
        # Rank one has as few as 4 independent columns, so the bound is that of sharing, 1, not of independence.
        assert abs(correlation) < 0.9


def test_refusals():
    with pytest.raises(ValueError, match=r"rank: 0"):
        LowRank(rank=0)
    with pytest.raises(ValueError, match=r"fraction: 0"):
        Sparse(fraction=0.0)
    with pytest.raises(ValueError, match=r"fraction: 1.5"):
        Sparse(fraction=1.5)
    with pytest.raises(ValueError, match=r"inner: Sphere"):
        Sparse(inner=Sphere())
    with pytest.raises(ValueError, match=r"vector: Sphere"):
        LowRank(vector=Sphere())
