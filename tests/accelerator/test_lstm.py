"""The integer LSTM against its recipe in NumPy's int64, and against published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.accelerator import oracle
from tests.accelerator.test_operators import codes, fmt, layer_norm_oracle
from zojax.accelerator import NARROW, TFLITE
from zojax.accelerator.emulate import Q3_12, Format, quantise, symmetric_format
from zojax.accelerator.linear import FullyConnected
from zojax.accelerator.lstm import (
    Lstm,
    LstmWeights,
    _frame,
    _input_gates,
    initial_state,
    lstm,
    lstm_layer,
    lstm_plan,
)
from zojax.accelerator.nonlinear import sigmoid, tanh
from zojax.accelerator.normalise import LayerNorm
from zojax.accelerator.products import fold

D_IN, CELLS, D_OUT = 9, 6, 5
X, H, HIDDEN = fmt(0.02, 5), fmt(0.007, -11), fmt(0.0065, 4)
GAIN = Format(scale=jnp.float32(5e-5), low=-32768, high=32767)


def make(rng, accelerator, *, norm, projection, cifg, clip):
    """An LSTM with random codes; and the codes."""
    gates, outputs = 3 if cifg else 4, D_OUT if projection else CELLS
    columns = gates * CELLS
    swx, swh = (rng.uniform(a, b, columns).astype(np.float32) for a, b in ((0.006, 0.012), (0.01, 0.02)))
    gate_format = Format(scale=jnp.float32(3e-4), low=-32768, high=32767) if norm else Q3_12
    plan = lstm_plan(
        accelerator,
        input=X,
        input_weight=fmt(swx),
        recurrent_weight=fmt(swh),
        output=H,
        cell_integer_bits=4,
        hidden=HIDDEN if projection else None,
        gates=gate_format,
        gain=GAIN if norm else None,
        projection_weight=fmt(0.006) if projection else None,
        cell_clip=clip,
    )
    raw = dict(
        wx=codes(rng, D_IN, columns),
        wh=codes(rng, outputs, columns),
        bias=rng.integers(-(10**7), 10**7, columns) if norm else rng.integers(-4000, 4000, columns),
        gain=rng.integers(10000, 32767, (gates, CELLS)),
        wp=codes(rng, CELLS, D_OUT),
        bp=rng.integers(-1000, 1000, D_OUT),
        swx=swx,
        swh=swh,
        gates=float(gate_format.scale),
    )

    def array(name, dtype=jnp.int32):
        return jnp.asarray(raw[name], dtype)

    def folded(w, of, bias):
        return fold(bias, w, of)

    wx, wh, wp = array("wx", jnp.int8), array("wh", jnp.int8), array("wp", jnp.int8)
    layer = Lstm(
        plan=plan,
        input=wx,
        input_bias=folded(wx, X, jnp.zeros(columns, jnp.int32) if norm else array("bias")),
        recurrent=wh,
        recurrent_bias=folded(wh, H, jnp.zeros(columns, jnp.int32)),
        norm=LayerNorm(plan=plan.norm, gain=array("gain", jnp.int16), bias=array("bias").reshape(gates, CELLS))
        if plan.norm
        else None,
        projection=FullyConnected(plan=plan.projection, weight=wp, bias=folded(wp, HIDDEN, array("bp")))
        if plan.projection
        else None,
    )
    return layer, raw


def float32_factor(x, w, y):
    return (np.float32(x) * np.asarray(w, np.float32) / np.float32(y)).astype(np.float64)


def run(x, layer, raw, accelerator):
    """The recipe, frame by frame."""
    how, bits = accelerator.recurrent, accelerator.cell_bits
    plan, columns = layer.plan, raw["wx"].shape[1]
    gates = columns // CELLS
    zero_h = int(H.zero)
    h, c = np.full((len(x), raw["wh"].shape[0]), zero_h), np.zeros((len(x), CELLS), np.int64)
    log2_cell = 1 + 4 - bits
    clip = plan.cell_clip
    nonlinear = accelerator.nonlinear

    def squash(f, v, **options):
        return np.asarray(f(jnp.asarray(v, jnp.int32), nonlinear, **options), np.int64)

    def share(codes, w, zero, scales, scale, bias):
        total = oracle.accumulate(codes, w, bias - zero * w.astype(np.int64).sum(0), accelerator)
        return oracle.requantise(total, float32_factor(scale, scales, raw["gates"]), how)

    outputs = []
    for frame in x.swapaxes(0, 1):
        first_bias = np.zeros(columns, np.int64) if layer.norm else raw["bias"]
        g = oracle.clamp(share(frame, raw["wx"], int(X.zero), raw["swx"], X.scale, first_bias), 16)
        recurrent = share(h, raw["wh"], zero_h, raw["swh"], H.scale, np.zeros(columns, np.int64))
        g = oracle.clamp(g + recurrent, 16).reshape(len(x), gates, CELLS)
        if layer.norm:
            biases = raw["bias"].reshape(gates, CELLS)
            rows = [layer_norm_oracle(g[:, k], raw["gain"][k], biases[k], plan.norm, how) for k in range(gates)]
            g = np.stack(rows, axis=1)
        forget, update, out = squash(sigmoid, g[:, -3]), squash(tanh, g[:, -2]), squash(sigmoid, g[:, -1])
        entry = 32767 - forget if gates == 3 else squash(sigmoid, g[:, -4])
        c = oracle.clamp(oracle.array_rdpot(forget * c, 15) + oracle.array_rdpot(entry * update, 30 + log2_cell), bits)
        c = np.clip(c, -clip, clip) if clip else c
        product = out * squash(tanh, c << (16 - bits), integer_bits=4)
        of = HIDDEN if layer.projection else H
        factor = float((np.float32(2.0**-30) / np.asarray(of.scale)).astype(np.float64))
        h = oracle.clamp(oracle.requantise(product, factor, how) + int(of.zero), 8)
        if layer.projection:
            w = raw["wp"].astype(np.int64)
            total = oracle.accumulate(h, w, raw["bp"] - int(HIDDEN.zero) * w.sum(0), accelerator)
            h = oracle.requantise(total, float32_factor(HIDDEN.scale, 0.006, H.scale), how) + zero_h
            h = oracle.clamp(h, 8)
        outputs.append(h)
    return np.stack(outputs, 1), c


@pytest.mark.parametrize(
    ("accelerator", "norm", "projection", "cifg", "clip"),
    [
        (TFLITE, False, False, False, 0.0),
        (TFLITE, True, True, True, 1.5),
        (TFLITE, True, False, False, 0.0),
        (NARROW, False, True, False, 0.0),
        (NARROW, False, False, True, 2.0),
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_the_recipe(accelerator, norm, projection, cifg, clip):
    rng = np.random.default_rng(0)
    layer, raw = make(rng, accelerator, norm=norm, projection=projection, cifg=cifg, clip=clip)
    x = codes(rng, 3, 7, D_IN, low=-128)
    y, state = jax.jit(lambda x, p: lstm(x, p, accelerator))(jnp.asarray(x), layer)
    outputs, cell = run(x, layer, raw, accelerator)
    np.testing.assert_array_equal(y, outputs)
    np.testing.assert_array_equal(state.cell, cell)
    np.testing.assert_array_equal(state.output, outputs[:, -1])
    assert len(np.unique(outputs)) > 30
    assert state.cell.dtype == (jnp.int16 if accelerator.cell_bits == 16 else jnp.int8)


def test_known_cell():
    """One cell whose gates are all 0: c = RDPOT(16384 * 0, 15) + 0, h = 16384 tanh(0) = 0 -> the zero point."""
    f = symmetric_format(1.0)
    plan = lstm_plan(TFLITE, input=f, input_weight=f, recurrent_weight=f, output=H, cell_integer_bits=3)
    layer = lstm_layer(LstmWeights(jnp.zeros((1, 4)), jnp.zeros((1, 4)), jnp.zeros(4)), plan, "integer")
    y, state = lstm(jnp.int8([[[5]]]), layer, TFLITE)
    assert (y.tolist(), state.cell.tolist()) == ([[[-11]]], [[0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(cell_integer_bits=7), "cell_integer_bits: 7; 0 to 6"),
        (dict(hidden=HIDDEN), "hidden: a format is needed with a projection, and with one only"),
    ],
)
def test_plans_that_do_not_fit_are_refused(change, message):
    f = symmetric_format(1.0)
    options = dict(input=f, input_weight=f, recurrent_weight=f, output=H, cell_integer_bits=3) | change
    with pytest.raises(ValueError, match=message):
        lstm_plan(TFLITE, **options)
    with pytest.raises(ValueError, match="the table of tanh takes 3 to 6"):
        lstm_plan(NARROW, **(options | dict(cell_integer_bits=2)))


def test_weights_that_do_not_fit_are_refused():
    f = symmetric_format(1.0)
    plan = lstm_plan(TFLITE, input=f, input_weight=f, recurrent_weight=f, output=f, cell_integer_bits=3)
    weights = LstmWeights(jnp.ones((3, 10)), jnp.ones((2, 10)), jnp.zeros(10))
    with pytest.raises(ValueError, match="input: 10 columns for 2 cells; 3 or 4 gates"):
        lstm_layer(weights, plan, "integer")
    weights = LstmWeights(jnp.ones((3, 8)), jnp.ones((2, 8)), jnp.zeros(8), gain=jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="gain: weights and plan must both have one"):
        lstm_layer(weights, plan, "integer")


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize(("norm", "cifg"), [(False, False), (True, True)])
def test_gradients_are_those_of_a_plain_loop(projection, norm, cifg):
    # The scan has a backward of its own; frame after frame in Python, automatic differentiation has none to get wrong.
    columns, outputs = (3 if cifg else 4) * CELLS, D_OUT if projection else CELLS
    keys = iter(jax.random.split(jax.random.key(0), 9))
    weights = LstmWeights(
        jax.random.uniform(next(keys), (D_IN, columns), minval=-1),
        jax.random.uniform(next(keys), (outputs, columns), minval=-1),
        jax.random.normal(next(keys), (columns,)),
        jax.random.uniform(next(keys), (columns // CELLS, CELLS), minval=0.5) if norm else None,
        (jax.random.uniform(next(keys), (CELLS, D_OUT), minval=-1), jnp.zeros(D_OUT)) if projection else None,
    )
    of = symmetric_format(1.0)
    plan = lstm_plan(
        TFLITE,
        input=of,
        input_weight=of,
        recurrent_weight=of,
        output=of,
        cell_integer_bits=3,
        hidden=of if projection else None,
        gain=GAIN if norm else None,
        projection_weight=of if projection else None,
    )
    x, wanted = jax.random.uniform(next(keys), (2, 7, D_IN), minval=-1), jax.random.normal(next(keys), (2, 7, outputs))

    def scanned(x, layer):
        return lstm(x, layer, TFLITE)[0].value

    def looped(x, layer):
        gates = _input_gates(x, layer, TFLITE)
        state, rows = initial_state(layer, 2), []
        for t in range(7):
            state, _ = _frame(gates.map(lambda a, t=t: a[:, t]), state, layer, TFLITE)
            rows.append(state.output.value)
        return jnp.stack(rows, axis=1)

    def gradients(run):
        def loss(weights, x):
            return jnp.sum(wanted * run(quantise(x, of, "emulation"), lstm_layer(weights, plan, "emulation")))

        return jax.tree.leaves(jax.grad(loss, (0, 1))(weights, x))

    assert all(jnp.any(leaf != 0) for leaf in gradients(looped))
    for mine, plain in zip(gradients(scanned), gradients(looped), strict=True):
        # Sums of 14 products in another order.
        np.testing.assert_allclose(mine, plain, rtol=1e-5, atol=1e-5)
