"""What the microphones of an array hear beside speech, and the beam that is made of them.

Noise and speech are mixed as signals of all microphones. Randomness comes from the generator that is given.
"""

import numpy as np
from jaxtyping import Float64

from zojax.data.audio.noise import COLORS, colored
from zojax.data.audio.rooms import LEAD, MAX_MICROPHONES, impulses, render
from zojax.data.audio.waves import RATE

__all__ = ["delay_and_sum", "diffuse_noise", "direction", "echo_residual", "mix", "steering_gain"]


def diffuse_noise(
    rng: np.random.Generator,
    microphones: Float64[np.ndarray, "microphones 3"],
    samples: int,
    *,
    color: str = "white",
    sound_speed: float = 343.0,
) -> Float64[np.ndarray, "microphones samples"]:
    """Noise that comes from all directions alike.

    Independent noises are mixed, at each frequency, by a square root of the coherence of a spherically diffuse field
    (Habets, Cohen and Gannot, J. Acoust. Soc. Am. 124, 2008):

        C_ij(f) = sin(x) / x,    x = 2 pi f |p_i - p_j| / c

    Args:
      rng: generator.
      microphones: places p, in metres.
      samples: how many, at 16 kHz.
      color: one of `noise.COLORS`.
      sound_speed: c, in metres a second.

    Returns:
      Noise of power 1 at each microphone, in expectation.

    Raises:
      ValueError: if there are not one to eight microphones.

    Example:
      >>> places = np.array([[0.0, 0.0, 0.0], [0.05, 0.0, 0.0]])
      >>> diffuse_noise(np.random.default_rng(0), places, 16000).shape
      (2, 16000)
    """
    microphones = _array(microphones)
    distance = np.linalg.norm(microphones[:, None] - microphones, axis=-1)
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    # numpy's sinc has the pi inside. Close microphones make coherences with eigenvalues of 0, rounded to either side.
    values, vectors = np.linalg.eigh(np.sinc(2 * frequency[:, None, None] * distance / sound_speed))
    root = vectors * np.sqrt(np.maximum(values, 0))[:, None]
    # Raw words: numpy promises them, and not what it makes of them.
    words = [rng.bit_generator.random_raw(samples) for _ in microphones]
    spectrum = np.fft.rfft([colored(row, COLORS[color]) for row in words])
    return np.fft.irfft(np.einsum("fij,jf->if", root, spectrum), samples)


def mix(
    speech: Float64[np.ndarray, "microphones samples"],
    other: Float64[np.ndarray, "microphones samples"],
    *,
    snr: float,
) -> Float64[np.ndarray, "microphones samples"]:
    """Adds noise at a signal-to-noise ratio, one gain for all microphones.

        y = x + g n,    10 log10(mean x^2 / mean (g n)^2) = snr

    Args:
      speech: x.
      other: n: diffuse noise, or any signal rendered from its own place, which is directional noise.
      snr: in dB; the means are over microphones and samples.

    Returns:
      y.

    Raises:
      ValueError: if the noise is silent.

    Example:
      >>> mix(np.ones((1, 4)), np.full((1, 4), 5.0), snr=20.0).round(6).tolist()
      [[1.1, 1.1, 1.1, 1.1]]
    """
    power = np.mean(np.square(other))
    if not power > 0:
        raise ValueError(f"other has power {power}; noise that is not silent is needed")
    return speech + np.sqrt(np.mean(np.square(speech)) / power * 10 ** (-snr / 10)) * other


def echo_residual(
    far_end: Float64[np.ndarray, "samples"],
    responses: Float64[np.ndarray, "microphones taps"],
    *,
    attenuation: float,
) -> Float64[np.ndarray, "microphones samples"]:
    """What an echo canceller leaves of a loudspeaker's signal.

    The echo, attenuated at all frequencies alike: a canceller that is as good everywhere, and always. (Ours; a real one
    leaves most where the loudspeaker is not linear.)

    Args:
      far_end: what the loudspeaker plays.
      responses: from the loudspeaker to the microphones, see `rooms.response`.
      attenuation: of the echo by the canceller, in dB.

    Returns:
      The residual, to be added to what the microphones hear.

    Example:
      >>> h = impulses(np.array([0.0]), np.array([1.0]), 50)[None]
      >>> echo_residual(np.ones(3), h, attenuation=20.0).round(6).tolist()
      [[0.1, 0.1, 0.1]]
    """
    return 10 ** (-attenuation / 20) * render(far_end, responses)


def direction(
    source: Float64[np.ndarray, "3"], microphones: Float64[np.ndarray, "microphones 3"], *, error: float = 0.0
) -> Float64[np.ndarray, "3"]:
    """Where a source is, seen from the middle of an array.

    Args:
      source: its place, in metres.
      microphones: places of the microphones.
      error: degrees by which the direction is turned about the z axis, against the clock seen from above.

    Returns:
      A vector of length 1.

    Raises:
      ValueError: if the source is in the middle of the array.

    Example:
      >>> places = np.array([[0.9, 1.0, 1.0], [1.1, 1.0, 1.0]])
      >>> direction(np.array([3.0, 1.0, 1.0]), places, error=90.0).round(6).tolist()
      [0.0, 1.0, 0.0]
    """
    way = np.asarray(source, np.float64) - _array(microphones).mean(axis=0)
    if not np.linalg.norm(way) > 0:
        raise ValueError(f"source is {source}; it must not be in the middle of the array")
    x, y, z = way / np.linalg.norm(way)
    cosine, sine = np.cos(np.radians(error)), np.sin(np.radians(error))
    return np.array([cosine * x - sine * y, sine * x + cosine * y, z])


def delay_and_sum(
    signals: Float64[np.ndarray, "microphones samples"],
    microphones: Float64[np.ndarray, "microphones 3"],
    look: Float64[np.ndarray, "3"],
    *,
    sound_speed: float = 343.0,
) -> Float64[np.ndarray, "samples"]:
    """A beam: the mean of the signals, delayed so that a plane wave from the look direction is in phase in all.

        y(t) = mean over m of  x_m(t - look . (p_m - middle) / c)

    Args:
      signals: x, of each microphone, at 16 kHz.
      microphones: places p, in metres.
      look: the direction, of length 1; one from `direction` with an error makes a beam that is steered wrongly.
      sound_speed: c, in metres a second.

    Returns:
      y, on the clock of the array's middle.

    Raises:
      ValueError: if there are not one to eight microphones, or the direction's length is not 1.

    Example:
      >>> places = np.array([[0.0, 0.0, 0.0], [0.343, 0.0, 0.0]])  # 16 samples apart
      >>> late, early = np.eye(64)[40], np.eye(64)[24]
      >>> y = delay_and_sum(np.stack([late, early]), places, np.array([1.0, 0.0, 0.0]))
      >>> int(y.argmax()), round(float(y.max()), 6)
      (32, 1.0)
    """
    microphones = _array(microphones)
    delays = (microphones - microphones.mean(axis=0)) @ _unit(look) * (RATE / sound_speed)
    # A delay below 0 is a step back of whole samples and a delay.
    back = int(np.ceil(np.abs(delays).max()))
    total = np.zeros(signals.shape[1] + back)
    for x, delay in zip(signals, delays, strict=True):
        taps = impulses(np.array([delay + back]), np.ones(1), 2 * (LEAD + back) + 1)
        total += render(np.pad(x, (0, back)), taps[None])[0]
    return total[back:] / len(signals)


def steering_gain(
    microphones: Float64[np.ndarray, "microphones 3"],
    look: Float64[np.ndarray, "3"],
    wave: Float64[np.ndarray, "3"],
    frequency: Float64[np.ndarray, "frequencies"],
    *,
    sound_speed: float = 343.0,
) -> Float64[np.ndarray, "frequencies"]:
    """The gain that a delay-and-sum beam has for a plane wave.

        G(f) = | mean over m of  exp(2 pi i f (wave - look) . p_m / c) |

    Args:
      microphones: places p, in metres.
      look: direction of the beam, of length 1.
      wave: direction from which the wave comes.
      frequency: f, in Hz.
      sound_speed: c, in metres a second.

    Returns:
      G: 1 where look and wave are one.

    Raises:
      ValueError: if there are not one to eight microphones, or the length of a direction is not 1.

    Example:
      >>> places, x, y = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0]]), np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
      >>> steering_gain(places, x, y, np.array([0.0, 1715.0])).round(6).tolist()  # 1715 Hz: half a wave apart
      [1.0, 0.0]
    """
    ways = _array(microphones) @ (_unit(wave) - _unit(look))
    return np.abs(np.exp(2j * np.pi * np.asarray(frequency)[:, None] * ways / sound_speed).mean(axis=1))


def _array(microphones: np.ndarray) -> np.ndarray:
    microphones = np.asarray(microphones, np.float64)
    if microphones.ndim != 2 or microphones.shape[1] != 3 or not 1 <= len(microphones) <= MAX_MICROPHONES:
        raise ValueError(f"microphones have shape {microphones.shape}; [1 to {MAX_MICROPHONES}, 3] is needed")
    return microphones


def _unit(way: np.ndarray) -> np.ndarray:
    way = np.asarray(way, np.float64)
    if way.shape != (3,) or abs(np.linalg.norm(way) - 1) > 1e-9:
        raise ValueError(f"a direction is {way.tolist()}; three numbers whose squares sum to 1 are needed")
    return way
