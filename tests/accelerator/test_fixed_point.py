"""The arithmetics by name: published vectors, Python's integers, and values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.accelerator import oracle
from zojax.accelerator._gemmlowp import Word
from zojax.accelerator.fixed_point import (
    REQUANTISE,
    SHIFTS,
    Rescale,
    add_saturating,
    quantize_multiplier,
    rdpot,
    requantise,
    rescale,
    saturate,
    shift_right_rounding,
    srdhm,
)

ENDS = [0, 1, -1, 2, -2, 3, 2**30, -(2**30), 2**30 - 1, 2**31 - 1, -(2**31), -(2**31) + 1, 1 << 16, 0xFFFF, -0xFFFF]
NAMES = list(REQUANTISE)


def ints(*columns):
    return tuple(jnp.asarray(np.asarray(c, np.int64).astype(np.int32)) for c in columns)


def random_int32(rng, n):
    """Numbers of all magnitudes, and the ends."""
    wide = rng.integers(-(2**31), 2**31, n) >> rng.integers(0, 31, n)
    return np.concatenate([wide, ENDS])


def test_vectors_of_products_and_shifts(vectors):
    a, b, y = ints(*zip(*vectors["srdhm_i32"], strict=True))
    np.testing.assert_array_equal(srdhm(a, b), y)
    a, b, y = ints(*zip(*vectors["srdhm_i16"], strict=True))
    np.testing.assert_array_equal(Word(16).multiply(a, b), y)
    x, e, y = ints(*zip(*vectors["rdpot"], strict=True))
    np.testing.assert_array_equal(rdpot(x, e), y)


def test_vectors_of_requantisation(vectors):
    x, m, s, double, single = ints(*zip(*vectors["mbqm"], strict=True))
    by = Rescale(multiplier=m, shift=s)
    np.testing.assert_array_equal(requantise(x, by, "double_gemmlowp"), double)
    np.testing.assert_array_equal(requantise(x, by, "single"), single)
    assert np.any(single != double), "the vectors do not tell the two apart"


@pytest.mark.parametrize(
    ("a", "b", "y"),
    [
        (-(2**31), -(2**31), 2**31 - 1),  # the one product that does not fit
        (2**30, 2**30, 2**29),  # 1/2 * 1/2
        (1, 2**30, 1),  # one half rounds up
        (-1, 2**30, 0),  # minus one half rounds up too
        (-3, 2**30, -1),
        (2**31 - 1, -(2**31), -(2**31) + 1),
    ],
)
def test_known_products(a, b, y):
    assert int(srdhm(jnp.int32(a), jnp.int32(b))) == y


def test_products_are_those_of_python():
    rng = np.random.default_rng(0)
    a, b = random_int32(rng, 3000), random_int32(rng, 3000)
    b[-len(ENDS) :] = np.roll(b[-len(ENDS) :], 1)
    a, b = np.concatenate([a, np.repeat(ENDS, len(ENDS))]), np.concatenate([b, np.tile(ENDS, len(ENDS))])
    expected = [oracle.srdhm(int(x), int(y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(jax.jit(srdhm)(*ints(a, b)), expected)


# name -> (x, e) of the definition, in exact integers
SHIFT_ORACLES = {
    "half_away": oracle.rdpot,
    "half_up": oracle.half_up,
    "half_even": lambda x, e: round(x / 2**e),  # exact in float64, and Python rounds halves to even
    "floor": lambda x, e: x >> e,
}


@pytest.mark.parametrize("how", list(SHIFTS))
def test_shifts_are_those_of_python(how):
    rng = np.random.default_rng(1)
    x = np.concatenate([random_int32(rng, 2000), rng.integers(-40, 40, 2000)])
    # RDPOT's mask and its half need one bit below 2^31.
    e = np.concatenate([rng.integers(0, 32, len(x) - 2000), rng.integers(0, 5, 2000)])
    expected = [SHIFT_ORACLES[how](int(a), int(b)) for a, b in zip(x, e, strict=True)]
    np.testing.assert_array_equal(jax.jit(lambda x, e: shift_right_rounding(x, e, how))(*ints(x, e)), expected)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="how: 'nearest' is not one of half_away"):
        shift_right_rounding(jnp.int32(1), 1, "nearest")
    with pytest.raises(ValueError, match="arithmetic: 'double' is not one of single"):
        requantise(jnp.int32(1), rescale(0.5), "double")


@pytest.mark.parametrize("arithmetic", NAMES)
def test_requantisation_is_that_of_python(arithmetic):
    rng = np.random.default_rng(2)
    n = 4000
    x, m = random_int32(rng, n), rng.integers(2**30, 2**31, n + len(ENDS))
    s = rng.integers(-31, 31, n + len(ENDS))
    # Sums that may stand in an accumulator, and factors as networks have them, where roundings matter.
    x[: n // 2], s[: n // 2] = rng.integers(-(2**20), 2**20, n // 2), rng.integers(-16, 1, n // 2)
    m[:50] = 0
    expected = [oracle.ARITHMETICS[arithmetic](int(a), int(b), int(c)) for a, b, c in zip(x, m, s, strict=True)]
    by = Rescale(multiplier=ints(m)[0], shift=ints(s)[0])
    got = jax.jit(lambda x, by: requantise(x, by, arithmetic))(*ints(x), by)
    np.testing.assert_array_equal(got, expected)


def test_the_arithmetics_differ():
    x = jnp.arange(-5000, 5000, dtype=jnp.int32)
    results = {name: np.asarray(requantise(x, rescale(0.0131), name)) for name in NAMES}
    # They agree but for ties and double roundings; each pair must differ somewhere over a few factors.
    halves = {name: np.asarray(requantise(x, rescale(1 / 8), name)) for name in NAMES}
    for i, a in enumerate(NAMES):
        for b in NAMES[i + 1 :]:
            if {a, b} != {"single", "double_half_up"}:  # equal on powers of two: they round halves up
                assert np.any(halves[a] != halves[b]), (a, b)
            assert np.max(np.abs(results[a] - results[b])) <= 1, (a, b)
    y = ints(np.random.default_rng(0).integers(-(2**24), 2**24, 200_000))[0]
    assert np.any(requantise(y, rescale(0.0131), "single") != requantise(y, rescale(0.0131), "double_half_up"))


@settings(max_examples=60, deadline=None)
@given(st.floats(min_value=2.0**-34, max_value=2.0**29, allow_nan=False))
def test_multipliers_are_the_nearest(factor):
    m, s = (int(v) for v in quantize_multiplier(factor))
    assert (m, s) == oracle.multiplier(factor)
    if m:
        assert 2**30 <= m < 2**31
        # Half a unit of the 31-bit mantissa, whose top bit is set.
        assert abs(m * 2.0 ** (s - 31) - factor) <= 2.0**-31 * factor


def test_known_multipliers():
    assert [tuple(int(v) for v in quantize_multiplier(f)) for f in (1.0, 0.5, 0.75, 2.0**-33, 0.0)] == [
        (2**30, 1),
        (2**30, 0),
        (3 * 2**29, 0),
        (0, 0),
        (0, 0),
    ]
    # The mantissa rounds up to 2^31, which is halved.
    assert tuple(int(v) for v in quantize_multiplier(1 - 2.0**-40)) == (2**30, 1)
    for bad in (-1.0, float("nan"), float("inf"), 2.0**30):
        with pytest.raises(ValueError, match="factor"):
            quantize_multiplier(bad)


@pytest.mark.parametrize("bits", [8, 16, 20, 32])
def test_sums_saturate(bits):
    rng = np.random.default_rng(bits)
    top = 2 ** (bits - 1)
    a, b = rng.integers(-top, top, 2000), rng.integers(-top, top, 2000)
    a[:4], b[:4] = (-top, top - 1, -top, top - 1), (-top, top - 1, top - 1, -top)
    np.testing.assert_array_equal(add_saturating(*ints(a, b), bits), oracle.clamp(a + b, bits))
    np.testing.assert_array_equal(saturate(*ints(a), 8), oracle.clamp(a, 8))


def test_no_64_bit_integer_is_needed():
    """The programs hold nothing wider than 32 bits, so they run on TPU and without x64."""
    by = Rescale(multiplier=jnp.int32(2**30), shift=jnp.int32(-3))
    for name in NAMES:
        assert "64[" not in str(jax.make_jaxpr(lambda x, name=name: requantise(x, by, name))(jnp.int32(5)))
