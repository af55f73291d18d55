"""Sigmoid, tanh, exponentials, roots and reciprocals: vectors, all 65,536 inputs, and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax.accelerator import _gemmlowp
from zojax.accelerator.nonlinear import NONLINEAR, exp_table, inverse_sqrt, isqrt, reciprocal, sigmoid, tanh

ALL = np.arange(-(2**15), 2**15)


@pytest.fixture(scope="module")
def everywhere():
    """Each function of all 16-bit codes in Q3.12."""
    x = jnp.asarray(ALL, jnp.int32)
    return {
        (f.__name__, how): np.asarray(jax.jit(lambda x, f=f, how=how: f(x, how))(x))
        for f in (sigmoid, tanh)
        for how in NONLINEAR
    }


@pytest.mark.parametrize(
    ("key", "function", "how", "integer_bits"),
    [
        ("gemmlowp_logistic_i16_Q3.12", sigmoid, "gemmlowp", 3),
        ("gemmlowp_tanh_i16_Q3.12", tanh, "gemmlowp", 3),
        ("gemmlowp_tanh_i16_Q4.11", tanh, "gemmlowp", 4),
        ("gemmlowp_tanh_i16_Q1.14", tanh, "gemmlowp", 1),
        ("tflm_lut_logistic_i16_Q3.12", sigmoid, "lut", 3),
        ("tflm_lut_tanh_i16_Q3.12", tanh, "lut", 3),
    ],
)
def test_vectors(vectors, key, function, how, integer_bits):
    x = jnp.asarray(vectors["x_i16"], jnp.int32)
    np.testing.assert_array_equal(function(x, how, integer_bits=integer_bits), vectors[key])


def test_known_values(everywhere):
    """Some of the published values, for where the file of vectors is absent."""
    at = np.searchsorted(ALL, [-32768, -12288, -100, -1, 0, 1, 10, 512])
    expected = {
        ("sigmoid", "gemmlowp"): [11, 1551, 16183, 16383, 16384, 16384, 16402, 17408],
        ("sigmoid", "lut"): [11, 1554, 16184, 16382, 16384, 16386, 16404, 17407],
        ("tanh", "gemmlowp"): [-32767, -32612, -792, -8, 0, 8, 76, 4076],
        ("tanh", "lut"): [-32767, -32606, -800, -8, 0, 8, 80, 4075],
    }
    for key, values in expected.items():
        assert everywhere[key][at].tolist() == values, key


# The greatest error in units of 2^-15 over all codes, as published with the vectors.
WORST = {("sigmoid", "gemmlowp"): 6, ("tanh", "gemmlowp"): 12, ("sigmoid", "lut"): 1, ("tanh", "lut"): 1}


def test_the_errors_are_the_published_ones(everywhere):
    x = ALL / 4096
    for (name, how), worst in WORST.items():
        exact = 1 / (1 + np.exp(-x)) if name == "sigmoid" else np.tanh(x)
        rounded = np.minimum(np.floor(exact * 2**15 + 0.5), 2**15 - 1)
        assert np.max(np.abs(everywhere[name, how] - rounded)) == worst, (name, how)


def test_the_variants_disagree_where_published(everywhere):
    assert np.sum(everywhere["sigmoid", "gemmlowp"] != everywhere["sigmoid", "lut"]) == 56761
    assert np.sum(everywhere["tanh", "gemmlowp"] != everywhere["tanh", "lut"]) == 41116


def test_wrong_names_and_widths_are_refused():
    with pytest.raises(ValueError, match="how: 'table' is not one of gemmlowp, lut"):
        sigmoid(jnp.int32(0), "table")
    with pytest.raises(ValueError, match="integer_bits: 2; the table takes 3 to 15"):
        tanh(jnp.int32(0), "lut", integer_bits=2)


def test_exponentials_of_32_bits():
    x = -np.concatenate([[0, 1, 2**26], np.random.default_rng(0).integers(0, 2**31, 2000)])
    got = np.asarray(_gemmlowp.exp_on_negative(_gemmlowp.Word(32), jnp.asarray(x, jnp.int32), 5))
    # The polynomial of 4th degree at the ends of its quarter: 4e-7 at most in float64 as well.
    np.testing.assert_allclose(got / 2**31, np.exp(x / 2**26), atol=1e-6)
    assert got[0] == 2**31 - 1


def test_the_table_of_exponentials():
    for scale in (0.02, 0.3):
        exact = np.exp(-np.arange(256) * scale) * 2**15
        assert np.max(np.abs(np.asarray(exp_table(scale))[1:] - exact[1:])) <= 0.5
        assert int(exp_table(scale)[0]) == 2**15 - 1


def test_square_roots_are_those_of_python():
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 46341, 500) ** 2
    x = np.concatenate([np.arange(300), squares, squares[squares > 0] - 1, [2**31 - 1], rng.integers(0, 2**31, 500)])
    np.testing.assert_array_equal(jax.jit(isqrt)(jnp.asarray(x, jnp.int32)), np.floor(np.sqrt(x)).astype(int))


def magnitudes():
    rng = np.random.default_rng(3)
    return np.concatenate([np.arange(1, 300), 2 ** np.arange(31), rng.integers(1, 2**31, 3000) >> rng.integers(0, 31)])


def test_reciprocals():
    x = np.maximum(magnitudes(), 1)
    by = jax.jit(reciprocal)(jnp.asarray(x, jnp.int32))
    got = np.asarray(by.multiplier, np.float64) / 2**31 * 2.0 ** np.asarray(by.shift)
    # Three Newton steps end within the roundings of Q2.29: some units of 2^-29 of a number of at least 1/2.
    np.testing.assert_allclose(got, 1 / x, rtol=2.0**-26)


def test_inverse_square_roots():
    x = np.maximum(magnitudes(), 1)
    by = jax.jit(inverse_sqrt)(jnp.asarray(x, jnp.int32))
    got = np.asarray(by.multiplier, np.float64) / 2**31 * 2.0 ** np.asarray(by.shift)
    # Five Newton steps from 1 leave 1.2353e-6 of 1 / sqrt(1/4), the farthest; so they do in float64.
    np.testing.assert_allclose(got, 1 / np.sqrt(x), rtol=1.25e-6)
    zero = inverse_sqrt(jnp.int32(0))
    assert (int(zero.multiplier), int(zero.shift)) == (2**31 - 1, 0)
