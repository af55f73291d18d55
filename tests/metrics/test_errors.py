"""Error rates against jiwer, brute force and the published scores of LibriSpeech with biasing lists."""

import functools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zojax.metrics import BiasedErrors, Costs, Errors, align, biased_errors, character_errors, word_errors
from zojax.metrics.errors import SCLITE

CASES = json.loads((Path(__file__).resolve().parents[1] / "golden" / "word_errors.json").read_text())
LEVENSHTEIN = Costs()


@pytest.mark.parametrize("kind", ["wer", "cer"])
def test_rates_as_jiwer_computes_them(kind):
    count = word_errors if kind == "wer" else character_errors
    for case in CASES:
        found = count(case["reference"], case["hypothesis"], LEVENSHTEIN)
        assert found.rate == pytest.approx(case[kind], abs=1e-12)
    assert len(CASES) == 60


def cost_of(steps, reference, hypothesis, costs):
    total = 0
    for i, j in steps:
        if i is None:
            total += costs.insertion
        elif j is None:
            total += costs.deletion
        elif reference[i] != hypothesis[j]:
            total += costs.substitution
    return total


def least_cost(reference, hypothesis, costs):
    """By trying all three steps everywhere."""

    @functools.cache
    def rest(i, j):
        options = []
        if i < len(reference) and j < len(hypothesis):
            options.append(rest(i + 1, j + 1) + (reference[i] != hypothesis[j]) * costs.substitution)
        if i < len(reference):
            options.append(rest(i + 1, j) + costs.deletion)
        if j < len(hypothesis):
            options.append(rest(i, j + 1) + costs.insertion)
        return min(options, default=0)

    return rest(0, 0)


words = st.text("abc", max_size=7)
some_costs = st.builds(Costs, insertion=st.integers(1, 4), deletion=st.integers(1, 4), substitution=st.integers(1, 4))


@settings(max_examples=150, deadline=None)
@given(words, words, some_costs)
def test_alignments_are_of_least_cost(reference, hypothesis, costs):
    steps = align(reference, hypothesis, costs)
    assert [i for i, _ in steps if i is not None] == list(range(len(reference)))
    assert [j for _, j in steps if j is not None] == list(range(len(hypothesis)))
    assert cost_of(steps, reference, hypothesis, costs) == least_cost(reference, hypothesis, costs)
    counts = character_errors(reference, hypothesis, costs)
    assert counts.words == len(reference)
    assert counts.hits + counts.substitutions + counts.insertions == len(hypothesis)


def test_of_equal_alignments_a_pair_comes_last():
    # "a" against "ab": read from the end, (a, b) is a substitution and would cost more than the insertion of b.
    assert align("a", "ab") == [(0, 0), (None, 1)]
    # "ab" against "cc": two substitutions; "ab" against "c": the last word is paired, the first deleted.
    assert align("ab", "c") == [(0, None), (1, 0)]
    assert align("a", "cc") == [(None, 0), (0, 1)]
    # Crossed words: 4 + 4 against 3 + 3.
    assert align("ab", "ba", SCLITE) == [(0, None), (1, 0), (None, 1)]
    assert align("ab", "ba", LEVENSHTEIN) == [(0, 0), (1, 1)]


def test_empty_sides():
    assert word_errors("", "") == Errors()
    assert word_errors("a b", "").deletions == 2
    assert word_errors("", "a b").insertions == 2
    assert word_errors("", "a").rate == float("inf")
    assert word_errors("", "").rate != word_errors("", "").rate


def test_split_errors():
    found = biased_errors("the cat sat on zanzibar", "the zanzibar cat sat in", {"zanzibar", "cat"})
    # zanzibar is inserted and deleted; "on" is replaced or both; "cat" is a hit.
    assert found.biased.insertions == 1
    assert found.biased.hits == 1
    assert found.biased.deletions + found.biased.substitutions == 1
    assert found.overall == word_errors("the cat sat on zanzibar", "the zanzibar cat sat in")
    assert found.biased.words == 2


@pytest.mark.parametrize(("name", "rates"), [("test-clean", (3.65, 2.37, 14.08))])
def test_the_published_baseline(name, rates, zojax_data):
    folder = zojax_data / "lexicon" / "fbai_is21_deep_bias"
    if not folder.is_dir():
        pytest.skip(f"no biasing lists: {folder} does not exist")
    lines = (folder / "hyp" / f"{name}.b1.rnnt_baseline.tsv").read_text().splitlines()
    heard = dict(line.partition("\t")[::2] for line in lines)
    total = BiasedErrors()
    for line in (folder / "ref" / f"{name}.biasing_100.tsv").read_text().splitlines():
        key, reference, listed = line.split("\t")[:3]
        total += biased_errors(reference, heard[key], json.loads(listed))
    found = [round(100 * errors.rate, 2) for errors in (total.overall, total.unbiased, total.biased)]
    assert found == list(rates)


def test_costs_must_be_positive():
    with pytest.raises(ValueError, match="deletion: 0; a cost above 0"):
        Costs(deletion=0)
