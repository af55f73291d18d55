"""Utterances to padded numpy batches of few shapes: endless random ones to train on, ordered ones to evaluate on.

Each batch has the shape of one of a few buckets. As in `zojax.data.pipeline`, batch number n is a pure function of
(lengths, seed, n): the state of an iterator is one integer, and `pipeline.skip` advances it for nothing.
"""

import functools
import sys
import warnings
from collections.abc import Sequence
from typing import TypedDict

import grain
import numpy as np
from jaxtyping import Float32, Int32, Shaped

from zojax.data.audio.buckets import Bucket, Examples, assign
from zojax.data.audio.units import BLANK

__all__ = ["Batch", "eval_batches", "train_batches"]


class Batch(TypedDict):
    """Utterances padded to the shape of a bucket; `x` and `labels` are 0 behind their lengths.

    `weight` is 1, and 0 for the rows that fill up a batch of an evaluation; such rows repeat an utterance (so that no
    row is without frames) and have id -1. The other ids are positions in the examples.
    """

    x: Shaped[np.ndarray, "batch length *features"]
    x_lengths: Int32[np.ndarray, "batch"]
    labels: Int32[np.ndarray, "batch labels"]
    label_lengths: Int32[np.ndarray, "batch"]
    weight: Float32[np.ndarray, "batch"]
    id: Int32[np.ndarray, "batch"]


def train_batches(
    examples: Examples,
    buckets: Sequence[Bucket],
    *,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.DatasetIterator:
    """Batches to train on: endless, drawn anew every epoch.

    An utterance goes to the first bucket that holds it. In each epoch those of a bucket are shuffled and cut into
    batches; the rest, which would not fill one, moves up to the next bucket, and the rest of the last is filled up with
    utterances drawn from all. So an epoch has every utterance once, fewer than a batch of them twice, and all rows have
    weight 1. Then the batches are shuffled.

    Utterances that fit no bucket are left out, with a warning that counts and names them.

    The iterator is grain's: `get_state`, `set_state`, and orbax saves it. See `pipeline.skip` to advance it.

    Args:
      examples: the utterances.
      buckets: the shapes, of increasing length; see `plan_buckets`.
      seed: 0 <= seed < 2**64; fixes the order of every epoch, on any machine.
      shard_index: which consecutive slice of the rows of each batch this process gets.
      shard_count: number of slices; divides the rows of each bucket.

    Returns:
      An iterator of `Batch`.

    Raises:
      ValueError: an argument is out of range, or no utterance fits.

    Example:
      >>> waves = [np.ones(3 + i, np.int16) for i in range(6)]
      >>> examples = Examples(list("abcdef"), range(3, 9), [np.array([1])] * 6, waves.__getitem__)
      >>> buckets = [Bucket(length=6, labels=2, rows=2), Bucket(length=8, labels=2, rows=2)]
      >>> batches = train_batches(examples, buckets, seed=0)
      >>> epoch = [next(batches) for _ in range(3)]
      >>> sorted(np.concatenate([batch["id"] for batch in epoch]).tolist())
      [0, 1, 2, 3, 4, 5]
      >>> batches.get_state()
      {'next_index': 3}
    """
    where = _checked(examples, buckets, shard_index, shard_count)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in 0..2**64-1, got {seed}")
    if (where < 0).all():
        raise ValueError(_unfit(examples, where, buckets))
    if (where < 0).any():
        warnings.warn(f"{_unfit(examples, where, buckets)}; they are left out", stacklevel=2)
    batches = _TrainBatches(examples, tuple(buckets), where, seed=seed, shard=(shard_index, shard_count))
    # A batch is little work beside a step on it, and one thread keeps the order of reads.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


def eval_batches(
    examples: Examples, buckets: Sequence[Bucket], *, shard_index: int = 0, shard_count: int = 1
) -> Sequence[Batch]:
    """Batches to evaluate on: every utterance once, bucket by bucket, each one's last batch filled up with weight 0.

    Args:
      examples: the utterances.
      buckets: the shapes, of increasing length.
      shard_index: which consecutive slice of the rows of each batch this process gets.
      shard_count: number of slices; divides the rows of each bucket.

    Returns:
      The batches, each made when it is read; the weights of all shards sum to the number of utterances.

    Raises:
      ValueError: an argument is out of range, there is no utterance, or one fits no bucket: an evaluation leaves none
        out.

    Example:
      >>> examples = Examples(list("abc"), [3, 4, 7], [np.array([1])] * 3, lambda i: np.ones((3, 4, 7)[i], np.int16))
      >>> buckets = [Bucket(length=4, labels=2, rows=2), Bucket(length=8, labels=2, rows=2)]
      >>> [(batch["x"].shape, batch["weight"].tolist()) for batch in eval_batches(examples, buckets)]
      [((2, 4), [1.0, 1.0]), ((2, 8), [1.0, 0.0])]
    """
    where = _checked(examples, buckets, shard_index, shard_count)
    if (where < 0).any():
        raise ValueError(_unfit(examples, where, buckets))
    order = np.argsort(examples.lengths, kind="stable")
    parts = []
    for i, bucket in enumerate(buckets):
        rows = order[where[order] == i]
        parts += [(i, rows[start : start + bucket.rows]) for start in range(0, len(rows), bucket.rows)]
    return _EvalBatches(examples, tuple(buckets), parts, (shard_index, shard_count))


class _EvalBatches(Sequence[Batch]):
    """Batches of given rows, made when they are read."""

    def __init__(self, examples, buckets, parts, shard):
        self._examples, self._buckets, self._parts, self._shard = examples, buckets, parts, shard

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        bucket, rows = self._parts[index]
        return _collate(self._examples, self._buckets[bucket], rows, self._shard)


class _TrainBatches:
    """The batches of all epochs as a random-access source for grain."""

    def __init__(self, examples, buckets, where, *, seed, shard):
        self._examples, self._buckets, self._where = examples, buckets, where
        self._seed, self._shard = seed, shard
        # How many batches of which bucket an epoch has, which follows from the lengths alone.
        self._counts, rest = [], 0
        for i, bucket in enumerate(buckets):
            batches, rest = divmod(rest + int((where == i).sum()), bucket.rows)
            self._counts.append(batches)
        self._counts[-1] += rest > 0
        # two epochs, for a reader that goes back and forth over the border of one
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Batch:
        epoch, position = divmod(index, sum(self._counts))
        bucket, rows = self._epoch(epoch)[position]
        return _collate(self._examples, self._buckets[bucket], rows, self._shard)

    def _make_epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Bucket and row numbers of each batch of an epoch."""
        # Raw words of a counter-based generator and a stable sort: numpy promises the words, while
        # `Generator.permutation` may change between its versions.
        generator = np.random.Philox(key=np.array([self._seed, epoch], np.uint64))
        words = generator.random_raw(len(self._where))
        parts, rest = [], np.zeros(0, np.int64)
        for i, (bucket, count) in enumerate(zip(self._buckets, self._counts, strict=True)):
            pool = np.concatenate([rest, np.flatnonzero(self._where == i)])
            # By words of their own for each bucket: those that move up would else all come to its end.
            pool = pool[np.argsort(generator.random_raw(len(pool)), kind="stable")]
            if (missing := count * bucket.rows - len(pool)) > 0:
                order = np.argsort(words, kind="stable")
                pool = np.concatenate([pool, np.resize(order[self._where[order] >= 0], missing)])
            parts += [(i, rows) for rows in pool[: count * bucket.rows].reshape(count, bucket.rows)]
            rest = pool[count * bucket.rows :]
        order = np.argsort(generator.random_raw(len(parts)), kind="stable")
        return [parts[i] for i in order]


def _collate(examples: Examples, bucket: Bucket, rows: np.ndarray, shard: tuple[int, int]) -> Batch:
    """Pads the utterances `rows` to the bucket's shape and cuts out this process's rows."""
    index, count = shard
    share = bucket.rows // count
    mine = slice(index * share, (index + 1) * share)
    filled = np.concatenate([rows, np.repeat(rows[-1:], bucket.rows - len(rows))])[mine]
    real = np.arange(bucket.rows)[mine] < len(rows)
    waves = [examples.x(int(row)) for row in filled]
    x = np.zeros((len(filled), bucket.length, *waves[0].shape[1:]), waves[0].dtype)
    labels = np.full((len(filled), bucket.labels), BLANK, np.int32)
    for i, (row, wave) in enumerate(zip(filled, waves, strict=True)):
        if len(wave) != examples.lengths[row]:
            raise ValueError(f"{examples.names[row]!r}: x has length {len(wave)}, not {examples.lengths[row]}")
        x[i, : len(wave)] = wave
        labels[i, : len(examples.labels[row])] = examples.labels[row]
    return {
        "x": x,
        "x_lengths": examples.lengths[filled].astype(np.int32),
        "labels": labels,
        "label_lengths": examples.label_lengths[filled].astype(np.int32),
        "weight": real.astype(np.float32),
        "id": np.where(real, filled, -1).astype(np.int32),
    }


def _checked(examples, buckets, shard_index, shard_count) -> np.ndarray:
    """Checks what both kinds of batches have in common; the bucket of each utterance."""
    if shard_count < 1 or any(bucket.rows % shard_count for bucket in buckets):
        raise ValueError(f"shard_count must divide the rows of all buckets, got {shard_count}")
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index must lie in 0..{shard_count - 1}, got {shard_index}")
    if not len(examples):
        raise ValueError("examples is empty")
    return assign(examples, buckets)


def _unfit(examples: Examples, where: np.ndarray, buckets: Sequence[Bucket]) -> str:
    unfit = np.flatnonzero(where < 0)
    numbers = ((i, examples.lengths[i], examples.label_lengths[i]) for i in unfit[:10])
    named = ", ".join(f"{examples.names[i]!r} (length {length}, {labels} labels)" for i, length, labels in numbers)
    last = buckets[-1]
    return (
        f"{len(unfit)} of {len(examples)} utterances fit no bucket, as lengths 1..{last.length} and up to "
        f"{last.labels} labels do: {named}{', ...' if len(unfit) > 10 else ''}"
    )
