"""Batches of speech: each utterance once an epoch, seekable, resumable, few shapes, nothing cut."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp

from zojax.data.audio import batches as module
from zojax.data.audio.batches import eval_batches, train_batches
from zojax.data.audio.buckets import Bucket, Examples, plan_buckets
from zojax.data.audio.prepared import Utterances
from zojax.data.audio.units import CharacterUnits
from zojax.data.pipeline import skip

quick = settings(deadline=None, max_examples=40)
sizes, seeds = st.integers(1, 60), st.integers(0, 2**64 - 1)
BUCKETS = (
    Bucket(length=6, labels=3, rows=8),
    Bucket(length=12, labels=5, rows=6),
    Bucket(length=20, labels=9, rows=4),
)


def make_examples(count, features=()):
    """Utterances whose samples, labels and lengths all follow from the number, so that a mix-up shows."""
    rng = np.random.default_rng(count)
    lengths, labels = rng.integers(1, 21, count), rng.integers(0, 10, count)
    waves = [np.full((n, *features), i + 1, np.int16) for i, n in enumerate(lengths)]
    return Examples(
        [f"u{i}" for i in range(count)],
        lengths,
        [np.full(n, i + 1, np.int32) for i, n in enumerate(labels)],
        waves.__getitem__,
    )


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], strict=True)


def assert_faithful(batch, examples, buckets=BUCKETS):
    """Each row holds the utterance that its id names, whole, and 0 behind it; the shape is a bucket's."""
    rows, length = batch["x"].shape[:2]
    assert Bucket(length=length, labels=batch["labels"].shape[1], rows=rows) in buckets
    for row, number in enumerate(batch["id"]):
        n, u = batch["x_lengths"][row], batch["label_lengths"][row]
        assert n > 0  # a loss over no frames would be infinite
        if number >= 0:
            np.testing.assert_array_equal(batch["x"][row][:n], examples.x(number), strict=True)
            np.testing.assert_array_equal(batch["labels"][row][:u], examples.labels[number], strict=True)
        assert not batch["x"][row][n:].any()
        assert not batch["labels"][row][u:].any()


def epoch_of(examples, buckets, seed, epochs=1, **shard):
    """The batches of some epochs; an epoch ends where every utterance has been seen."""
    iterator, found = train_batches(examples, buckets, seed=seed, **shard), []
    for _ in range(epochs):
        batches, seen = [], set()
        while len(seen) < len(examples):
            batches.append(next(iterator))
            seen |= set(batches[-1]["id"].tolist())
        found.append(batches)
    return found


@quick
@given(sizes, seeds, st.booleans())
def test_an_epoch_has_every_utterance_once_and_few_twice(count, seed, wide):
    examples = make_examples(count, (3,) if wide else ())
    first, second = epoch_of(examples, BUCKETS, seed, epochs=2)
    assert len(first) == len(second)  # so that batch n is found without the epochs before
    for batches in (first, second):
        ids = np.concatenate([batch["id"] for batch in batches])
        assert set(ids.tolist()) == set(range(count))
        assert len(ids) - count < BUCKETS[-1].rows
        for batch in batches:
            assert_faithful(batch, examples)
            assert (batch["weight"] == 1).all()


def test_padding_is_bounded():
    examples = make_examples(3000)
    for batch in epoch_of(examples, BUCKETS, seed=1)[0]:
        fits = {(b.length, b.labels): i for i, b in enumerate(BUCKETS)}
        bucket = fits[batch["x"].shape[1], batch["labels"].shape[1]]
        if bucket:
            below = BUCKETS[bucket - 1]
            longer = (batch["x_lengths"] > below.length) | (batch["label_lengths"] > below.labels)
            # the rest of the bucket below, fewer than a batch of it, moved up: once in an epoch
            assert longer.all() or (~longer).sum() < below.rows + BUCKETS[-1].rows
    short = sum(
        int(((batch["x_lengths"] <= 6) & (batch["label_lengths"] <= 3)).sum())
        for batch in epoch_of(examples, BUCKETS, seed=1)[0]
        if batch["x"].shape[1] > 6
    )
    assert short < 8 + 6 + 4


@quick
@given(sizes, seeds, st.integers(0, 200), st.integers(0, 50))
def test_state_round_trip_and_skip_agree_with_iterating(count, seed, position, further):
    def fresh():
        return train_batches(make_examples(count), BUCKETS, seed=seed)

    walked, skipped, restored = fresh(), fresh(), fresh()
    for _ in range(position):
        next(walked)
    skip(skipped, position)
    assert skipped.get_state() == walked.get_state() == {"next_index": position}
    restored.set_state(json.loads(json.dumps(walked.get_state())))
    for _ in range(further % 5):
        expected = next(walked)
        assert_same(next(skipped), expected)
        assert_same(next(restored), expected)


def test_orbax_saves_and_restores_the_iterator(tmp_path):
    batches = train_batches(make_examples(30), BUCKETS, seed=5)
    skip(batches, 17)
    with ocp.training.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save_checkpointables(0, {"data": batches})
        expected = [next(batches) for _ in range(3)]
        restored = train_batches(make_examples(30), BUCKETS, seed=5)
        checkpointer.load_checkpointables(0, {"data": restored})
    for batch in expected:
        assert_same(next(restored), batch)


def test_no_epoch_is_made_for_a_skip(monkeypatch):
    batches = train_batches(make_examples(10), BUCKETS, seed=0)
    monkeypatch.setattr(module, "_collate", None)  # any batch made would raise
    skip(batches, 10**12)
    monkeypatch.undo()
    assert len(next(batches)["id"]) in (4, 6, 8)


def test_order_depends_on_lengths_seed_and_epoch_alone():
    def ids(seed, epoch, examples):
        return [batch["id"].tolist() for batch in epoch_of(examples, BUCKETS, seed, epochs=2)[epoch]]

    examples = make_examples(40)
    # other samples, names and labels of the same lengths
    other = Examples(["x"] * 40, examples.lengths, [u * 0 for u in examples.labels], lambda i: examples.x(i) * 0)
    assert ids(3, 0, examples) == ids(3, 0, other)
    assert ids(3, 0, examples) != ids(3, 1, examples) != ids(4, 1, examples)


def test_the_order_is_fixed_for_ever():
    # Golden: logs of old runs name batches by their number, so these orders must not change.
    lengths = [3, 5, 1, 6, 2, 4, 8]
    examples = Examples(list("abcdefg"), lengths, [np.zeros(0, int)] * 7, lambda i: np.zeros(lengths[i], np.int16))
    buckets = [Bucket(length=4, labels=0, rows=3), Bucket(length=8, labels=0, rows=2)]
    batches = train_batches(examples, buckets, seed=7)
    assert [next(batches)["id"].tolist() for _ in range(9)] == [
        [1, 5],
        [6, 3],
        [2, 0, 4],
        [3, 6],
        [4, 2, 0],
        [1, 5],
        [0, 2, 5],
        [4, 3],
        [1, 6],
    ]


def test_every_utterance_is_drawn_and_doubled_alike():
    examples, epochs = make_examples(41), 300
    ids = [batch["id"] for batches in epoch_of(examples, BUCKETS, seed=0, epochs=epochs) for batch in batches]
    counts = np.bincount(np.concatenate(ids), minlength=41) - epochs
    assert (counts >= 0).all()
    doubled = counts.sum() / epochs  # rows that are filled up, each epoch the same number
    assert 0 < doubled == int(doubled) < BUCKETS[-1].rows
    # each with probability doubled / 41, whatever its bucket: within 4.5 standard deviations
    p = doubled / 41
    assert np.abs(counts - epochs * p).max() < 4.5 * np.sqrt(epochs * p * (1 - p))


@quick
@given(sizes)
def test_evaluation_weighs_each_utterance_once(count):
    examples = make_examples(count)
    batches = eval_batches(examples, BUCKETS)
    assert sum(float(batch["weight"].sum()) for batch in batches) == count
    assert sorted(np.concatenate([batch["id"][batch["weight"] == 1] for batch in batches])) == list(range(count))
    for batch in batches:
        assert_faithful(batch, examples)
        assert (batch["id"][batch["weight"] == 0] == -1).all()
    assert_same(batches[-1], batches[len(batches) - 1])
    assert_same(batches[0:1][0], next(iter(batches)))


@quick
@given(sizes, seeds)
def test_shards_are_slices_of_the_whole_batch(count, seed):
    examples = make_examples(count)

    def train(**shard):
        batches = train_batches(examples, BUCKETS, seed=seed, **shard)
        return [next(batches) for _ in range(4)]

    for make in (train, lambda **shard: eval_batches(examples, BUCKETS, **shard)):
        parts = [make(shard_index=index, shard_count=2) for index in range(2)]
        for whole, *slices in zip(make(), *parts, strict=True):
            assert_same(whole, {name: np.concatenate([part[name] for part in slices]) for name in whole})


def test_what_fits_no_bucket_is_counted_and_named_and_never_cut():
    lengths, words = [5, 21, 7, 0, 9], [1, 1, 10, 1, 2]
    examples = Examples(
        list("abcde"), lengths, [np.ones(n, int) for n in words], lambda i: np.ones(lengths[i], np.int16)
    )
    message = (
        r"3 of 5 utterances fit no bucket, as lengths 1\.\.20 and up to 9 labels do: "
        r"'b' \(length 21, 1 labels\), 'c' \(length 7, 10 labels\), 'd' \(length 0, 1 labels\)"
    )
    with pytest.warns(UserWarning, match=message + "; they are left out"):
        batches = train_batches(examples, BUCKETS, seed=0)
    seen = {number for _ in range(9) for number in next(batches)["id"].tolist()}
    assert seen == {0, 4}
    # a score over fewer utterances would be no score
    with pytest.raises(ValueError, match=message):
        eval_batches(examples, BUCKETS)
    many = Examples(["n"] * 12, [99] * 12, [np.ones(1, int)] * 12, lambda i: np.ones(99, np.int16))
    with pytest.raises(ValueError, match=r"12 of 12 utterances .*, \.\.\.$"):
        train_batches(many, BUCKETS, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, r"seed must lie in 0\.\.2\*\*64-1, got -1"),
        ({"seed": 2**64}, "seed must lie in"),
        ({"shard_count": 3}, "shard_count must divide the rows of all buckets, got 3"),
        ({"shard_count": 0}, "shard_count must divide"),
        ({"shard_count": 2, "shard_index": 2}, r"shard_index must lie in 0\.\.1, got 2"),
        ({"examples": make_examples(0)}, "examples is empty"),
        ({"buckets": ()}, "buckets: none"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"examples": make_examples(9), "buckets": BUCKETS, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        train_batches(arguments.pop("examples"), arguments.pop("buckets"), **arguments)


def test_a_length_that_is_not_true_is_found():
    examples = Examples(["a"], [5], [np.ones(1, int)], lambda i: np.ones(4, np.int16))
    with pytest.raises(ValueError, match="'a': x has length 4, not 5"):
        next(train_batches(examples, BUCKETS, seed=0))


def test_utterances_become_examples():
    records = [
        {"id": name, "samples": np.full(3, 7, np.int16), "text": text, "speaker": b""}
        for name, text in [(b"a", b"ba"), (b"b", b"")]
    ]
    utterances = Utterances(records, [("a", 3, "ba", ""), ("b", 3, "", "")])
    examples = Examples.of(utterances, CharacterUnits(characters="ab"))
    buckets = plan_buckets(examples.lengths, examples.label_lengths, count=2, budget=8, max_rows=2)
    (batch,) = eval_batches(examples, buckets)
    assert batch["x"].dtype == np.int16
    assert batch["x"].tolist() == [[7, 7, 7], [7, 7, 7]]
    assert batch["labels"].tolist() == [[2, 1], [0, 0]]
    assert batch["label_lengths"].tolist() == [2, 0]
