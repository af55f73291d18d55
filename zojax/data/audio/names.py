"""Spoken requests that name people and titles, for biasing: voices and names of their own in each split.

    call <person>      play <title> by <person>      read <title> to me

The words of people's names are made of syllables as English may spell them, so that one sound has several spellings
and only a list tells which is meant: no model can have heard them. A title is an adjective and a noun; the nouns of a
split stand in no other. One utterance of six is a command that names nobody.

A split's catalogue has more phrases than are ever said, to draw distractors from. People of `train` are many, each said
about once: names that a transducer has learned by heart would need no list, and would teach nothing of one.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from zojax.data.audio.commands import Commands, sentences
from zojax.data.audio.prepared import Utterance

__all__ = ["Names", "names"]

CALLS = (
    *("call {person}", "send a message to {person}", "read the message from {person}", "where is {person}"),
    *("tell {person} that i am late", "ask {person} to come over", "write to {person}", "is {person} at home"),
)
PLAYS = (
    *("play {title} by {person}", "play {title}", "read {title} to me", "put {title} on my list"),
    *("buy {title} for {person}", "stop {title}", "who wrote {title}", "give {title} to {person}"),
)

ADJECTIVES = (
    *("silver", "golden", "broken", "hidden", "silent", "burning", "frozen", "empty", "distant", "velvet", "crimson"),
    *("hollow", "electric", "gentle", "wandering", "crooked", "midnight", "northern", "paper", "sleeping", "wild"),
)
NOUNS = {
    "train": (
        *("river", "mountain", "garden", "mirror", "engine", "letter", "harbour", "summer", "winter", "shadow"),
        *("soldier", "dancer", "ladder", "forest", "island", "lantern", "sparrow", "orchard", "stranger", "thunder"),
        *("window", "captain", "meadow", "circus", "pilot", "carpet", "anchor", "blanket", "castle", "candle"),
        *("doctor", "farmer", "feather", "kingdom", "market", "needle", "planet", "pocket", "rocket", "valley"),
    ),
    "dev": ("tailor", "pebble", "fountain", "sailor", "morning", "hammer", "temple", "button", "willow", "tunnel"),
    "test": (
        *("voyage", "bridge", "painter", "compass", "monkey", "desert", "piano", "whisper", "station", "miller"),
        *("cradle", "falcon", "turtle", "blossom", "wagon", "cannon", "violin", "ghost", "rainbow", "pirate"),
    ),
}

_ONSETS = ("b", "d", "f", "ph", "g", "h", "j", "k", "c", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z")
_CLUSTERS = ("br", "dr", "gr", "kr", "cl", "kl", "st", "tr", "sh", "ch", "th", "qu", "sk", "sc", "fl", "phl")
_VOWELS = ("a", "e", "i", "o", "u", "y", "ee", "ea", "ai", "ay", "ou", "oo")
_CODAS = ("", "", "n", "nn", "l", "ll", "r", "s", "ss", "m", "ck", "k", "t", "tt", "nd", "x", "f", "ff")

# Words of each split's names, its people, and how many of them and of its titles are ever said.
_WORDS = {"train": 6000, "dev": 800, "test": 1600}
_PEOPLE = {"train": (8000, 8000), "dev": (1500, 150), "test": (2400, 400)}
_TITLES = {"train": 600, "dev": 60, "test": 200}

# Changes whenever the same fields make other utterances.
FORMAT = 1


class _Split(NamedTuple):
    """What may be named in a split: `said` of the people and of the titles, from the first on, are ever said."""

    people: tuple[str, ...]
    titles: tuple[str, ...]
    said: tuple[int, int]


@functools.lru_cache(maxsize=1)
def _all_names() -> dict[str, _Split]:
    # Raw words of a counter-based generator: numpy promises them for ever.
    generator = np.random.Philox(key=np.array([0, FORMAT], np.uint64))

    def choose(items: tuple[str, ...]) -> str:
        return items[int(generator.random_raw()) % len(items)]

    def syllable() -> str:
        return choose(_ONSETS + _CLUSTERS) + choose(_VOWELS) + choose(_CODAS)

    words: dict[str, None] = {}
    while len(words) < sum(_WORDS.values()):
        word = syllable() + choose(_ONSETS) + choose(_VOWELS) + choose(_CODAS)
        # Nobody is spelled with a letter thrice.
        if len(word) <= 9 and not any(letter * 3 in word for letter in word):
            words[word] = None
    rest, found = iter(words), {}
    for split, count in _WORDS.items():
        own = tuple(next(rest) for _ in range(count))
        people: dict[str, None] = {}
        while len(people) < _PEOPLE[split][0]:
            people[choose(own) if choose(("", "two")) == "" else f"{choose(own)} {choose(own)}"] = None
        titles = [f"{adjective} {noun}" for noun in NOUNS[split] for adjective in ADJECTIVES]
        order = np.argsort(generator.random_raw(len(titles)), kind="stable")
        said = (_PEOPLE[split][1], _TITLES[split])
        found[split] = _Split(tuple(people), tuple(titles[i] for i in order), said)
    return found


def names(split: str) -> tuple[str, ...]:
    """The catalogue of a split: its people and its titles, said or not.

    Args:
      split: train, dev or test.

    Returns:
      Distinct phrases. No word of a name, and no noun, is in the catalogue of another split.

    Example:
      >>> len(names("test")), names("test")[0], names("test")[-1]
      (2820, 'dolpeack', 'burning wagon')
    """
    found = _all_names()[split]
    return found.people + found.titles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
    """A `Source` of requests that name people and titles, read by the voices of `Commands`.

    Attributes:
      seed: 0 <= seed < 2**64.
      train: utterances of `train`.
      dev: utterances of `dev`.
      test: utterances of `test`.
      low_snr: least signal-to-noise ratio in dB.
      high_snr: greatest.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> one = next(Names(seed=0).utterances("test"))
      >>> one["id"], one["text"]
      ('test-00000', 'tell tillpu stymhaik that i am late')
    """

    seed: int
    train: int = 8000
    dev: int = 300
    test: int = 600
    low_snr: int = 10
    high_snr: int = 40

    def __post_init__(self):
        _ = self._voices

    @property
    def _voices(self) -> Commands:
        return Commands(**dataclasses.asdict(self))

    @property
    def splits(self) -> tuple[str, ...]:
        """train, dev and test."""
        return self._voices.splits

    def fingerprint(self) -> str:
        """SHA-256 of what `Commands` names, and of the names and what is asked of them."""
        said = ["names", FORMAT, self._voices.fingerprint(), CALLS, PLAYS, [names(split) for split in self.splits]]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]

    def utterances(self, split: str) -> Iterator[Utterance]:
        """Speaks the utterances of a split; ImportError without the package `espeakng-loader`."""
        for number in range(getattr(self, split)):
            yield self._voices.utterance(split, number, (self._text(split, number),))

    def _text(self, split: str, number: int) -> str:
        key = np.array([self.seed, self.splits.index(split)], np.uint64)
        generator = np.random.Philox(key=key, counter=np.array([0, number, 2, 0], np.uint64))

        def choose(items: tuple[str, ...]) -> str:
            return items[int(generator.random_raw()) % len(items)]

        found = _all_names()[split]
        asked = choose(("call", "call", "call", "play", "play", ""))
        form = choose({"call": CALLS, "play": PLAYS}.get(asked) or sentences())
        people, titles = found.people[: found.said[0]], found.titles[: found.said[1]]
        return form.format(person=choose(people), title=choose(titles))
