"""Documents for training a language model from scratch: running texts and prompts with their answers, packed in rows.

Texts fill whole rows, cut at another place in every epoch. Prompts stand side by side, each a segment of its own, or
several of one kind in one segment, as demonstrations stand before a question. Which documents make a batch is a pure
function of (documents, seed, epoch, place), so that an iterator's state is two integers.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Int32, Int64
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

__all__ = ["DocumentBatch", "DocumentBatches", "Documents", "eval_batches"]

STRING = 4
"""The most prompts of a segment (ours)."""

SHORTEST = 16
"""Tokens; what is left of a text behind its last whole row is left out when it is shorter (ours)."""

# Numbers that tell the uses of a seed apart.
_PHASE, _CHOICE, _ROWS, _USES = 0, 1, 2, 3


class DocumentBatch(TypedDict):
    """Rows of tokens. `segment` numbers the documents of a row from 0; it is -1 at padding.

    `answer` is True at tokens of a prompt's answer.
    """

    tokens: Int32[np.ndarray, "rows width"]
    segment: Int32[np.ndarray, "rows width"]
    answer: Bool[np.ndarray, "rows width"]


Piece = tuple[int, int]
Row = list[list[Piece]]  # segments, of pieces (start, stop) of the tokens; -1: the separator


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Documents:
    """Tokenised documents.

    Attributes:
      tokens: all tokens, one document after the other.
      answer: True at tokens of an answer.
      texts: (start, stop) of each running text.
      prompts: (start, stop) of each prompt with its answer; the first token of each begins a sequence.
      kind: of each prompt; those of a kind may stand in one segment.
      separator: tokens between two prompts of a segment.

    Example:
      >>> prompts = np.array([[0, 3], [3, 7]])
      >>> ids = np.arange(10, dtype=np.int32)
      >>> documents = Documents(tokens=ids[:7], answer=ids[:7] % 3 == 2, texts=np.zeros((0, 2), np.int64),
      ...                       prompts=prompts, kind=ids[:2], separator=ids[9:])
      >>> batch, = eval_batches(documents, rows=1, width=8)
      >>> batch["tokens"].tolist(), batch["segment"].tolist()
      ([[0, 1, 2, 3, 4, 5, 6, 0]], [[0, 0, 0, 1, 1, 1, 1, -1]])
    """

    tokens: Int32[np.ndarray, " n"]
    answer: Bool[np.ndarray, " n"]
    texts: Int64[np.ndarray, "t 2"]
    prompts: Int64[np.ndarray, "p 2"]
    kind: Int32[np.ndarray, " p"]
    separator: Int32[np.ndarray, " s"]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Documents":
        """Reads what `save` wrote.

        Args:
          path: the file.

        Returns:
          The documents.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if it is not such a file.
        """
        try:
            arrays = load_file(path)
            counted = {name: arrays[name].astype(np.int64) for name in ("texts", "prompts")}
            small = {name: arrays[name].astype(np.int32) for name in ("tokens", "kind", "separator")}
            return cls(**counted, **small, answer=arrays["answer"].astype(bool))
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} is no file of documents: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the documents into a file.

        Args:
          path: the file, a .safetensors.
        """
        narrow = {"tokens": np.uint16 if self.tokens.max(initial=0) < 2**16 else np.int32, "answer": np.uint8}
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        save_file({name: np.array(x, narrow.get(name, x.dtype), order="C") for name, x in fields.items()}, Path(path))


class DocumentBatches(Iterator[DocumentBatch]):
    """Batches to train on, without end.

    An epoch holds each running text once and, of the prompts, a share drawn anew; half of those stand alone, the other
    half in segments of up to `STRING`. Rows of texts and of prompts are mixed; those that fill no batch are left out.

    Args:
      documents: the documents.
      rows: rows of a batch.
      width: tokens of a row.
      seed: fixes every epoch.
      prompt_share: the share of the prompts that an epoch holds; over 1, all of them several times.

    Raises:
      ValueError: if an epoch fills no batch, or a prompt is wider than a row.

    Example:
      >>> ids = np.arange(100, dtype=np.int32)
      >>> documents = Documents(tokens=ids, answer=ids < 0, texts=np.array([[0, 100]]), kind=ids[:0],
      ...                       prompts=np.zeros((0, 2), np.int64), separator=ids[:0])
      >>> batches = DocumentBatches(documents, rows=2, width=20, seed=0)
      >>> next(batches)["tokens"].shape, batches.get_state()
      ((2, 20), {'epoch': 0, 'place': 1})
    """

    def __init__(self, documents: Documents, *, rows: int, width: int, seed: int, prompt_share: float = 1.0):
        self._documents, self._rows, self._width = documents, rows, width
        self._seed, self._share = seed, prompt_share
        _check(documents, width)
        self._epoch, self._place = 0, 0
        self._plan = self._planned(0)
        if self.batches_per_epoch < 1:
            raise ValueError(f"rows is {rows}; an epoch has {len(self._plan)} rows of {width} tokens")

    @property
    def batches_per_epoch(self) -> int:
        """Batches of the current epoch."""
        return len(self._plan) // self._rows

    def __next__(self) -> DocumentBatch:
        if self._place == self.batches_per_epoch:
            self.set_state({"epoch": self._epoch + 1, "place": 0})
        begin = self._place * self._rows
        self._place += 1
        return _filled(self._documents, self._plan[begin : begin + self._rows], self._rows, self._width)

    def get_state(self) -> dict[str, int]:
        """The place in the sequence of batches."""
        return {"epoch": self._epoch, "place": self._place}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a place, without making the batches in between."""
        if state["epoch"] != self._epoch:
            self._plan = self._planned(state["epoch"])
        self._epoch, self._place = state["epoch"], state["place"]

    def _planned(self, epoch: int) -> list[Row]:
        """The rows of an epoch, in order."""

        def words(count: int, use: int) -> np.ndarray:
            key = np.array([self._seed, epoch * _USES + use], np.uint64)
            return np.random.Philox(key=key).random_raw(count)

        texts = self._documents.texts
        phases = words(len(texts), _PHASE) % np.uint64(self._width)
        rows = [row for text, phase in zip(texts.tolist(), phases.tolist(), strict=True)
                for row in _cut(text, int(phase), self._width)]  # fmt: skip
        count = len(self._documents.prompts)
        times = int(np.ceil(self._share))
        order = [np.argsort(part, kind="stable") for part in words(times * count, _CHOICE).reshape(times, count)]
        chosen = np.concatenate([*order, np.zeros(0, np.int64)])[: round(self._share * count)]
        alone, strung = chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]
        segments = [[int(i)] for i in alone] + self._strings(strung)
        order = np.argsort(words(len(segments) + len(rows), _ROWS), kind="stable")
        segments = [segments[i] for i in order if i < len(segments)]
        rows += _packed([_pieces(self._documents, segment) for segment in segments], self._documents, self._width)
        return [rows[i] for i in np.argsort(words(len(rows), _ROWS), kind="stable")]

    def _strings(self, chosen: np.ndarray) -> list[list[int]]:
        """Prompts of a kind in a row, as many as fit and `STRING` at most."""
        kind = self._documents.kind[chosen]
        strings: list[list[int]] = []
        for i, of in zip(chosen[np.argsort(kind, kind="stable")].tolist(), np.sort(kind).tolist(), strict=True):
            last = strings[-1] if strings else []
            fits = last and len(last) < STRING and self._documents.kind[last[0]] == of
            if fits and _length(_pieces(self._documents, [*last, i]), self._documents) <= self._width:
                last.append(i)
            else:
                strings.append([i])
        return strings


def eval_batches(documents: Documents, *, rows: int, width: int) -> list[DocumentBatch]:
    """Batches to evaluate on: texts cut from their beginnings, every prompt once and alone.

    Args:
      documents: the documents.
      rows: rows of a batch; the last batch is filled up with padding.
      width: tokens of a row.

    Returns:
      The batches.

    Raises:
      ValueError: if a prompt is wider than a row.

    Example:
      See `Documents`.

      >>> len([eval_batches])
      1
    """
    _check(documents, width)
    plan = [row for text in documents.texts.tolist() for row in _cut(text, 0, width)]
    plan += _packed([[piece] for piece in map(tuple, documents.prompts.tolist())], documents, width)
    return [_filled(documents, plan[i : i + rows], rows, width) for i in range(0, len(plan), rows)]


def _check(documents: Documents, width: int) -> None:
    longest = int(np.diff(documents.prompts, axis=1).max(initial=0))
    if longest > width:
        raise ValueError(f"width is {width}; the longest prompt has {longest} tokens")


def _cut(text: Sequence[int], phase: int, width: int) -> list[Row]:
    """A running text in rows; the first one ends at `phase`."""
    start, stop = text
    bounds = [start, *range(start + (phase or width), stop, width), stop]
    return [[[(a, b)]] for a, b in itertools.pairwise(bounds) if b - a >= min(SHORTEST, width)]


def _pieces(documents: Documents, segment: Sequence[int]) -> list[Piece]:
    """The prompts of a segment: a separator stands between two, in place of the token that begins the second."""
    (start, stop), *rest = documents.prompts[list(segment)].tolist()
    out: list[Piece] = [(start, stop)]
    for start, stop in rest:
        out += [(-1, -1), (start + 1, stop)]
    return out


def _length(pieces: Sequence[Piece], documents: Documents) -> int:
    return sum(stop - start if start >= 0 else len(documents.separator) for start, stop in pieces)


def _packed(segments: Sequence[list[Piece]], documents: Documents, width: int) -> list[Row]:
    """Segments in rows, in their order: a new row begins where one does not fit."""
    rows: list[Row] = []
    room = 0
    for segment in segments:
        length = _length(segment, documents)
        if length > room:
            rows.append([])
            room = width
        rows[-1].append(segment)
        room -= length
    return rows


def _filled(documents: Documents, plan: Sequence[Row], rows: int, width: int) -> DocumentBatch:
    tokens, answer = np.zeros((rows, width), np.int32), np.zeros((rows, width), bool)
    segment = np.full((rows, width), -1, np.int32)
    for r, row in enumerate(plan):
        at = 0
        for number, pieces in enumerate(row):
            begin = at
            for start, stop in pieces:
                part: Any = documents.separator if start < 0 else documents.tokens[start:stop]
                tokens[r, at : at + len(part)] = part
                if start >= 0:
                    answer[r, at : at + len(part)] = documents.answer[start:stop]
                at += len(part)
            segment[r, begin:at] = number
    return {"tokens": tokens, "segment": segment, "answer": answer}
