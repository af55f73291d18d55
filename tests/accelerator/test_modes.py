"""One module, three modes: emulation is integer times scale bit for bit, whole and in chunks, and it has gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.accelerator import networks
from zojax.accelerator import NARROW, TFLITE, primitives
from zojax.accelerator.attention import attention
from zojax.accelerator.convolution import convolution
from zojax.accelerator.emulate import Emulated, Format, quantise, symmetric_format
from zojax.accelerator.linear import fully_connected, fully_connected_layer, linear_plan
from zojax.accelerator.lstm import lstm
from zojax.accelerator.normalise import squeeze_excite

PRESETS = {a.name: a for a in (TFLITE, NARROW)}
BATCH, TIME = 2, 11


def outputs(x, ids, n, accelerator):
    """All that a transducer computes: frames, states of the predictor and logits of all pairs."""
    frames, _ = networks.encode(x, n, accelerator)
    states, _ = networks.predict(ids, n, accelerator)
    left = primitives.rearrange(frames, lambda a: a[:, :, None])
    right = primitives.rearrange(states, lambda a: a[:, None])
    return {"encoder": frames, "predictor": states, "joiner": networks.join(left, right, n, accelerator)}


@pytest.fixture(scope="module", params=list(PRESETS))
def case(request):
    """Weights, plans, inputs and the outputs of each mode."""
    accelerator = PRESETS[request.param]
    w = networks.weights(0)
    plans = networks.plans(accelerator, w)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(BATCH, TIME, networks.MEL)), jnp.float32)
    ids = jnp.asarray(rng.integers(0, networks.VOCABULARY, (BATCH, 4)))
    results = {}
    for mode in ("float", "emulation", "integer"):

        def run(w, x, ids, mode=mode):
            n = networks.build(w, plans, mode)
            return outputs(quantise(x, networks.ACTIVATION, mode), ids, n, accelerator)

        results[mode] = jax.jit(run)(w, x, ids)
    return accelerator, w, plans, x, ids, results


def formats(plans):
    return {
        "encoder": plans["attention"].output.output,
        "predictor": plans["cifg"].output,
        "joiner": plans["output"].output,
    }


@pytest.mark.parametrize("part", ["encoder", "predictor", "joiner"])
def test_emulation_is_integer_times_scale(case, part):
    _, _, plans, *_, results = case
    codes, emulated, of = results["integer"][part], results["emulation"][part], formats(plans)[part]
    np.testing.assert_array_equal(emulated.codes, codes)
    np.testing.assert_array_equal(emulated.scale, of.scale)
    # Bit for bit: one float32 product of the scale and an integer below 2^9.
    want = np.float32(of.scale) * (np.asarray(codes, np.int32) - int(of.zero)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(emulated.value).view(np.int32), want.view(np.int32))
    assert len(np.unique(codes)) > 20


@pytest.mark.parametrize("part", ["encoder", "predictor", "joiner"])
def test_integers_follow_the_float_network(case, part):
    """Rounded to 8 bits at every operator, outputs stay near; a wrong scale anywhere would not."""
    accelerator, *_, results = case
    real, ours = np.asarray(results["float"][part]), np.asarray(results["emulation"][part].value)
    correlation = np.corrcoef(real.ravel(), ours.ravel())[0, 1]
    # 8-bit cells and Q0.7 gates lose more; unrelated outputs would have a correlation of some hundredths.
    assert correlation > (0.98 if accelerator is TFLITE else 0.95), correlation


def in_chunks(function, x, lengths):
    """function(chunk, state) over chunks of these lengths, one after the other; its codes."""
    step, at, state, parts = jax.jit(function), 0, None, []
    for length in lengths:
        part, state = step(primitives.rearrange(x, lambda a, s=slice(at, at + length): a[:, s]), state)
        parts.append(np.asarray(primitives.codes_of(part)))
        at += length
    return np.concatenate(parts, 1)


# Each length is a program to compile: cheap for one operator, so the whole encoder takes few chunkings.
@pytest.mark.parametrize("name", ["convolution", "squeeze_excite", "lstm", "attention"])
def test_operators_in_random_chunks(case, name):
    accelerator, w, plans, x, _, _ = case
    if name == "lstm" and accelerator is TFLITE:
        pytest.skip("one preset is enough: the LSTM's state is the same")
    n = networks.build(w, plans, "integer")
    run = {
        "convolution": lambda x, s: convolution(x, n.conv, accelerator, s),
        "squeeze_excite": lambda x, s: squeeze_excite(x, n.gate, accelerator, s),
        "lstm": lambda x, s: lstm(x, n.lstm, accelerator, s),
        "attention": lambda x, s: attention(x, n.attention, accelerator, s),
    }[name]
    rng = np.random.default_rng(5)
    if name != "convolution":
        x = jnp.asarray(rng.normal(size=(BATCH, TIME, networks.WIDTH)), jnp.float32)
    x = quantise(x, networks.ACTIVATION, "integer")
    whole = in_chunks(run, x, [TIME])
    # Frames alone, chunks without frames and of one and two frames in random order.
    lengths = rng.permutation([2, 2, 2, 1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(in_chunks(run, x, lengths.tolist()), whole)


def test_streaming_gives_what_the_whole_gives(case):
    accelerator, w, plans, x, ids, results = case
    if accelerator is TFLITE:
        pytest.skip("one preset, that whose accumulators saturate: its operators have been through chunks of all kinds")
    n = networks.build(w, plans, "integer")
    x = quantise(x, networks.ACTIVATION, "integer")
    got = in_chunks(lambda x, s: networks.encode(x, n, accelerator, s), x, [1] * TIME)
    np.testing.assert_array_equal(got, results["integer"]["encoder"])
    for mode in ("integer", "emulation"):
        n = networks.build(w, plans, mode)
        got = in_chunks(lambda ids, s, n=n: networks.predict(ids, n, accelerator, s), ids, [1] * ids.shape[1])
        np.testing.assert_array_equal(got, primitives.codes_of(results[mode]["predictor"]))


def test_gradients_reach_every_weight(case):
    accelerator, w, plans, x, ids, _ = case
    if accelerator is not TFLITE:
        pytest.skip("one preset is enough: the rules of gradients know none")

    def loss(w, mode):
        n = networks.build(w, plans, mode)
        logits = outputs(quantise(x, networks.ACTIVATION, mode), ids, n, accelerator)["joiner"]
        return jnp.mean(jnp.sin(2 * (logits.value if mode == "emulation" else logits)))

    ours = jax.jit(jax.grad(lambda w: loss(w, "emulation")))(w)
    real = jax.jit(jax.grad(lambda w: loss(w, "float")))(w)
    unused = {"table_bias", "lstm_h_bias", "cifg_h_bias"}
    for name, g in ours.items():
        assert np.all(np.isfinite(g)), name
        assert np.any(g != 0) == (name not in unused), name
    a, b = (np.concatenate([np.ravel(g[name]) for name in ours]) for g in (ours, real))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    # Straight-through gradients are those of the float network at rounded points, where some clamp; in 2,000
    # dimensions an unrelated one would have a cosine of some hundredths.
    assert cosine > 0.8, cosine


def test_the_straight_through_rules():
    """Rounding passes the gradient; a clamped tensor stops it; sigmoid and tanh have their true derivative."""
    f = symmetric_format(1.27)
    g = jax.grad(lambda x: quantise(x, f, "emulation").value.sum())(jnp.array([0.264, 1.27, 1.274, 1.29, -5.0]))
    assert g.tolist() == [1, 1, 1, 0, 0]
    q3_12 = Format(scale=jnp.float32(2.0**-12), low=-(2**15), high=2**15 - 1)
    x = jnp.array([-2.0, 0.0, 0.3, 1.5])

    def through(f, x):
        return f(quantise(x, q3_12, "emulation"), TFLITE).value.sum()

    at = np.asarray(q3_12.decode(q3_12.encode(x)), np.float64)
    s = 1 / (1 + np.exp(-at))
    # float32 arithmetic on numbers of order 1.
    np.testing.assert_allclose(jax.grad(lambda x: through(primitives.sigmoid, x))(x), s * (1 - s), atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: through(primitives.tanh, x))(x), 1 - np.tanh(at) ** 2, atol=1e-6)


def test_gradients_of_a_layer_are_those_of_the_products_on_the_grid():
    f = symmetric_format(1.0)
    plan = linear_plan(f, f, symmetric_format(0.9))
    rng = np.random.default_rng(0)
    x, w = rng.uniform(-1, 1, (5, 3)).astype(np.float32), rng.uniform(-1, 1, (3, 4)).astype(np.float32)

    def y(w, x):
        layer = fully_connected_layer(w, None, plan, "emulation")
        return fully_connected(quantise(x, f, "emulation"), layer, TFLITE)

    made = y(jnp.asarray(w), jnp.asarray(x))
    assert isinstance(made, Emulated)
    cotangent = rng.normal(size=(5, 4)).astype(np.float32)
    dw, dx = jax.grad(lambda w, x: jnp.sum(y(w, x).value * cotangent), argnums=(0, 1))(jnp.asarray(w), jnp.asarray(x))
    grid = [np.asarray(f.decode(f.encode(jnp.asarray(v)))) for v in (x, w)]
    inside = np.abs(grid[0] @ grid[1]) / (0.9 / 127) < 127.5
    assert 0 < inside.mean() < 1
    kept = cotangent * inside
    # float32 sums of five and four products.
    np.testing.assert_allclose(dw, grid[0].T @ kept, atol=1e-5)
    np.testing.assert_allclose(dx, kept @ grid[1].T, atol=1e-5)
