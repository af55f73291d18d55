"""What a transducer writes: characters or sentence pieces, as int32 labels from 1; 0 is the blank.

Blank is label 0 for every kind of units. So a joiner has `units.size` outputs, losses take `blank=BLANK`, and padding
behind a text, which no loss reads, is 0 too.
"""

import dataclasses
import functools
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32

__all__ = ["BLANK", "CharacterUnits", "PieceUnits", "Units", "load_units"]

BLANK = 0


@runtime_checkable
class Units(Protocol):
    """Text to labels and back."""

    @property
    def size(self) -> int:
        """Labels, blank included: the outputs of a joiner."""
        ...

    def encode(self, text: str) -> Int32[np.ndarray, "labels"]:
        """Labels of a text, each in 1..size-1; ValueError names a character that has none."""
        ...

    def decode(self, labels: Sequence[int] | Int[np.ndarray, "labels"]) -> str:
        """The text of labels without blanks; ValueError names one that is out of range."""
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that `load_units` reads."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharacterUnits:
    """Label i is the i-th character, counted from 1.

    Attributes:
      characters: the alphabet, the space included where texts have words.

    Raises:
      ValueError: if a character stands twice, or there is none.

    Example:
      >>> units = CharacterUnits.of(["GO", "NO GO"])
      >>> units.characters, units.size
      (' GNO', 5)
      >>> units.encode("ON"), units.decode([4, 3])
      (array([4, 3], dtype=int32), 'ON')
    """

    characters: str

    def __post_init__(self):
        if not self.characters:
            raise ValueError("characters: none; one or more is needed")
        for i, character in enumerate(self.characters):
            if character in self.characters[:i]:
                raise ValueError(f"characters: {character!r} stands twice")

    @classmethod
    def of(cls, texts: Iterable[str]) -> "CharacterUnits":
        """The characters of some texts, in the order of their code points."""
        return cls(characters="".join(sorted(set().union(*texts))))

    @property
    def size(self) -> int:
        """Characters and the blank."""
        return len(self.characters) + 1

    @functools.cached_property
    def _labels(self) -> dict[str, int]:
        return {character: i for i, character in enumerate(self.characters, start=1)}

    def encode(self, text: str) -> Int32[np.ndarray, "labels"]:
        """A label a character; ValueError names a character that is not of the alphabet."""
        for i, character in enumerate(text):
            if character not in self._labels:
                raise ValueError(f"character {character!r} at {i} of {text!r} is none of {self.characters!r}")
        return np.array([self._labels[character] for character in text], np.int32)

    def decode(self, labels: Sequence[int] | Int[np.ndarray, "labels"]) -> str:
        """The characters of labels; ValueError names a label out of range."""
        return "".join(self.characters[label - 1] for label in _checked(labels, self.size))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file."""
        _needs_suffix(path, ".json")
        Path(path).write_text(json.dumps({"characters": self.characters}) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PieceUnits:
    """Pieces of a sentencepiece model: label i is piece i - 1.

    The model's own marks (unknown, begin, end, padding) keep their places, which no text uses. The model may change a
    text before it cuts it (Unicode's forms, runs of spaces): decoding gives the changed one.

    Attributes:
      model: content of the .model file.

    Raises:
      ValueError: if that is no sentencepiece model.

    Example:
      >>> units = PieceUnits.train(["turn the light on", "turn the light off"] * 9, size=16)
      >>> units.size, units.decode(units.encode("turn the light off"))
      (17, 'turn the light off')
    """

    model: bytes = dataclasses.field(repr=False)

    def __post_init__(self):
        self._processor  # noqa: B018 (a broken model is found here and not at the first text)

    @classmethod
    def train(cls, texts: Iterable[str], *, size: int, kind: str = "unigram") -> "PieceUnits":
        """Makes a model of the texts.

        Args:
          texts: what to learn the pieces from; every character of theirs gets one.
          size: pieces, the model's three marks included.
          kind: "unigram" or "bpe".

        Returns:
          The units; the same for the same texts.

        Raises:
          ValueError: if the kind is unknown, or sentencepiece cannot make so many pieces of these texts, or so few.
        """
        import sentencepiece

        if kind not in ("unigram", "bpe"):
            raise ValueError(f'kind: {kind!r}; "unigram" or "bpe" is needed')
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=written,
                vocab_size=size,
                model_type=kind,
                character_coverage=1.0,
                num_threads=1,  # the sums of several threads come in any order
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(f"size: {size} pieces cannot be made of these texts ({error})") from None
        return cls(model=written.getvalue())

    @property
    def size(self) -> int:
        """Pieces and the blank."""
        return self._processor.get_piece_size() + 1

    @functools.cached_property
    def _processor(self) -> Any:
        import sentencepiece

        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError:
            raise ValueError(f"model: {len(self.model)} bytes that are no sentencepiece model") from None

    def encode(self, text: str) -> Int32[np.ndarray, "labels"]:
        """Labels of the best cut into pieces; ValueError names a character that no piece has."""
        ids = self._processor.encode(text)
        unknown = self._processor.unk_id()
        if unknown in ids:
            run = self._processor.encode(text, out_type=str)[ids.index(unknown)]
            raise ValueError(f"character {run[0]!r} of {text!r} is in no piece of the model")
        return np.array(ids, np.int32) + 1

    def decode(self, labels: Sequence[int] | Int[np.ndarray, "labels"]) -> str:
        """The text of labels; ValueError names a label out of range."""
        return self._processor.decode([label - 1 for label in _checked(labels, self.size)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the .model file."""
        _needs_suffix(path, ".model")
        Path(path).write_bytes(self.model)


def load_units(path: str | os.PathLike[str]) -> CharacterUnits | PieceUnits:
    """Reads the units that `save` wrote, or any sentencepiece model.

    Args:
      path: a .json file of characters or a .model file of sentencepiece.

    Returns:
      The units.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is neither.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     CharacterUnits(characters="ab").save(f"{folder}/units.json")
      ...     load_units(f"{folder}/units.json")
      CharacterUnits(characters='ab')
    """
    path = Path(path)
    if path.suffix == ".model":
        return PieceUnits(model=path.read_bytes())
    _needs_suffix(path, ".json", ".model")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the UTF-8 or of the JSON
        raise ValueError(f"{path}: not JSON ({error})") from None
    characters = record.get("characters") if isinstance(record, dict) else None
    if not isinstance(characters, str):
        raise ValueError(f'{path}: expected {{"characters": "..."}}, got {str(record)[:100]}')
    return CharacterUnits(characters=characters)


def _checked(labels, size: int) -> list[int]:
    labels = [int(label) for label in labels]
    for label in labels:
        if not 1 <= label < size:
            raise ValueError(f"label {label} is out of range: 1..{size - 1} are, and 0 is the blank")
    return labels


def _needs_suffix(path, *suffixes: str) -> None:
    if Path(path).suffix not in suffixes:
        raise ValueError(f"path: {str(path)!r} must end in {' or '.join(suffixes)}")
