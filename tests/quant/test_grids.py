"""Grids against numpy in float64, ml_dtypes and literal values."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from zojax import random
from zojax.quant import GRIDS, Grid, get_grid, quantize
from zojax.quant.calibration import expand

FLOAT8 = {"fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}
INTEGER = [name for name, grid in GRIDS.items() if not grid.float_type]
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
N = 1 << 14

# A grid is static: one program for each method, grid and shape.
encode, levels_of, steps_of, shift = (
    jax.jit(method, static_argnums=0) for method in (Grid.encode, Grid.levels, Grid.steps, Grid.shift)
)


def every_code(grid: Grid) -> jnp.ndarray:
    return jnp.arange(grid.low, grid.high + 1).astype(grid.dtype)


def finite_float8(dtype) -> np.ndarray:
    """All finite values of a format, ascending, zero once."""
    values = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


# ---------------------------------------------------------------- integer grids


TEN = np.array([-2.55, -2.0, -1.0, -0.25, 0.0, 0.01, 0.5, 1.0, 2.0, 2.55], np.float32)


def test_three_symmetric_int8_grids_give_three_sets_of_codes():
    """The codes of the same ten numbers, worked out by hand: 2.55 is worth 127, 127.5 or 128 steps."""
    codes = {
        name: quantize(jnp.asarray(TEN), name, blocks=(1,)).qvalue.tolist()
        for name in ("int8_127", "int8_127_5", "int8_128")
    }
    assert codes == {
        "int8_127": [-127, -100, -50, -12, 0, 0, 25, 50, 100, 127],
        "int8_127_5": [-128, -100, -50, -12, 0, 0, 25, 50, 100, 127],
        "int8_128": [-128, -100, -50, -13, 0, 1, 25, 50, 100, 127],
    }


ZERO_POINT = {"int8_asymmetric": -128 - round(-2.0 / (3.0 / 255)), "int4_asymmetric": -8 - round(-2.0 / (3.0 / 15))}


@pytest.mark.parametrize("name", INTEGER)
def test_quantise_and_dequantise_against_float64(name):
    grid = GRIDS[name]
    w = np.random.default_rng(0).uniform(-2.0, 1.0, 500).astype(np.float32)
    w[:2] = -2.0, 1.0
    q = quantize(jnp.asarray(w), name, blocks=(1,))
    exact = 3.0 / grid.span if grid.asymmetric else 2.0 / grid.span
    zero = ZERO_POINT.get(name, 0)
    np.testing.assert_allclose(q.scale, [exact], rtol=2.0**-23)
    if grid.asymmetric:
        assert q.zero_point is not None
        assert q.zero_point.tolist() == [zero]
    levels = w.astype(np.float64) / exact + zero
    codes = np.clip(np.rint(levels), grid.low, grid.high)
    # the float32 quotient may fall on the other side of a tie: nowhere else
    tie = np.abs(np.abs(levels - np.floor(levels)) - 0.5) < 1e-4
    np.testing.assert_array_equal(np.asarray(q.qvalue, np.int32)[~tie], codes[~tie])
    assert q.qvalue.dtype == (jnp.int4 if grid.bits <= 4 else jnp.int8)
    back = (np.asarray(q.qvalue, np.float64) - zero) * exact
    np.testing.assert_allclose(q.materialize(), back, rtol=1e-6, atol=1e-7)
    # inside the range no more than half a step is lost
    inside = (levels >= grid.low - 0.5) & (levels <= grid.high + 0.5)
    assert inside.mean() > 0.99
    assert np.all(np.abs(back - w)[inside] <= exact / 2 * (1 + 1e-5))


@pytest.mark.parametrize("name", INTEGER)
def test_integer_codes_are_their_levels_and_saturate(name):
    grid = GRIDS[name]
    codes = every_code(grid)
    np.testing.assert_array_equal(levels_of(grid, codes), np.arange(grid.low, grid.high + 1))
    np.testing.assert_array_equal(encode(grid, levels_of(grid, codes)), codes)
    assert encode(grid, jnp.array([-1e9, 1e9])).tolist() == [grid.low, grid.high]


# ---------------------------------------------------------------- float8 grids


@pytest.mark.parametrize(("name", "count"), [("fp8_e4m3", 253), ("fp8_e5m2", 247)])
def test_every_float8_value_has_an_ordinal(name, count):
    grid, values = GRIDS[name], finite_float8(FLOAT8[name])
    assert len(values) == count == grid.high - grid.low + 1
    assert grid.span == values[-1]
    np.testing.assert_array_equal(levels_of(grid, every_code(grid)), values)  # in order: ordinals are monotone
    np.testing.assert_array_equal(encode(grid, jnp.asarray(values, jnp.float32)), every_code(grid))
    np.testing.assert_array_equal(np.asarray(grid.stored(every_code(grid))).astype(np.float64), values)
    assert grid.stored(every_code(grid)).dtype == FLOAT8[name]
    # a neighbour is a step of one code
    up = np.nextafter(values[:-1].astype(FLOAT8[name]), FLOAT8[name](grid.span)).astype(np.float64)
    np.testing.assert_array_equal(levels_of(grid, every_code(grid)[1:]), up)


@pytest.mark.parametrize("name", FLOAT8)
def test_float8_rounds_to_nearest_even_and_saturates(name):
    grid, top = GRIDS[name], GRIDS[name].span
    x = np.random.default_rng(0).normal(size=4000).astype(np.float32) * np.float32(top) / 3
    x = np.concatenate([x, np.linspace(-4, 4, 4000).astype(np.float32) * 2.0**-7])
    expected = np.clip(x, -top, top).astype(FLOAT8[name]).astype(np.float32)
    np.testing.assert_array_equal(levels_of(grid, encode(grid, jnp.asarray(x))), expected)
    assert encode(grid, jnp.array([-1e9, 1e9])).tolist() == [grid.low, grid.high]


# ---------------------------------------------------------------- stochastic rounding and moves


@every_grid
def test_stochastic_rounding_is_right_on_average(grid):
    words = random.bits(jax.random.key(1), (N,))
    for level in (0.3, -0.7, grid.high / 3 + 0.21):
        codes = encode(grid, jnp.full((N,), level), words)
        levels = np.asarray(levels_of(grid, codes), np.float64)
        assert len(set(codes.tolist())) == 2
        assert abs(levels.mean() - np.float32(level)) < 4 * levels.std() / np.sqrt(N)  # 4 standard errors
        assert max(set(codes.tolist())) - min(set(codes.tolist())) == 1
        if not grid.asymmetric and level > -grid.high:
            np.testing.assert_array_equal(levels_of(grid, encode(grid, jnp.full((N,), -level), ~words)), -levels)


@every_grid
def test_stochastic_rounding_keeps_what_lies_on_the_grid(grid):
    codes = every_code(grid)
    for word in (0, 0xFFFFFFFF):
        words = jnp.full(codes.shape, word, jnp.uint32)
        np.testing.assert_array_equal(encode(grid, levels_of(grid, codes), words), codes)
        np.testing.assert_array_equal(steps_of(grid, codes, jnp.zeros(codes.shape), words), 0)
    assert encode(grid, jnp.array([-1e9, 1e9]), jnp.zeros((2,), jnp.uint32)).tolist() == [grid.low, grid.high]


@every_grid
def test_moves_are_right_on_average_mirrored_and_saturate(grid):
    words = random.bits(jax.random.key(2), (N,))
    for code in (0, 1, max(-2, grid.low), grid.high - 1):
        start = jnp.full((N,), code).astype(grid.dtype)
        below = float(levels_of(grid, start)[0] - levels_of(grid, start - jnp.ones_like(start))[0])
        by = -0.3 * below if code > 0 else 0.4 * below  # away from the upper end
        if code < 0:
            by = 0.01 * below
        steps = steps_of(grid, start, jnp.full((N,), by), words)
        moved = shift(grid, start, jnp.full((N,), by), words)
        np.testing.assert_array_equal(moved.astype(jnp.int32), start.astype(jnp.int32) + steps)
        change = np.asarray(levels_of(grid, moved), np.float64) - float(levels_of(grid, start)[0])
        assert abs(change.mean() - by) < 4 * change.std() / np.sqrt(N) + 1e-7 * abs(by), code
        if code == 0:
            np.testing.assert_array_equal(steps_of(grid, start, jnp.full((N,), -by), ~words), -steps)
    ends = jnp.array([grid.low, grid.high]).astype(grid.dtype)
    far = jnp.array([-1e6, 1e6], jnp.float32)
    assert shift(grid, ends, far, words[:2]).tolist() == [grid.low, grid.high]
    assert shift(grid, ends, -far, words[:2]).tolist() == [grid.high, grid.low]


@pytest.mark.parametrize("name", ["int8_127", "fp8_e4m3"])
def test_moves_too_small_for_a_float32_sum_count(name):
    """A move of 3 / 2^32 of the gap between codes happens for 3 words of 2^32, at a code of 2^8 levels too."""
    grid = GRIDS[name]
    code = jnp.int8(100) if name == "int8_127" else encode(grid, jnp.float32(256.0))
    gap = float(levels_of(grid, code + 1) - levels_of(grid, code))
    words = jnp.uint32(0xFFFFFFFF) - jnp.arange(6, dtype=jnp.uint32)
    start, by = jnp.full((6,), code), jnp.full((6,), 3 * 2.0**-32 * gap)
    assert steps_of(grid, start, by, words).tolist() == [1, 1, 1, 0, 0, 0]
    assert steps_of(grid, start, -2 * by if name == "fp8_e4m3" else -by, ~words).tolist() in (
        [-1, -1, -1, 0, 0, 0],
        [-1] * 6 if name == "fp8_e4m3" else None,  # below 256 the gap is half as wide
    )


def test_an_unknown_grid_is_named():
    with pytest.raises(ValueError, match=r"grid: 'int8' is not one of .*int8_127, int8_128, int8_127_5"):
        get_grid("int8")


def test_expand_repeats_over_groups():
    s = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(expand(s, (4, 6)), np.repeat(np.repeat(s, 2, 0), 2, 1))
    assert expand(jnp.ones((1, 3)), (4, 6)).shape == (1, 6)
