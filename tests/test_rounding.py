"""Rounding to integers: the mean, the mirror and the edges of stochastic rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zojax import random
from zojax.rounding import nearest, stochastic

ALL_ONES = np.uint32(0xFFFFFFFF)
N = 1 << 16


def test_nearest_is_numpys_rint():
    y = jnp.asarray(np.random.default_rng(0).uniform(-20, 20, 1000).round(1), jnp.float32)  # with many ties
    np.testing.assert_array_equal(nearest(y), np.rint(np.asarray(y)))


@pytest.mark.parametrize("y", [0.25, -0.25, 2.75, -100.3, 1e-3, -1e-3, 126.9])
def test_stochastic_is_right_on_average(y):
    y = np.float32(y)
    r = np.asarray(stochastic(jnp.full((N,), y), random.bits(jax.random.key(0), (N,))), np.float64)
    assert set(r) == {np.floor(y), np.ceil(y)}
    fraction = float(y) - np.floor(float(y))
    # four standard errors of a mean of N Bernoulli draws
    assert abs(r.mean() - float(y)) < 4 * np.sqrt(fraction * (1 - fraction) / N)


@given(
    y=st.floats(-1000, 1000, width=32),
    word=st.integers(0, 2**32 - 1),
)
@settings(max_examples=300, deadline=None)
def test_stochastic_against_exact_arithmetic(y, word):
    """In float64 y and the word are exact: the magnitude goes up where the complemented word / 2^32 is below it."""
    got = float(stochastic(jnp.float32(y), jnp.uint32(word)))
    magnitude = abs(y)
    u = (word if y < 0 else 2**32 - 1 - word) / 2**32
    # floor of the threshold in units of 2^-32, which is the resolution
    up = u < np.floor((magnitude - np.floor(magnitude)) * 2**32) / 2**32
    assert got == np.copysign(np.floor(magnitude) + up, y)
    assert float(stochastic(jnp.float32(-y), jnp.uint32(~np.uint32(word)))) == -got


@pytest.mark.parametrize("word", [0, 1, ALL_ONES - 1, ALL_ONES])
def test_integers_stay(word):
    y = jnp.arange(-300, 301).astype(jnp.float32)
    np.testing.assert_array_equal(stochastic(y, jnp.full(y.shape, word, jnp.uint32)), y)


def test_the_smallest_updates_count():
    """A move of k / 2^32 codes happens for exactly k of all 2^32 words: seen at the k largest."""
    for sign in (1, -1):
        y = jnp.full((8,), sign * 5 * 2.0**-32)
        top = ALL_ONES - jnp.arange(8, dtype=jnp.uint32)
        words = top if sign > 0 else ~top
        assert stochastic(y, words).tolist() == [sign] * 5 + [0] * 3
