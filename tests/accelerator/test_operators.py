"""Each integer operator against NumPy's int64, written from its definition."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.accelerator import oracle
from zojax.accelerator import NARROW, TFLITE
from zojax.accelerator.attention import Attention, attention, attention_plan
from zojax.accelerator.convolution import Convolution, convolution
from zojax.accelerator.emulate import Q0_7, Q3_12, Format, activation_format, symmetric_format
from zojax.accelerator.linear import FullyConnected, factor, fully_connected, linear_plan
from zojax.accelerator.nonlinear import exp_table, inverse_sqrt, reciprocal, sigmoid, tanh
from zojax.accelerator.normalise import LayerNorm, SqueezeExcite, layer_norm, layer_norm_plan, squeeze_excite
from zojax.accelerator.products import fold
from zojax.accelerator.softmax import softmax, softmax_plan
from zojax.accelerator.transducer import Embedding, Joiner, embed, joiner

PRESETS = [TFLITE, NARROW]
both = pytest.mark.parametrize("accelerator", PRESETS, ids=lambda a: a.name)


def codes(rng, *shape, low=-127, high=127):
    return rng.integers(low, high + 1, shape).astype(np.int8)


def fmt(scale, zero=0, bits=8):
    top = 2 ** (bits - 1)
    return Format(scale=jnp.asarray(scale, jnp.float32), zero=jnp.int32(zero), low=-top, high=top - 1)


def layer(rng, d_in, d_out, *, to=None, relu=False, channels=True, x=None, spread=1.0):
    """A layer with random codes, and what the oracle needs of it; outputs clamp now and then."""
    x = x or fmt(rng.uniform(0.01, 0.03), rng.integers(-60, 60))
    w = codes(rng, d_in, d_out)
    s_w = rng.uniform(0.004, 0.012, d_out if channels else 1).astype(np.float32)
    to = to or fmt(x.scale * s_w.mean() * math.sqrt(d_in) * 74 * 74 / 60 * spread, rng.integers(-60, 60))
    plan = linear_plan(x, fmt(s_w if channels else s_w[0]), to)
    bias = rng.integers(-3000, 3000, d_out).astype(np.int32)
    made = FullyConnected(plan=plan, weight=jnp.asarray(w), bias=fold(jnp.asarray(bias), jnp.asarray(w), x), relu=relu)
    return made, (w, bias)


def expected(x, made, parts, accelerator, how=None):
    w, bias = parts
    plan = made.plan
    bits = 16 if plan.output.high > 127 else 8
    return oracle.fully_connected(
        x,
        w,
        bias,
        accelerator,
        zero_in=int(plan.input.zero),
        factor=factor(plan.input.scale, plan.weight.scale, plan.output.scale, "float64"),
        zero_out=int(plan.output.zero),
        bits=bits,
        low=int(plan.output.zero) if made.relu else None,
        how=how,
    )


@both
@pytest.mark.parametrize("channels", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_fully_connected(accelerator, channels, relu):
    rng = np.random.default_rng(0)
    made, parts = layer(rng, 150, 24, relu=relu, channels=channels)
    x = codes(rng, 2, 5, 150, low=-128)
    y = jax.jit(lambda x, p: fully_connected(x, p, accelerator))(jnp.asarray(x), made)
    want = expected(x, made, parts, accelerator)
    np.testing.assert_array_equal(y, want)
    assert y.dtype == jnp.int8
    assert len(np.unique(want)) > 40, "the case is too easy"


def test_a_narrow_accumulator_saturates_tile_by_tile():
    """Two tiles of 32 products go far up, two come down: exactly, the sum is 0; in 20 bits it is not."""
    x = np.full((1, 128), 127, np.int8)
    w = np.repeat(np.int8([127, 127, -127, -127]), 32)[:, None]
    plan = linear_plan(fmt(1.0), fmt(1.0), fmt(8192.0))
    made = FullyConnected(plan=plan, weight=jnp.asarray(w), bias=jnp.int32([0]))
    wide, narrow = (int(fully_connected(jnp.asarray(x), made, a)[0, 0]) for a in (TFLITE, NARROW))
    tile = 32 * 127 * 127
    assert 2 * tile > 2**19 - 1
    sums = (2**19 - 1) - 2 * tile  # clamped above once, then two tiles down
    assert (wide, narrow) == (0, round(sums / 8192))
    # Were the whole sum clamped at the end, or product by product, the result would be another.
    assert narrow not in (0, round((2**19 - 1 - 64 * 127 * 127) / 8192 - 1))


def test_wide_codes_are_refused():
    made, _ = layer(np.random.default_rng(0), 4, 2)
    with pytest.raises(ValueError, match="x: int16 codes in a product; int8 is needed"):
        fully_connected(jnp.zeros((1, 4), jnp.int16), made, TFLITE)


def convolve_oracle(x, w, bias, accelerator, *, strides, padding, groups, plan, relu=False):
    """Causal windows, one after the other; taps row by row, then channels."""
    zero = int(plan.input.zero)
    pads = [(0, 0), (w.shape[0] - 1, 0), *padding, (0, 0)]
    x = np.pad(x.astype(np.int64), pads, constant_values=zero)
    window, c_out = w.shape[:-2], w.shape[-1]
    outs = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], window, strides, strict=True)]
    y = np.zeros((x.shape[0], *outs, c_out), np.int64)
    per = c_out // groups
    factors = np.broadcast_to(factor(plan.input.scale, plan.weight.scale, plan.output.scale, "float64"), (c_out,))
    for at in np.ndindex(*outs):
        place = tuple(slice(i * s, i * s + k) for i, s, k in zip(at, strides, window, strict=True))
        seen = x[(slice(None), *place)]
        for c in range(c_out):
            first = c // per * w.shape[-2]
            taps = seen[..., first : first + w.shape[-2]].reshape(x.shape[0], -1)
            kernel = w[..., c].astype(np.int64).reshape(-1, 1)
            total = oracle.accumulate(taps, kernel, np.asarray([bias[c] - zero * kernel.sum()]), accelerator)
            y[(slice(None), *at, c)] = oracle.requantise(total, factors[c], accelerator.requantise)[:, 0]
    y = oracle.clamp(y + int(plan.output.zero), 8)
    return np.maximum(y, int(plan.output.zero)) if relu else y


@both
@pytest.mark.parametrize(
    ("window", "c_in", "c_out", "groups", "strides", "padding", "shape"),
    [
        ((4,), 6, 5, 1, (1,), (), (2, 7)),
        ((3,), 12, 8, 1, (2,), (), (2, 9)),
        ((5,), 6, 6, 6, (1,), (), (2, 7)),  # depthwise
        ((3, 3), 2, 4, 1, (2, 2), ((1, 1),), (1, 6, 7)),
        ((3, 2), 4, 8, 4, (1, 1), ((0, 1),), (1, 5, 4)),  # depthwise with a multiplier, in time and frequency
    ],
)
def test_convolutions(accelerator, window, c_in, c_out, groups, strides, padding, shape):
    rng = np.random.default_rng(1)
    # A narrow accumulator of two tiles inside a window, so that their order counts.
    accelerator = dataclasses.replace(accelerator, accumulator_tile=accelerator.accumulator_tile and 8)
    plan = linear_plan(fmt(0.02, 7), fmt(rng.uniform(0.004, 0.012, c_out).astype(np.float32)), fmt(0.02, -9))
    plan = dataclasses.replace(plan, rescale=linear_plan(fmt(0.02), plan.weight, fmt(0.05)).rescale)
    plan = dataclasses.replace(plan, output=fmt(0.05, -9))
    w, bias = codes(rng, *window, c_in // groups, c_out), rng.integers(-3000, 3000, c_out).astype(np.int32)
    made = Convolution(
        plan=plan,
        kernel=jnp.asarray(w),
        bias=fold(jnp.asarray(bias), jnp.asarray(w), plan.input),
        strides=strides,
        padding=padding or ((0, 0),) * (len(window) - 1),
        groups=groups,
        relu=True,
    )
    x = codes(rng, *shape, c_in, low=-128)
    y, _ = jax.jit(lambda x, p: convolution(x, p, accelerator))(jnp.asarray(x), made)
    want = convolve_oracle(
        x, w, bias, accelerator, strides=strides, padding=padding, groups=groups, plan=plan, relu=True
    )
    np.testing.assert_array_equal(y, want)
    assert len(np.unique(want)) > 10


def layer_norm_oracle(x, gain, bias, plan, how="double_gemmlowp"):
    """Sums of Python's integers; the inverse deviation of `newton` from the fixed-point function, tested elsewhere."""
    out = np.zeros_like(x, np.int64)
    n = x.shape[-1]
    m2, s2 = oracle.multiplier(float(plan.gain.scale) / float(plan.output.scale))
    for place in np.ndindex(*x.shape[:-1]):
        row = [int(v) for v in x[place]]
        mean = oracle.truncated(sum(row) * 1024, n)
        variance = sum(v * v for v in row) * (2**20 // n) - mean * mean
        whole = oracle.truncated(variance, 2**20)
        by = inverse_sqrt(jnp.int32(int(plan.guard) if whole < 1 else whole))
        m, s = int(by.multiplier), int(by.shift)
        for i, v in enumerate(row):
            rescaled = oracle.ARITHMETICS[how](1024 * v - mean, m, s)
            value = rescaled * int(gain[i]) + int(bias[i])
            scaled = oracle.truncated(value + (512 if value > 0 else -512), 1024)
            out[(*place, i)] = oracle.ARITHMETICS[how](scaled, m2, s2)
    return oracle.clamp(out + int(plan.output.zero), 16 if plan.output.high > 127 else 8)


@pytest.mark.parametrize("n", [16, 13])
def test_layer_norm(n):
    rng = np.random.default_rng(n)
    gain = Format(scale=jnp.float32(5e-5), low=-32768, high=32767)
    plan = layer_norm_plan(fmt(1e-3, bits=16), gain, Q3_12, guard=1)
    x = rng.integers(-2000, 2000, (6, n)) * np.array([[1], [10], [16], [0], [1], [1]])
    x[4] = 2  # all equal: the guard
    x[5] = rng.integers(-1, 2, n)
    g, b = rng.integers(10000, 30000, n).astype(np.int16), rng.integers(-(10**7), 10**7, n).astype(np.int32)
    made = LayerNorm(plan=plan, gain=jnp.asarray(g), bias=jnp.asarray(b))
    y = jax.jit(lambda x, p: layer_norm(x, p, TFLITE))(jnp.asarray(x, jnp.int16), made)
    np.testing.assert_array_equal(y, layer_norm_oracle(x, g, b, plan))


def test_layer_norm_by_square_roots_is_near_the_real_one():
    """Ours has no runtime to compare with: it must be within the roundings of the real function."""
    rng = np.random.default_rng(0)
    gain = Format(scale=jnp.float32(2.0**-14), low=-32768, high=32767)
    plan = layer_norm_plan(fmt(1.0, bits=16), gain, fmt(2.0**-12, bits=16))
    x = rng.integers(-200, 200, (5, 32)) * np.array([[1], [10], [100], [160], [1]])
    x[4] = rng.integers(-2, 3, 32)  # a variance of about 2 codes; one below 1 is the guard's
    g, b = np.full(32, 2**14, np.int16), rng.integers(-(10**6), 10**6, 32).astype(np.int32)
    made = LayerNorm(plan=plan, gain=jnp.asarray(g), bias=jnp.asarray(b))
    y = jax.jit(lambda x, p: layer_norm(x, p, NARROW))(jnp.asarray(x, jnp.int16), made)
    y = np.asarray(y, np.float64) * 2.0**-12
    real = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) + b * 2.0**-24
    # Deviates of at most 4 in 1/1024, and a root of at least 15 bits.
    assert np.max(np.abs(y - real)) < 2 * 2.0**-10


def softmax_oracle(x, visible, plan, accelerator):
    """TFLite's reference kernel for gemmlowp; from a table: quotients of exact integers, so near and not equal."""
    out = np.full(x.shape, -128)
    table = np.asarray(exp_table(float(plan.input.scale)))
    for place in np.ndindex(*x.shape[:-1]):
        at = np.flatnonzero(visible[place])
        row = x[place][at].astype(np.int64)
        exps = table[row.max() - row].astype(np.float64)
        out[place][at] = np.clip(np.rint(exps / exps.sum() * 256) - 128, -128, 127)
    return out


@both
def test_softmax(accelerator):
    rng = np.random.default_rng(0)
    plan = softmax_plan(fmt(0.05, 3))
    x = codes(rng, 40, 9, low=-128)
    visible = rng.random(x.shape) < 0.7
    visible[:, 0] = True
    y = np.asarray(
        jax.jit(lambda x, v: softmax(x, plan, accelerator, v))(jnp.asarray(x), jnp.asarray(visible)), np.int64
    )
    off = np.abs(y - softmax_oracle(x, visible, plan, accelerator))
    # Q0.15 exponentials round the quotient by less than one code; nearly all are equal.
    assert off.max() <= 1
    assert np.mean(off > 0) < 0.02
    assert np.all(y[~visible] == -128)
    exact = jax.nn.softmax(jnp.where(visible, x * 0.05, -jnp.inf), axis=-1)
    assert np.max(np.abs((y + 128) / 256 - exact)) < 1.01 / 256


def test_softmax_of_known_scores():
    plan = softmax_plan(fmt(math.log(2)))  # each code is a factor of 2
    for accelerator in PRESETS:
        run = jax.jit(lambda x, a=accelerator: softmax(x, plan, a))
        np.testing.assert_array_equal(run(jnp.int8([[5, 4, 3, 3]])), [[0, -64, -96, -96]])
        np.testing.assert_array_equal(run(jnp.int8([[-128], [4]])), [[127], [127]])
    with pytest.raises(ValueError, match="softmax: 4096 scores; fewer than 4096"):
        softmax(jnp.zeros((4096,), jnp.int8), plan, TFLITE)


@both
def test_attention(accelerator):
    rng = np.random.default_rng(5)
    heads, d, window, time = 2, 4, 3, 6
    x = fmt(0.02, 5)
    sides = [layer(rng, 7, heads * d, x=x, to=fmt(0.05), spread=1.0) for _ in range(3)]
    out = layer(rng, heads * d, 5, x=fmt(0.03, -4))
    scores = fmt(0.06)
    layers = [made for made, _ in (*sides, out)]
    plan = attention_plan(*(p.plan for p in layers), scores=scores, width=heads * d, heads=heads, window=window)
    made = Attention(plan=plan, query=layers[0], key=layers[1], value=layers[2], output=layers[3])
    frames = codes(rng, 2, time, 7, low=-128)
    y, _ = jax.jit(lambda x, p: attention(x, p, accelerator))(jnp.asarray(frames), made)
    q, k, v = (expected(frames, *s, accelerator).reshape(2, time, heads, d) for s in sides)
    s = np.float32(0.05)
    by_scores = float(s) * float(s) / (math.sqrt(d) * float(np.float32(0.06)))
    by_mixed = 2.0**-8 * float(s) / float(np.float32(0.03))
    # All pairs of frames, of which a window counts; the probabilities by the operator tested above.
    score = oracle.clamp(oracle.requantise(np.einsum("bthd,bjhd->bthj", q, k), by_scores, accelerator.requantise), 8)
    back = np.arange(time)[:, None] - np.arange(time)
    visible = jnp.asarray((back >= 0) & (back < window))[:, None]
    p = jax.jit(lambda x: softmax(x, plan.scores, accelerator, visible))(jnp.asarray(score, jnp.int8))
    total = np.einsum("bthj,bjhd->bthd", np.asarray(p, np.int64) + 128, v)
    mixed = oracle.clamp(oracle.requantise(total, by_mixed, accelerator.requantise) - 4, 8)
    want = expected(mixed.reshape(2, time, heads * d).astype(np.int8), *out, accelerator)
    np.testing.assert_array_equal(y, want)


@both
def test_squeeze_and_excitation(accelerator):
    rng = np.random.default_rng(4)
    x_format = fmt(0.02, 6)
    squeeze = layer(rng, 6, 4, x=x_format, relu=True)
    excite = layer(rng, 4, 6, x=squeeze[0].plan.output, to=Q3_12)
    x = codes(rng, 2, 5, 6, low=-128)
    p = SqueezeExcite(squeeze=squeeze[0], excite=excite[0])
    y, _ = jax.jit(lambda x, p: squeeze_excite(x, p, accelerator))(jnp.asarray(x), p)
    sums = np.cumsum(x.astype(np.int64) - 6, axis=1)
    # The mean by a reciprocal of the count (tested elsewhere), requantised.
    by = reciprocal(jnp.arange(1, 6))
    how = oracle.ARITHMETICS[accelerator.requantise]
    mean = np.zeros_like(sums)
    for b, t, c in np.ndindex(*sums.shape):
        mean[b, t, c] = how(int(sums[b, t, c]), int(by.multiplier[t]), int(by.shift[t])) + 6
        # One rounding is off by a half; two, the second of halves, by three quarters.
        worst = 0.5 if accelerator.requantise == "single" else 0.75
        assert abs(mean[b, t, c] - 6 - sums[b, t, c] / (t + 1)) <= worst + 1e-6
    hidden = expected(oracle.clamp(mean, 8).astype(np.int8), *squeeze, accelerator)
    gate = expected(hidden.astype(np.int8), *excite, accelerator)
    gate = np.asarray(sigmoid(jnp.asarray(gate, jnp.int32), accelerator.nonlinear), np.int64)
    want = oracle.clamp(oracle.array_rdpot((x.astype(np.int64) - 6) * gate, 15) + 6, 8)
    np.testing.assert_array_equal(y, want)


def test_embedding():
    table = codes(np.random.default_rng(0), 9, 4)
    p = Embedding(table=jnp.asarray(table), format=fmt(0.1))
    ids = np.array([[3, 0], [8, 8]])
    for accelerator in PRESETS:
        np.testing.assert_array_equal(embed(jnp.asarray(ids), p, accelerator), table[ids])


@both
def test_joiner(accelerator):
    rng = np.random.default_rng(6)
    encoder, predictor = layer(rng, 10, 12, to=Q3_12), layer(rng, 8, 12, to=Q3_12)
    output = layer(rng, 12, 7, x=Q0_7)
    x, y = codes(rng, 3, 1, 10), codes(rng, 1, 4, 8)
    p = Joiner(encoder=encoder[0], predictor=predictor[0], output=output[0])
    logits = jax.jit(lambda x, y, p: joiner(x, y, p, accelerator))(jnp.asarray(x), jnp.asarray(y), p)
    total = oracle.clamp(expected(x, *encoder, accelerator) + expected(y, *predictor, accelerator), 16)
    hidden = np.asarray(tanh(jnp.asarray(total, jnp.int32), accelerator.nonlinear), np.int64)
    hidden = oracle.clamp(oracle.array_rdpot(hidden, 8), 8)
    np.testing.assert_array_equal(logits, expected(hidden.astype(np.int8), *output, accelerator))


def test_formats():
    f = activation_format(-1.0, 3.0)
    assert int(f.encode(jnp.float32([0.0]))[0]) == int(f.zero)
    assert f.encode(jnp.float32([-9.0, 9.0, float("inf")])).tolist() == [-128, 127, 127]
    assert symmetric_format(1.0, 4).high == 7
    for bad in (dict(low=1.0, high=float("nan")), dict(low=0.0, high=0.0), dict(low=0.0, high=1.0, bits=1)):
        with pytest.raises(ValueError, match="is needed"):
            activation_format(**bad)
