"""Wake words in running speech, with the exact samples that they take, before commands that name somebody.

    [what was being said]  wake word  command            three utterances of five
    [what was being said]  [a word that sounds like one]  command

All parts are read by one synthetic voice, each by itself, and joined with pauses of 40 to 160 ms: so the span of the
wake word is known to the sample. It stands in the utterance's id, "test-00007@12800-21120", first sample and the one
behind the last, and goes wherever the utterance goes; `span` reads it, of recordings of your own, too.

Utterance n of a split is a pure function of (seed, split, n). The voices of `dev`, `test` and `unseen` speak in no
other split (`unseen` has those of `test`), and no split has a name of another. `unseen` has wake words that no other
split has. The names are made of syllables, so that no model can have heard them.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64

from zojax.data.audio.commands import ACCENTS, VARIANTS, check_spoken, digest, sentences
from zojax.data.audio.espeak import Voice, speak
from zojax.data.audio.noise import colored
from zojax.data.audio.prepared import Utterance
from zojax.data.audio.waves import RATE, to_int16

__all__ = ["NAMES", "SIMILAR", "WakeWords", "names", "span", "wake_words"]

# Words and phrases that sound like each wake word. Those of `unseen` are its own.
SIMILAR = {
    "computer": ("commuter", "competing", "the pewter"),
    "jarvis": ("harvest", "jars", "service"),
    "hey robin": ("hey rob", "they are robbing", "a robber"),
    "okay nova": ("okay now", "oh no", "a cane over"),
    "aurora": ("a roar", "oral", "or are a"),
}
UNSEEN = {
    "athena": ("a tenor", "arena", "at ina"),
    "hey falcon": ("hey fall", "they fell on", "a fall can"),
    "okay pixel": ("okay pick", "a pickle", "okay picks"),
}

LEADS = (
    *("i think we should go now", "it is getting late", "the children are asleep", "what a lovely day"),
    *("wait a moment", "so what do you think", "we should leave soon", "i was going to tell you", "let me see"),
    *("that sounds good to me", "have you seen my keys", "the train leaves at nine", "dinner is ready"),
    *("it was raining all day", "i have no idea", "you were right about that", "we need some milk and bread"),
)
ASKED = ("call {}", "send a message to {}", "play {}", "find the way to {}", "ask {} to come", "write to {} and {}")

# Names of each split.
NAMES = {"train": 600, "dev": 100, "test": 300, "unseen": 100}

_SPLITS = {"train": "train", "dev": "dev", "test": "test", "unseen": "test"}  # and whose voices speak in it
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "sh", "st", "tr")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "n", "l", "r", "s", "m")

# Changes whenever the same fields make other utterances.
FORMAT = 1

# Share of a part's greatest sample under which it is silence.
_SILENCE = 0.02


def wake_words(split: str) -> tuple[str, ...]:
    """The wake words of a split.

    Args:
      split: its name.

    Returns:
      The words.

    Example:
      >>> len(wake_words("train")), wake_words("train") == wake_words("test"), "athena" in wake_words("unseen")
      (5, True, True)
    """
    return tuple(_similar(split))


def _similar(split: str) -> dict[str, tuple[str, ...]]:
    return UNSEEN if split == "unseen" else SIMILAR


@functools.lru_cache(maxsize=1)
def _all_names() -> dict[str, tuple[str, ...]]:
    generator = np.random.Philox(key=np.array([0, FORMAT], np.uint64))

    def choose(items: tuple[str, ...]) -> str:
        return items[int(generator.random_raw()) % len(items)]

    made: dict[str, None] = {}
    while len(made) < sum(NAMES.values()):
        middle = choose(_ONSETS) + choose(_VOWELS) if choose(("", "longer")) else ""
        made[choose(_ONSETS) + choose(_VOWELS) + middle + choose(_ONSETS) + choose(_VOWELS) + choose(_CODAS)] = None
    rest = iter(made)
    return {split: tuple(next(rest) for _ in range(count)) for split, count in NAMES.items()}


def names(split: str) -> tuple[str, ...]:
    """The names that are said in a split: its catalogue.

    Args:
      split: its name.

    Returns:
      Distinct names, none of which another split has.

    Example:
      >>> len(names("test")), set(names("test")) & set(names("train"))
      (300, set())
    """
    return _all_names()[split]


def span(name: str) -> tuple[int, int] | None:
    """Where the wake word is, by the name of an utterance.

    Args:
      name: an id.

    Returns:
      (first sample, the one behind the last) at 16 kHz; None without a wake word.

    Example:
      >>> span("test-00007@12800-21120"), span("test-00008")
      ((12800, 21120), None)
    """
    found = re.search(r"@(\d+)-(\d+)$", name)
    return (int(found[1]), int(found[2])) if found else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class WakeWords:
    """A `Source` of wake words in running speech.

    Each utterance draws its parts, a voice as in `Commands`, pauses, loudness, and a noise at some ratio.

    Attributes:
      seed: 0 <= seed < 2**64.
      train: utterances of `train`.
      dev: utterances of `dev`.
      test: utterances of `test`.
      unseen: utterances of `unseen`.
      low_snr: least signal-to-noise ratio in dB, of the powers of speech and of noise under it.
      high_snr: greatest.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> one = next(WakeWords(seed=0).utterances("dev"))
      >>> one["id"], one["text"]
      ('dev-00000@2126-8244', 'aurora send a message to fapaka')
    """

    seed: int
    train: int = 4000
    dev: int = 300
    test: int = 600
    unseen: int = 200
    low_snr: int = 10
    high_snr: int = 40

    def __post_init__(self):
        check_spoken(self)

    @property
    def splits(self) -> tuple[str, ...]:
        """train, dev, test and unseen."""
        return tuple(_SPLITS)

    def fingerprint(self) -> str:
        """SHA-256 of the fields, the words, the voices and the version of espeak-ng's package."""
        said = [sentences(), SIMILAR, UNSEEN, LEADS, ASKED, _all_names()]
        return digest("wake", FORMAT, dataclasses.asdict(self), said, ACCENTS, VARIANTS)

    def utterances(self, split: str) -> Iterator[Utterance]:
        """Speaks the utterances of a split; ImportError without the package `espeakng-loader`."""
        for number in range(getattr(self, split)):
            yield self._utterance(split, number)

    def _utterance(self, split: str, number: int) -> Utterance:
        # Raw words of a counter-based generator: numpy promises them for ever.
        key = np.array([self.seed, self.splits.index(split)], np.uint64)
        generator = np.random.Philox(key=key, counter=np.array([0, number, 1, 0], np.uint64))

        def draw(low: int, high: int) -> int:
            return low + int(generator.random_raw()) % (high - low + 1)

        def choose(items: tuple[str, ...]) -> str:
            return items[draw(0, len(items) - 1)]

        lead, word, kind = choose(("", choose(LEADS))), choose(wake_words(split)), draw(1, 5)
        asked = choose((*ASKED, "", "")).format(choose(names(split)), choose(names(split)))
        word = word if kind <= 3 else choose(("", choose(_similar(split)[word])))
        texts = [text for text in (lead, word, asked or choose(sentences())) if text]
        voice = Voice(
            accent=choose(ACCENTS),
            variant=choose(VARIANTS[_SPLITS[split]]),
            rate=draw(140, 210),
            pitch=draw(30, 70),
            pitch_range=draw(30, 70),
        )
        parts: list[np.ndarray] = [np.zeros(draw(RATE // 20, RATE // 4))]
        at = None
        for text in texts:
            start = sum(map(len, parts))
            parts.append(_trimmed(speak(text, voice) / 32768))
            if text == word and kind <= 3:
                at = start, start + len(parts[-1])
            parts.append(np.zeros(draw(RATE // 25, RATE * 4 // 25)))
        speech = np.concatenate(parts)
        loudness, snr, color = draw(-20, -3), draw(self.low_snr, self.high_snr), draw(0, 2)
        speech *= 10 ** (loudness / 20) / np.abs(speech).max()
        noise = colored(generator.random_raw(len(speech)), color)
        power = np.square(speech).mean()
        x = speech + noise * np.sqrt(power * 10 ** (-snr / 10))
        return {
            "id": f"{split}-{number:05d}" + (f"@{at[0]}-{at[1]}" if at else ""),
            "samples": to_int16(x.astype(np.float32)),
            "text": " ".join(texts),
            "speaker": f"{voice.accent}+{voice.variant}",
        }


def _trimmed(x: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "m"]:
    """Speech without the silence around it."""
    loud = np.flatnonzero(np.abs(x) > _SILENCE * np.abs(x).max())
    return x[loud[0] : loud[-1] + 1]
