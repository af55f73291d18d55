"""Rooms for speech: responses of shoeboxes by the image method, sources that stand or move, times of decay.

All of it is float64 NumPy on the host and without randomness. What several microphones then hear beside speech, and the
beam that is made of them, is in `zojax.data.audio.microphones`.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64

from zojax.data.audio.waves import RATE

__all__ = [
    "LEAD",
    "MAX_MICROPHONES",
    "Room",
    "absorption_of",
    "decay_time",
    "impulses",
    "render",
    "render_moving",
    "response",
]

# An arrival between two samples is a sinc under a squared Hann window of so many samples on each side. Its spectrum is
# that of a delay to 1e-7 below 4 kHz, and to 5e-6 below 6 kHz.
LEAD = 40

MAX_MICROPHONES = 8

# Images of a source that are worked on together: some megabytes.
TOGETHER = 1 << 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """A room of six plane walls, which reflect all frequencies alike.

    Attributes:
      size: lengths along x, y and z in metres; a corner is at 0.
      absorption: share of the energy that each wall keeps: those at x = 0 and x = size[0], the two of y, the two of z.
        1 is an open window.
      sound_speed: in metres a second.

    Raises:
      ValueError: if a length or the speed is not positive, or there are not six shares in [0, 1].

    Example:
      >>> Room(size=(5.0, 4.0, 3.0), absorption=(0.75,) * 6).reflection[0].tolist()
      [0.5, 0.5]
    """

    size: tuple[float, float, float]
    absorption: tuple[float, ...]
    sound_speed: float = 343.0

    def __post_init__(self):
        if len(self.size) != 3 or not min(self.size) > 0:
            raise ValueError(f"Room.size is {self.size}; three positive lengths are needed")
        if len(self.absorption) != 6 or not all(0 <= share <= 1 for share in self.absorption):
            raise ValueError(f"Room.absorption is {self.absorption}; six shares from 0 to 1 are needed")
        if not self.sound_speed > 0:
            raise ValueError(f"Room.sound_speed is {self.sound_speed}; it must be positive")

    @property
    def reflection(self) -> Float64[np.ndarray, "axes=3 sides=2"]:
        """What is left of the pressure behind a reflection, sqrt(1 - absorption)."""
        return np.sqrt(1 - np.array(self.absorption, np.float64)).reshape(3, 2)


def absorption_of(
    size: tuple[float, float, float], seconds: float, *, formula: str = "eyring", sound_speed: float = 343.0
) -> float:
    """The absorption of walls that are all alike, from the time in which sound decays by 60 dB.

        T = 24 ln(10) V / (c S a)   (Sabine),    T = 24 ln(10) V / (-c S ln(1 - a))   (Eyring)

    V is the volume and S the surface. Sabine's holds for small absorption.

    Args:
      size: lengths of the room in metres.
      seconds: T.
      formula: "sabine" or "eyring".
      sound_speed: c, in metres a second.

    Returns:
      The share a, for each of the six walls of a `Room`.

    Raises:
      ValueError: if T is not positive, the formula is neither, or no absorption up to 1 makes Sabine's T so short.

    Example:
      >>> round(absorption_of((6.0, 5.0, 3.0), 0.4), 3), round(absorption_of((6.0, 5.0, 3.0), 0.4, formula="sabine"), 3)
      (0.25, 0.288)
    """
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds}; it must be positive")
    x, y, z = size
    exponent = 24 * math.log(10) * x * y * z / (sound_speed * 2 * (x * y + y * z + z * x) * seconds)
    if formula == "eyring":
        return -math.expm1(-exponent)
    if formula != "sabine":
        raise ValueError(f'formula is {formula!r}; "sabine" or "eyring" is needed')
    if exponent > 1:
        raise ValueError(f"seconds is {seconds}; by Sabine's formula the walls would keep {exponent:.2f} of 1")
    return exponent


def response(
    room: Room,
    source: Float64[np.ndarray, "3"],
    microphones: Float64[np.ndarray, "microphones 3"],
    *,
    seconds: float,
) -> Float64[np.ndarray, "microphones taps"]:
    """Impulse responses of a room by the image method (Allen and Berkley, J. Acoust. Soc. Am. 65, 1979).

        h(t) = sum over images i of  g_i delta(t - r_i / c) / (4 pi r_i)

    Reflections mirror the source at the walls; g_i is the product of the walls' reflection coefficients. An image at
    (1 - 2u) s + 2 l L along an axis (u is 0 or 1, l any integer) has met the wall at 0 |l - u| times, that at L |l|.

    Ours, against the paper: arrivals are not rounded to samples but placed between them, and nothing takes off the low
    frequencies, of which an image model with positive coefficients has too much.

    Args:
      room: the room.
      source: place of an omnidirectional source, in metres.
      microphones: places of one to eight omnidirectional microphones.
      seconds: how much of the responses is wanted.

    Returns:
      The responses at 16 kHz. Sample LEAD is the moment of emission: before it lie the beginnings of what arrives soon.

    Raises:
      ValueError: if a place is outside the room, a microphone at the source, or the numbers do not fit.

    Example:
      >>> room = Room(size=(5.0, 4.0, 3.0), absorption=(1.0,) * 6)
      >>> h = response(room, np.array([1.0, 1.0, 1.0]), np.array([[1.0, 1.0 + 0.343, 1.0]]), seconds=0.01)
      >>> h.shape, int(h[0].argmax()) - LEAD, round(float(h[0].max() * 4 * np.pi * 0.343), 6)
      ((1, 200), 16, 1.0)
    """
    source, microphones = _place(room, "source", source), _place(room, "microphones", microphones)
    if source.shape != (3,) or microphones.ndim != 2 or not 1 <= len(microphones) <= MAX_MICROPHONES:
        shapes = f"source and microphones have shapes {source.shape} and {microphones.shape}"
        raise ValueError(f"{shapes}; [3] and [1 to {MAX_MICROPHONES}, 3] are needed")
    if not np.linalg.norm(microphones - source, axis=1).min() > 0:
        raise ValueError(f"microphones: one is at the source, {source.tolist()}")
    taps = round(seconds * RATE)
    if taps < 1:
        raise ValueError(f"seconds is {seconds}; a sample, {1 / RATE} s, or more is needed")
    h = np.zeros((len(microphones), LEAD + taps))
    for places, gains in _together(_images(room, source, room.sound_speed * (taps + LEAD) / RATE)):
        for row, microphone in zip(h, microphones, strict=True):
            distance = np.sqrt(((places - microphone) ** 2).sum(axis=1))
            row += impulses(distance * (RATE / room.sound_speed), gains / (4 * np.pi * distance), LEAD + taps)
    return h


def impulses(
    delays: Float64[np.ndarray, "arrivals"], gains: Float64[np.ndarray, "arrivals"], taps: int
) -> Float64[np.ndarray, "taps"]:
    """Impulses between samples: sums of sincs under a squared Hann window.

        h(n) = sum_i g_i sinc(x) cos(pi x / (2 LEAD))^4,    x = n - LEAD - d_i,    |x| < LEAD

    Args:
      delays: d, in samples, 0 or more.
      gains: g.
      taps: samples of the result; what lies outside is cut off.

    Returns:
      h.

    Example:
      >>> impulses(np.array([2.0]), np.array([0.5]), 45).round(6)[40:].tolist()
      [0.0, -0.0, 0.5, 0.0, -0.0]
    """
    near = delays < taps  # the others begin behind the end
    delays, gains = delays[near], gains[near]
    # To the nearest sample, so that the only quotient of two small numbers below is one of exact ones. A fraction of 0
    # would be 0 / 0, and 1e-9 of a sample is nothing.
    whole = np.rint(delays).astype(np.int64)
    fraction = delays - whole
    fraction[np.abs(fraction) < 1e-9] = 1e-9
    # Sine and cosine once for each arrival: sin(pi (k - f)) = -(-1)^k sin(pi f), and the sum formula for the window.
    sine = gains * np.sin(np.pi * fraction) / np.pi
    slow_cosine, slow_sine = np.cos(np.pi * fraction / LEAD), np.sin(np.pi * fraction / LEAD)
    h = np.zeros(taps + 2 * LEAD + 1)
    for k in range(1 - LEAD, LEAD):
        window = np.cos(np.pi * k / LEAD) * slow_cosine + np.sin(np.pi * k / LEAD) * slow_sine
        sign = 1 if k % 2 else -1
        values = sign * sine / (k - fraction) * np.square(0.5 + 0.5 * window)
        h += np.bincount(whole + (k + LEAD), values, minlength=len(h))
    return h[:taps]


def render(
    x: Float64[np.ndarray, "samples"], responses: Float64[np.ndarray, "microphones taps"]
) -> Float64[np.ndarray, "microphones samples"]:
    """What microphones hear of a signal.

    Args:
      x: samples at 16 kHz.
      responses: as `response` makes them.

    Returns:
      As many samples for each microphone, on the clock of the source: delayed by the way of the sound. What comes
      behind the end is cut off.

    Example:
      >>> delay = impulses(np.array([2.0]), np.array([0.5]), 50)
      >>> render(np.array([1.0, 0.0, 0.0, 4.0, 0.0, 0.0]), delay[None]).round(6).tolist()
      [[-0.0, -0.0, 0.5, 0.0, -0.0, 2.0]]
    """
    samples, taps = len(x), responses.shape[1]
    points = 1 << (samples + taps - 2).bit_length()
    y = np.fft.irfft(np.fft.rfft(x, points) * np.fft.rfft(responses, points), points)
    return y[:, LEAD : LEAD + samples]


def render_moving(
    x: Float64[np.ndarray, "samples"], responses: Float64[np.ndarray, "places microphones taps"]
) -> Float64[np.ndarray, "microphones samples"]:
    """What microphones hear of a source that moves from place to place.

    The places are reached at equal intervals, the first at the first sample and the last at the last one. Between two
    of them the signal fades from one response to the other: y = sum_p (w_p x) * h_p, the w_p triangles that sum to 1.
    (Ours. Places that are some centimetres apart are heard as a movement, without Doppler's shift.)

    Args:
      x: samples at 16 kHz.
      responses: of each place, one or more.

    Returns:
      As `render`.

    Example:
      >>> h = np.stack([impulses(np.array([0.0]), np.array([gain]), 50) for gain in (1.0, 2.0)])
      >>> render_moving(np.ones(5), h[:, None]).round(6).tolist()
      [[1.0, 1.25, 1.5, 1.75, 2.0]]
    """
    at = np.linspace(0, len(responses) - 1, len(x))
    weights = np.maximum(1 - np.abs(at - np.arange(len(responses))[:, None]), 0)
    return sum((render(w * x, h) for w, h in zip(weights, responses, strict=True)), np.zeros(()))


def decay_time(response: Float64[np.ndarray, "taps"], *, upper: float = -5.0, lower: float = -25.0) -> float:
    """The time in which sound decays by 60 dB, from Schroeder's backward integral (J. Acoust. Soc. Am. 37, 1965).

        E(t) = integral from t on of h^2,    T = -60 / slope of the line through 10 log10(E / E(0))

    Args:
      response: an impulse response at 16 kHz, cut off where it goes under in noise, well below the level `lower`.
      upper: the line is fitted from this level on, in dB,
      lower: to this one; the usual -5 and -25 make "T20".

    Returns:
      Seconds.

    Raises:
      ValueError: if the levels do not fall, or the response has fewer than two samples between them.

    Example:
      >>> t = np.arange(16000) / 16000
      >>> round(decay_time(10 ** (-3 * t / 0.5)), 3)
      0.5
    """
    if not 0 >= upper > lower:
        raise ValueError(f"upper, lower: {upper} and {lower} dB; 0 >= upper > lower is needed")
    energy = np.cumsum(np.square(response[::-1]))[::-1]
    level = 10 * np.log10(np.maximum(energy / energy[0], 1e-30))
    inside = np.flatnonzero((level <= upper) & (level >= lower))
    if len(inside) < 2:
        raise ValueError(f"the response has {len(inside)} samples between {upper} and {lower} dB; it needs two")
    return float(-60 / np.polyfit(inside / RATE, level[inside], 1)[0])


def _images(room: Room, source: np.ndarray, reach: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places [n, 3] and gains [n] of the images that may lie within `reach` of a place in the room, by slices of x."""
    axes = []
    for length, s, (low, high) in zip(room.size, source, room.reflection, strict=True):
        most = math.ceil(reach / (2 * length))  # 2 l L - s < L + reach, s below L
        turns = np.arange(-most, most + 1)
        places = np.concatenate([s + 2 * turns * length, -s + 2 * turns * length])
        gains = np.concatenate(
            [low ** np.abs(turns) * high ** np.abs(turns), low ** np.abs(turns - 1) * high ** np.abs(turns)]
        )
        kept = (places > -reach) & (places < length + reach) & (gains > 0)
        axes.append((places[kept], gains[kept]))
    (x, of_x), (y, of_y), (z, of_z) = axes
    beyond_y, beyond_z = (
        np.maximum(np.maximum(-p, p - length), 0) for p, length in zip((y, z), room.size[1:], strict=True)
    )
    across = beyond_y[:, None] ** 2 + beyond_z**2
    for place, gain in zip(x, of_x, strict=True):
        rest = reach**2 - max(-place, place - room.size[0], 0.0) ** 2
        rows, columns = np.nonzero(across < rest)
        yield (
            np.stack([np.full(len(rows), place), y[rows], z[columns]], axis=1),
            gain * of_y[rows] * of_z[columns],
        )


def _together(slices: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Slices joined until they are long: each costs a loop over the taps of a sinc, whatever its length."""
    held: list[tuple[np.ndarray, np.ndarray]] = []
    for one in slices:
        held.append(one)
        if sum(len(gains) for _, gains in held) >= TOGETHER:
            yield np.concatenate([places for places, _ in held]), np.concatenate([gains for _, gains in held])
            held = []
    if held:
        yield np.concatenate([places for places, _ in held]), np.concatenate([gains for _, gains in held])


def _place(room: Room, name: str, places: np.ndarray) -> np.ndarray:
    places = np.asarray(places, np.float64)
    if places.shape[-1:] != (3,) or not ((places > 0) & (places < room.size)).all():
        raise ValueError(f"{name} is {places.tolist()}; places inside the room of {room.size} m are needed")
    return places
