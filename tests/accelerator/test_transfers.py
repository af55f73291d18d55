"""Operators that an accelerator lacks leave it, and are counted; descriptions that make no sense are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.accelerator import networks
from zojax.accelerator import NARROW, PRESETS, TFLITE, Accelerator
from zojax.accelerator.device import OPERATORS
from zojax.accelerator.emulate import Q3_12, Format, quantise, symmetric_format
from zojax.accelerator.normalise import layer_norm, layer_norm_layer, layer_norm_plan
from zojax.accelerator.softmax import PROBABILITY, softmax, softmax_plan
from zojax.accelerator.transfers import transfers

BATCH, TIME = 2, 6


def counted(accelerator):
    w = networks.weights(0)
    plans = networks.plans(TFLITE, w)
    n = networks.build(w, plans, "integer")
    x = jnp.zeros((BATCH, TIME, networks.MEL), jnp.int8)
    ids = jnp.zeros((BATCH, 3), jnp.int32)
    run = lambda x, ids, n: (networks.encode(x, n, accelerator), networks.predict(ids, n, accelerator))  # noqa: E731
    return {t.operator: t for t in transfers(run, x, ids, n)}


def lacking(*names):
    return dataclasses.replace(TFLITE, lacks=frozenset(names))


def test_nothing_leaves_an_accelerator_that_has_all():
    assert counted(TFLITE) == {}


def test_each_operator_is_counted_with_what_crosses():
    found = counted(lacking("embedding", "layer_norm", "softmax"))
    assert sorted(found) == ["embedding", "layer_norm", "softmax"]
    frames = TIME // 2
    # int32 ids go out, int8 rows come back.
    assert found["embedding"] == ("embedding", 1, BATCH * 3 * (4 + networks.WIDTH))
    # Once after the LSTM, with int8 in and out, and of 4 gates in each of its frames, with int16 in and out.
    outer, inner = 2 * BATCH * frames * networks.WIDTH, 4 * BATCH * 4 * networks.CELLS
    assert found["layer_norm"] == ("layer_norm", 1 + frames, outer + frames * inner)
    heads, window = 2, 4
    assert found["softmax"] == ("softmax", 1, 2 * BATCH * frames * heads * window)


def test_composite_operators_leave_as_one():
    found = counted(lacking("attention", "softmax", "squeeze_excite"))
    assert {t.operator: t.calls for t in found.values()} == {"attention": 1, "squeeze_excite": 1}


def test_what_leaves_computes_the_real_function():
    rng = np.random.default_rng(0)
    scores = Format(scale=jnp.float32(0.04))
    x = jnp.asarray(rng.integers(-128, 128, (5, 7)), jnp.int8)
    got = softmax(x, softmax_plan(scores), lacking("softmax"))
    np.testing.assert_array_equal(got, PROBABILITY.encode(jax.nn.softmax(x * jnp.float32(0.04), axis=-1)))
    g, b = jnp.asarray(rng.uniform(0.5, 1, 8), jnp.float32), jnp.asarray(rng.normal(size=8), jnp.float32)
    plan = layer_norm_plan(symmetric_format(4.0, 16), symmetric_format(1.0, 16), Q3_12)
    v = rng.normal(size=(3, 8)).astype(np.float32)
    codes = quantise(jnp.asarray(v), plan.input, "integer")
    got = layer_norm(codes, layer_norm_layer(g, b, plan, "integer"), lacking("layer_norm"))
    real = (v - v.mean(-1, keepdims=True)) / v.std(-1, keepdims=True) * np.asarray(g) + np.asarray(b)
    # 16-bit inputs and gains: some units of 2^-12 after a division by the deviation.
    np.testing.assert_allclose(np.asarray(got) * 2.0**-12, real, atol=2e-3)


def test_the_presets():
    assert PRESETS == {"tflite": TFLITE, "narrow": NARROW}
    assert (NARROW.cell_bits, NARROW.nonlinear) == (8, "lut")
    assert set(NARROW.lacks) <= set(OPERATORS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(weight_bits=9), "weight_bits: 9; 2 to 8 is needed"),
        (dict(activation_bits=3), "activation_bits: 3; 4 to 8"),
        (dict(accumulator_bits=12), "accumulator_bits: 12; 16 to 32"),
        (dict(accumulator_bits=20), "accumulator_tile: 0 with accumulator_bits 20"),
        (dict(accumulator_tile=8), "accumulator_tile: 8 with accumulator_bits 32"),
        (dict(requantise="double"), "requantise: 'double' is not one of single"),
        (dict(nonlinear="table"), "nonlinear: 'table' is not one of gemmlowp, lut"),
        (dict(lacks=frozenset({"fft"})), "lacks: fft not among attention"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Accelerator(name="mine", **fields)
