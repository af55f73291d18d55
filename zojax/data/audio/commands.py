"""Spoken commands for machines without a corpus: a small grammar, read out by synthetic voices in noise.

Utterance n of a split is a pure function of (seed, split, n). Voices of `dev` and `test` speak in no other split.
"""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from zojax.data.audio.espeak import Voice, speak
from zojax.data.audio.noise import colored
from zojax.data.audio.prepared import Utterance
from zojax.data.audio.waves import RATE, to_int16

__all__ = ["VARIANTS", "Commands", "number_words", "sentences"]

ACCENTS = ("en", "en-029", "en-GB-scotland", "en-GB-x-gbclan", "en-GB-x-rp", "en-US", "en-US-nyc")

# Timbres of each split. Whispers, robots and copies of one another are left out.
VARIANTS = {
    "train": (
        *("m1", "m2", "m3", "m4", "m5", "m6", "f1", "f2", "f3"),
        *("Alex", "Andy", "Annie", "Lee", "Mario", "aunty", "boris", "grandma", "linda", "max", "travis"),
    ),
    "dev": ("m7", "f4", "Michael", "belinda"),
    "test": ("m8", "f5", "adam", "steph"),
}

ROOMS = ("kitchen", "bedroom", "bathroom", "garden", "hall", "office")
NAMES = (
    *("alice", "anna", "bob", "carol", "david", "emma", "frank", "george", "helen", "jack"),
    *("kate", "laura", "mary", "nina", "oliver", "peter", "rachel", "simon", "tom", "victor"),
)
MUSIC = ("jazz", "rock", "pop", "the news", "the radio", "my playlist")

# Changes whenever the same fields make other utterances.
FORMAT = 1

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def number_words(number: int) -> str:
    """A number in words.

    Args:
      number: 0 to 100.

    Returns:
      The words, without hyphens.

    Raises:
      ValueError: if the number is out of range.

    Example:
      >>> number_words(42), number_words(100)
      ('forty two', 'one hundred')
    """
    if not 0 <= number <= 100:
        raise ValueError(f"number: {number}; 0 to 100 is needed")
    if number < 20:
        return _ONES[number]
    if number == 100:
        return "one hundred"
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f" {_ONES[ones]}" if ones else "")


def sentences() -> tuple[str, ...]:
    """All sentences of the grammar, in lower case and without marks.

    Returns:
      Several hundred distinct sentences, sorted.

    Example:
      >>> "turn the kitchen light off" in sentences(), len(sentences())
      (True, 467)
    """
    made: set[str] = set()
    for room in ROOMS:
        made |= {f"turn the {room} {device} {way}" for device in ("light", "fan", "heating") for way in ("on", "off")}
        made |= {f"{do} the {room} {part}" for part in ("door", "window", "blinds") for do in ("open", "close")}
        made |= {f"set the {room} to {number_words(degrees)} degrees" for degrees in range(10, 31)}
    for name in NAMES:
        made |= {f"call {name}", f"send a message to {name}", f"read the message from {name}"}
    made |= {f"set a timer for {number_words(n)} {unit}" for n in range(5, 61, 5) for unit in ("minutes", "seconds")}
    made |= {f"set the volume to {number_words(n)}" for n in range(0, 101, 5)}
    for hour, minutes in itertools.product(range(1, 13), ("", "fifteen", "thirty", "forty five")):
        made.add(f"wake me up at {number_words(hour)} {minutes}".strip())
    made |= {f"play {music}" for music in MUSIC} | {f"stop {music}" for music in MUSIC}
    made |= {f"switch to channel {number_words(n)}" for n in range(1, 100)}
    made |= {"volume up", "volume down", "next song", "go back", "what time is it"}
    return tuple(sorted(made))


def check_spoken(source: Any) -> None:
    """Says which number of a `Source` of synthetic speech is out of range.

    Raises:
      ValueError: naming the field, its value and what would be right.
    """
    if not 0 <= source.seed < 2**64:
        raise ValueError(f"seed: {source.seed}; 0 to 2**64-1 is needed")
    for name in source.splits:
        if getattr(source, name) < 1:
            raise ValueError(f"{name}: {getattr(source, name)} utterances; 1 or more is needed")
    if source.low_snr > source.high_snr:
        raise ValueError(f"low_snr, high_snr: {source.low_snr} and {source.high_snr} dB; low <= high is needed")


def digest(*parts: Any) -> str:
    """SHA-256, shortened, of JSON values and of the version of espeak-ng's package."""
    try:
        version = importlib.metadata.version("espeakng-loader")
    except importlib.metadata.PackageNotFoundError:
        version = None
    return hashlib.sha256(json.dumps([*parts, version]).encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Commands:
    """A `Source` of spoken commands.

    Each utterance draws a sentence of the grammar, an accent, a timbre, rate, pitch and liveliness of the voice, its
    loudness, the silence before and behind, and a noise: white, pink or brown, at a random signal-to-noise ratio.

    Attributes:
      seed: 0 <= seed < 2**64.
      train: utterances of `train`.
      dev: utterances of `dev`.
      test: utterances of `test`.
      low_snr: least signal-to-noise ratio in dB, of the powers of speech and of noise under it.
      high_snr: greatest.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> first = next(Commands(seed=0).utterances("test"))
      >>> first["id"], first["text"] in sentences(), first["samples"].dtype
      ('test-00000', True, dtype('int16'))
    """

    seed: int
    train: int = 2000
    dev: int = 200
    test: int = 200
    low_snr: int = 10
    high_snr: int = 40

    def __post_init__(self):
        check_spoken(self)

    @property
    def splits(self) -> tuple[str, ...]:
        """train, dev and test."""
        return tuple(VARIANTS)

    def fingerprint(self) -> str:
        """SHA-256 of the fields, the grammar, the voices and the version of espeak-ng's package."""
        return digest(FORMAT, dataclasses.asdict(self), sentences(), ACCENTS, VARIANTS)

    def utterances(self, split: str) -> Iterator[Utterance]:
        """Speaks the utterances of a split; ImportError without the package `espeakng-loader`."""
        texts = sentences()
        for number in range(getattr(self, split)):
            yield self.utterance(split, number, texts)

    def utterance(self, split: str, number: int, texts: tuple[str, ...]) -> Utterance:
        """One of the texts, by the voice and in the noise of utterance `number`."""
        # Raw words of a counter-based generator: numpy promises them for ever.
        key = np.array([self.seed, self.splits.index(split)], np.uint64)
        generator = np.random.Philox(key=key, counter=np.array([0, number, 0, 0], np.uint64))

        def draw(low: int, high: int) -> int:
            return low + int(generator.random_raw()) % (high - low + 1)

        def choose(items: tuple[str, ...]) -> str:
            return items[draw(0, len(items) - 1)]

        text, variants = choose(texts), VARIANTS[split]
        voice = Voice(
            accent=choose(ACCENTS),
            variant=choose(variants),
            rate=draw(140, 210),
            pitch=draw(30, 70),
            pitch_range=draw(30, 70),
        )
        speech = speak(text, voice) / 32768
        before, after = draw(RATE // 20, RATE // 3), draw(RATE // 20, RATE // 3)
        loudness, snr, color = draw(-20, -3), draw(self.low_snr, self.high_snr), draw(0, 2)
        speech *= 10 ** (loudness / 20) / np.abs(speech).max()
        noise = colored(generator.random_raw(before + len(speech) + after), color)
        power = np.square(speech).mean()
        x = np.pad(speech, (before, after)) + noise * np.sqrt(power * 10 ** (-snr / 10))
        return {
            "id": f"{split}-{number:05d}",
            "samples": to_int16(x.astype(np.float32)),
            "text": text,
            "speaker": f"{voice.accent}+{voice.variant}",
        }
