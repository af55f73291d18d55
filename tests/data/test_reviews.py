"""The embedded reviews: sizes, balance, and that the splits do not echo each other."""

import itertools
import re

import pytest

from zojax.data.text import find_folder, read_jsonl

SPLITS = {split: read_jsonl(find_folder("reviews") / f"{split}.jsonl") for split in ("train", "dev", "test")}


def words(text):
    return re.findall(r"[a-z0-9']+", text.lower())


def grams(rows, n):
    return {gram for row in rows for gram in zip(*(words(row["text"])[i:] for i in range(n)), strict=False)}


@pytest.mark.parametrize(("split", "size"), [("train", 526), ("dev", 80), ("test", 200)])
def test_size_balance_and_lengths(split, size):
    rows = SPLITS[split]
    assert len(rows) == size
    assert sum(row["label"] for row in rows) * 2 == size
    assert all(5 <= len(row["text"].split()) <= 40 for row in rows)


def test_a_prefix_is_balanced_too():
    # `train_examples` takes the first rows; they come in pairs of a positive and a negative one
    for count in (16, 64, 256):
        assert sum(row["label"] for row in SPLITS["train"][:count]) * 2 == count


def test_no_review_twice():
    texts = [" ".join(words(row["text"])) for rows in SPLITS.values() for row in rows]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SPLITS, 2)))
def test_no_five_words_in_common(one, other):
    assert not grams(SPLITS[one], 5) & grams(SPLITS[other], 5)


@pytest.mark.parametrize("split", SPLITS)
def test_label_is_not_in_the_length(split):
    rows = SPLITS[split]
    for threshold in range(200):
        right = sum((len(row["text"]) > threshold) == (row["label"] == 1) for row in rows) / len(rows)
        # chance alone reaches 0.60 on 80 rows with the best of so many thresholds
        assert 0.38 < right < 0.62
