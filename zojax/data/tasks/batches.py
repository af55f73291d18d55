"""Batches of prompts: random ones to train on, ordered ones to evaluate on.

Which rows make a batch, and how wide it is, `zojax.data.pipeline` decides, as for any text: batch n is a pure function
of (examples, seed, n), and the state of an iterator is one integer.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float32, Int32

from zojax.data import pipeline
from zojax.data.tasks.encode import PromptExample

__all__ = ["PromptBatch", "PromptBatches", "eval_batches", "train_batches"]


class PromptBatch(TypedDict):
    """Prompts and their answers, padded.

    n is 1 where all answers of a row share one sequence, else c, the most answers of a row; a is the most tokens of an
    answer. `weight` is 1, and 0 for rows that fill up the last batch of an evaluation (their id is -1).
    """

    tokens: Int32[np.ndarray, "b n s"]
    mask: Bool[np.ndarray, "b n s"]
    at: Int32[np.ndarray, "b n a"]  # the columns that predict the answer's tokens; 0 beyond them
    answer: Int32[np.ndarray, "b c a"]  # the answer's tokens; 0 beyond them
    answer_mask: Bool[np.ndarray, "b c a"]  # where there is one; a row without any is no answer
    correct: Bool[np.ndarray, "b c"]  # the right answers
    weight: Float32[np.ndarray, "b"]
    id: Int32[np.ndarray, "b"]


class PromptBatches:
    """The endless iterator of `train_batches`; its state is that of `pipeline.train_batches`.

    Example:
      See `train_batches`.

      >>> hasattr(PromptBatches, "get_state")
      True
    """

    def __init__(self, rows: Any, collate: Any):
        self._rows, self._collate = rows, collate

    def __iter__(self) -> "PromptBatches":
        return self

    def __next__(self) -> PromptBatch:
        return self._collate(next(self._rows))

    def get_state(self) -> Any:
        """The place in the sequence of batches: {"next_index": n}."""
        return self._rows.get_state()

    def set_state(self, state: Any) -> None:
        """Goes to a place, without making the batches in between."""
        self._rows.set_state(state)


def train_batches(
    examples: Sequence[PromptExample],
    *,
    batch_size: int,
    seed: int,
    max_length: int,
    buckets: Sequence[int] | None = None,
    length_grouped: bool = False,
    side: str = "right",
) -> PromptBatches:
    """Batches to train on: endless, every example once an epoch.

    Args:
      examples: of one task, as `encode` and `encode_masked` make them.
      batch_size: rows of a batch.
      seed: fixes the order of every epoch.
      max_length: the longest padded length.
      buckets: increasing padded lengths; a batch gets the smallest that fits.
      length_grouped: as in `pipeline.train_batches`.
      side: "left" or "right", where the padding goes.

    Returns:
      An iterator of `PromptBatch`.

    Raises:
      ValueError: as `pipeline.train_batches`, or if side is neither.

    Example:
      >>> sequence, yes, no = (np.array(x, np.int32) for x in ([5, 6], [7], [8]))
      >>> example = {"sequences": [sequence], "answers": [yes, no], "at": [np.array([1])], "correct": (0,)}
      >>> examples = [{**example, "id": i} for i in range(5)]
      >>> batches = train_batches(examples, batch_size=2, seed=0, max_length=4)
      >>> batch = next(batches)
      >>> batch["tokens"].tolist(), batch["answer"].shape, batches.get_state()
      ([[[5, 6, 0, 0]], [[5, 6, 0, 0]]], (2, 2, 1), {'next_index': 1})
    """
    collate = _Collate(examples, side)
    rows = pipeline.train_batches(
        collate.stand_ins(),
        batch_size=batch_size,
        seed=seed,
        max_length=max_length,
        buckets=buckets,
        length_grouped=length_grouped,
    )
    return PromptBatches(rows, collate)


def eval_batches(
    examples: Sequence[PromptExample],
    *,
    batch_size: int,
    max_length: int,
    buckets: Sequence[int] | None = None,
    side: str = "right",
) -> list[PromptBatch]:
    """Batches to evaluate on: every example once, shortest first, the last batch filled up with weight 0.

    Args:
      examples: as for `train_batches`.
      batch_size: rows of a batch.
      max_length: the longest padded length.
      buckets: as for `train_batches`.
      side: as for `train_batches`.

    Returns:
      The batches.

    Raises:
      ValueError: as `pipeline.eval_batches`, or if side is neither.

    Example:
      >>> sequence, yes, no = (np.array(x, np.int32) for x in ([5, 6], [7], [8]))
      >>> example = {"sequences": [sequence], "answers": [yes, no], "at": [np.array([1])], "correct": (0,), "id": 3}
      >>> batch, = eval_batches([example], batch_size=2, max_length=3, side="left")
      >>> batch["tokens"].tolist(), batch["at"].tolist(), batch["weight"].tolist()
      ([[[0, 5, 6]], [[0, 5, 6]]], [[[2]], [[2]]], [1.0, 0.0])
    """
    collate = _Collate(examples, side)
    rows = pipeline.eval_batches(collate.stand_ins(), batch_size=batch_size, max_length=max_length, buckets=buckets)
    return [collate(batch) for batch in rows]


class _Collate:
    """Fills the rows that the pipeline has chosen. One shape for all batches of a width."""

    def __init__(self, examples: Sequence[PromptExample], side: str):
        if side not in ("left", "right"):
            raise ValueError(f"side is {side!r}; it must be 'left' or 'right'")
        self._examples, self._side = examples, side
        self._answers = max((len(example["answers"]) for example in examples), default=0)
        shared = all(len(example["sequences"]) == 1 for example in examples)
        self._sequences = 1 if shared else self._answers
        self._width = max((len(answer) for example in examples for answer in example["answers"]), default=0)

    def stand_ins(self) -> list[pipeline.Example]:
        """Texts as long as the examples, numbered by their places: what the pipeline needs to know."""
        return [
            {"tokens": np.zeros(max(map(len, example["sequences"])), np.int32), "label": 0, "id": place}
            for place, example in enumerate(self._examples)
        ]

    def __call__(self, rows: Any) -> PromptBatch:
        real = rows["id"] >= 0
        # Rows that fill up repeat the last real one, as those of the pipeline do.
        places = np.where(real, rows["id"], rows["id"][real][-1])
        size, width, n, c, a = len(places), rows["tokens"].shape[1], self._sequences, self._answers, self._width
        out: PromptBatch = {
            "tokens": np.zeros((size, n, width), np.int32),
            "mask": np.zeros((size, n, width), bool),
            "at": np.zeros((size, n, a), np.int32),
            "answer": np.zeros((size, c, a), np.int32),
            "answer_mask": np.zeros((size, c, a), bool),
            "correct": np.zeros((size, c), bool),
            "weight": rows["weight"],
            "id": np.where(real, [self._examples[place]["id"] for place in places], -1).astype(np.int32),
        }
        for b, place in enumerate(places):
            example = self._examples[place]
            for k in range(n):
                # Of a row with fewer answers the last sequence again, so that no row is without tokens; and of one
                # whose answers share a sequence, in a batch where others' do not, that one for each.
                which = min(k, len(example["sequences"]) - 1)
                sequence, at = example["sequences"][which], example["at"][which]
                begin = width - len(sequence) if self._side == "left" else 0
                columns = slice(begin, begin + len(sequence))
                out["tokens"][b, k, columns], out["mask"][b, k, columns] = sequence, True
                out["at"][b, k, : len(at)] = at + begin
            for k, answer in enumerate(example["answers"]):
                out["answer"][b, k, : len(answer)], out["answer_mask"][b, k, : len(answer)] = answer, True
            out["correct"][b, list(example["correct"])] = True
        return out
