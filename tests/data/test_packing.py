"""Packed batches: every text whole and once, in rows that have room, however the lengths fall."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from zojax.data.packing import balanced, packed
from zojax.data.pipeline import skip, train_batches

WIDTH, TEXTS, ROWS = 16, 6, 4
quick = settings(deadline=None, max_examples=50)  # no deadline: the first example pays for imports


def make_examples(count=50):
    """Lengths of 1 to 10; tokens tell the example and the place in it."""
    lengths = 1 + np.random.default_rng(0).integers(10, size=count)
    return [
        {"tokens": (100 * (i + 1) + np.arange(n)).astype(np.int32), "label": i % 2, "id": i}
        for i, n in enumerate(lengths)
    ]


def make(**options):
    options = {"batch_size": TEXTS, "seed": 3, "packed_rows": ROWS, "max_length": WIDTH} | options
    return train_batches(make_examples(), **options)


@quick
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 8))
def test_texts_lie_in_rows_without_overlap(lengths, rows):
    lengths = np.array(lengths)
    try:
        places = packed(lengths, rows=rows, width=20)
    except ValueError:
        # First fit leaves at most one row less than half full: what does not fit is over half of the room.
        assert lengths.sum() > 20 * rows / 2
        return
    used = np.zeros((rows, 20), int)
    for (row, start), length in zip(places, lengths, strict=True):
        assert start + length <= 20
        used[row, start : start + length] += 1
    assert used.max() == 1
    assert used.sum() == lengths.sum()


@quick
@given(st.integers(0, 2**32 - 1))
def test_dealing_keeps_columns_and_evens_out_tokens(seed):
    lengths = np.random.default_rng(seed).integers(1, 30, size=(20, 12))
    dealt = np.take_along_axis(lengths, balanced(lengths), axis=0)
    np.testing.assert_array_equal(np.sort(dealt, axis=0), np.sort(lengths, axis=0))
    # Dealing a column makes no two batches differ by more than the larger of what they did and its longest text.
    totals = dealt.sum(axis=1)
    assert totals.max() - totals.min() <= 30


def test_a_batch_holds_its_texts_whole():
    examples = make_examples()
    batches = make()
    epoch = [next(batches) for _ in range(len(examples) // TEXTS)]
    ids = np.concatenate([batch["id"] for batch in epoch])
    assert len(set(ids.tolist())) == len(ids)
    for batch in epoch:
        assert batch["tokens"].shape == batch["segment"].shape == (ROWS, WIDTH)
        np.testing.assert_array_equal(batch["mask"], batch["segment"] < TEXTS)
        np.testing.assert_array_equal(batch["tokens"][~batch["mask"]], 0)
        for number, row in enumerate(batch["id"]):
            # In reading order a text is in one piece: its own tokens, and in their order.
            np.testing.assert_array_equal(batch["tokens"][batch["segment"] == number], examples[row]["tokens"])
            assert len(set(np.nonzero(batch["segment"] == number)[0])) == 1
            assert batch["label"][number] == examples[row]["label"]
        np.testing.assert_array_equal(batch["weight"], 1)


def test_a_packed_iterator_resumes():
    one, other = make(), make()
    for _ in range(5):
        next(one)
    skip(other, 5)
    left, right = next(one), next(other)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], strict=True)


def test_probabilities_go_with_packing():
    p = np.arange(1.0, 51)
    p /= p.sum()
    batch = next(make(probabilities=p))
    np.testing.assert_allclose(batch["weight"], 1 / (50 * p[batch["id"]]), rtol=1e-6)  # float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length_grouped": True}, "packed_rows=4 does not go with length_grouped"),
        ({"shard_count": 2}, "packed_rows=4 does not go with shard_count=2"),
    ],
)
def test_what_does_not_go_with_packing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_texts_without_room_are_an_error():
    with pytest.raises(ValueError, match="do not fit into packed_rows=1 rows of 16"):
        next(make(packed_rows=1))
