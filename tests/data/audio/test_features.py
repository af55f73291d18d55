"""Log-Mel features against Kaldi's and librosa's, whole against streamed, stacking."""

import itertools
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from zojax.data.audio.features import FilterBank, log_mel, num_frames, stack_frames, stream_log_mel, stream_stack

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "speech_features.safetensors"

STREAM = jax.jit(partial(stream_log_mel, bank=FilterBank(bins=64)))
WHOLE = jax.jit(partial(log_mel, bank=FilterBank(bins=64)))


@pytest.fixture(scope="module")
def known():
    """Features of real speech by kaldi-native-fbank and librosa (tests/golden/make_speech.py)."""
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def speech(known):
    return jnp.asarray(known["samples"].astype(np.float32) / 32768)


@pytest.mark.parametrize("style", ["kaldi", "librosa"])
@pytest.mark.parametrize("bins", [64, 80])
def test_equal_to_the_published_implementation(style, bins, known, speech):
    expected = known[f"{style}_{bins}"]
    found = np.asarray(jax.jit(partial(log_mel, bank=FilterBank(style=style, bins=bins)))(speech))
    assert found.shape == expected.shape == (58, bins)
    difference = np.abs(found - expected)
    # Both are float32. A band 50 dB or more below the frame's loudest is a small remainder of large terms: evaluated in
    # float64, Kaldi's own values there are 8e-5 off, ours 7e-5 at most; one of the 16,704 differs by 1.2e-4.
    quiet = expected < expected.max(1, keepdims=True) - 11.5
    assert difference[~quiet].max() < 1e-4
    assert difference.max() < 2e-4
    assert quiet.mean() < 0.5


def test_silence_is_the_floor():
    for style, floor in [("kaldi", np.log(2.0**-23)), ("librosa", np.log(1e-10))]:
        found = log_mel(jnp.zeros(800), FilterBank(style=style))
        np.testing.assert_allclose(found, floor, rtol=1e-6)


def test_batches_and_frame_counts():
    bank = FilterBank(bins=64)
    for samples, frames in [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (16000, 98)]:
        assert num_frames(samples, bank) == frames
        assert log_mel(jnp.zeros((2, samples)), bank).shape == (2, frames, 64)
    np.testing.assert_array_equal(num_frames(jnp.array([0, 560]), bank), [0, 2])


def test_padding_changes_no_frame_of_the_utterance(speech):
    bank = FilterBank()
    whole = log_mel(speech[:5000], bank)
    padded = log_mel(jnp.pad(speech[:5000], (0, 777), constant_values=0.3), bank)
    count = num_frames(5000, bank)
    np.testing.assert_allclose(padded[:count], whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunks", [(1000, 0, 1, 160, 999), (399, 1, 161, 700), (160,) * 6])
def test_a_stream_equals_the_whole(chunks):
    x = jnp.asarray(np.random.default_rng(0).normal(size=sum(chunks) + 1).astype(np.float32) * 0.1)
    bank, carry, found = FilterBank(bins=64), None, []
    for at, size in zip(np.cumsum([0, *chunks]), [*chunks, 1], strict=True):
        features, carry = stream_log_mel(carry, x[at : at + size], bank)
        found.append(features)
        assert carry.shape[-1] < bank.window
    whole = log_mel(x, bank)
    found = jnp.concatenate(found)
    assert found.shape == whole.shape
    # The same frames, but summed over in another blocking.
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_any_stream_of_stacked_features_equals_the_whole(cuts):
    # Cuts at multiples of 160 of 1600 samples, so that few shapes are compiled; other sizes stand above.
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 1600)).astype(np.float32) * 0.1)
    rest, frames, found = None, None, []
    places = [0, *sorted(160 * cut for cut in cuts), 1600]
    for start, stop in itertools.pairwise(places):
        features, rest = STREAM(rest, x[:, start:stop])
        stacks, frames = stream_stack(frames, features, 3)
        found.append(np.asarray(stacks))
    whole = np.asarray(stack_frames(WHOLE(x), 3))
    # The same frames, but summed over in another blocking.
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=0, atol=1e-5)


def test_the_recipe_of_192_dimensions(speech, known):
    stacks = stack_frames(WHOLE(speech), 3)
    assert stacks.shape == (19, 192)
    np.testing.assert_allclose(stacks[5], known["kaldi_64"][15:18].ravel(), rtol=0, atol=1e-4)


def test_chunks_of_whole_hops_settle_on_one_program():
    bank, carry, shapes = FilterBank(), None, []
    for _ in range(5):
        _, carry = stream_log_mel(carry, jnp.zeros(1600), bank)
        shapes.append(carry.shape)
    assert len(set(shapes)) == 1


def test_stacking_and_its_stream():
    x = jnp.arange(2 * 10 * 4.0).reshape(2, 10, 4)
    stacks = stack_frames(x, 3)
    assert stacks.shape == (2, 3, 12)
    np.testing.assert_array_equal(stacks[:, 1], np.asarray(x[:, 3:6]).reshape(2, 12))
    carry, found = None, []
    for part in (x[:, :2], x[:, 2:2], x[:, 2:9], x[:, 9:]):
        out, carry = stream_stack(carry, part, 3)
        found.append(out)
    np.testing.assert_array_equal(jnp.concatenate(found, axis=1), stacks)
    assert carry.shape == (2, 1, 4)


def test_wrong_banks_are_refused():
    with pytest.raises(ValueError, match="style: 'htk'"):
        FilterBank(style="htk")
    with pytest.raises(ValueError, match="bins: 0; 1 or more"):
        FilterBank(bins=0)
    with pytest.raises(ValueError, match="window_ms: 25 ms at 11025 Hz"):
        FilterBank(sample_rate=11025)
    with pytest.raises(ValueError, match="hop_ms: 30; no more than"):
        FilterBank(hop_ms=30)
    with pytest.raises(ValueError, match="count: 0 frames"):
        stack_frames(jnp.zeros((4, 2)), 0)
