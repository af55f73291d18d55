"""Augmentation of waveforms and features: pure functions, their randomness in the key that they are given.

Each takes one utterance, padded to any length; `jax.vmap` over utterances and keys makes a batch. What is drawn depends
on the key and the utterance's own length, never on the padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

__all__ = ["SpecAugment", "add_noise", "change_speed", "draw_speed", "reverberate", "spec_augment"]

Length = Int[Array, ""] | int

# Zero crossings of the resampler's sinc on each side; the more, the narrower the band that is lost at the edge.
CROSSINGS = 16


@dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """How much is masked (arXiv 1904.08779).

    Attributes:
      frequency_masks: how many bands are masked.
      frequency_width: a band is 0 to this many bins wide.
      time_masks: how many stretches are masked.
      time_width: a stretch is 0 to this many frames long,
      time_share: and no longer than this share of the utterance.

    Raises:
      ValueError: if a number is negative, or the share is above 1.

    Example:
      >>> SpecAugment(time_masks=10, time_share=0.05).frequency_width
      27
    """

    frequency_masks: int = 2
    frequency_width: int = 27
    time_masks: int = 2
    time_width: int = 100
    time_share: float = 1.0

    def __post_init__(self):
        for name in ("frequency_masks", "frequency_width", "time_masks", "time_width"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)}; 0 or more is needed")
        if not 0 <= self.time_share <= 1:
            raise ValueError(f"time_share: {self.time_share}; 0 to 1 is needed")


def spec_augment(
    x: Float[Array, "frames bins"], length: Length, key: Key[Array, ""], spec: SpecAugment
) -> Float[Array, "frames bins"]:
    """Masks bands of frequency and stretches of time with the utterance's mean.

    Each mask draws its width evenly from 0 to the greatest, then its place evenly from those where it fits. (The paper
    masks with 0 in features of mean 0; the mean is the same for features of any.)

    Args:
      x: features.
      length: frames of the utterance.
      key: typed key.
      spec: numbers and widths of masks.

    Returns:
      The features; frames past length stay.

    Example:
      >>> x = jnp.arange(200.0).reshape(10, 20)
      >>> y = spec_augment(x, 10, jax.random.key(0), SpecAugment(frequency_width=5, time_width=3))
      >>> bool(((y == x) | (y == x.mean())).all())
      True
    """
    frames, bins = x.shape
    inside = (jnp.arange(frames) < length)[:, None]
    mean = jnp.sum(jnp.where(inside, x, 0)) / jnp.maximum(length * bins, 1)
    of_bins, of_frames = jax.random.split(key)
    widest = jnp.minimum(spec.time_width, jnp.floor(spec.time_share * length).astype(jnp.int32))
    masked = _masks(of_bins, spec.frequency_masks, min(spec.frequency_width, bins), bins, bins)
    masked = masked | _masks(of_frames, spec.time_masks, widest, length, frames)[:, None]
    return jnp.where(masked & inside, mean, x)


def _masks(key: Array, count: int, widest, length, size: int) -> Array:
    """Where any of `count` intervals lies, [size]."""
    draws = jax.random.uniform(key, (2, count))
    widths = jnp.floor(draws[0] * (widest + 1))
    starts = jnp.floor(draws[1] * (length - widths + 1))
    at = jnp.arange(size)[:, None]
    return jnp.any((at >= starts) & (at < starts + widths), axis=1)


def draw_speed(key: Key[Array, ""], factors: Sequence[float]) -> Float[Array, ""]:
    """One of the factors, all alike probable: recipes take 0.9, 1 and 1.1.

    Args:
      key: typed key.
      factors: speeds.

    Returns:
      A factor.

    Raises:
      ValueError: if a factor is not positive, or there is none.

    Example:
      >>> float(draw_speed(jax.random.key(0), (1.0,)))
      1.0
    """
    if not factors or min(factors) <= 0:
        raise ValueError(f"factors: {tuple(factors)}; one positive number or more is needed")
    return jnp.asarray(factors, jnp.float32)[jax.random.randint(key, (), 0, len(factors))]


def change_speed(
    x: Float[Array, "samples"], length: Length, factor: Float[Array, ""] | float, *, size: int
) -> tuple[Float[Array, "size"], Int[Array, ""]]:
    """Plays a waveform faster or slower; pitch and formants move along, as with sox's `speed`.

        y(n) = sum_k x(k) w(n factor - k),    w a sinc of the narrower band under a Hann window

    Args:
      x: samples.
      length: samples of the utterance; those behind count as 0.
      factor: speed, above 0 and up to 2: 1.1 makes it shorter. It may be traced: one program serves all factors.
      size: samples of the result, at least length / factor if nothing is to be cut off.

    Returns:
      (samples, 0 behind the new length; the new length).

    Example:
      >>> y, length = change_speed(jnp.ones(1000), 1000, 0.9, size=1200)
      >>> int(length), round(float(y[500]), 2)
      (1111, 1.0)
    """
    samples = x.shape[0]
    factor = jnp.asarray(factor, jnp.float32)
    new_length = jnp.minimum(jnp.floor(length / factor), size).astype(jnp.int32)
    # Sped up, the band above the new Nyquist frequency has to go: the sinc widens by the factor. Twice is enough room.
    band = jnp.minimum(1.0, 1.0 / factor)
    reach = 2 * CROSSINGS
    n = jnp.arange(size)
    # n * factor in float32 would lose the fraction of a long waveform's positions: whole and fraction apart.
    whole, fraction = _product(n, factor)
    taps = np.arange(-reach + 1, reach + 1)
    index = whole[:, None] + taps
    distance = (taps - fraction[:, None]) * band
    window = jnp.where(jnp.abs(distance) < CROSSINGS, 0.5 + 0.5 * jnp.cos(jnp.pi * distance / CROSSINGS), 0)
    weights = band * jnp.sinc(distance) * window
    held = jnp.where((index >= 0) & (index < length), x[jnp.clip(index, 0, samples - 1)], 0)
    y = jnp.einsum("nk,nk->n", held, weights)
    return jnp.where(n < new_length, y, 0), new_length


def _product(n: Array, factor: Array) -> tuple[Array, Array]:
    """floor(n factor) as integers, and the rest, to 2^-20 for n below 2^24."""
    high, low = n // 4096, n % 4096
    # factor = whole + k / 4096 + rest, each part exact: products of small integers stay exact.
    whole = jnp.floor(factor)
    scaled = (factor - whole) * 4096
    k = jnp.floor(scaled)
    rest = scaled - k
    of_k = n * whole.astype(jnp.int32) + high * k.astype(jnp.int32)
    parts = low * k.astype(jnp.int32)
    fine = (high.astype(jnp.float32) * rest) + (low.astype(jnp.float32) * rest + (parts % 4096)) / 4096
    carried = jnp.floor(fine)
    return of_k + parts // 4096 + carried.astype(jnp.int32), fine - carried


def add_noise(
    x: Float[Array, "samples"],
    length: Length,
    noise: Float[Array, "others"],
    key: Key[Array, ""],
    *,
    low: float,
    high: float,
) -> Float[Array, "samples"]:
    """Mixes noise in at a random signal-to-noise ratio.

        y = x + g noise,    10 log10(mean x^2 / mean (g noise)^2) = snr,    snr uniform in [low, high]

    The noise starts at a random place and goes round. Both means are over the utterance.

    Args:
      x: samples.
      length: samples of the utterance.
      noise: samples of noise, any number.
      key: typed key.
      low: least ratio in dB.
      high: greatest ratio in dB.

    Returns:
      The mixture; samples past length stay. Silence in x or noise is left alone.

    Raises:
      ValueError: if low is above high.

    Example:
      >>> x, noise = jnp.ones(1000), jnp.full(300, 5.0)
      >>> y = add_noise(x, 1000, noise, jax.random.key(0), low=20.0, high=20.0)
      >>> round(float(y[0]), 4)
      1.1
    """
    if low > high:
        raise ValueError(f"low, high: {low} and {high} dB; low <= high is needed")
    of_start, of_ratio = jax.random.split(key)
    start = jax.random.randint(of_start, (), 0, noise.shape[0])
    ratio = jax.random.uniform(of_ratio, (), minval=low, maxval=high)
    n = jnp.arange(x.shape[0])
    inside = n < length
    part = jnp.where(inside, noise[(start + n) % noise.shape[0]], 0)
    power, of_noise = (jnp.sum(jnp.square(jnp.where(inside, s, 0))) for s in (x, part))
    wanted = power * 10 ** (-ratio / 10)
    gain = jnp.where(of_noise > 0, jnp.sqrt(wanted / jnp.where(of_noise > 0, of_noise, 1)), 0)
    return x + gain * part


def reverberate(x: Float[Array, "samples"], length: Length, response: Float[Array, "taps"]) -> Float[Array, "samples"]:
    """Convolves with a room response; the direct sound stays in its place, the power that of the dry signal (ours).

    Args:
      x: samples.
      length: samples of the utterance.
      response: the room's impulse response; its greatest tap counts as the direct sound.

    Returns:
      As many samples as x, 0 past length: the reverberation of the end is cut off.

    Example:
      >>> x = jnp.zeros(8).at[2].set(1.0)
      >>> reverberate(x, 8, jnp.array([0.0, 0.0, 4.0, 3.0]))[2:4].round(3).tolist()
      [0.800000011920929, 0.6000000238418579]
    """
    samples, taps = x.shape[0], response.shape[0]
    inside = jnp.arange(samples) < length
    dry = jnp.where(inside, x, 0)
    points = 1 << (samples + taps - 2).bit_length()
    wet = jnp.fft.irfft(jnp.fft.rfft(dry, points) * jnp.fft.rfft(response, points), points)
    wet = jnp.where(inside, jnp.roll(wet, -jnp.argmax(jnp.abs(response)))[:samples], 0)
    before, after = jnp.sum(dry**2), jnp.sum(wet**2)
    return wet * jnp.where(after > 0, jnp.sqrt(before / jnp.where(after > 0, after, 1)), 0)
