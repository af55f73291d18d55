"""Fusion of signals: against float64 loops, streamed, with signals missing, dropped and wrong."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.transducer.fusion import (
    Average,
    Correction,
    FrequencyLstm,
    FusionConfig,
    Signals,
    fusion,
    join_signals,
)
from models.transducer.integer_formats import check_integer
from models.transducer.layers import Dense, Stack
from models.transducer.lstm import LstmConfig, lstm_encoder
from models.transducer.model import TransducerConfig, transducer
from models.transducer.predictor import StatelessConfig
from models.transducer.sizes import abstract
from models.transducer.streaming import serial
from tests.models.transducer import oracles
from tests.models.transducer.streams import Run, lengths_mask, random_chunks, variables
from zojax import quant
from zojax.perturb import PerturbSpec

KINDS = ("average", "concatenation", "flstm", "cnn")
SMALL = dict(bins=6, signals=3, window=4, hop=3, hidden=5, convolutions=2, planes=2)
# float32 against float64, or in another order: sums of some dozens of products near 1.
TOLERANCE = 1e-5


def small(kind, **changes):
    return fusion(FusionConfig(kind=kind, **(SMALL | changes)))


def features(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def joined(x, present):
    return np.asarray(join_signals(jnp.asarray(x), jnp.asarray(present)))


ALL = np.ones((2, 3), bool)


def filled(x, present, params):
    """One utterance [t, bins, signals] and its flags [signals]: normalised, holes as the mean of the others."""
    x = x.astype(np.float64)[..., present] * params["scale"][:, None] + params["bias"][:, None]
    out = np.repeat(x.mean(axis=2, keepdims=True), len(present), axis=2)
    out[..., present] = x
    return out


def by_loops(kind, x, params):
    """One utterance [t, bins, signals] of filled signals."""
    t, bins, signals = x.shape
    if kind == "average":
        return x.mean(axis=2)
    params = params["correction"]
    if kind == "concatenation":
        inner = params["linear"]["linear"]
        y = x.reshape(t, -1) @ inner["kernel"] + inner["bias"]
    elif kind == "flstm":
        inner, y = params["frequency_lstm"], []
        for frame in x:
            # hop 3, window 4, 6 bins: bins 0 to 3, and 3 to 6, of which 6 is not there.
            windows = [frame[0:4].ravel(), np.concatenate([frame[3:6], np.zeros((1, signals))]).ravel()]
            y.append(oracles.lstm(np.array(windows), inner["lstm"]).ravel())
        y = np.array(y) @ inner["project"]["kernel"] + inner["project"]["bias"]
    else:
        y = x.reshape(t, -1)
        for number in range(2):
            y = oracles.conv(y, params["cnn"][f"conv_{number}"], bins=bins, subsample=1, bin_stride=1)
            y = np.maximum(y, 0) if number == 0 else y
    return x[..., 0] + params["gain"] * y


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_the_loops(kind):
    run = Run(small(kind), 7)
    x, present = features(2, 7, 6, 3), np.array([[True, True, True], [False, True, True]])
    got = run.whole(joined(x, present), lengths_mask(7, [7, 5]))
    params: Any = oracles.float64(run.variables["params"])
    for row, length in enumerate((7, 5)):
        want = by_loops(kind, filled(x[row, :length], present[row], params["signals"]), params)
        np.testing.assert_allclose(got[row], want, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("signals", [1, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_the_call(kind, signals):
    """Over random chunks, ragged rows, signals that come and go, with the state saved and restored midway."""
    layer = small(kind, signals=signals)
    run, rng = Run(layer, 13, blocks=2), np.random.default_rng(1)
    assert (layer.d_in, layer.d_out, layer.block, layer.latency, layer.delay) == (7 * signals, 6, 1, 0, 0)
    x = joined(features(2, 13, 6, signals), rng.integers(0, 2, (2, 13, signals)).astype(bool))
    mask = lengths_mask(13, [13, 8])
    want = run.whole(x, mask)
    for _ in range(3):
        chunks = random_chunks(13, rng)
        got = run.stream(x, mask, chunks, save_at=len(chunks) // 2)
        for one, other in zip(got, want, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, atol=TOLERANCE, rtol=TOLERANCE)
    # No frame sees a later one, and padding may hold anything.
    garbage = x.copy()
    garbage[0, 8:], garbage[1, 8:] = 7.0, np.nan
    np.testing.assert_array_equal(run.whole(garbage, mask)[0][:8], want[0][:8])
    np.testing.assert_array_equal(run.whole(garbage, mask)[1], want[1])


def test_a_front_end_before_an_encoder_streams():
    encoder = serial(small("cnn"), lstm_encoder(LstmConfig(d_in=6, stack=3, layers=1, hidden=4)))
    run, mask = Run(encoder, 13), lengths_mask(13, [13, 7])
    want, got = run.whole(run.x, mask), run.stream(run.x, mask, [4, 0, 2, 7])
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_signal_may_hold_anything(kind):
    run, mask = Run(small(kind), 5), lengths_mask(5, [5, 5])
    x = features(2, 5, 6, 3)
    for gone in ([0], [1], [0, 2], [0, 1, 2]):
        present = ALL.copy()
        present[:, gone] = False
        garbage = x.copy()
        garbage[..., gone] = np.nan
        got = run.whole(joined(garbage, present), mask)
        assert np.isfinite(got).all()
        np.testing.assert_array_equal(got, run.whole(joined(x, present), mask))
        if len(gone) < 3:
            # As if it were the mean of the others, which normalisation of all signals alike leaves the mean.
            stood_in = x.copy()
            stood_in[..., gone] = x[..., present[0]].mean(axis=-1, keepdims=True)
            np.testing.assert_allclose(got, run.whole(joined(stood_in, ALL), mask), atol=TOLERANCE, rtol=TOLERANCE)


def test_one_signal_alone_is_that_signal():
    """How the baselines of the front end alone, and of each microphone, are had from the average."""
    run, x = Run(small("average"), 5), features(2, 5, 6, 3)
    inputs = run.variables["params"]["signals"]
    for signal in range(3):
        got = run.whole(joined(x, np.eye(3, dtype=bool)[[signal, signal]]), lengths_mask(5, [5, 5]))
        want = x[..., signal] * inputs["scale"] + inputs["bias"]
        np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_new_network_is_the_front_end_alone(kind):
    layer, x, mask = small(kind), features(2, 5, 6, 3), jnp.ones((2, 5), bool)
    y, _ = jax.jit(layer.init_with_output)(jax.random.key(0), joined(x, ALL), mask)[0]
    np.testing.assert_array_equal(y, x[..., 0])


def test_signals_are_dropped_for_whole_utterances():
    layer, rows = Signals(3 * 3, 3, 0.4), 2000
    x = jnp.broadcast_to(jnp.array([1.0, 10.0, 100.0]), (rows, 4, 2, 3))
    present = jnp.broadcast_to(jnp.array([True, True, False]), (rows, 3))
    frames, mask = join_signals(x, present), jnp.ones((rows, 4), bool)
    weights = layer.init(jax.random.key(0), frames, mask)
    plain = layer.apply(weights, frames, mask)[0]
    y = np.asarray(layer.apply(weights, frames, mask, rngs={"dropout": jax.random.key(1)})[0]).reshape(rows, 8, 3)
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
    kinds, counts = np.unique(y[:, 0], axis=0, return_counts=True)
    # Signal 0 alone, both and signal 1 alone; both are also there where both would be dropped.
    np.testing.assert_allclose(kinds, [[1, 1, 1], [1, 10, 5.5], [10, 10, 10]], rtol=1e-6)
    shares = np.array([0.24, 0.36 + 0.16, 0.24])
    assert (np.abs(counts / rows - shares) < 4 * np.sqrt(shares * (1 - shares) / rows)).all()  # standard errors
    np.testing.assert_array_equal(plain[..., :3], np.broadcast_to([1, 10, 5.5], (rows, 4, 3)))


@pytest.mark.parametrize("kind", ["flstm", "cnn"])
def test_perturbed_and_quantised_weights(kind):
    """Leaves that are no arrays give what the arrays give that they stand for."""
    layer, mask = small(kind), jnp.ones((2, 5), bool)
    x = jnp.asarray(joined(features(2, 5, 6, 3), ALL))
    params = variables(layer, x, mask)["params"]
    apply = jax.jit(lambda p: layer.apply({"params": p}, x, mask)[0])
    noisy = PerturbSpec().perturb(params, jax.random.key(1), jnp.float32(0.1))
    codes = jax.tree.map(lambda leaf: quant.quantize(leaf, "int8_127") if leaf.ndim > 1 else leaf, params)
    for leaves in (noisy, codes):
        plain = jax.tree.map(
            lambda leaf: leaf.materialize() if hasattr(leaf, "materialize") else leaf,
            leaves,
            is_leaf=lambda node: hasattr(node, "materialize"),
        )
        # The product with noise, or with codes, is summed apart.
        np.testing.assert_allclose(apply(leaves), apply(plain), atol=TOLERANCE, rtol=TOLERANCE)
        assert np.abs(apply(leaves) - apply(params)).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("signals", [3, 8])
def test_the_count_is_under_two_percent_of_a_small_transducer(kind, signals):
    layer = fusion(FusionConfig(kind=kind, bins=80, signals=signals))
    x, mask = jnp.zeros((1, 1, layer.d_in)), jnp.ones((1, 1), bool)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x, mask)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count < 0.02 * 8e6
    if kind == "flstm":
        # Gates over 24 bins of all signals, 8 windows of 32 cells to 80 bins; gain; mean and deviation.
        assert count == 4 * 32 * (24 * signals + 32 + 1) + (8 * 32 + 1) * 80 + 80 + 160


@pytest.mark.parametrize("kind", ["flstm", "cnn"])
def test_training_takes_from_a_microphone_what_the_beam_lost(kind):
    """The upper bins of the first signal are noise; the average must do with half of it."""
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(8, 10, 6)).astype(np.float32)
    x = clean[..., None] + 0.3 * rng.normal(size=(8, 10, 6, 3)).astype(np.float32)
    x[:, :, 3:, 0] = rng.normal(size=(8, 10, 3))
    frames, mask = jnp.asarray(joined(x, np.ones((8, 3), bool))), jnp.ones((8, 10), bool)
    layer = small(kind, hidden=16, planes=8)
    params = layer.init(jax.random.key(0), frames, mask)
    tx = optax.adam(0.02)

    def loss(p):
        return jnp.mean((layer.apply(p, frames, mask)[0] - clean) ** 2)

    def step(carry, _):
        p, state = carry
        updates, state = tx.update(jax.grad(loss)(p), state)
        return (optax.apply_updates(p, updates), state), None

    (trained, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, length=200))((params, tx.init(params)))
    average = float(np.mean((x.mean(axis=-1) - clean) ** 2))
    assert float(loss(params)) > 2 * average
    assert float(loss(trained)) < 0.6 * average


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"Signals\.signals is 9; it must be 1 to 8"):
        Signals(63, 9)
    with pytest.raises(ValueError, match=r"Signals\.signals is 2; .* divide d_in = 7"):
        Signals(7, 2)
    with pytest.raises(ValueError, match=r"Signals\.dropout is 1"):
        Signals(6, 2, 1.0)
    with pytest.raises(ValueError, match=r"hop 5 and window 4; 1 <= hop <= window <= 6 bins"):
        FrequencyLstm(12, 2, 4, 5, 3)
    with pytest.raises(ValueError, match=r"hop 1 and window 7"):
        FrequencyLstm(12, 2, 7, 1, 3)
    with pytest.raises(ValueError, match=r"Correction\.inner is 4 -> 12, stride 3"):
        Correction(4, Stack(4, 3))
    with pytest.raises(ValueError, match="4 -> 3, stride 1"):
        Correction(4, Dense(4, 3))
    with pytest.raises(ValueError, match=r"FusionConfig\.kind is 'sum'; it must be one of average, concatenation"):
        FusionConfig(kind="sum")
    with pytest.raises(ValueError, match=r"FusionConfig\.planes is 0"):
        FusionConfig(kind="cnn", planes=0)
    with pytest.raises(ValueError, match=r"FusionConfig\.dropout is -0\.1"):
        FusionConfig(kind="cnn", dropout=-0.1)
    assert Average(6, 3).d_out == 2


def test_a_transducer_keeps_the_names_of_its_encoder():
    words = StatelessConfig(vocab_size=5, embedding=4)
    plain = TransducerConfig(encoder=LstmConfig(d_in=6, layers=1, hidden=4), predictor=words, joint=4)
    fused = dataclasses.replace(plain, fusion=FusionConfig(kind="cnn", bins=6, signals=3, window=4, hop=3))
    assert transducer(fused).encoder.d_in == 7 * 3
    names, with_fusion = abstract(plain), abstract(fused)
    assert set(with_fusion["encoder"].pop("fusion")) == {"signals", "correction"}
    assert jax.tree.map(lambda leaf: leaf.shape, with_fusion) == jax.tree.map(lambda leaf: leaf.shape, names)
    with pytest.raises(ValueError, match=r"TransducerConfig\.fusion has 6 bins; those of the encoder, 8, are needed"):
        dataclasses.replace(fused, encoder=LstmConfig(d_in=8, layers=1, hidden=4))
    with pytest.raises(ValueError, match="with an accelerator it must be None"):
        check_integer(fused)
