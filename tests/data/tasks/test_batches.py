import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zojax.data import pipeline
from zojax.data.tasks.batches import eval_batches, train_batches


def example(id, prompt, answers, correct=(0,), shared=False):
    """A row whose answers follow `prompt`; tokens are numbers from 1."""
    sequences = [np.array([*prompt, *answer[:-1]], np.int32) for answer in answers]
    sequences = sequences[:1] if shared else sequences
    return {
        "sequences": sequences,
        "answers": [np.array(answer, np.int32) for answer in answers],
        "at": [np.arange(len(s) - len(a), len(s), dtype=np.int32) for s, a in zip(sequences, answers, strict=False)],
        "correct": correct,
        "id": id,
    }


def many(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        example(
            100 + i,
            rng.integers(1, 50, rng.integers(1, 12)),
            [rng.integers(1, 50, rng.integers(1, 4)).tolist() for _ in range(rng.integers(1, 4))],
            correct=(0,),
        )
        for i in range(count)
    ]


def check(batch, by_id, side):
    """Every row of a batch is its example, wherever the padding is."""
    for b, id in enumerate(batch["id"]):
        if id < 0:
            assert batch["weight"][b] == 0
            continue
        given = by_id[id]
        for k, answer in enumerate(given["answers"]):
            place = k if batch["tokens"].shape[1] > 1 else 0
            mask, tokens = batch["mask"][b, place], batch["tokens"][b, place]
            sequence = tokens[mask]
            assert sequence.tolist() == given["sequences"][min(k, len(given["sequences"]) - 1)].tolist()
            assert mask[0 if side == "right" else -1]
            assert (tokens[~mask] == 0).all()
            here = batch["answer_mask"][b, k]
            assert batch["answer"][b, k][here].tolist() == answer.tolist()
            # The column that predicts a token is the one before it.
            columns = batch["at"][b, place][: len(answer)]
            assert mask[columns].all()
            assert tokens[columns[1:]].tolist() == answer[:-1].tolist()
            edge = np.flatnonzero(mask)[-1]
            assert columns[-1] == edge
        assert not batch["answer_mask"][b, len(given["answers"]) :].any()
        assert np.flatnonzero(batch["correct"][b]).tolist() == list(given["correct"])


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 17), size=st.integers(1, 5), seed=st.integers(0, 9), side=st.sampled_from(["left", "right"])
)
def test_an_evaluation_holds_every_example_once(count, size, seed, side):
    examples = many(count, seed)
    batches = eval_batches(examples, batch_size=size, max_length=16, buckets=(4, 8), side=side)
    by_id = {row["id"]: row for row in examples}
    for batch in batches:
        check(batch, by_id, side)
    ids = np.concatenate([batch["id"] for batch in batches])
    assert sorted(ids[ids >= 0].tolist()) == sorted(by_id)
    assert sum(batch["weight"].sum() for batch in batches) == count
    assert {batch["tokens"].shape[2] for batch in batches} <= {4, 8, 16}
    # One shape but for the width, so that each width compiles once.
    assert len({(batch["tokens"].shape[:2], batch["answer"].shape) for batch in batches}) == 1


def test_training_visits_every_example_once_an_epoch_in_the_order_of_the_pipeline():
    examples = many(12)
    batches = train_batches(examples, batch_size=4, seed=3, max_length=16, buckets=(8,))
    stand_ins = [
        {"tokens": np.zeros(max(map(len, row["sequences"])), np.int32), "label": 0, "id": row["id"]} for row in examples
    ]
    plain = pipeline.train_batches(stand_ins, batch_size=4, seed=3, max_length=16, buckets=(8,))
    epoch = []
    for _ in range(3):
        batch, other = next(batches), next(plain)
        check(batch, {row["id"]: row for row in examples}, "right")
        assert batch["id"].tolist() == other["id"].tolist()
        assert batch["tokens"].shape[2] == other["tokens"].shape[1]
        epoch += batch["id"].tolist()
    assert sorted(epoch) == [row["id"] for row in examples]


def test_the_state_is_one_integer():
    def make():
        return train_batches(many(9), batch_size=2, seed=1, max_length=16)

    one, two = make(), make()
    for _ in range(5):
        next(one)
    assert one.get_state() == {"next_index": 5}
    two.set_state(one.get_state())
    two.set_state({"next_index": 10**9})
    two.set_state(one.get_state())
    for a, b in zip(*[[next(x) for _ in range(3)] for x in (one, two)], strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_shared_sequence_stands_once_only_if_all_rows_share():
    alone = example(0, [1, 2], [[7], [8]], shared=True)
    batch = eval_batches([alone, {**alone, "id": 1}], batch_size=2, max_length=4)[0]
    assert batch["tokens"].shape == (2, 1, 4)
    assert batch["at"].tolist() == [[[1]]] * 2
    (mixed,) = eval_batches([alone, example(1, [3], [[5, 6], [9]])], batch_size=2, max_length=4)
    assert mixed["tokens"].shape == (2, 2, 4)
    check(mixed, {0: alone, 1: example(1, [3], [[5, 6], [9]])}, "right")


def test_faults_are_named():
    with pytest.raises(ValueError, match="side is 'both'; it must be 'left' or 'right'"):
        eval_batches(many(2), batch_size=1, max_length=16, side="both")
    with pytest.raises(ValueError, match="examples is empty"):
        eval_batches([], batch_size=1, max_length=16)
    with pytest.raises(ValueError, match="is too long"):
        train_batches(many(4), batch_size=1, max_length=3, seed=0)
