"""Noise that is made, not recorded, and the mixing of it: the same for the same name, on any machine."""

import hashlib

import numpy as np
from jaxtyping import Float64, Int16, UInt64

from zojax.data.audio.waves import RATE, to_int16

__all__ = ["COLORS", "colored", "in_noise"]

COLORS = {"white": 0, "pink": 1, "brown": 2}


def colored(words: UInt64[np.ndarray, "samples"], color: int) -> Float64[np.ndarray, "samples"]:
    """Noise of power 1 with a power spectrum of 1 / f^color.

    Below 50 Hz it is flat: brown noise would else be all rumble.

    Args:
      words: random words.
      color: 0 white, 1 pink, 2 brown.

    Returns:
      Samples.

    Example:
      >>> words = np.random.Philox(key=0).random_raw(1000)
      >>> round(float(np.square(colored(words, 1)).mean()), 6)
      1.0
    """
    white = (words >> np.uint64(11)) * 2.0**-53 - 0.5
    spectrum = np.fft.rfft(white)
    low = max(1, 50 * len(words) // RATE)
    spectrum *= np.maximum(np.arange(len(spectrum)), low) ** (-color / 2)
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, len(words))
    return noise / np.sqrt(np.square(noise).mean())


def in_noise(
    samples: Int16[np.ndarray, "samples"], name: str, *, color: str, low: int, high: int
) -> Int16[np.ndarray, "samples"]:
    """An utterance in noise of a signal-to-noise ratio that its name decides.

        y = x + sqrt(mean x^2 / 10^(snr / 10)) noise,    snr even over low .. high

    So a noisy test set is one test set, whoever makes it.

    Args:
      samples: the utterance.
      name: from which noise and ratio are drawn.
      color: one of `COLORS`.
      low: least ratio in dB.
      high: greatest ratio.

    Returns:
      The mixture, clipped to 16 bits.

    Raises:
      ValueError: if low is above high.

    Example:
      >>> x = np.full(1600, 1000, np.int16)
      >>> y = in_noise(x, "a", color="pink", low=20, high=20)
      >>> round(float(np.std(y)))  # a tenth of the amplitude
      100
    """
    if low > high:
        raise ValueError(f"low, high: {low} and {high} dB; low <= high is needed")
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    words = np.random.Philox(key=key).random_raw(len(samples) + 1)
    ratio = low + (high - low) * float(words[-1] >> np.uint64(11)) * 2.0**-53
    x = samples.astype(np.float64)
    if len(x) < 2:  # too short to have a spectrum
        return samples
    level = np.sqrt(np.square(x).mean() / 10 ** (ratio / 10))
    return to_int16(((x + level * colored(words[:-1], COLORS[color])) / 32768).astype(np.float32))
