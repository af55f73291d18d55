"""Catalogues: phrases that an utterance may hold, lists of them with distractors, and their arrays for a model.

The protocol of the biasing lists of LibriSpeech (arXiv 2104.02194): an utterance's list is its own phrases, those of a
lexicon that are said in it, and N distractors. They are drawn from the lexicon, or sound like the utterance's own;
published lists are read from their files.
"""

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from zojax.data.audio.units import Units

__all__ = ["MAX_CHARACTERS", "Lexicon", "Listed", "alike", "arrays", "clean", "read_lists", "read_phrases"]

MAX_CHARACTERS = 200
"""Of a phrase; a line that is longer is no name, and would cost all the others their padding."""

# Letters that are taken for one another by ear. Ours.
_ALIKE = ("bp", "dt", "gkc", "fv", "sz", "mn", "lr", "aeo", "eiy", "ou")


class Listed(NamedTuple):
    """What is known of an utterance that has a published list.

    Attributes:
      text: what is said.
      own: its own phrases.
      phrases: its own and distractors.
    """

    text: str
    own: tuple[str, ...]
    phrases: tuple[str, ...]


def clean(lines: Iterable[str], where: str = "phrases") -> tuple[str, ...]:
    """Phrases as catalogues have them: white space made single spaces, empty ones and repetitions left out.

    Args:
      lines: phrases.
      where: named in errors.

    Returns:
      Distinct phrases, in order; there may be none.

    Raises:
      ValueError: naming the line: longer than 200 characters, or with control characters.

    Example:
      >>> clean(["new  york", "", "josé", "new york"])
      ('new york', 'josé')
    """
    found: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        phrase = " ".join(line.split())
        if len(phrase) > MAX_CHARACTERS:
            raise ValueError(f"{where}, line {number}: {len(phrase)} characters; at most {MAX_CHARACTERS} are possible")
        if any(ord(character) < 32 or ord(character) == 127 for character in phrase):
            raise ValueError(f"{where}, line {number}: {phrase!r} has control characters")
        if phrase:
            found[phrase] = None
    return tuple(found)


def read_phrases(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Reads a file of phrases, one a line.

    Args:
      path: of a text file in UTF-8.

    Returns:
      See `clean`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not UTF-8, or a line is no phrase.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = Path(folder, "names.txt").write_text("anna\\n\\nbob\\n")
      ...     read_phrases(f"{folder}/names.txt")
      ('anna', 'bob')
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    return clean(text.splitlines(), str(path))


def read_lists(path: str | os.PathLike[str]) -> dict[str, Listed]:
    """Reads published lists: id, text, own phrases and the whole list, the last two in JSON, parted by tabs.

    Args:
      path: such as "test-clean.biasing_100.tsv".

    Returns:
      By id.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: naming the line that is not so.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = Path(folder, "lists.tsv").write_text('1-2-3\\tcall marek\\t["marek"]\\t["anna", "marek"]\\n')
      ...     read_lists(f"{folder}/lists.tsv")["1-2-3"].own
      ('marek',)
    """
    found = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            name, text, own, phrases = line.split("\t")
            listed = Listed(text, tuple(json.loads(own)), tuple(json.loads(phrases)))
            if not all(isinstance(phrase, str) for phrase in listed.own + listed.phrases):
                raise ValueError("a phrase is no text")
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected id, text and two lists in JSON, parted by tabs ({error})"
            ) from None
        found[name] = listed
    return found


def _key(seed: int, number: int) -> np.random.Philox:
    # Raw words of a counter-based generator: numpy promises them for ever.
    return np.random.Philox(key=np.array([seed, number], np.uint64), counter=np.array([0, 0, 0, 7], np.uint64))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lexicon:
    """Phrases, to be found in texts and to be drawn from.

    Attributes:
      phrases: distinct ones, see `clean`.

    Example:
      >>> lexicon = Lexicon(phrases=("anna", "anna berg", "silver river", "tom"))
      >>> lexicon.own("play silver river by anna berg")
      ('silver river', 'anna berg')
      >>> lexicon.distractors(("tom",), 2, seed=0, number=5)
      ('silver river', 'anna')
    """

    phrases: tuple[str, ...]

    @functools.cached_property
    def _longest(self) -> dict[str, int]:
        """Words of the longest phrase that begins with each word."""
        found: dict[str, int] = {}
        for phrase in self.phrases:
            words = phrase.split()
            found[words[0]] = max(len(words), found.get(words[0], 0))
        return found

    @functools.cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.phrases)

    def own(self, text: str) -> tuple[str, ...]:
        """The phrases in a text: whole words, from the left, the longest at each place, each once."""
        words, found, place = text.split(), {}, 0
        while place < len(words):
            for count in range(self._longest.get(words[place], 0), 0, -1):
                phrase = " ".join(words[place : place + count])
                if phrase in self._known:
                    found[phrase] = None
                    place += count - 1
                    break
            place += 1
        return tuple(found)

    def distractors(self, own: Sequence[str], count: int, *, seed: int, number: int) -> tuple[str, ...]:
        """Draws phrases.

        Args:
          own: phrases that are not drawn.
          count: how many.
          seed: of all draws, 0 <= seed < 2**64.
          number: of this one, likewise: an utterance's, a batch's.

        Returns:
          Distinct phrases, the same for the same arguments.

        Raises:
          ValueError: if there are not so many.
        """
        known = len(self._known.intersection(own))
        if count > len(self.phrases) - known:
            raise ValueError(f"count: {count} distractors of {len(self.phrases)} phrases, {known} of them its own")
        generator, taken, found = _key(seed, number), frozenset(own), {}
        if 2 * (count + known) > len(self.phrases):  # nearly all: drawing one by one would meet the same again
            order = np.argsort(generator.random_raw(len(self.phrases)), kind="stable")
            return tuple(self.phrases[i] for i in order if self.phrases[i] not in taken)[:count]
        while len(found) < count:
            phrase = self.phrases[int(generator.random_raw()) % len(self.phrases)]
            if phrase not in taken:
                found[phrase] = None
        return tuple(found)


def alike(phrase: str, count: int, *, seed: int, number: int) -> tuple[str, ...]:
    """Phrases that sound like one: a letter, or two, for another that is easily taken for it.

    Args:
      phrase: of letters in either case; others stay.
      count: at most so many.
      seed: of all draws, 0 <= seed < 2**64.
      number: of this one, likewise.

    Returns:
      Distinct phrases other than the given one, those with one letter changed first; fewer than `count` where there
      are no more.

    Example:
      >>> alike("marek", 3, seed=0, number=1)
      ('malek', 'marik', 'narek')
    """
    generator, found = _key(seed, number), {}
    for changes in (1, 2):
        made = sorted({new for new in _changed(phrase, changes) if new != phrase and new not in found})
        order = np.argsort(generator.random_raw(len(made)), kind="stable")
        found |= dict.fromkeys(made[i] for i in order[: max(count - len(found), 0)])
    return tuple(found)


def _changed(phrase: str, changes: int) -> Iterable[str]:
    places = [(i, other) for i, own in enumerate(phrase) for other in _takes(own)]
    for chosen in itertools.combinations(places, changes):
        letters = list(phrase)
        for i, other in chosen:
            letters[i] = other
        yield "".join(letters)


def _takes(letter: str) -> str:
    others = "".join(group for group in _ALIKE if letter.lower() in group).replace(letter.lower(), "")
    return others.upper() if letter.isupper() else others


def arrays(
    lists: Sequence[Sequence[str]],
    units: Units,
    *,
    meaning: Callable[[Sequence[str]], Float32[np.ndarray, "n m"]] | None = None,
    unit_meaning: Float32[np.ndarray, "classes m"] | None = None,
    least: int = 1,
) -> Mapping[str, np.ndarray]:
    """The arrays of lists, as a model takes them: each phrase once, and the places of those of each list.

    Numbers of phrases, and of a list's, are rounded up to powers of 2, and lengths to multiples of 8, so that lists of
    like sizes share a program.

    Args:
      lists: the phrases of each utterance.
      units: what a transducer writes.
      meaning: vectors of phrases, where they are wanted.
      unit_meaning: vectors of the units, likewise.
      least: phrases, and of each list, that there is room for: lists of all smaller sizes share a program.

    Returns:
      `pieces` int32 [p, l] and `characters` int32 [p, c], 0 behind their ends; `starts` int32 [p, l], the character at
      which each piece starts; `rows` int32 [b, k], -1 for none; with meanings `meaning` float32 [p, m] and
      `unit_meaning`.

    Raises:
      ValueError: naming a phrase that the units cannot write.

    Example:
      >>> from zojax.data.audio.units import CharacterUnits
      >>> made = arrays([["ab", "b"], ["b"]], CharacterUnits(characters="ab"))
      >>> made["rows"].tolist(), made["pieces"][:2, :2].tolist(), made["characters"][0, :2].tolist()
      ([[0, 1], [1, -1]], [[1, 2], [2, 0]], [98, 99])
    """
    phrases = list(dict.fromkeys(phrase for one in lists for phrase in one))
    place = {phrase: i for i, phrase in enumerate(phrases)}
    pieces = []
    for phrase in phrases:
        try:
            pieces.append(units.encode(phrase))
        except ValueError as error:
            raise ValueError(f"phrase {phrase!r}: the model cannot write it: {error}") from None
    characters = [np.frombuffer(phrase.encode(), np.uint8).astype(np.int32) + 1 for phrase in phrases]
    count = _power(max(len(phrases), least))
    rows = np.full((len(lists), _power(max([least, *map(len, lists)]))), -1, np.int32)
    for row, one in zip(rows, lists, strict=True):
        row[: len(one)] = [place[phrase] for phrase in one]
    starts = [
        np.array([min(len(units.decode(labels[:i]).encode()), len(own) - 1) for i in range(len(labels))], np.int32)
        for labels, own in zip(pieces, characters, strict=True)
    ]
    named = {"pieces": pieces, "characters": characters, "starts": starts}
    found = {name: _padded(each, count) for name, each in named.items()} | {"rows": rows}
    if meaning is not None and unit_meaning is not None:
        vectors = np.zeros((count, unit_meaning.shape[1]), np.float32)
        if phrases:
            vectors[: len(phrases)] = meaning(phrases)
        found |= {"meaning": vectors, "unit_meaning": unit_meaning}
    return found


def _power(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _padded(rows: Sequence[np.ndarray], count: int) -> np.ndarray:
    width = -(-max(map(len, rows), default=1) // 8) * 8
    found = np.zeros((count, width), np.int32)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return found
