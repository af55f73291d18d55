"""Scales: brute force over the same shares, powers of two, groups, and what is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax.quant import GRIDS, get_grid, quantize
from zojax.quant.calibration import SHARES, expand, find_scale

every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
find = jax.jit(find_scale, static_argnums=(1, 2), static_argnames=("calibration", "power_of_two"))


def heavy_tailed(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_t(3, shape), jnp.float32)


def block_errors(w, grid, scale, zero, blocks):
    """Sum of squared errors of every block, in float64."""
    s = np.asarray(expand(scale, w.shape), np.float64)
    z = 0.0 if zero is None else np.asarray(expand(zero, w.shape), np.float64)
    codes = grid.encode(jnp.asarray(np.asarray(w, np.float64) / s + z, jnp.float32))
    error = np.square((np.asarray(grid.levels(codes), np.float64) - z) * s - np.asarray(w, np.float64))
    split = [n for length, b in zip(w.shape, blocks, strict=True) for n in (b, length // b)]
    return error.reshape(split).sum(axis=(1, 3))


@every_grid
@pytest.mark.parametrize("blocks", [(1, 6), (4, 6), (1, 1), (16, 1)])
def test_absmax_of_each_block(grid, blocks):
    w = np.asarray(heavy_tailed((16, 6)))
    scale, zero = find(jnp.asarray(w), grid, blocks)
    parts = w.reshape(blocks[0], 16 // blocks[0], blocks[1], 6 // blocks[1]).astype(np.float64)
    high, low = np.maximum(parts.max((1, 3)), 0), np.minimum(parts.min((1, 3)), 0)
    span = high - low if grid.asymmetric else np.maximum(high, -low)
    # a difference and a quotient, each rounded once
    np.testing.assert_allclose(scale, span / grid.span, rtol=2.0**-22)
    if grid.asymmetric:
        np.testing.assert_array_equal(zero, np.clip(grid.low - np.rint(low / (span / grid.span)), grid.low, grid.high))
        # the value 0 has a code of its own
        assert float(jnp.abs(quantize(jnp.asarray(w).at[0].set(0), grid, blocks=blocks).materialize()[0]).max()) == 0
    else:
        assert zero is None


@every_grid
def test_least_squared_error_is_brute_force_over_the_shares(grid):
    blocks, w = (2, 8), heavy_tailed((128, 8))
    full, zero = find(w, grid, blocks)
    best, best_zero = find(w, grid, blocks, calibration="mse")
    errors = []
    for share in SHARES:
        scale = full * np.float32(share)
        z = zero
        if grid.asymmetric:
            parts = np.asarray(w).reshape(2, 64, 8).astype(np.float64)
            low = np.minimum(parts.min(1), 0) * share
            z = jnp.asarray(np.clip(grid.low - np.rint(low / np.asarray(scale, np.float64)), grid.low, grid.high))
        errors.append(block_errors(w, grid, scale, z, blocks))
    found = block_errors(w, grid, best, best_zero, blocks)
    # two shares may be equally good up to the rounding of 64 float32 squares
    np.testing.assert_allclose(found, np.min(errors, axis=0), rtol=1e-5)
    assert np.all(found <= errors[0] * (1 + 1e-6))
    if grid.bits <= 4:
        assert np.any(found < 0.9 * errors[0])  # on coarse grids clipping pays


@every_grid
def test_powers_of_two_never_clip(grid):
    w = heavy_tailed((32, 64)) * jnp.exp2(jnp.linspace(-20, 20, 64))
    full, _ = find(w, grid, (1, 64))
    scale, _ = find(w, grid, (1, 64), power_of_two=True)
    mantissa, _ = np.frexp(np.asarray(scale))
    np.testing.assert_array_equal(mantissa, 0.5)
    assert np.all(scale >= full)
    assert np.all(scale < 2 * full)


def test_a_power_of_two_stays_what_it_is():
    exponents = np.arange(-100, 100)
    w = jnp.asarray(np.ldexp(7.0, exponents)[None], jnp.float32)
    scale, _ = find(w, get_grid("int4"), (1, 200), power_of_two=True)
    np.testing.assert_array_equal(scale[0], np.ldexp(1.0, exponents))


@every_grid
def test_zeros_have_scale_one_and_what_is_not_finite_shows(grid):
    columns = [np.zeros(4), np.full(4, 1e-38), [1, np.nan, 0, 0], [1, np.inf, 0, 0]]
    w = jnp.asarray(np.stack(columns, axis=1), jnp.float32)
    scale, _ = find(w, grid, (1, 4))
    assert scale[0, :2].tolist() == [1.0, 1.0]
    assert not np.isfinite(scale[0, 2:]).any()
    back = quantize(w, grid).materialize()
    np.testing.assert_array_equal(back[:, :2], 0.0)
    assert not np.isfinite(back[:, 2:]).any()


@pytest.mark.parametrize("blocks", [(3, 6), (1,)])
def test_blocks_that_do_not_divide(blocks):
    with pytest.raises(ValueError, match=r"blocks: .* do not divide an array of shape \(16, 6\)"):
        find_scale(jnp.ones((16, 6)), get_grid("int4"), blocks)
