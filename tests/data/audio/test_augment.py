"""Augmentation: what is promised of each function, and that padding changes nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zojax.data.audio.augment import SpecAugment, add_noise, change_speed, draw_speed, reverberate, spec_augment

KEY = jax.random.key(5)
SPEC = SpecAugment(frequency_masks=1, frequency_width=6, time_masks=2, time_width=8, time_share=0.2)
masked = jax.jit(partial(spec_augment, spec=SPEC))
change = jax.jit(change_speed, static_argnames="size")


def noise(size, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=size), jnp.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(0, 2**20))
def test_masks_are_as_wide_as_allowed(length, seed):
    x = noise((50, 16))
    key = jax.random.key(seed)
    y = np.asarray(masked(x, length, key))
    changed = np.asarray(y != x)
    assert not changed[length:].any()
    rows, columns = changed[:length].all(1), changed[:length].all(0)
    # Rows and columns and nothing else, all of one value.
    np.testing.assert_array_equal(changed[:length], rows[:, None] | columns)
    np.testing.assert_allclose(y[changed], np.asarray(x[:length]).mean(), rtol=0, atol=1e-6)
    if not rows.all():
        assert columns.sum() <= SPEC.frequency_width
        assert np.count_nonzero(np.diff(columns.astype(int))) <= 2  # one band
    if not columns.all():
        assert rows.sum() <= 2 * min(SPEC.time_width, int(np.float32(0.2) * length))
    # Padding of another kind and size draws the same masks.
    other = masked(jnp.pad(x, ((0, 7), (0, 0))).at[length:].set(9.0), length, key)
    np.testing.assert_allclose(other[:length], y[:length], rtol=0, atol=1e-6)


def test_masks_lie_everywhere():
    keys = jax.random.split(KEY, 2000)
    x = noise((40, 16))
    hidden = np.asarray(jax.vmap(masked, in_axes=(None, None, 0))(x, 40, keys) != x)
    columns, rows = hidden.all(1).mean(0), hidden.all(2).mean(0)
    # Widths 0 to 6 of 16 bins average 3: a share of 0.19, less at the edges, where fewer places reach.
    assert 0.13 < columns.mean() < 0.25
    assert columns.min() > 0.02
    assert rows.min() > 0.02


def test_no_masks_change_nothing():
    x = noise((20, 8))
    none = SpecAugment(frequency_masks=0, time_masks=0)
    np.testing.assert_array_equal(spec_augment(x, 20, KEY, none), x)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_tone_changes_its_pitch(factor):
    # Ten seconds: a position in float32 would be 2^-7 of a sample off at the end.
    n = np.arange(160000)
    x = jnp.asarray(np.sin(2 * np.pi * 1000 * n / 16000), jnp.float32)
    y, length = change(x, 160000, factor, size=180000)
    factor = float(np.float32(factor))
    assert int(length) == int(160000 / factor)
    m = np.arange(100, int(length) - 100)
    expected = np.sin(2 * np.pi * 1000 * m * factor / 16000)
    assert np.abs(np.asarray(y)[m] - expected).max() < 2e-3
    assert not np.asarray(y[int(length) :]).any()


def test_a_band_that_no_longer_fits_is_taken_out():
    x = jnp.asarray(np.sin(2 * np.pi * 7700 * np.arange(8000) / 16000), jnp.float32)
    y, length = change(x, 8000, 1.25, size=8000)
    assert int(length) == 6400
    # 9.6 kHz would come back as 6.4 kHz.
    assert np.abs(np.asarray(y[200:6200])).max() < 0.02


def test_speed_one_is_the_waveform_and_padding_counts_as_silence():
    x = noise(500)
    y, length = change(x, 300, 1.0, size=500)
    assert int(length) == 300
    np.testing.assert_allclose(y[:300], x[:300], rtol=0, atol=1e-6)
    spoiled, _ = change(x.at[300:].set(1e3), 300, 0.9, size=500)
    clean, _ = change(x.at[300:].set(0.0), 300, 0.9, size=500)
    np.testing.assert_array_equal(spoiled, clean)
    assert int(change(x, 500, 0.9, size=400)[1]) == 400


def test_speeds_are_drawn_alike():
    drawn = jax.vmap(lambda k: draw_speed(k, (0.9, 1.0, 1.1)))(jax.random.split(KEY, 3000))
    _, counts = np.unique(drawn, return_counts=True)
    # 1000 each, standard deviation 26
    assert (np.abs(counts - 1000) < 4 * 26).all()
    for factors in ((), (0.0, 1.0)):
        with pytest.raises(ValueError, match="factors: "):
            draw_speed(KEY, factors)


def test_noise_is_mixed_at_the_ratio_drawn():
    x, other = noise(4000), noise(700, 1) * 3
    mix = jax.jit(partial(add_noise, low=5.0, high=15.0))
    ratios = []
    for key in jax.random.split(KEY, 20):
        added = np.asarray(mix(x, 3000, other, key) - x)
        assert not added[3000:].any()
        signal = np.asarray(x[:3000])
        ratios.append(10 * np.log10(np.mean(signal**2) / np.mean(added[:3000] ** 2)))
        # The noise itself, going round: correlated with one of its turns.
        period = added[:700] / np.linalg.norm(added[:700])
        np.testing.assert_allclose(added[700:1400] / np.linalg.norm(added[:700]), period, atol=1e-4)
    assert min(ratios) >= 5 - 1e-3
    assert max(ratios) <= 15 + 1e-3
    assert np.std(ratios) > 1
    exact = np.asarray(add_noise(x, 4000, other, KEY, low=0.0, high=0.0) - x)
    np.testing.assert_allclose(np.mean(exact**2), np.mean(np.asarray(x) ** 2), rtol=1e-4)


def test_silence_stays_as_it_is():
    x = noise(100)
    np.testing.assert_array_equal(add_noise(x, 100, jnp.zeros(30), KEY, low=0.0, high=9.0), x)
    np.testing.assert_array_equal(add_noise(jnp.zeros(100), 100, x, KEY, low=0.0, high=9.0), jnp.zeros(100))
    np.testing.assert_array_equal(reverberate(jnp.zeros(10), 10, x), jnp.zeros(10))
    with pytest.raises(ValueError, match=r"low, high: 3\.0 and 2\.0 dB"):
        add_noise(x, 100, x, KEY, low=3.0, high=2.0)


def test_reverberation_is_a_convolution():
    x, response = np.asarray(noise(200)), np.asarray(noise(90, 1)) * np.exp(-np.arange(90) / 10)
    direct = int(np.abs(response).argmax())
    y = np.asarray(jax.jit(reverberate)(jnp.asarray(x), 150, jnp.asarray(response)))
    dry = np.where(np.arange(200) < 150, x, 0)
    expected = np.convolve(dry.astype(np.float64), response)[direct : direct + 200]
    expected[150:] = 0
    expected *= np.sqrt((dry**2).sum() / (expected**2).sum())
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


def test_wrong_masks_are_refused():
    with pytest.raises(ValueError, match="time_masks: -1; 0 or more"):
        SpecAugment(time_masks=-1)
    with pytest.raises(ValueError, match=r"time_share: 1\.5; 0 to 1"):
        SpecAugment(time_share=1.5)
