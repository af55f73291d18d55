"""Tokenised examples to padded numpy batches: endless random ones to train on, ordered ones to evaluate on.

Batch number n is a pure function of (examples, probabilities, seed, n). So the state of an iterator is one
integer, skipping costs nothing, and no buffer of shuffled rows stands between a checkpoint and the batches after
it.
"""

import functools
import itertools
import sys
from collections.abc import Sequence
from typing import TypedDict

import grain
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32

from zojax.data.packing import PackedBatch, balanced, packed
from zojax.data.text import Row
from zojax.data.tokenize import Tokenizer

# With `length_grouped`, rows are sorted by length among this many batches: enough that padding all but goes
# (with batches of 16, rows of a group are 800), few enough that a group is still a random draw.
GROUP_BATCHES = 50


class Example(TypedDict):
    """One tokenised example: token numbers without padding, class, row number in the split."""

    tokens: Int32[np.ndarray, "length"]
    label: int
    id: int


class Batch(TypedDict):
    """Examples padded to one length; `tokens` is 0 where `mask` is False.

    `weight` is 1 for examples, 1/(N p_i) for those drawn by probabilities, and 0 for the rows that fill up the
    last batch of an evaluation; such rows repeat an example (so that no row is without tokens) and have id -1.
    """

    tokens: Int32[np.ndarray, "batch length"]
    mask: Bool[np.ndarray, "batch length"]
    label: Int32[np.ndarray, "batch"]
    weight: Float32[np.ndarray, "batch"]
    id: Int32[np.ndarray, "batch"]


def tokenized(rows: Sequence[Row], tokenizer: Tokenizer, *, max_length: int) -> list[Example]:
    """Tokenise the rows of a split.

    Args:
      rows: rows with `text`, `label` and `id`.
      tokenizer: the tokenizer.
      max_length: texts are cut to this many tokens, special ones included.

    Returns:
      One example a row, in the same order.

    Raises:
      ValueError: `max_length` is too small for the special tokens.

    Example:
      >>> import tempfile, pathlib
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"]
      ...     _ = pathlib.Path(folder, "vocab.txt").write_text("\\n".join(vocab))
      ...     tokenizer = Tokenizer.from_folder(folder)
      >>> tokenized([{"text": "A good film", "label": 1, "id": 0}], tokenizer, max_length=4)
      [{'tokens': array([2, 1, 5, 3], dtype=int32), 'label': 1, 'id': 0}]
    """
    rows = list(rows)  # read once: a row of a prepared split is a read of its file
    tokens = tokenizer.encode([row["text"] for row in rows], max_length)
    return [{"tokens": ids, "label": row["label"], "id": row["id"]} for ids, row in zip(tokens, rows, strict=True)]


def train_batches(
    examples: Sequence[Example],
    *,
    batch_size: int,
    seed: int,
    max_length: int,
    buckets: Sequence[int] | None = None,
    length_grouped: bool = False,
    packed_rows: int = 0,
    probabilities: Float64[np.ndarray, "n"] | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.DatasetIterator:
    """Batches to train on: endless, drawn anew every epoch.

    An epoch is `len(examples) // batch_size` batches. Without `probabilities` it visits no example twice and
    all rows have weight 1. The remainder, which would not fill a batch, is dropped from that epoch; it is
    another remainder in the next, since the shuffle comes first.

    With probabilities p, examples are drawn with replacement, and a row of example i has weight
    w_i = 1/(N p_i), so that E[w_i f(i)] is the mean of f over all N examples, for each row of each epoch: a
    loss is to be divided by the number of rows, and not by the sum of their weights, which varies. A
    batch has one draw from each of `batch_size` strata of equal probability, in the order of class and then of
    p (ours). So its rows have the classes in fixed proportions, and since the errors on one class pull the
    weights one way, what they have in common cancels alike in every batch: with p from `sampling.importance`, the
    gradients of batches vary less.

    The iterator is grain's: `get_state`, `set_state`, and orbax saves it. See `skip` to advance it.

    Args:
      examples: tokenised examples, none longer than `max_length`; held in memory.
      batch_size: rows of a batch, over all shards together.
      seed: 0 <= seed < 2**64; fixes the order of every epoch, on any machine.
      max_length: the longest padded length, in tokens.
      buckets: increasing padded lengths; a batch gets the smallest that fits its longest row, so the number
        of shapes to compile is bounded. `max_length` is always the last; larger entries are not used.
        None pads every batch to `max_length`.
      length_grouped: sort by length among `GROUP_BATCHES` shuffled batches, then shuffle these batches, so
        that rows of a batch are about equally long (the project's own choice). False: plain random batches.
        With `probabilities`, the rows of each stratum are sorted on their own. If all were sorted together,
        and p rose with the length, long batches would be many, and a ratio would lose their small weights.
      packed_rows: pack the `batch_size` texts of every batch into so many rows of `max_length` tokens; among
        `GROUP_BATCHES` batches they are dealt out so that all have about as many tokens. 0: a text a row.
      probabilities: of each example to be drawn, positive, summing to 1, such as `sampling.importance` makes. None:
        every example once an epoch.
      shard_index: which consecutive slice of the rows of each batch this process gets.
      shard_count: number of slices; divides `batch_size`. All slices of a batch have the same length.

    Returns:
      An iterator of `Batch`, or of `PackedBatch`.

    Raises:
      ValueError: an argument is out of range, an example is empty or longer than `max_length`, or there are
        fewer examples than `batch_size`; on the way, if a batch does not fit into `packed_rows`.

    Example:
      >>> examples = [{"tokens": np.arange(1, 3 + i % 4, dtype=np.int32), "label": 0, "id": i} for i in range(9)]
      >>> batches = train_batches(examples, batch_size=4, seed=0, max_length=8, buckets=(4,))
      >>> epoch = [next(batches), next(batches)]
      >>> len(set(np.concatenate([batch["id"] for batch in epoch]).tolist()))
      8
      >>> sorted({batch["tokens"].shape[1] for batch in epoch} | {4, 8})
      [4, 8]
      >>> batches.get_state()
      {'next_index': 2}
    """
    lengths = _check(examples, batch_size, max_length, shard_index, shard_count)
    if len(examples) < batch_size:
        raise ValueError(f"batch_size must be at most the {len(examples)} examples, got {batch_size}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in 0..2**64-1, got {seed}")
    if probabilities is not None:
        _check_probabilities(probabilities, len(examples))
    if packed_rows and (length_grouped or shard_count > 1):
        problem = "length_grouped" if length_grouped else f"shard_count={shard_count}"
        raise ValueError(f"packed_rows={packed_rows} does not go with {problem}")
    batches = _TrainBatches(
        examples,
        lengths,
        probabilities,
        batch_size=batch_size,
        seed=seed,
        widths=_widths(buckets, max_length),
        length_grouped=length_grouped,
        packed_rows=packed_rows,
        shard=_shard(batch_size, shard_index, shard_count),
    )
    # A batch is some tens of microseconds of work: handing it over between threads would cost as much.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


def skip(batches: grain.DatasetIterator, count: int) -> None:
    """Advance an iterator of `train_batches`, in place, without making the batches in between.

    Args:
      batches: the iterator.
      count: how many batches to pass over, >= 0.

    Raises:
      ValueError: `count` is negative.

    Example:
      >>> examples = [{"tokens": np.ones(2, np.int32), "label": 0, "id": i} for i in range(9)]
      >>> batches = train_batches(examples, batch_size=2, seed=0, max_length=4)
      >>> skip(batches, 10**9)
      >>> batches.get_state()
      {'next_index': 1000000000}
    """
    if count < 0:
        raise ValueError(f"count must be >= 0, got {count}")
    batches.set_state({"next_index": batches.get_state()["next_index"] + count})


def eval_batches(
    examples: Sequence[Example],
    *,
    batch_size: int,
    max_length: int,
    buckets: Sequence[int] | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
) -> list[Batch]:
    """Batches to evaluate on: every example once, shortest first, the last batch filled up with weight 0.

    Args:
      examples: tokenised examples, none longer than `max_length`.
      batch_size: rows of a batch, over all shards together.
      max_length: the longest padded length, in tokens.
      buckets: as in `train_batches`.
      shard_index: which consecutive slice of the rows of each batch this process gets.
      shard_count: number of slices; divides `batch_size`.

    Returns:
      The batches; the weights of all shards sum to the number of examples.

    Raises:
      ValueError: an argument is out of range, there is no example, or one is empty or longer than
        `max_length`.

    Example:
      >>> examples = [{"tokens": np.ones(2 + i, np.int32), "label": 1, "id": i} for i in range(3)]
      >>> batches = eval_batches(examples, batch_size=2, max_length=8, buckets=(4, 6))
      >>> [(batch["tokens"].shape, batch["weight"].tolist(), batch["id"].tolist()) for batch in batches]
      [((2, 4), [1.0, 1.0], [0, 1]), ((2, 4), [1.0, 0.0], [2, -1])]
    """
    lengths = _check(examples, batch_size, max_length, shard_index, shard_count)
    widths = _widths(buckets, max_length)
    shard = _shard(batch_size, shard_index, shard_count)
    order = np.argsort(lengths, kind="stable")
    return [
        _collate(examples, lengths, np.ones(len(order)), order[start : start + batch_size], batch_size, widths, shard)
        for start in range(0, len(order), batch_size)
    ]


class _TrainBatches:
    """The batches of all epochs as a random-access source for grain."""

    def __init__(
        self, examples, lengths, probabilities, *, batch_size, seed, widths, length_grouped, packed_rows, shard
    ):
        self._examples, self._lengths, self._probabilities = examples, lengths, probabilities
        self._batch_size, self._seed, self._widths = batch_size, seed, widths
        self._length_grouped, self._packed_rows, self._shard = length_grouped, packed_rows, shard
        self._weights = np.ones(len(examples)) if probabilities is None else 1 / (len(examples) * probabilities)
        # two epochs, for a reader that goes back and forth over the border of one
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Batch | PackedBatch:
        epoch, position = divmod(index, len(self._examples) // self._batch_size)
        rows = self._epoch(epoch)[position]
        if self._packed_rows:
            shape = (self._packed_rows, self._widths[-1])
            return _collate_packed(self._examples, self._lengths, self._weights, rows, shape)
        return _collate(self._examples, self._lengths, self._weights, rows, self._batch_size, self._widths, self._shard)

    def _make_epoch(self, epoch: int) -> np.ndarray:
        """Row numbers [steps, batch_size] of an epoch."""
        steps = len(self._examples) // self._batch_size
        # Raw words of a counter-based generator and a stable sort: numpy promises the words, while
        # `Generator.permutation` may change between its versions.
        generator = np.random.Philox(key=np.array([self._seed, epoch], np.uint64))
        order = generator.random_raw(steps)
        if self._probabilities is None:
            rows = np.argsort(generator.random_raw(len(self._examples)), kind="stable")[: steps * self._batch_size]
            rows = rows.reshape(steps, self._batch_size)
        else:
            rows = self._draw(generator.random_raw((steps, self._batch_size)))
        if self._length_grouped or self._packed_rows:
            groups = []
            for start in range(0, steps, GROUP_BATCHES):
                group = self._deal(rows[start : start + GROUP_BATCHES])
                groups.append(group[np.argsort(order[start : start + len(group)], kind="stable")])
            rows = np.concatenate(groups)
        if self._probabilities is not None:
            # Rows in the order of their strata would give each shard weights of its own size.
            places = np.argsort(generator.random_raw(rows.shape), axis=1, kind="stable")
            rows = np.take_along_axis(rows, places, axis=1)
        return rows

    def _draw(self, words: np.ndarray) -> np.ndarray:
        """Row numbers by the probabilities, from words [steps, batch_size]; column k is of stratum k."""
        uniform = (words >> np.uint64(11)) * 2.0**-53  # in [0, 1)
        # p falls in one class and rises in the next, so that no stratum holds high and low ones.
        labels = np.array([example["label"] for example in self._examples])
        order = np.lexsort((np.where(labels % 2, self._probabilities, -self._probabilities), labels))
        total = np.cumsum(self._probabilities[order])
        targets = (np.arange(self._batch_size) + uniform) / self._batch_size * total[-1]
        # The largest target may be rounded up to the total, which is past the last row.
        return order[np.minimum(np.searchsorted(total, targets, side="right"), len(order) - 1)]

    def _deal(self, rows: np.ndarray) -> np.ndarray:
        """The rows of some batches put into batches of texts of like length, or of as many tokens."""
        if self._packed_rows:
            return np.take_along_axis(rows, balanced(self._lengths[rows]), axis=0)
        if self._probabilities is None:
            rows = rows.ravel()
            return rows[np.argsort(self._lengths[rows], kind="stable")].reshape(-1, self._batch_size)
        return np.take_along_axis(rows, np.argsort(self._lengths[rows], axis=0, kind="stable"), axis=0)


def _collate(examples, lengths, weights, rows, batch_size, widths, shard: slice) -> Batch:
    """Pad the examples `rows` to a batch and cut out this process's rows.

    The width comes from the whole batch, so that all processes compile and run the same shape.
    """
    longest = lengths[rows].max()
    width = next(width for width in widths if width >= longest)
    filled = np.concatenate([rows, np.repeat(rows[-1:], batch_size - len(rows))])[shard]
    real = np.arange(batch_size)[shard] < len(rows)
    chosen = [examples[row] for row in filled]
    mask = np.arange(width) < lengths[filled][:, None]
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = np.concatenate([example["tokens"] for example in chosen])
    return {
        "tokens": tokens,
        "mask": mask,
        "label": np.array([example["label"] for example in chosen], np.int32),
        "weight": np.where(real, weights[filled], 0).astype(np.float32),
        "id": np.where(real, [example["id"] for example in chosen], -1).astype(np.int32),
    }


def _collate_packed(examples, lengths, weights, rows, shape: tuple[int, int]) -> PackedBatch:
    """The examples `rows` side by side in a batch of `shape`."""
    places = packed(lengths[rows], rows=shape[0], width=shape[1])
    tokens = np.zeros(shape, np.int32)
    segment = np.full(shape, len(rows), np.int32)
    for number, (row, (line, start)) in enumerate(zip(rows, places, strict=True)):
        columns = slice(start, start + lengths[row])
        tokens[line, columns] = examples[row]["tokens"]
        segment[line, columns] = number
    return {
        "tokens": tokens,
        "mask": segment < len(rows),
        "segment": segment,
        "label": np.array([examples[row]["label"] for row in rows], np.int32),
        "weight": weights[rows].astype(np.float32),
        "id": np.array([examples[row]["id"] for row in rows], np.int32),
    }


def _check(examples, batch_size, max_length, shard_index, shard_count) -> np.ndarray:
    """Check what both kinds of batches have in common; lengths of the examples."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    if shard_count < 1 or batch_size % shard_count:
        raise ValueError(f"shard_count must divide batch_size={batch_size}, got {shard_count}")
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index must lie in 0..{shard_count - 1}, got {shard_index}")
    if not len(examples):
        raise ValueError("examples is empty")
    lengths = np.array([len(example["tokens"]) for example in examples])
    for fault, row in (("empty", lengths.argmin()), ("long", lengths.argmax())):
        if not 1 <= lengths[row] <= max_length:
            raise ValueError(
                f"example {examples[row]['id']} is too {fault}: it has {lengths[row]} tokens, and "
                f"1..max_length={max_length} are allowed"
            )
    return lengths


def _check_probabilities(probabilities: np.ndarray, count: int) -> None:
    if probabilities.shape != (count,):
        raise ValueError(f"probabilities must be one for each of {count} examples, got shape {probabilities.shape}")
    # Written so that NaN fails too.
    if not (probabilities > 0).all():
        row = int(np.argmin(probabilities > 0))
        raise ValueError(f"probabilities must be positive, got {probabilities[row]} for example {row}")
    if not abs(probabilities.sum() - 1) <= 1e-6:  # what float32 leaves
        raise ValueError(f"probabilities must sum to 1, got {probabilities.sum()}")


def _widths(buckets: Sequence[int] | None, max_length: int) -> tuple[int, ...]:
    """Padded lengths in use: the buckets below `max_length`, and `max_length`."""
    buckets = tuple(buckets or ())
    if any(low >= high for low, high in itertools.pairwise((0, *buckets))):
        raise ValueError(f"buckets must be positive and increasing, got {buckets}")
    return (*(width for width in buckets if width < max_length), max_length)


def _shard(batch_size: int, index: int, count: int) -> slice:
    rows = batch_size // count
    return slice(index * rows, (index + 1) * rows)
