"""Sound files to samples: any format that libsndfile reads, one channel, 16 kHz, 16 bits."""

import functools
import math
import os
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int16

__all__ = ["RATE", "AudioError", "read_channels", "read_wave", "resample", "to_int16"]

RATE = 16_000  # Hz, of every utterance here

# Zero crossings of the resampler's sinc on each side, and its Kaiser window: 90 dB down outside the band.
CROSSINGS, BETA = 32, 9.0

# A writer that does not know the length beforehand puts about the largest number in its place.
UNKNOWN = 0x7FFFF000


class AudioError(ValueError):
    """A sound file that cannot be used, and why."""


def read_wave(path: str | os.PathLike[str]) -> Int16[np.ndarray, "samples"]:
    """Decodes a file to 16 kHz and one channel.

    Channels are averaged. 16-bit samples at 16 kHz come through as they are.

    Args:
      path: a wav, flac, NIST sphere or other file that libsndfile reads.

    Returns:
      int16 samples, one at least.

    Raises:
      AudioError: the file is missing, empty, broken, cut short, without samples, or holds one that is not finite.

    Example:
      >>> import soundfile, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     soundfile.write(f"{folder}/a.flac", np.arange(4, dtype=np.int16), 16000)
      ...     read_wave(f"{folder}/a.flac")
      array([0, 1, 2, 3], dtype=int16)
    """
    x, rate = _decoded(path)
    x = x[:, 0] if x.shape[1] == 1 else x.mean(1)
    return to_int16(x if rate == RATE else resample(x, rate, RATE))


def read_channels(path: str | os.PathLike[str]) -> Int16[np.ndarray, "samples channels"]:
    """As `read_wave`, with all channels.

    Args:
      path: a file.

    Returns:
      int16 samples, a column a channel.

    Raises:
      AudioError: as `read_wave`.

    Example:
      >>> import soundfile, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     soundfile.write(f"{folder}/a.flac", np.arange(4, dtype=np.int16).reshape(2, 2), 16000)
      ...     read_channels(f"{folder}/a.flac").tolist()
      [[0, 1], [2, 3]]
    """
    x, rate = _decoded(path)
    return to_int16(x if rate == RATE else resample(x, rate, RATE))


def _decoded(path: str | os.PathLike[str]) -> tuple[Float32[np.ndarray, "samples channels"], int]:
    """Samples of all channels, and their rate."""
    import soundfile

    if not Path(path).is_file():
        raise AudioError("no such file")
    if not Path(path).stat().st_size:
        raise AudioError("the file is empty")
    try:
        with soundfile.SoundFile(os.fspath(path)) as file:
            rate, there, promised = file.samplerate, file.frames, _promised(path, file)
            # Never as integers: libsndfile would round the samples of a float file to -1, 0 and 1.
            x = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(str(error)) from None
    if len(x) < max(there, promised):
        raise AudioError(f"cut short: {len(x)} samples of {max(there, promised)}")
    if not len(x):
        raise AudioError("no samples")
    if not np.isfinite(x).all():
        raise AudioError("a sample is not finite")
    return x, rate


def resample(
    x: Float32[np.ndarray, "samples *channels"], rate: int, new_rate: int
) -> Float32[np.ndarray, "others *channels"]:
    """Brings a waveform to another rate.

        y(n) = sum_k x(k) w(n rate / new_rate - k),    w a sinc of the narrower band under a Kaiser window

    Args:
      x: samples.
      rate: of x, in Hz.
      new_rate: of the result, in Hz.

    Returns:
      ceil(samples new_rate / rate) samples.

    Raises:
      ValueError: if a rate is not positive.

    Example:
      >>> resample(np.ones(441, np.float32), 44100, 16000).shape
      (160,)
    """
    from scipy import signal  # with jax there is always scipy; half a second to import

    if min(rate, new_rate) < 1:
        raise ValueError(f"rate, new_rate: {rate} and {new_rate} Hz; 1 or more is needed")
    shared = math.gcd(rate, new_rate)
    up, down = new_rate // shared, rate // shared
    return signal.resample_poly(x, up, down, window=_window(max(up, down))).astype(np.float32)


def to_int16(x: Float32[np.ndarray, "*shape"]) -> Int16[np.ndarray, "*shape"]:
    """Samples in [-1, 1] to 16 bits, to the nearest, clipped.

    Args:
      x: samples.

    Returns:
      The samples times 32,768.

    Example:
      >>> to_int16(np.array([-1.0, 0.5, 1.0], np.float32))
      array([-32768,  16384,  32767], dtype=int16)
    """
    return np.clip(np.rint(x * np.float32(32768)), -32768, 32767).astype(np.int16)


@functools.lru_cache(maxsize=8)
def _window(wider: int) -> np.ndarray:
    from scipy import signal

    taps = 2 * CROSSINGS * wider + 1
    return np.asarray(signal.firwin(taps, 1 / wider, window=("kaiser", BETA)))  # pyright: ignore[reportArgumentType]


def _promised(path, file) -> int:
    """Samples that the header promises, where libsndfile goes by the file's size instead."""
    promised = 0
    if file.format in ("WAV", "WAVEX"):
        # Its log names both numbers of bytes where they differ.
        if found := re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE):
            size, really = map(int, found.groups())
            if really < size < UNKNOWN:
                promised = file.frames * size // really if really else 1
    elif file.format == "NIST":
        with open(path, "rb") as header:
            found = re.search(rb"^sample_count -i (\d+)", header.read(1024), re.MULTILINE)
        promised = int(found.group(1)) if found else 0
    return promised
