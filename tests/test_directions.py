"""Directions: zero mean, identity covariance, and one z however it is asked for."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import random
from zojax._roundings import tables
from zojax.directions import BOUNDS, Gaussian, LowRank, Rademacher, Rounded, Sparse, Sphere
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


ALL = {
    **MATRICES,
    "sparse": Sparse(inner=Gaussian()),
    "rounded": Rounded(bits=4),
    "rounded_update": Rounded(bits=4).for_update,
    "rounded_normal": Rounded(bits=8),
    "sparse_rounded": Sparse(inner=Rounded(bits=3)),
}


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


# ---------------------------------------------------------------- rounded directions


def expectation(function, step):
    """E[function(u)] for a standard normal u in float64, by Gauss-Legendre between the levels, where it is smooth."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    first = np.arange(-math.ceil(9 / step), math.ceil(9 / step))[:, None]
    u = step * (first + (nodes + 1) / 2)
    return np.sum(function(u) * np.exp(-u * u / 2) * weights) * step / 2 / math.sqrt(2 * math.pi)


def squared(direction):
    """E[u_1^2] with what clips."""

    def given_u(u):
        low = np.floor(u / direction.step)
        ends = [np.clip(code, -direction.levels, direction.levels) * direction.step for code in (low, low + 1)]
        fraction = u / direction.step - low
        return (1 - fraction) * ends[0] ** 2 + fraction * ends[1] ** 2

    return expectation(given_u, direction.step)


def two_roundings(direction, shape=(1024, 1024)):
    draw = jax.jit(lambda key: (direction.sample(key, shape), direction.for_update.sample(key, shape)))
    return [np.asarray(z, np.float64) for z in draw(KEY)]


def errors_from(samples, expected):
    return abs(samples.mean() - expected) / (samples.std() / math.sqrt(samples.size))


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_two_roundings_are_unbiased_and_one_is_biased(bits):
    direction = Rounded(bits=bits, bound=5.5)  # clips no float32 normal
    step = direction.step
    exact = expectation(lambda u: u * u + step**2 * (u / step - np.floor(u / step)) * (1 - u / step % 1), step)
    series = sum(math.exp(-2 * (math.pi * k / step) ** 2) / k**2 for k in range(1, 20)) * (step / math.pi) ** 2
    assert exact == pytest.approx(1 + step**2 / 6 - series, rel=1e-12)
    # D = 1.83 at 3 bits: D^2 / 6 is off by 0.2 % of itself, and by nothing that shows at 8 and 4 bits.
    assert exact - 1 == pytest.approx(step**2 / 6, rel=2e-3 if bits == 3 else 1e-10)
    one, two = two_roundings(direction)
    assert errors_from(one * two, 1) < 4
    assert errors_from(one * one, exact) < 4
    assert errors_from(two * two, exact) < 4
    assert errors_from(one * one, 1) > 4 or bits == 8  # a bias of 3e-4 does not show in 1e6 draws
    assert abs(one.mean()) < 4 * one.std() / 1024


def test_the_bias_formula_is_good_up_to_levels_two_apart():
    for step, share in ((2.0, 5e-3), (3.0, 7e-2)):
        fraction = lambda u, step=step: u / step % 1  # noqa: E731
        exact = step**2 * expectation(lambda u, f=fraction: f(u) * (1 - f(u)), step)
        assert share / 2 < 1 - exact / (step**2 / 6) < share


@pytest.mark.parametrize("bits", sorted(BOUNDS))
def test_product_moment_is_that_of_the_clipped_normal(bits):
    direction = Rounded(bits=bits)
    reach = direction.step * direction.levels
    # erfc and the difference of terms near 1: float64 to 1e-14. Up to 4 bits probabilities are rounded to 2^-16, by
    # half of that at most: a level's square of up to bound^2 = 16 times 2^-17 a level, and half as much by the other.
    tolerance = 1e-12 if bits > 4 else 16 * 2**-17 * (2 * direction.levels + 1)
    assert direction.product_moment == pytest.approx(
        expectation(lambda u: np.clip(u, -reach, reach) ** 2, direction.step), rel=tolerance
    )


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_the_drawn_distribution_is_that_of_two_roundings_of_a_normal(bits):
    direction = Rounded(bits=bits)
    n, step = direction.levels, direction.step
    codes = np.arange(-n, n + 1)

    def given(u):  # P(rounding = code | u) [code, ...]
        low = np.floor(u / step)
        fraction = u / step - low
        below, above = (np.clip(low + i, -n, n)[None] == codes[:, None, None] for i in (0, 1))
        return below * (1 - fraction) + above * fraction

    drawn = np.zeros((2 * n + 1, 2 * n + 1))
    integers = jnp.arange(2**16, dtype=jnp.uint32)
    first = np.asarray(jax.jit(lambda v: tables(n, step).first(v))(integers)) + n
    starts = np.searchsorted(first, codes + n)  # an integer of each level
    second = jax.jit(lambda one: tables(n, step).second(jnp.full((2**16,), one), integers))
    for level, at in enumerate(starts):
        share = np.bincount(first, minlength=2 * n + 1)[level] / 2**16
        drawn[level] = share * np.bincount(np.asarray(second(jnp.uint32(at))) + n, minlength=2 * n + 1) / 2**16
    exact = np.array(
        [[expectation(lambda u, i=i, j=j: given(u)[i] * given(u)[j], step) for j in codes + n] for i in codes + n]
    )
    # Shares and shares of shares are rounded to 2^-16; the middle level takes up what the others lose, n 2^-16 at most.
    np.testing.assert_allclose(drawn, exact, rtol=0, atol=(n + 1) * 2.0**-16)
    assert np.array_equal(drawn, drawn[::-1, ::-1])  # the mean is 0 exactly


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_moments_with_the_default_bounds(bits):
    one, two = two_roundings(Rounded(bits=bits))
    assert errors_from(one * two, Rounded(bits=bits).product_moment) < 4
    assert errors_from(one * one, squared(Rounded(bits=bits))) < 4
    np.testing.assert_array_equal(*two_roundings(Rounded(bits=bits, independent=False), (8, 8)))


@pytest.mark.parametrize("number", [1, 2])
def test_a_rounding_is_the_normal_and_words_of_its_number(number):
    """Against jax.random in float64: one u for both roundings, r from fold_in(leaf key, number)."""
    direction, shape = Rounded(bits=5), (64, 128)
    direction = direction if number == 1 else direction.for_update
    u = np.asarray(jax.random.normal(KEY, shape), np.float64)
    r = (np.asarray(jax.random.bits(jax.random.fold_in(KEY, number), shape)) >> 8) / 2.0**24
    level = u / (5.5 / 15) + r
    sure = np.abs(level - np.round(level)) > 1e-5  # float32 of levels up to 16
    codes, step, bits = direction.codes(KEY, shape)
    assert (step, bits, codes.dtype) == (5.5 / 15, 5, jnp.int8)
    np.testing.assert_array_equal(np.asarray(codes)[sure], np.clip(np.floor(level), -15, 15)[sure])
    assert sure.mean() > 0.999
    np.testing.assert_array_equal(direction.sample(KEY, shape), np.asarray(codes, np.float32) * np.float32(step))


def test_roundings_of_few_bits_come_from_the_two_words_of_a_draw():
    direction, shape = Rounded(bits=3), (6, 16)
    one, two = (np.asarray(random.halves(KEY, shape, word=word)) for word in (0, 1))
    table = tables(3, 1.0)
    np.testing.assert_array_equal(direction.codes(KEY, shape)[0], table.first(jnp.asarray(one)))
    np.testing.assert_array_equal(
        direction.for_update.codes(KEY, shape)[0], table.second(jnp.asarray(one), jnp.asarray(two))
    )


def test_the_probe_takes_rounding_1_and_the_update_rounding_2():
    params = {"w": jnp.zeros((16, 8)), "s": jnp.zeros((16, 8))}
    spec = PerturbSpec(direction=Rounded(bits=3), rules=(("s", Sparse(inner=Rounded(bits=3), fraction=1.0)),))
    kept = spec.prepare(params)
    leaves, noise = spec.perturb(params, KEY, jnp.float32(1), kept), spec.noise(params, KEY, kept)
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf.noise(), Rounded(bits=3).sample(leaf.key, (16, 8)))
        np.testing.assert_array_equal(noise[name], Rounded(bits=3, number=2).sample(leaf.key, (16, 8)))
        assert not np.array_equal(leaf.noise(), noise[name])


def test_refusals():
    for bits in (1, 9):
        with pytest.raises(ValueError, match=rf"bits: {bits}; .* from 2 to 8"):
            Rounded(bits=bits)
    with pytest.raises(ValueError, match=r"bound: 0"):
        Rounded(bound=0.0)
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
