"""Buckets: the least padding, by brute force; which utterance goes where."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zojax.data.audio.buckets import Bucket, Examples, assign, plan_buckets

quick = settings(deadline=None, max_examples=60)


def padded(lengths, widths):
    """Total padded length, each utterance in the least width that holds it."""
    widths = np.sort(widths)
    return widths[np.searchsorted(widths, lengths)].sum()


@quick
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 4), st.sampled_from([1, 7]))
def test_no_other_widths_pad_less(lengths, count, multiple):
    lengths = np.array(lengths)
    buckets = plan_buckets(lengths, lengths // 5, count=count, budget=100, max_rows=9, multiple=multiple)
    widths = [bucket.length for bucket in buckets]
    assert widths == sorted(set(widths))
    assert len(widths) <= count
    assert all(width % multiple == 0 for width in widths)
    possible = sorted({-(-length // multiple) * multiple for length in lengths.tolist()})
    least = min(
        padded(lengths, (*chosen, possible[-1]))
        for k in range(min(count, len(possible)))
        for chosen in itertools.combinations(possible[:-1], k)
    )
    assert padded(lengths, widths) == least


@quick
@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(0, 30)), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(1, 900),
    st.integers(1, 3),
)
def test_a_plan_holds_every_utterance_within_its_budget(pairs, count, budget, shards):
    lengths, labels = np.array(pairs).T
    buckets = plan_buckets(lengths, labels, count=count, budget=budget, max_rows=6, shard_count=shards)
    where = assign(Examples([""] * len(pairs), lengths, [np.ones(n, int) for n in labels], list), buckets)
    assert (where >= 0).all()
    for bucket in buckets:
        assert bucket.rows % shards == 0
        assert bucket.rows <= 6
        assert bucket.rows * bucket.length <= budget or bucket.rows == shards
        # and there is no room for another row
        assert bucket.rows == 6 or (bucket.rows + shards) * bucket.length > budget
    # no bucket is there for nothing
    assert {bucket.length for bucket in buckets} == {buckets[i].length for i in where}


@quick
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=40))
def test_an_utterance_goes_to_the_first_bucket_that_holds_it(pairs):
    buckets = [Bucket(length=n, labels=u, rows=1) for n, u in ((3, 2), (6, 2), (10, 5))]
    examples = Examples([""] * len(pairs), [n for n, _ in pairs], [np.ones(u, int) for _, u in pairs], list)
    for (length, labels), found in zip(pairs, assign(examples, buckets), strict=True):
        fits = [i for i, b in enumerate(buckets) if 0 < length <= b.length and labels <= b.labels]
        assert found == (fits[0] if fits else -1)


def test_bad_arguments():
    lengths = np.array([3, 4])
    good = {"count": 2, "budget": 9, "max_rows": 4}
    for change, message in [
        ({"count": 0}, "count: 0; 1 or more"),
        ({"budget": 0}, "budget: 0"),
        ({"max_rows": 0}, "max_rows: 0"),
        ({"multiple": 0}, "multiple: 0"),
        ({"shard_count": 3}, "max_rows: 4; a multiple of shard_count, 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            plan_buckets(lengths, lengths, **(good | change))
    with pytest.raises(ValueError, match="lengths: no utterance"):
        plan_buckets(lengths[:0], lengths[:0], **good)
    for change in ({"length": 0}, {"labels": -1}, {"rows": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}: .* or more is needed"):
            Bucket(**({"length": 1, "labels": 0, "rows": 1} | change))
    with pytest.raises(ValueError, match="names, lengths, labels: 1, 2 and 1 of them"):
        Examples(["a"], [1, 2], [np.zeros(1, int)], list)
    examples = Examples(["a"], [1], [np.zeros(1, int)], list)
    with pytest.raises(ValueError, match="buckets: none"):
        assign(examples, [])
    for second in (Bucket(length=5, labels=9, rows=1), Bucket(length=6, labels=8, rows=1)):
        with pytest.raises(ValueError, match=r"buckets: .* comes after"):
            assign(examples, [Bucket(length=5, labels=9, rows=1), second])
