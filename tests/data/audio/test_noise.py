"""Noise that is made: its color, its power, and what it depends on."""

import numpy as np
import pytest

from zojax.data.audio.noise import colored, in_noise


@pytest.mark.parametrize("color", [0, 1, 2])
def test_noise_has_its_color_and_power(color):
    words = np.random.Philox(key=np.array([1, 2], np.uint64)).random_raw(1 << 15)
    noise = colored(words, color)
    np.testing.assert_allclose(np.square(noise).mean(), 1)
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [power[k : 2 * k].mean() for k in (256, 512, 1024, 2048, 4096)]  # from 125 Hz
    slopes = 10 * np.log10(np.array(octaves[:-1]) / octaves[1:])
    # 3 dB an octave for each power of f; 256 bins average to 0.3 dB
    np.testing.assert_allclose(slopes, 10 * np.log10(2) * color, atol=1.0)
    assert abs(noise.mean()) < 1e-9


def test_an_utterance_has_one_noise():
    x = (8000 * np.sin(np.arange(16000) / 9)).astype(np.int16)
    mixed = {
        (name, color): in_noise(x, name, color=color, low=5, high=15) for name in "ab" for color in ("pink", "white")
    }
    np.testing.assert_array_equal(mixed["a", "pink"], in_noise(x, "a", color="pink", low=5, high=15))
    ratios = {}
    for key, y in mixed.items():
        noise = y.astype(np.float64) - x
        ratios[key] = 10 * np.log10(np.square(x.astype(np.float64)).mean() / np.square(noise).mean())
        # 16 bits round the noise by a step or less; its power is thousands of steps.
        assert 4.99 < ratios[key] < 15.01
    assert ratios["a", "pink"] == pytest.approx(ratios["a", "white"], abs=0.01)  # the name alone decides
    assert abs(ratios["a", "pink"] - ratios["b", "pink"]) > 0.01


def test_what_has_no_spectrum_stays():
    for x in (np.zeros(0, np.int16), np.array([5], np.int16)):
        np.testing.assert_array_equal(in_noise(x, "a", color="brown", low=0, high=0), x)
    with pytest.raises(ValueError, match="low, high: 3 and 2 dB"):
        in_noise(np.zeros(9, np.int16), "a", color="white", low=3, high=2)
