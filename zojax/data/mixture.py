"""Several classification tasks in one batch: a fixed number of rows of each, of one text or of a pair of texts.

Batch number n is a pure function of (examples, quotas, seed, n), and the rows of a task do not depend on the other
tasks. A pair is two sequences, each encoded by itself; all sequences of a batch stand in one array.
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from jaxtyping import Bool, Float32, Int32

from zojax.data import pipeline
from zojax.data.tasks.sources import load_rows
from zojax.data.tokenize import Tokenizer

__all__ = ["TASKS", "Kind", "MixtureBatches", "Splits", "eval_batches", "load_task"]


class Kind(NamedTuple):
    """The fields of a task's rows that hold its texts, one or two, and its number of classes."""

    fields: tuple[str, ...]
    num_classes: int


TASKS: dict[str, Kind] = {
    "sst2": Kind(("text",), 2),
    "rte": Kind(("premise", "hypothesis"), 2),
    "qnli": Kind(("question", "sentence"), 2),
    "cb": Kind(("premise", "hypothesis"), 3),
    "snli": Kind(("premise", "hypothesis"), 3),
    "mnli": Kind(("premise", "hypothesis"), 3),
}
"""Tasks of one text or of a pair, by name."""


class TaskExample(TypedDict):
    """One example: the tokens of its texts, its class, and its number in the split."""

    texts: tuple[Int32[np.ndarray, "length"], ...]
    label: int
    id: int


class MixedBatch(TypedDict):
    """Rows of several tasks, those of one task together, in the order of the tasks.

    The first b sequences are the first texts of the b rows. `second` is the number of the sequence that holds a row's
    second text, or its first one's where it has no second. `weight` is 0 for rows that only fill a batch up.
    """

    tokens: Int32[np.ndarray, "sequences length"]
    mask: Bool[np.ndarray, "sequences length"]
    second: Int32[np.ndarray, "batch"]
    task: Int32[np.ndarray, "batch"]
    label: Int32[np.ndarray, "batch"]
    weight: Float32[np.ndarray, "batch"]
    id: Int32[np.ndarray, "batch"]


class Splits(NamedTuple):
    """The examples of a task."""

    train: list[TaskExample]
    dev: list[TaskExample]
    test: list[TaskExample]


def load_task(
    name: str,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    source: str | os.PathLike[str] | None = None,
    train_examples: int = 0,
    dev_examples: int = 500,
    test_examples: int = 0,
) -> Splits:
    """The splits of a task: dev is cut from the train rows; test is the test split or, where there is none, dev.

    The rows of a split are shuffled once, by the names of task and split and not by a seed, and dev takes at most a
    fifth of the train rows.

    Args:
      name: one of `TASKS`.
      tokenizer: the tokenizer.
      max_length: of each text, in tokens, special ones included.
      source: where the rows are, as `tasks.sources.load_rows` takes it.
      train_examples: so many; 0 for all that dev leaves.
      dev_examples: so many, or fewer.
      test_examples: so many; 0 for all.

    Returns:
      The splits.

    Raises:
      FileNotFoundError: a folder or a file is missing.
      ValueError: there is no such task, a row is malformed, or there are fewer than `train_examples` or
        `test_examples`.

    Example:
      >>> import tokenizers
      >>> fast = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
      >>> load_task("copa", Tokenizer(fast=fast), max_length=8)
      Traceback (most recent call last):
      ValueError: task 'copa': one of sst2, rte, qnli, cb, snli, mnli is needed
    """
    if name not in TASKS:
        raise ValueError(f"task {name!r}: one of {', '.join(TASKS)} is needed")
    folder = None if source is None else Path(source)
    train = _shuffled(name, "train", folder)
    try:
        test = _shuffled(name, "test", folder)
    except FileNotFoundError:
        test = _shuffled(name, "dev", folder)
    cut = min(dev_examples, len(train) // 5)
    for field, asked, rows in (("train", train_examples, len(train) - cut), ("test", test_examples, len(test))):
        if asked > rows:
            raise ValueError(f"{field}_examples is {asked}; task {name!r} has {rows}")

    def examples(rows: list[dict[str, Any]]) -> list[TaskExample]:
        columns = [tokenizer.encode([row[field] for row in rows], max_length) for field in TASKS[name].fields]
        return [
            {"texts": tuple(texts), "label": row["label"], "id": number}
            for number, (row, *texts) in enumerate(zip(rows, *columns, strict=True))
        ]

    return Splits(
        examples(train[cut:][: train_examples or None]),
        examples(train[:cut]),
        examples(test[: test_examples or None]),
    )


class MixtureBatches:
    """Batches to train on: endless, with `quotas[t]` rows of task t in each.

    A task goes through its examples in epochs of its own, as `pipeline.train_batches` does with batches of its quota.
    The place of the iterator is the number of the next batch.

    Args:
      tasks: examples by task.
      quotas: rows of each task in a batch, at least 1 and at most its examples.
      seed: 0 <= seed < 2**32; fixes the order of every task, which does not depend on the other tasks.
      max_length: the longest padded length.
      buckets: padded lengths, as in `pipeline.train_batches`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> rows = [{"texts": (np.ones(1 + i, np.int32),), "label": 0, "id": i} for i in range(4)]
      >>> pairs = [{"texts": (np.ones(2, np.int32), np.ones(3, np.int32)), "label": 1, "id": i} for i in range(3)]
      >>> batches = MixtureBatches({"sst2": rows, "rte": pairs}, quotas=(2, 1), seed=0, max_length=4)
      >>> batch = next(batches)
      >>> batch["tokens"].shape, batch["second"].tolist(), batch["task"].tolist(), batches.get_state()
      ((4, 4), [0, 1, 3], [0, 0, 1], {'next_index': 1})
    """

    def __init__(
        self,
        tasks: Mapping[str, Sequence[TaskExample]],
        *,
        quotas: Sequence[int],
        seed: int,
        max_length: int,
        buckets: Sequence[int] | None = None,
    ):
        if len(quotas) != len(tasks):
            raise ValueError(f"quotas must be one for each of {len(tasks)} tasks, got {tuple(quotas)}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must lie in 0..2**32-1, got {seed}")
        for (name, examples), quota in zip(tasks.items(), quotas, strict=True):
            if not 1 <= quota <= len(examples):
                raise ValueError(f"quotas: that of {name} must lie in 1..{len(examples)} (its examples), got {quota}")
        self._examples, self._widths = list(tasks.values()), pipeline._widths(buckets, max_length)
        # Only the order of the rows is taken from these.
        rows = [[pipeline.Example(tokens=_ONE, label=0, id=i) for i in range(len(own))] for own in self._examples]
        self._orders = [
            pipeline.train_batches(own, batch_size=quota, seed=(seed << 32) | zlib.crc32(name.encode()), max_length=1)
            for name, own, quota in zip(tasks, rows, quotas, strict=True)
        ]

    def __iter__(self) -> "MixtureBatches":
        return self

    def __next__(self) -> MixedBatch:
        rows = [
            (number, examples[row], 1.0)
            for number, (examples, order) in enumerate(zip(self._examples, self._orders, strict=True))
            for row in next(order)["id"]
        ]
        return _collate(rows, self._widths)

    def get_state(self) -> dict[str, int]:
        return self._orders[0].get_state()

    def set_state(self, state: dict[str, int]) -> None:
        for order in self._orders:
            order.set_state(state)


def eval_batches(
    tasks: Mapping[str, Sequence[TaskExample]],
    *,
    batch_size: int,
    max_length: int,
    buckets: Sequence[int] | None = None,
) -> list[MixedBatch]:
    """Batches to evaluate on, each of one task: every example once, shortest first, filled up with weight 0.

    The weights of a task's rows sum to the same for all tasks, and to the number of examples in all: an average over
    all rows is the mean over the tasks.

    Args:
      tasks: examples by task, at least one each.
      batch_size: rows of a batch.
      max_length: the longest padded length.
      buckets: as in `pipeline.train_batches`.

    Returns:
      The batches.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> rows = [{"texts": (np.ones(1 + i, np.int32),), "label": 0, "id": i} for i in range(4)]
      >>> batches = eval_batches({"sst2": rows, "cb": rows[:2]}, batch_size=2, max_length=4, buckets=(2,))
      >>> [(batch["tokens"].shape, batch["task"].tolist(), batch["weight"].tolist()) for batch in batches]
      [((2, 2), [0, 0], [0.75, 0.75]), ((2, 4), [0, 0], [0.75, 0.75]), ((2, 2), [1, 1], [1.5, 1.5])]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    widths, batches = pipeline._widths(buckets, max_length), []
    mean = sum(len(examples) for examples in tasks.values()) / len(tasks)
    for number, (name, examples) in enumerate(tasks.items()):
        if not examples:
            raise ValueError(f"tasks: {name} has no examples")
        order = sorted(examples, key=lambda example: max(len(tokens) for tokens in example["texts"]))
        for start in range(0, len(order), batch_size):
            rows = [(number, example, mean / len(examples)) for example in order[start : start + batch_size]]
            last = rows[-1][1]
            filler: TaskExample = {"texts": last["texts"], "label": last["label"], "id": -1}
            rows += [(number, filler, 0.0)] * (batch_size - len(rows))
            batches.append(_collate(rows, widths))
    return batches


_ONE = np.ones(1, np.int32)


def _collate(rows: Sequence[tuple[int, TaskExample, float]], widths: Sequence[int]) -> MixedBatch:
    tasks, examples, weights = zip(*rows, strict=True)
    second = np.arange(len(rows), dtype=np.int32)
    pairs = [row for row, example in enumerate(examples) if len(example["texts"]) > 1]
    second[pairs] = len(rows) + np.arange(len(pairs))
    texts = [example["texts"][0] for example in examples] + [examples[row]["texts"][1] for row in pairs]
    lengths = np.array([len(tokens) for tokens in texts])
    if not 1 <= lengths.min() <= lengths.max() <= widths[-1]:
        raise ValueError(
            f"examples have texts of {lengths.min()} to {lengths.max()} tokens; 1..max_length={widths[-1]} are allowed"
        )
    mask = np.arange(next(width for width in widths if width >= lengths.max())) < lengths[:, None]
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = np.concatenate(texts)
    return {
        "tokens": tokens,
        "mask": mask,
        "second": second,
        "task": np.array(tasks, np.int32),
        "label": np.array([example["label"] for example in examples], np.int32),
        "weight": np.array(weights, np.float32),
        "id": np.array([example["id"] for example in examples], np.int32),
    }


def _shuffled(name: str, split: str, source: Path | None) -> list[dict[str, Any]]:
    rows = load_rows(name, split, source)
    # Raw words of a counter-based generator: numpy promises them, and not the order of `permutation`.
    words = np.random.Philox(key=zlib.crc32(f"{name}/{split}".encode())).random_raw(len(rows))
    return [rows[i] for i in np.argsort(words, kind="stable")]
