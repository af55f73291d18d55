"""Which rows are trained on, which choose, and which are tested: the published protocols, with fixed seeds.

Order is by raw words of a counter-based generator and stable sorts: numpy promises those, and so a seed gives the
same rows on every machine.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zojax.data.tasks.prompts import PromptedTask, Row

__all__ = ["SEEDS", "Split", "balanced", "few_shot", "k_shot", "many_shot"]

SEEDS = (13, 21, 42, 87, 100)
"""The seeds of the published few-shot runs."""

# Numbers that tell the uses of a seed apart.
_TRAIN, _TEST, _ORDER = 0, 1, 2

DEV_SHARE = 0.4
"""The most that dev may take of what can be trained on: CB's published 100 of 250."""


class Split(NamedTuple):
    """Rows for training, for choosing a checkpoint, and for the final test.

    Attributes:
      train: rows, in the order in which they were drawn.
      dev: rows, none with the prompt of one of `train`.
      test: rows, none with the prompt of one of the others.
    """

    train: list[Row]
    dev: list[Row]
    test: list[Row]


def balanced(rows: Sequence[Row], task: PromptedTask, count: int, *, seed: int) -> list[Row]:
    """Rows with as many of each class as can be: those that come first when the classes take turns.

    Args:
      rows: rows of a split.
      task: their task; if it has no classes, the rows are simply the first in a random order.
      count: how many; all, if there are fewer.
      seed: fixes the draw.

    Returns:
      The rows, in random order; none twice.

    Raises:
      ValueError: if count is negative.

    Example:
      >>> from zojax.data.tasks.prompts import get_task
      >>> rows = [{"text": str(i), "label": int(i > 7), "id": i} for i in range(10)]
      >>> sorted(row["label"] for row in balanced(rows, get_task("sst2"), 4, seed=0))
      [0, 0, 1, 1]
    """
    if count < 0:
        raise ValueError(f"count is {count}; it must be 0 or more")
    order = _shuffled(len(rows), seed, _TRAIN)
    if task.classes:
        labels = np.array([rows[i]["label"] for i in order])
        turns = np.empty(len(rows), np.int64)
        for label in range(len(task.classes)):
            turns[labels == label] = np.arange((labels == label).sum())
        order = order[np.argsort(turns, kind="stable")]
    order = order[:count]
    return [rows[i] for i in order[_shuffled(len(order), seed, _ORDER)]]


def k_shot(rows: Sequence[Row], task: PromptedTask, k: int, *, seed: int) -> list[Row]:
    """k rows of every class.

    Args:
      rows: rows of a split.
      task: their task; if it has no classes, k rows in all.
      k: rows of a class.
      seed: fixes the draw.

    Returns:
      The rows, in random order.

    Raises:
      ValueError: if k is not positive, or a class has fewer than k rows.

    Example:
      >>> from zojax.data.tasks.prompts import get_task
      >>> k_shot([{"text": "a", "label": 0}], get_task("sst2"), 1, seed=0)
      Traceback (most recent call last):
      ...
      ValueError: k is 1, but of the class 'positive' of sst2 there are 0 rows
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be positive")
    for label, name in enumerate(task.classes):
        have = sum(row["label"] == label for row in rows)
        if have < k:
            raise ValueError(f"k is {k}, but of the class {name!r} of {task.name} there are {have} rows")
    if len(rows) < k:
        raise ValueError(f"k is {k}, but of {task.name} there are {len(rows)} rows")
    return balanced(rows, task, k * max(len(task.classes), 1), seed=seed)


def many_shot(
    train: Sequence[Row],
    test: Sequence[Row],
    task: PromptedTask,
    *,
    seed: int,
    sizes: tuple[int, int, int] = (1000, 500, 1000),
) -> Split:
    """The protocol of MeZO's runs on causal models (arXiv:2305.17333): 1,000 rows to train, 500 dev, 1,000 test.

    Train and dev are drawn from the training set, test from another. Where there are not enough rows, dev takes at
    most `DEV_SHARE` of them (ours, after the published 100 for CB's 250). Rows of the training set whose prompt stands
    in the test rows are left out, and so are rows of dev whose prompt is one of train's (ours).

    Args:
      train: rows to draw train and dev from.
      test: rows to draw test from.
      task: their task.
      seed: fixes the draw.
      sizes: rows of train, dev and test.

    Returns:
      The split.

    Raises:
      ValueError: if a size is negative.

    Example:
      >>> from zojax.data.tasks.prompts import get_task
      >>> rows = [{"text": str(i), "label": i % 2, "id": i} for i in range(30)]
      >>> [len(part) for part in many_shot(rows[:20], rows[20:], get_task("sst2"), seed=0, sizes=(16, 8, 9))]
      [12, 8, 9]
    """
    if min(sizes) < 0:
        raise ValueError(f"sizes is {sizes}; none may be negative")
    chosen = [test[i] for i in _shuffled(len(test), seed, _TEST)[: sizes[2]]]
    rest = _without(task, [train[i] for i in _shuffled(len(train), seed, _TRAIN)], chosen)
    dev_size = sizes[1] if len(rest) >= sizes[0] + sizes[1] else min(sizes[1], int(DEV_SHARE * len(rest)))
    train_size = min(sizes[0], len(rest) - dev_size)
    training = rest[:train_size]
    return Split(training, _without(task, rest[train_size:], training)[:dev_size], chosen)


def few_shot(
    train: Sequence[Row], test: Sequence[Row], task: PromptedTask, k: int, *, seed: int, test_size: int = 1000
) -> Split:
    """The protocol of LM-BFF (arXiv:2012.15723) and of MeZO's runs on RoBERTa: k rows a class to train, as many dev.

    Args:
      train: rows to draw train and dev from.
      test: rows to draw test from.
      task: their task.
      k: rows of a class; 16 or 512 in the published runs.
      seed: fixes the draw; `SEEDS` are the published ones (their rows are not: the draw is ours).
      test_size: the most rows of test.

    Returns:
      The split; rows with a prompt of another part are left out as in `many_shot`.

    Raises:
      ValueError: if a class has too few rows.

    Example:
      >>> from zojax.data.tasks.prompts import get_task
      >>> rows = [{"text": str(i), "label": i % 2, "id": i} for i in range(30)]
      >>> [len(part) for part in few_shot(rows[:20], rows[20:], get_task("sst2"), 3, seed=13)]
      [6, 6, 10]
    """
    chosen = [test[i] for i in _shuffled(len(test), seed, _TEST)[:test_size]]
    rest = _without(task, train, chosen)
    training = k_shot(rest, task, k, seed=seed)
    return Split(training, k_shot(_without(task, rest, training), task, k, seed=seed), chosen)


def _shuffled(count: int, seed: int, use: int) -> np.ndarray:
    generator = np.random.Philox(key=np.array([seed, use], np.uint64))
    return np.argsort(generator.random_raw(count), kind="stable")


def _without(task: PromptedTask, rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    prompts = {task.prompt(row) for row in others}
    return [row for row in rows if task.prompt(row) not in prompts]
