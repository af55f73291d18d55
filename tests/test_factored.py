"""Factored leaves: every use adds scale * left right^T, and draws of factors are kept apart, also under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import ops
from zojax._kept import kept, normal_factor
from zojax.factored import FUSED_RANK, Factored, outer

SCALE = 0.5


def leaf(shape, rank=2, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    base, left, right = (
        jnp.asarray(rng.normal(size=size), jnp.float32)
        for size in (shape, (*shape[:-1], rank), (*shape[:-2], shape[-1], rank))
    )
    return Factored(base=base.astype(dtype), left=left, right=right, scale=jnp.float32(SCALE))


def dense(w):
    product = np.einsum("...mr,...nr->...mn", np.float64(w.left), np.float64(w.right))
    return np.float64(w.base.astype(jnp.float32)) + SCALE * product


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_each_use_adds_the_product(dtype):
    matrix, cube, kernel = (leaf(shape, dtype=dtype) for shape in ((8, 5), (8, 3, 2), (3, 4, 5)))
    # Representable in bfloat16, so that only the products' rounding is compared.
    x = jnp.asarray(np.random.default_rng(1).integers(-8, 9, size=(4, 8)) / 8, jnp.float32)
    signal, ids = jnp.ones((2, 9, 4)), jnp.array([[3, 7], [0, 0]])

    @jax.jit
    def uses(matrix, cube, kernel):
        return (
            ops.dot(x, matrix),
            ops.einsum("bd,dhk->bhk", x, cube),
            ops.conv(signal, kernel, padding="SAME"),
            ops.embed(matrix, ids),
            ops.value(matrix),
        )

    w, c, k = (jnp.asarray(dense(x), jnp.float32) for x in (matrix, cube, kernel))
    known = (x @ w, jnp.einsum("bd,dhk->bhk", x, c), ops.conv(signal, k, padding="SAME"), w[ids], w)
    for found, expected in zip(uses(matrix, cube, kernel), known, strict=True):
        # einsum and conv round the term to bfloat16: 2^-9 of up to 12 summands of size 4.
        np.testing.assert_allclose(found, expected, atol=0.05 if dtype == jnp.bfloat16 else 1e-5)


def test_layers_of_a_scanned_leaf_are_slices():
    w = leaf((3, 8, 8))
    stacked = Factored(base=w.base, left=w.left, right=w.right, scale=jnp.full(3, SCALE))
    products = jax.lax.scan(lambda c, layer: (c, ops.dot(jnp.eye(8), layer)), 0, stacked)[1]
    np.testing.assert_allclose(products, dense(w), atol=1e-5)
    np.testing.assert_allclose(ops.value(stacked), dense(w), atol=1e-5)


@pytest.mark.parametrize("rank", [FUSED_RANK, FUSED_RANK + 1])
def test_outer_is_the_product_on_both_sides_of_the_rank(rank):
    w = leaf((2, 6, 5), rank)
    known = np.einsum("...mr,...nr->...mn", np.float64(w.left), np.float64(w.right))
    np.testing.assert_allclose(jax.jit(outer)(w.left, w.right), known, atol=1e-4)  # sums of 17 float32 products
    fuses = "dot_general" not in str(jax.make_jaxpr(outer)(w.left, w.right))
    assert fuses == (rank <= FUSED_RANK)


def test_draws_of_a_population_stay_behind_one_conditional():
    """A select in its place would fuse, and every use of an element would draw it anew."""
    keys = jax.random.split(jax.random.key(3), 4)
    start = jnp.zeros(2, jnp.uint32)
    draw = lambda key: normal_factor(key, (6, 2), start=start, size=(6, 2))  # noqa: E731
    both = jax.vmap(lambda key: jax.vmap(lambda sign: sign * draw(key))(jnp.array([1.0, -1.0])))
    known = np.stack([jax.random.normal(key, (6, 2)) for key in keys])
    np.testing.assert_array_equal(jax.jit(both)(keys), np.stack([known, -known], axis=1))
    text = jax.jit(both).lower(keys).compile().as_text()  # of this platform: others may store a draw in another way
    assert text.count(" conditional(") == 1
    assert " select(" not in text.split("ENTRY")[1]


def test_kept_takes_what_is_batched_beside_the_key():
    key = jax.random.key(1)
    draw = lambda words, at: words[1] + at  # noqa: E731
    found = jax.vmap(lambda at: kept(draw, key, at))(jnp.arange(3, dtype=jnp.uint32))
    np.testing.assert_array_equal(found, jax.random.key_data(key)[1] + np.arange(3))
