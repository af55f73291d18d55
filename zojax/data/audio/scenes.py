"""Utterances in simulated rooms: a beam, at times steered wrongly, and two of the microphones that it was made of.

All numbers are ours: rooms of 4 x 3.5 x 2.4 to 8 x 6 x 3.5 m that decay in 0.15 to 0.35 s; a square of four
microphones, 20 cm across, on a table; a speaker who stands still, 1 m away or more; a noise from another place, 45
degrees away or more, at 0 to 15 dB, and a diffuse one at 20 dB; a loudspeaker 10 cm below the microphones, as loud as
the speaker, whose echo a canceller attenuates by 30 to 45 dB. A beam that is steered wrongly misses the speaker by 60
to 120 degrees.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int16

from zojax.data.audio.microphones import delay_and_sum, diffuse_noise, direction, echo_residual, mix
from zojax.data.audio.noise import COLORS, colored
from zojax.data.audio.prepared import Skipped, Source, Utterance
from zojax.data.audio.rooms import Room, absorption_of, render, response
from zojax.data.audio.waves import RATE, to_int16

__all__ = ["SIGNALS", "InRooms", "Scene", "draw_scene", "record", "separate", "signals_of"]

SIGNALS = 3  # the beam, the first microphone, and the one across

# Changes whenever the same seed and name make another scene or another recording of it.
FORMAT = 2

_SQUARE = 0.1 * np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
_DIFFUSE_SNR = 20.0
_BELOW = np.array([0.0, 0.0, -0.1])  # from the middle of the array to the loudspeaker
_ECHO = 0.1  # seconds of its response: later reflections, attenuated, are nothing
_SYLLABLES = 4.0  # a second, of what it plays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """Who is where.

    Attributes:
      room: the room.
      seconds: in which it decays by 60 dB, by Eyring's formula.
      speaker: place in metres.
      noise: place of the noise.
      microphones: places of the array.
      color: of the noises, see `noise.COLORS`.
      snr: of speech to the noise from its place, in dB.
      canceller: dB by which the loudspeaker's echo is attenuated.
      error: degrees by which the beam misses the speaker, 0 where it is steered rightly.

    Example:
      >>> scene = draw_scene(np.random.default_rng(0), wrong=1.0)
      >>> scene.right, 60 <= abs(scene.error) <= 120
      (False, True)
    """

    room: Room
    seconds: float
    speaker: Float64[np.ndarray, "3"]
    noise: Float64[np.ndarray, "3"]
    microphones: Float64[np.ndarray, "4 3"]
    color: str
    snr: float
    canceller: float
    error: float

    @property
    def right(self) -> bool:
        """Whether the beam is steered rightly."""
        return self.error == 0


def draw_scene(rng: np.random.Generator, *, wrong: float) -> Scene:
    """A scene by chance.

    Args:
      rng: generator; its raw words alone are used, which numpy promises.
      wrong: share of the scenes with a beam that is steered wrongly.

    Returns:
      The scene.

    Example:
      >>> draw_scene(np.random.default_rng(0), wrong=0.0).right
      True
    """

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(rng.bit_generator.random_raw() >> 11) * 2.0**-53

    size = draw(4.0, 8.0), draw(3.5, 6.0), draw(2.4, 3.5)
    seconds = draw(0.15, 0.35)
    middle = np.array([draw(size[0] / 3, size[0] * 2 / 3), draw(size[1] / 3, size[1] * 2 / 3), draw(0.7, 1.1)])

    def place(low: float, high: float) -> np.ndarray:
        while True:
            found = np.array([draw(0.4, size[0] - 0.4), draw(0.4, size[1] - 0.4), draw(low, high)])
            if np.linalg.norm(found[:2] - middle[:2]) >= 1:
                return found

    speaker, noise = place(1.2, 1.8), place(0.5, 2.0)
    while _between(speaker - middle, noise - middle) < 45:
        noise = place(0.5, 2.0)
    color, snr = list(COLORS)[int(draw(0.0, float(len(COLORS))))], draw(0.0, 15.0)
    is_wrong, miss, turn = draw(0.0, 1.0) < wrong, draw(60.0, 120.0), draw(0.0, 1.0)
    canceller = draw(30.0, 45.0)
    return Scene(
        room=Room(size=size, absorption=(absorption_of(size, seconds),) * 6),
        seconds=seconds,
        speaker=speaker,
        noise=noise,
        microphones=middle + _SQUARE,
        color=color,
        snr=snr,
        canceller=canceller,
        error=(miss if turn < 0.5 else -miss) if is_wrong else 0.0,
    )


def record(
    x: Float64[np.ndarray, "samples"], scene: Scene, rng: np.random.Generator
) -> Float64[np.ndarray, "signals samples"]:
    """What is heard of an utterance in a scene.

    Args:
      x: the utterance, close to the mouth.
      scene: the scene.
      rng: generator of the noises.

    Returns:
      The beam, the first microphone and the one across, on the clock of the speaker. All have one gain, by which the
      loudest sample is as loud as that of x.

    Example:
      >>> scene = draw_scene(np.random.default_rng(0), wrong=0.0)
      >>> record(np.sin(np.arange(1600.0)), scene, np.random.default_rng(1)).shape
      (3, 1600)
    """
    of_speaker, of_noise = (
        response(scene.room, place, scene.microphones, seconds=scene.seconds) for place in (scene.speaker, scene.noise)
    )
    speech = render(x, of_speaker)
    directional = render(colored(rng.bit_generator.random_raw(len(x)), COLORS[scene.color]), of_noise)
    # Both ratios are to the speech alone.
    heard = mix(speech, directional, snr=scene.snr) - speech
    heard += mix(speech, diffuse_noise(rng, scene.microphones, len(x), color=scene.color), snr=_DIFFUSE_SNR)
    of_loudspeaker = response(scene.room, scene.microphones.mean(axis=0) + _BELOW, scene.microphones, seconds=_ECHO)
    # What is played rises and falls with its syllables.
    played = colored(rng.bit_generator.random_raw(len(x)), COLORS["pink"])
    played *= np.sqrt(np.mean(np.square(x))) * (1 - np.cos(2 * np.pi * _SYLLABLES / RATE * np.arange(len(x))))
    heard += echo_residual(played, of_loudspeaker, attenuation=scene.canceller)
    signals = signals_of(heard, scene.microphones, direction(scene.speaker, scene.microphones, error=scene.error))
    loudest = np.abs(signals).max()
    return signals * (np.abs(x).max() / loudest if loudest > 0 else 1)


def signals_of(
    heard: Float64[np.ndarray, "microphones samples"],
    microphones: Float64[np.ndarray, "microphones 3"],
    look: Float64[np.ndarray, "3"],
) -> Float64[np.ndarray, "signals samples"]:
    """The signals that are made of an array's.

    Args:
      heard: by each microphone, at 16 kHz.
      microphones: their places, in metres.
      look: direction of the beam, of length 1.

    Returns:
      The beam, the first microphone and the one farthest from it.

    Raises:
      ValueError: if there are not one to eight microphones, or the direction's length is not 1.

    Example:
      >>> heard, places = np.zeros((4, 800)), np.eye(4, 3)
      >>> signals_of(heard, places, np.array([1.0, 0.0, 0.0])).shape
      (3, 800)
    """
    beam = delay_and_sum(heard, microphones, look)
    across = int(np.linalg.norm(microphones - microphones[0], axis=1).argmax())
    return np.stack([beam, heard[0], heard[across]])


def separate(samples: Int16[np.ndarray, "all"]) -> Int16[np.ndarray, "samples signals"]:
    """The signals of an utterance of `InRooms`.

    Args:
      samples: as the source gives them.

    Returns:
      One column a signal: the beam first.

    Raises:
      ValueError: if the samples are not those of three signals.

    Example:
      >>> separate(np.arange(6, dtype=np.int16)).T.tolist()
      [[0, 3], [1, 4], [2, 5]]
    """
    if len(samples) % SIGNALS:
        raise ValueError(f"{len(samples)} samples are not those of {SIGNALS} signals")
    return samples.reshape(-1, SIGNALS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InRooms:
    """A `Source` of another one's utterances in rooms; what an utterance becomes depends on seed and name alone.

    Sources hold one row of samples: those of the three signals come in turn, see `separate`, and lengths count all.

    Attributes:
      source: of utterances close to the mouth; their names must differ.
      seed: of all scenes and noises.
      wrong: share of the utterances whose beam is steered wrongly.

    Raises:
      ValueError: if the share is not in [0, 1].

    Example:
      >>> from zojax.data.audio.commands import Commands
      >>> rooms = InRooms(source=Commands(seed=0, train=1, dev=1, test=1), seed=0)
      >>> rooms.splits, rooms.scene("dev-0").right
      (('train', 'dev', 'test'), True)
    """

    source: Source
    seed: int
    wrong: float = 0.5

    def __post_init__(self):
        if not 0 <= self.wrong <= 1:
            raise ValueError(f"InRooms.wrong is {self.wrong}; it must be 0 to 1")

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.source.splits)

    def fingerprint(self) -> str:
        """SHA-256 of the source's fingerprint and of all that is done to it."""
        row = (FORMAT, self.source.fingerprint(), self.seed, self.wrong)
        return hashlib.sha256(json.dumps(row).encode()).hexdigest()[:32]

    def scene(self, name: str) -> Scene:
        """The scene of an utterance; its `right` tells whether the beam is steered rightly."""
        return draw_scene(self._generator("scene", name), wrong=self.wrong)

    def utterances(self, split: str) -> Iterator[Utterance | Skipped]:
        """The utterances of a split; what could not be read comes as it is."""
        for item in self.source.utterances(split):
            if isinstance(item, Skipped) or len(item["samples"]) < 2:  # too short for a noise to have a spectrum
                yield item if isinstance(item, Skipped) else Skipped(item["id"], "a sample is no utterance")
                continue
            x = item["samples"].astype(np.float64) / 32768
            signals = record(x, self.scene(item["id"]), self._generator("noise", item["id"]))
            yield {
                "id": item["id"],
                "samples": to_int16(signals.T.ravel().astype(np.float32)),
                "text": item["text"],
                "speaker": item["speaker"],
            }

    def _generator(self, what: str, name: str) -> np.random.Generator:
        digest = hashlib.sha256(json.dumps([FORMAT, self.seed, what, name]).encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def _between(a: np.ndarray, b: np.ndarray) -> float:
    """Degrees between two directions, seen from above."""
    turn = np.degrees(np.arctan2(a[1], a[0]) - np.arctan2(b[1], b[0]))
    return float(abs((turn + 180) % 360 - 180))
