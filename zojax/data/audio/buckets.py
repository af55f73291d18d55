"""Utterances with their lengths and labels, and the few shapes that batches of them have."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, Shaped

from zojax.data.audio.prepared import Utterances
from zojax.data.audio.units import Units

__all__ = ["Bucket", "Examples", "assign", "plan_buckets"]

# Widths that `plan_buckets` chooses from: quantiles of the lengths.
CANDIDATES = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket:
    """One shape of batches.

    Attributes:
      length: samples or frames of a row.
      labels: labels of a row.
      rows: rows of a batch, over all shards together.

    Raises:
      ValueError: if length or rows is not positive, or labels is negative.

    Example:
      >>> Bucket(length=16000, labels=20, rows=8).rows
      8
    """

    length: int
    labels: int
    rows: int

    def __post_init__(self):
        for name, least in (("length", 1), ("labels", 0), ("rows", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)}; {least} or more is needed")


class Examples:
    """What is said and heard in some utterances, for batches.

    Attributes:
      names: of the utterances.
      lengths: samples or frames of each.
      labels: int32 labels of each.

    Raises:
      ValueError: the numbers of names, lengths and labels differ.

    Example:
      >>> waves = [np.ones(3, np.int16), np.ones(5, np.int16)]
      >>> examples = Examples(["a", "b"], [3, 5], [np.array([1]), np.array([2])], waves.__getitem__)
      >>> examples.x(1).shape
      (5,)
    """

    def __init__(
        self,
        names: Sequence[str],
        lengths: Sequence[int] | Int[np.ndarray, "utterances"],
        labels: Sequence[Int[np.ndarray, "labels"]],
        x: Callable[[int], Shaped[np.ndarray, "length *features"]],
    ):
        if not len(names) == len(lengths) == len(labels):
            raise ValueError(f"names, lengths, labels: {len(names)}, {len(lengths)} and {len(labels)} of them")
        self.names, self.labels, self.x = names, labels, x
        self.lengths = np.asarray(lengths, np.int64)

    @classmethod
    def of(cls, utterances: Utterances, units: Units) -> "Examples":
        """Prepared utterances: x is their int16 samples, read when a batch needs them.

        Features are best made of whole batches on the device, where augmentation can come first: `features.log_mel`
        takes x / 32768, and `features.num_frames` tells how many frames of a row count.
        """
        labels = [units.encode(text) for text in utterances.texts]
        return cls(utterances.ids, utterances.lengths, labels, lambda i: utterances[i]["samples"])

    @functools.cached_property
    def label_lengths(self) -> np.ndarray:
        """Labels of each utterance."""
        return np.array([len(labels) for labels in self.labels], np.int64)

    def __len__(self) -> int:
        return len(self.names)


def plan_buckets(
    lengths: Int[np.ndarray, "utterances"],
    label_lengths: Int[np.ndarray, "utterances"],
    *,
    count: int,
    budget: int,
    max_rows: int,
    multiple: int = 1,
    shard_count: int = 1,
) -> tuple[Bucket, ...]:
    """The buckets that hold all utterances with the least padding.

        minimise sum_i (w(i) - length_i),    w(i) the least of `count` widths that holds utterance i

    Widths are chosen by dynamic programming from 200 quantiles of the lengths (ours). A bucket has labels for its
    wordiest utterance, and for those of the buckets before it, whose rest moves up (see `train_batches`).

    Args:
      lengths: samples or frames.
      label_lengths: labels.
      count: buckets, and so programs to compile; fewer where the lengths are few.
      budget: padded samples or frames of a batch: rows = budget // width, so that batches cost alike.
      max_rows: at most this many rows, whatever the budget.
      multiple: widths are rounded up to multiples of this.
      shard_count: rows are a multiple of this, if need be over budget.

    Returns:
      Buckets of increasing length.

    Raises:
      ValueError: there is no utterance, or an argument is not positive, or max_rows is no multiple of shard_count.

    Example:
      >>> lengths = np.array([10, 11, 12, 48, 50])
      >>> for bucket in plan_buckets(lengths, lengths // 10, count=2, budget=100, max_rows=8):
      ...     bucket
      Bucket(length=12, labels=1, rows=8)
      Bucket(length=50, labels=5, rows=2)
    """
    if not len(lengths):
        raise ValueError("lengths: no utterance")
    numbers = {"count": count, "budget": budget, "max_rows": max_rows, "multiple": multiple, "shard_count": shard_count}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}: {value}; 1 or more is needed")
    if max_rows % shard_count:
        raise ValueError(f"max_rows: {max_rows}; a multiple of shard_count, {shard_count}, is needed")
    quantiles = np.quantile(lengths, np.linspace(0, 1, CANDIDATES), method="higher")
    widths = np.unique(-(-quantiles // multiple) * multiple).astype(np.int64)
    held = np.searchsorted(np.sort(lengths), widths, side="right")  # utterances that each width holds
    # cost[j]: padded length of the utterances up to width j, when j is the last of the widths chosen so far.
    cost, choices = (widths * held).astype(np.float64), []
    for _ in range(min(count, len(widths)) - 1):
        # Row i, column j: the width before j is i.
        step = cost[:, None] + widths[None, :] * (held[None, :] - held[:, None])
        step[np.tril_indices(len(widths))] = np.inf
        before = step.argmin(0)
        better = step.min(0) < cost
        choices.append(np.where(better, before, -1))
        cost = np.minimum(cost, step.min(0))
    chosen = [len(widths) - 1]
    for choice in reversed(choices):
        if choice[chosen[-1]] >= 0:
            chosen.append(int(choice[chosen[-1]]))
    buckets = []
    for width in widths[chosen[::-1]].tolist():
        rows = min(max_rows, max(budget // width // shard_count, 1) * shard_count)
        buckets.append(Bucket(length=width, labels=int(label_lengths[lengths <= width].max()), rows=rows))
    return tuple(buckets)


def assign(examples: Examples, buckets: Sequence[Bucket]) -> Int[np.ndarray, "utterances"]:
    """The first bucket that holds each utterance, with its labels.

    Args:
      examples: the utterances.
      buckets: of increasing length.

    Returns:
      Positions in buckets; -1 for an utterance that none holds, or that has no samples or frames at all.

    Raises:
      ValueError: there is no bucket, or they do not increase in length, or decrease in labels.

    Example:
      >>> examples = Examples(["a", "b", "c"], [5, 7, 9], [np.zeros(2, int)] * 3, lambda i: None)
      >>> assign(examples, [Bucket(length=5, labels=1, rows=1), Bucket(length=8, labels=3, rows=1)])
      array([ 1,  1, -1])
    """
    if not buckets:
        raise ValueError("buckets: none; one or more is needed")
    for low, high in itertools.pairwise(buckets):
        if low.length >= high.length or low.labels > high.labels:
            raise ValueError(f"buckets: {high} comes after {low}; longer ones, with no fewer labels, are needed")
    found = np.full(len(examples), -1)
    for i in reversed(range(len(buckets))):
        fits = (examples.lengths <= buckets[i].length) & (examples.label_lengths <= buckets[i].labels)
        found[fits & (examples.lengths > 0)] = i
    return found
