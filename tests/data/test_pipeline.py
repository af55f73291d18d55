"""Batches: every example once an epoch, seekable, resumable, bounded in shape."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from orbax.checkpoint import v1 as ocp

from zojax.data import pipeline
from zojax.data.pipeline import eval_batches, skip, train_batches

MAX_LENGTH = 20
BUCKETS = (5, 9, 14)

quick = settings(deadline=None, max_examples=60)  # no deadline: the first example pays for imports


def make_examples(count, seed=0):
    """Rows whose tokens, label and length all follow from the id, so that a mix-up shows."""
    rng = np.random.default_rng(seed)
    return [
        {"tokens": np.arange(n, dtype=np.int32) + 100 * i + 1, "label": i % 3, "id": i}
        for i, n in enumerate(rng.integers(1, MAX_LENGTH + 1, count))
    ]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], strict=True)


def assert_faithful(batch, examples):
    """Each row holds the example that its id names."""
    for row, number in enumerate(batch["id"]):
        if batch["weight"][row]:
            example = examples[number]
            np.testing.assert_array_equal(batch["tokens"][row][batch["mask"][row]], example["tokens"])
            assert batch["label"][row] == example["label"]
            # the mask is a prefix, the rest is 0
            assert batch["mask"][row][: len(example["tokens"])].all()
            assert not batch["tokens"][row][len(example["tokens"]) :].any()


sizes = st.tuples(st.integers(1, 60), st.integers(1, 12)).filter(lambda pair: pair[0] >= pair[1])
seeds = st.integers(0, 2**64 - 1)


@quick
@given(sizes, seeds, st.booleans())
def test_an_epoch_visits_each_example_once_but_for_the_remainder(size, seed, grouped):
    count, batch_size = size
    examples = make_examples(count)
    batches = train_batches(examples, batch_size=batch_size, seed=seed, max_length=MAX_LENGTH, length_grouped=grouped)
    for _ in range(3):
        ids = []
        for _ in range(count // batch_size):
            batch = next(batches)
            assert_faithful(batch, examples)
            assert (batch["weight"] == 1).all()
            ids += batch["id"].tolist()
        assert len(set(ids)) == len(ids) == count - count % batch_size


@quick
@given(sizes, seeds, st.booleans(), st.integers(0, 200), st.integers(0, 50))
def test_state_round_trip_and_skip_agree_with_iterating(size, seed, grouped, position, further):
    count, batch_size = size

    def fresh():
        return train_batches(
            make_examples(count), batch_size=batch_size, seed=seed, max_length=MAX_LENGTH,
            buckets=BUCKETS, length_grouped=grouped,
        )  # fmt: skip

    walked, skipped, restored = fresh(), fresh(), fresh()
    for _ in range(position):
        next(walked)
    skip(skipped, position)
    assert skipped.get_state() == walked.get_state()
    restored.set_state(json.loads(json.dumps(walked.get_state())))
    for _ in range(further % 5):
        expected = next(walked)
        assert_same(next(skipped), expected)
        assert_same(next(restored), expected)


@quick
@given(sizes, seeds, st.booleans())
def test_shapes_are_the_smallest_buckets_that_fit(size, seed, grouped):
    count, batch_size = size
    batches = train_batches(
        make_examples(count), batch_size=batch_size, seed=seed, max_length=MAX_LENGTH,
        buckets=(*BUCKETS, 64), length_grouped=grouped,
    )  # fmt: skip
    for _ in range(10):
        batch = next(batches)
        width, longest = batch["tokens"].shape[1], batch["mask"].sum(1).max()
        assert width == min(bucket for bucket in (*BUCKETS, MAX_LENGTH) if bucket >= longest)


def test_without_buckets_there_is_one_shape():
    batches = train_batches(make_examples(50), batch_size=2, seed=1, max_length=30)
    assert {next(batches)["tokens"].shape for _ in range(50)} == {(2, 30)}


def test_types():
    for batch in (
        next(train_batches(make_examples(9), batch_size=4, seed=0, max_length=MAX_LENGTH)),
        eval_batches(make_examples(9), batch_size=4, max_length=MAX_LENGTH)[-1],
    ):
        types = {name: array.dtype.name for name, array in batch.items()}
        assert types == {
            "tokens": "int32", "mask": "bool", "label": "int32", "weight": "float32", "id": "int32",
        }  # fmt: skip
        assert all(len(array) == 4 for array in batch.values())


def test_order_depends_on_seed_and_epoch_alone():
    def ids(seed, epoch, grouped=False):
        batches = train_batches(
            make_examples(40), batch_size=4, seed=seed, max_length=MAX_LENGTH, length_grouped=grouped
        )
        skip(batches, 10 * epoch)
        return [number for _ in range(10) for number in next(batches)["id"].tolist()]

    assert ids(3, 0) == ids(3, 0)
    assert ids(3, 0) != ids(3, 1) != ids(4, 1)
    assert ids(3, 7) != sorted(ids(3, 7))
    assert ids(3, 0, grouped=True) != ids(3, 1, grouped=True)


def test_the_order_is_fixed_for_ever():
    # Golden: logs of old runs name batches by their number, so these orders must not change.
    examples = make_examples(10)
    plain = train_batches(examples, batch_size=4, seed=7, max_length=MAX_LENGTH)
    grouped = train_batches(examples, batch_size=4, seed=7, max_length=MAX_LENGTH, length_grouped=True)
    assert [next(plain)["id"].tolist() for _ in range(4)] == [[6, 2, 4, 1], [0, 9, 5, 3], [9, 1, 7, 4], [0, 3, 2, 6]]
    assert [next(grouped)["id"].tolist() for _ in range(4)] == [[2, 1, 9, 0], [5, 6, 3, 4], [2, 1, 9, 0], [7, 6, 3, 4]]


def test_every_example_and_every_position_is_equally_likely():
    examples, epochs = make_examples(10), 3000
    batches = train_batches(examples, batch_size=4, seed=0, max_length=MAX_LENGTH)
    firsts = np.bincount([next(batches)["id"][0] for _ in range(2 * epochs)], minlength=10)
    # multinomial with p = 1/10 over 6,000 draws: standard deviation 23; 4.5 of them, under a fixed seed
    assert np.abs(firsts - 600).max() < 105


def test_length_grouping_saves_padding_and_mixes_the_order():
    examples = make_examples(4000)

    def epoch(grouped):
        batches = train_batches(
            examples, batch_size=8, seed=0, max_length=MAX_LENGTH, buckets=BUCKETS, length_grouped=grouped
        )
        return [next(batches) for _ in range(500)]

    def filled(batches):
        return sum(batch["mask"].sum() for batch in batches) / sum(batch["mask"].size for batch in batches)

    # lengths are uniform in 1..20: a random batch of 8 is nearly as wide as the longest (0.54 of it filled),
    # a grouped one is filled up to its bucket's lower neighbour (0.81 on average over these buckets)
    assert filled(epoch(grouped=False)) < 0.6
    assert filled(epoch(grouped=True)) > 0.78
    # every tenth of the epoch has short and long batches: widths are not in order
    widths = [batch["tokens"].shape[1] for batch in epoch(grouped=True)]
    assert all(len(set(widths[start : start + 50])) == 4 for start in range(0, 500, 50))


@quick
@given(st.integers(1, 60), st.integers(1, 12))
def test_evaluation_weighs_each_example_once(count, batch_size):
    examples = make_examples(count)
    batches = eval_batches(examples, batch_size=batch_size, max_length=MAX_LENGTH, buckets=BUCKETS)
    assert sum(float(batch["weight"].sum()) for batch in batches) == count
    real = np.concatenate([batch["id"][batch["weight"] == 1] for batch in batches])
    assert sorted(real.tolist()) == list(range(count))
    for batch in batches:
        assert_faithful(batch, examples)
        assert len(batch["id"]) == batch_size
        assert batch["mask"].any(1).all()  # no row is without tokens: a mean over it would be 0/0
        assert (batch["id"][batch["weight"] == 0] == -1).all()
        assert batch["tokens"].shape[1] in (*BUCKETS, MAX_LENGTH)


@quick
@given(st.integers(1, 5), st.integers(1, 4), seeds, st.booleans())
def test_shards_are_slices_of_the_whole_batch(rows, shard_count, seed, grouped):
    examples, batch_size = make_examples(23), rows * shard_count

    def train(**shard):
        batches = train_batches(
            examples, batch_size=batch_size, seed=seed, max_length=MAX_LENGTH, buckets=BUCKETS,
            length_grouped=grouped, **shard,
        )  # fmt: skip
        return [next(batches) for _ in range(5)]

    def evaluate(**shard):
        return eval_batches(examples, batch_size=batch_size, max_length=MAX_LENGTH, buckets=BUCKETS, **shard)

    for make in (train, evaluate):
        parts = [make(shard_index=index, shard_count=shard_count) for index in range(shard_count)]
        for whole, *slices in zip(make(), *parts, strict=True):
            # equal widths, though a slice's own longest row may be short
            assert_same(whole, {name: np.concatenate([part[name] for part in slices]) for name in whole})


def test_orbax_saves_and_restores_the_iterator(tmp_path):
    def fresh():
        return train_batches(make_examples(30), batch_size=4, seed=5, max_length=MAX_LENGTH, buckets=BUCKETS)

    batches = fresh()
    skip(batches, 17)
    with ocp.training.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save_checkpointables(0, {"data": batches})
        expected = [next(batches) for _ in range(3)]
        restored = fresh()
        checkpointer.load_checkpointables(0, {"data": restored})
    for batch in expected:
        assert_same(next(restored), batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"batch_size": 11}, "batch_size must be at most the 10 examples, got 11"),
        ({"seed": -1}, r"seed must lie in 0\.\.2\*\*64-1, got -1"),
        ({"seed": 2**64}, "seed must lie in"),
        ({"max_length": 5}, "is too long: it has .* tokens, and 1..max_length=5 are allowed"),
        ({"examples": []}, "examples is empty"),
        ({"examples": [{"tokens": np.zeros(0, np.int32), "label": 0, "id": 3}]}, "example 3 is too empty"),
        ({"buckets": (4, 4)}, r"buckets must be positive and increasing, got \(4, 4\)"),
        ({"buckets": (0, 4)}, "buckets must be positive"),
        ({"shard_count": 3}, "shard_count must divide batch_size=4, got 3"),
        ({"shard_count": 0}, "shard_count must divide"),
        ({"shard_index": 2, "shard_count": 2}, r"shard_index must lie in 0\.\.1, got 2"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"examples": make_examples(10), "batch_size": 4, "seed": 0, "max_length": MAX_LENGTH} | change
    with pytest.raises(ValueError, match=message):
        train_batches(arguments.pop("examples"), **arguments)


def test_skip_goes_forwards_only():
    batches = train_batches(make_examples(10), batch_size=4, seed=0, max_length=MAX_LENGTH)
    with pytest.raises(ValueError, match="count must be >= 0, got -1"):
        skip(batches, -1)


def test_no_epoch_is_made_for_a_skip(monkeypatch):
    batches = train_batches(make_examples(10), batch_size=4, seed=0, max_length=MAX_LENGTH)
    monkeypatch.setattr(pipeline, "_collate", None)  # any batch made would raise
    skip(batches, 10**12)
    monkeypatch.undo()
    assert next(batches)["id"].shape == (4,)
