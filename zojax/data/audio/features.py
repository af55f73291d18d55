"""Log-Mel filter-bank energies, in the two styles that recipes use, for whole utterances and for streams.

A frame depends on its own samples alone, so a stream needs no more than the samples that the next frame still reaches:
whatever the chunks, the frames are those of the whole utterance.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

__all__ = ["FilterBank", "log_mel", "num_frames", "stack_frames", "stream_log_mel", "stream_stack"]


@dataclass(frozen=True, kw_only=True)
class FilterBank:
    """What a filter bank computes.

    "kaldi", as `compute-fbank-feats` and torchaudio's `compliance.kaldi.fbank` without dither: samples in the range of
    16-bit integers, mean of each frame taken off, pre-emphasis of 0.97, Povey window, power spectrum of the next
    power of two, triangles in the HTK Mel scale from 20 Hz, log of at least 2^-23.

    "librosa", as `librosa.feature.melspectrogram(center=False)` and the natural log: samples as they are, periodic
    Hann window, power spectrum of the window's length, Slaney's triangles of equal area from 0 Hz, log of at least
    1e-10.

    Both take whole frames alone: a rest at the end that is shorter than a window makes none.

    Attributes:
      style: "kaldi" or "librosa".
      bins: filters; recipes take 64 or 80.
      sample_rate: of the waveform, in Hz.
      window_ms: length of a frame in milliseconds.
      hop_ms: from frame to frame in milliseconds.

    Raises:
      ValueError: if a value is not positive, or window or hop are no whole numbers of samples.

    Example:
      >>> FilterBank(bins=64).window, FilterBank(bins=64).hop
      (400, 160)
    """

    style: str = "kaldi"
    bins: int = 80
    sample_rate: int = 16000
    window_ms: int = 25
    hop_ms: int = 10

    def __post_init__(self):
        if self.style not in ("kaldi", "librosa"):
            raise ValueError(f'style: {self.style!r}; "kaldi" or "librosa" is needed')
        for name in ("bins", "sample_rate", "window_ms", "hop_ms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; 1 or more is needed")
        for name in ("window_ms", "hop_ms"):
            if getattr(self, name) * self.sample_rate % 1000:
                raise ValueError(f"{name}: {getattr(self, name)} ms at {self.sample_rate} Hz is no number of samples")
        if self.hop > self.window:
            raise ValueError(f"hop_ms: {self.hop_ms}; no more than window_ms, {self.window_ms}, is needed")

    @property
    def window(self) -> int:
        """Samples a frame."""
        return self.window_ms * self.sample_rate // 1000

    @property
    def hop(self) -> int:
        """Samples from frame to frame."""
        return self.hop_ms * self.sample_rate // 1000

    @property
    def fft_size(self) -> int:
        """Points of the Fourier transform."""
        return 1 << (self.window - 1).bit_length() if self.style == "kaldi" else self.window


def num_frames(samples, bank: FilterBank):
    """Frames of an utterance.

    Args:
      samples: a number or an integer array of numbers of samples.
      bank: the filter bank.

    Returns:
      The number, or the array, of frames.

    Example:
      >>> num_frames(16000, FilterBank())
      98
    """
    frames = (samples - bank.window) // bank.hop + 1
    return max(frames, 0) if isinstance(frames, int) else frames.clip(0)


def log_mel(waveform: Float[Array, "*batch samples"], bank: FilterBank) -> Float[Array, "*batch frames bins"]:
    """The features of whole utterances.

        y(t, m) = log max(sum_k w_mk |F(frame t)_k|^2, floor)

    Args:
      waveform: samples in [-1, 1], float32. Of a padded batch, the first num_frames(length, bank) frames count.
      bank: the filter bank.

    Returns:
      float32, frames = num_frames(samples, bank).

    Example:
      >>> log_mel(jnp.zeros((2, 16000)), FilterBank(bins=64)).shape
      (2, 98, 64)
    """
    count = num_frames(waveform.shape[-1], bank)
    index = bank.hop * np.arange(count)[:, None] + np.arange(bank.window)
    return _of_frames(waveform[..., index], bank)


def stream_log_mel(
    carry: Float[Array, "*batch rest"] | None, chunk: Float[Array, "*batch samples"], bank: FilterBank
) -> tuple[Float[Array, "*batch frames bins"], Float[Array, "*batch new_rest"]]:
    """The frames that a chunk of the signal completes: together, over any chunks, those of `log_mel`.

    The shapes follow the chunk's length and the carry's; chunks of a multiple of the hop settle on one pair of shapes,
    and so on one compiled program.

    Args:
      carry: what the call before returned; None at the start.
      chunk: the next samples, any number.
      bank: the filter bank.

    Returns:
      (features, carry): no frames or more, and fewer samples than a window.

    Example:
      >>> bank, x = FilterBank(), jnp.ones((700,))
      >>> first, carry = stream_log_mel(None, x[:500], bank)
      >>> second, carry = stream_log_mel(carry, x[500:], bank)
      >>> first.shape, second.shape, carry.shape
      ((1, 80), (1, 80), (380,))
    """
    signal = chunk if carry is None else jnp.concatenate([carry, chunk], axis=-1)
    return log_mel(signal, bank), signal[..., bank.hop * num_frames(signal.shape[-1], bank) :]


def stack_frames(x: Float[Array, "*batch frames bins"], count: int) -> Float[Array, "*batch stacks wide"]:
    """Joins each `count` frames to one: 3 of 64 bins every 10 ms become 192 every 30 ms.

    Args:
      x: features.
      count: frames in a stack.

    Returns:
      [..., frames // count, count * bins]; a rest of fewer frames is left out.

    Raises:
      ValueError: if count is not positive.

    Example:
      >>> stack_frames(jnp.zeros((2, 98, 64)), 3).shape
      (2, 32, 192)
    """
    if count < 1:
        raise ValueError(f"count: {count} frames in a stack; 1 or more is needed")
    *batch, frames, bins = x.shape
    whole = frames // count
    return x[..., : whole * count, :].reshape(*batch, whole, count * bins)


def stream_stack(
    carry: Float[Array, "*batch rest bins"] | None, x: Float[Array, "*batch frames bins"], count: int
) -> tuple[Float[Array, "*batch stacks wide"], Float[Array, "*batch new_rest bins"]]:
    """The stacks that further frames complete: together those of `stack_frames`.

    Args:
      carry: what the call before returned; None at the start.
      x: the next frames, any number.
      count: frames in a stack.

    Returns:
      (stacks, carry).

    Raises:
      ValueError: if count is not positive.

    Example:
      >>> stacks, carry = stream_stack(None, jnp.zeros((4, 64)), 3)
      >>> stacks.shape, carry.shape
      ((1, 192), (1, 64))
    """
    frames = x if carry is None else jnp.concatenate([carry, x], axis=-2)
    stacks = stack_frames(frames, count)
    return stacks, frames[..., count * stacks.shape[-2] :, :]


def _of_frames(frames: Array, bank: FilterBank) -> Array:
    """Features of frames [..., window]."""
    if bank.style == "kaldi":
        frames = frames * np.float32(32768)
        frames -= frames.mean(-1, keepdims=True)
        # The sample before the first counts as the first.
        before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
        frames -= np.float32(0.97) * before
        floor = 2.0**-23
    else:
        floor = 1e-10
    spectrum = jnp.fft.rfft(frames * _window(bank), n=bank.fft_size)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    energy = jnp.dot(power, _filters(bank), precision=lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(energy, np.float32(floor)))


def _window(bank: FilterBank) -> np.ndarray:
    n = np.arange(bank.window)
    if bank.style == "kaldi":
        return ((0.5 - 0.5 * np.cos(2 * np.pi * n / (bank.window - 1))) ** 0.85).astype(np.float32)
    return (0.5 - 0.5 * np.cos(2 * np.pi * n / bank.window)).astype(np.float32)


def _filters(bank: FilterBank) -> np.ndarray:
    """[fft_size // 2 + 1, bins]: a triangle a bin."""
    # Kaldi rounds its edges to float32 as it goes; made in float64, a filter of few points differs by 4e-4.
    dtype = np.float32 if bank.style == "kaldi" else np.float64
    at = np.arange(bank.fft_size // 2 + 1, dtype=dtype) * dtype(bank.sample_rate / bank.fft_size)
    top = dtype(bank.sample_rate / 2)
    if bank.style == "kaldi":
        at, low, high = _htk_mel(at), _htk_mel(dtype(20)), _htk_mel(top)
        at[-1] = np.inf  # the last point of the spectrum belongs to no filter
        edges = low + np.arange(bank.bins + 2, dtype=dtype) * ((high - low) / dtype(bank.bins + 1))
    else:
        edges = _slaney_hertz(np.linspace(0, _slaney_mel(top), bank.bins + 2))
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    with np.errstate(invalid="ignore"):
        rising, falling = (at[:, None] - low) / (middle - low), (high - at[:, None]) / (high - middle)
        weights = np.maximum(0, np.minimum(rising, falling))
    if bank.style == "librosa":
        weights *= 2 / (high - low)
    return weights.astype(np.float32)


def _htk_mel(hertz):
    return np.float32(1127) * np.log(np.float32(1) + hertz / np.float32(700))


# Slaney's Auditory Toolbox: linear to 1 kHz, then 27 steps for a factor of 6.4.
_LINEAR, _BREAK, _STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def _slaney_mel(hertz) -> float:
    return hertz / _LINEAR if hertz < _BREAK else _BREAK / _LINEAR + float(np.log(hertz / _BREAK)) / _STEP


def _slaney_hertz(mel: np.ndarray) -> np.ndarray:
    start = _BREAK / _LINEAR
    return np.where(mel < start, _LINEAR * mel, _BREAK * np.exp(_STEP * (mel - start)))
