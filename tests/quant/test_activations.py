"""Activations on their way into a product, against float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from zojax.quant import Activations, get_grid


def tokens(shape=(3, 5, 16)):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=shape) * 10.0 ** rng.integers(-3, 3, (*shape[:-1], 1)), jnp.float32)


@pytest.mark.parametrize("per", ["token", "tensor"])
@pytest.mark.parametrize("grid", ["int8_127", "int8_128", "int4", "int8_asymmetric", "fp8_e4m3", "fp8_e5m2"])
def test_dynamic_scales(grid, per):
    x = tokens()
    codes, scale, zero = Activations(grid=grid, per=per).quantize(x)
    g, x = get_grid(grid), np.asarray(x, np.float64)
    axes = -1 if per == "token" else None
    high, low = (np.max(x, axes, keepdims=True), np.min(x, axes, keepdims=True))
    span = np.maximum(high, 0) - np.minimum(low, 0) if g.asymmetric else np.maximum(high, -low)
    np.testing.assert_allclose(scale, span / g.span, rtol=2.0**-22)
    assert scale.shape == ((3, 5, 1) if per == "token" else (1, 1, 1))
    assert codes.dtype == (jnp.int4 if grid == "int4" else jnp.int8)
    assert (zero is None) != g.asymmetric
    levels = np.asarray(g.levels(codes), np.float64)
    error = np.abs((levels - (0 if zero is None else np.asarray(zero))) * np.asarray(scale, np.float64) - x)
    if g.float_type:  # half a unit of the mantissa's last place, or half the smallest number
        half_ulp = {"fp8_e4m3": 2.0**-4, "fp8_e5m2": 2.0**-3}[grid]
        assert np.all(error <= np.maximum(np.abs(x) * half_ulp, scale * float(g.levels(jnp.int8(1))) / 2) * 1.00001)
    else:  # half a step, and on the grid of 128 a whole one at the upper end
        assert np.all(error <= np.asarray(scale) * (1.00001 if grid == "int8_128" else 0.50001))


def test_static_scale_saturates():
    codes, scale, zero = Activations(grid="int8_127", per="static").quantize(jnp.array([[1.0, 9.0]]), jnp.float32(0.02))
    assert (codes.tolist(), zero) == ([[50, 127]], None)
    np.testing.assert_array_equal(scale, np.float32([[0.02]]))


def test_a_token_that_is_not_finite_has_a_scale_that_is_not():
    _, scale, _ = Activations(grid="int8_127").quantize(jnp.array([[1.0, jnp.nan], [1.0, 2.0], [jnp.inf, 1.0]]))
    assert np.isfinite(scale[:, 0]).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": "int8"}, "grid: 'int8' is not one of"),
        ({"grid": "int8_asymmetric", "per": "static"}, "grid: 'int8_asymmetric' has a zero point"),
    ],
)
def test_wrong_fields_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Activations(**options)


def test_a_static_scale_that_is_missing():
    with pytest.raises(ValueError, match=r"static: no scale; run quant\.calibrate"):
        Activations(grid="int4", per="static").quantize(jnp.ones((1, 2)))
