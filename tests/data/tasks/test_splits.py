from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zojax.data.tasks.prompts import get_task
from zojax.data.tasks.splits import SEEDS, balanced, few_shot, k_shot, many_shot

SST2, TREC, SQUAD = get_task("sst2"), get_task("trec"), get_task("squad")


def reviews(count, start=0, classes=2):
    return [{"text": f"text {i}", "label": i * i % classes, "id": i} for i in range(start, start + count)]


def prompts(rows, task=SST2):
    return {task.prompt(row) for row in rows}


@settings(max_examples=40, deadline=None)
@given(
    train=st.integers(1, 60), test=st.integers(0, 40), overlap=st.integers(0, 20), doubled=st.integers(0, 9),
    seed=st.integers(0, 2**32), sizes=st.tuples(*[st.integers(0, 30)] * 3),
)  # fmt: skip
def test_no_prompt_is_in_two_parts(train, test, overlap, doubled, seed, sizes):
    pool = reviews(train)
    pool = pool + pool[:doubled]  # some rows stand twice in the training set
    held_out = reviews(test, start=max(train - overlap, 0))
    split = many_shot(pool, held_out, SST2, seed=seed, sizes=sizes)
    sets = [prompts(part) for part in split]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    assert len(split.test) == min(sizes[2], test)
    assert len(split.train) <= sizes[0]
    assert len(split.dev) <= sizes[1]
    assert many_shot(pool, held_out, SST2, seed=seed, sizes=sizes) == split


def test_the_published_sizes_and_what_few_rows_make_of_them():
    rows, other = reviews(3000), reviews(1200, start=3000)
    assert [len(part) for part in many_shot(rows, other, SST2, seed=0)] == [1000, 500, 1000]
    # CB: 250 rows, of which the published runs take 100 for dev.
    assert [len(part) for part in many_shot(rows[:250], other[:56], SST2, seed=0)] == [150, 100, 56]
    one, two = (many_shot(rows, other, SST2, seed=seed) for seed in (0, 1))
    assert all(a != b for a, b in zip(one, two, strict=True))
    with pytest.raises(ValueError, match="none may be negative"):
        many_shot(rows, other, SST2, seed=0, sizes=(1, -1, 1))


@pytest.mark.parametrize("seed", SEEDS)
def test_few_shots_are_k_of_each_class(seed):
    rows, other = reviews(400, classes=6), reviews(50, start=380, classes=6)
    # i * i mod 6 is 0, 1, 3 or 4: two classes would be empty.
    rows = [{**row, "label": row["id"] % 6} for row in rows]
    split = few_shot(rows, other, TREC, 16, seed=seed, test_size=40)
    for part in split[:2]:
        assert Counter(row["label"] for row in part) == dict.fromkeys(range(6), 16)
    assert len(split.test) == 40
    sets = [prompts(part, TREC) for part in split]
    assert len(sets[0] | sets[1] | sets[2]) == 16 * 6 * 2 + 40
    assert few_shot(rows, other, TREC, 16, seed=seed, test_size=40) == split


def test_seeds_draw_other_rows_and_orders_mix_the_classes():
    rows = reviews(400)
    drawn = [k_shot(rows, SST2, 16, seed=seed) for seed in SEEDS]
    assert len({tuple(row["id"] for row in part) for part in drawn}) == len(SEEDS)
    for part in drawn:
        assert len({row["id"] for row in part}) == 32
        labels = [row["label"] for row in part]
        assert labels != sorted(labels)
        assert labels[::2] != labels[1::2]


@settings(max_examples=30, deadline=None)
@given(labels=st.lists(st.integers(0, 1), max_size=30), count=st.integers(0, 20), seed=st.integers(0, 99))
def test_balanced_takes_as_many_of_each_class_as_there_are(labels, count, seed):
    rows = [{"text": str(i), "label": label, "id": i} for i, label in enumerate(labels)]
    drawn = balanced(rows, SST2, count, seed=seed)
    assert len(drawn) == len({row["id"] for row in drawn}) == min(count, len(rows))
    have, got = (Counter(row["label"] for row in part) for part in (rows, drawn))
    for a, b in ((0, 1), (1, 0)):
        # A class is behind by more than one only if it is used up.
        assert got[a] >= got[b] - 1 or got[a] == have[a]


def test_tasks_without_classes_draw_at_random():
    rows = [{"context": "c", "question": f"q{i}", "answers": ["a"], "id": i} for i in range(9)]
    assert len(k_shot(rows, SQUAD, 4, seed=0)) == 4
    with pytest.raises(ValueError, match="k is 10, but of squad there are 9 rows"):
        k_shot(rows, SQUAD, 10, seed=0)


def test_too_few_rows_are_named():
    with pytest.raises(ValueError, match="k is 3, but of the class 'negative' of sst2 there are 2 rows"):
        k_shot(reviews(4), SST2, 3, seed=0)
    with pytest.raises(ValueError, match="k is 0; it must be positive"):
        k_shot(reviews(4), SST2, 0, seed=0)
    with pytest.raises(ValueError, match="count is -1"):
        balanced(reviews(4), SST2, -1, seed=0)


def test_the_draw_is_the_same_on_every_machine():
    # Worked out with numpy's Philox by hand: argsort of random_raw(6) for the key (5, 0), then of (5, 2).
    drawn = [row["id"] for row in balanced([{"question": "", "id": i} for i in range(6)], SQUAD, 6, seed=5)]
    import numpy as np

    def order(use):
        return np.argsort(np.random.Philox(key=np.array([5, use], np.uint64)).random_raw(6), kind="stable")

    assert drawn == order(0)[order(2)].tolist()
