"""Packed documents: what an epoch holds, where segments begin and end, and that a place is enough to go on from."""

import itertools

import numpy as np
import pytest

from zojax.data.documents import STRING, DocumentBatches, Documents, eval_batches

WIDTH, ROWS = 24, 3
SEPARATOR = 7


def make(texts=(100, 61), prompts=40):
    """Texts of tokens from 10,000; of prompt i 1 (the begin), then 100 (i + 1) + j, the last one its answer."""
    lengths = 3 + np.random.default_rng(0).integers(6, size=prompts)
    arrays = [10000 * (i + 1) + np.arange(n) for i, n in enumerate(texts)]
    arrays += [np.append(1, 100 * (i + 1) + np.arange(n - 1)) for i, n in enumerate(lengths)]
    stops = np.cumsum([len(array) for array in arrays])
    bounds = np.stack([np.append(0, stops[:-1]), stops], axis=1)
    answer = np.zeros(stops[-1], bool)
    answer[bounds[len(texts) :, 1] - 1] = True
    return Documents(
        tokens=np.concatenate(arrays).astype(np.int32),
        answer=answer,
        texts=bounds[: len(texts)],
        prompts=bounds[len(texts) :],
        kind=(np.arange(prompts) % 2).astype(np.int32),
        separator=np.array([SEPARATOR, SEPARATOR], np.int32),
    )


def epoch(documents, **options):
    batches = DocumentBatches(documents, width=WIDTH, **{"rows": 1, "seed": 3} | options)
    return [next(batches) for _ in range(batches.batches_per_epoch)]


def segments(batches):
    """The tokens of every segment."""
    for batch in batches:
        for tokens, segment in zip(batch["tokens"], batch["segment"], strict=True):
            runs = [number for number, _ in itertools.groupby(segment.tolist())]
            assert runs == [*range(len(runs) - (-1 in runs)), *[-1] * (-1 in runs)]  # in order, padding last
            assert (tokens[segment < 0] == 0).all()
            yield from (tokens[segment == number].tolist() for number in runs if number >= 0)


def test_an_epoch_holds_every_text_and_prompt_once():
    documents = make()
    found = list(segments(epoch(documents)))
    of_texts = sorted(token for tokens in found for token in tokens if token >= 10000)
    whole = sorted(documents.tokens[documents.tokens >= 10000].tolist())
    # What may be missing is less than 16 tokens at each end of a text.
    assert set(of_texts) <= set(whole)
    assert len(of_texts) == len(set(of_texts)) >= len(whole) - 2 * 2 * 15
    prompts = [tokens for tokens in found if tokens[0] < 10000]
    assert all(tokens[0] == 1 and tokens.count(1) == 1 for tokens in prompts)
    said = sorted(token for tokens in prompts for token in tokens if token >= 100)
    assert said == sorted(token for token in documents.tokens.tolist() if 100 <= token < 10000)


def test_half_of_the_prompts_stand_in_strings_of_a_kind():
    strings = [t for t in segments(epoch(make())) if t[0] == 1 and SEPARATOR in t]
    shown = [sorted({token // 100 - 1 for token in tokens if token >= 100}) for tokens in strings]
    assert all(1 < len(which) <= STRING and len({i % 2 for i in which}) == 1 for which in shown)
    # Of 20 prompts that may be strung, all but the last of either kind find another.
    assert 18 <= sum(map(len, shown)) <= 20
    for tokens in strings:  # each but the last is followed by the separator
        assert tokens.count(SEPARATOR) == 2 * (len({token // 100 for token in tokens if token >= 100}) - 1)


def test_answers_are_marked_wherever_they_stand():
    documents = make()
    right = set(documents.tokens[documents.answer].tolist())
    for batch in epoch(documents):
        assert {*batch["tokens"][batch["answer"]].tolist()} <= right
        marked = np.isin(batch["tokens"], [*right])
        np.testing.assert_array_equal(batch["answer"], marked)


@pytest.mark.parametrize(("share", "count"), [(0.5, 20), (1.0, 40), (2.5, 100)])
def test_the_share_of_prompts(share, count):
    batches = epoch(make(texts=()), prompt_share=share)
    assert sum(int(batch["answer"].sum()) for batch in batches) == count


def test_epochs_differ_and_seeds_differ():
    documents = make()
    first, again, other = epoch(documents), epoch(documents), epoch(documents, seed=4)
    assert [x["tokens"].tolist() for x in first] == [x["tokens"].tolist() for x in again]
    assert [x["tokens"].tolist() for x in first] != [x["tokens"].tolist() for x in other]
    batches = DocumentBatches(documents, rows=1, width=WIDTH, seed=3)
    batches.set_state({"epoch": 1, "place": 0})
    assert next(batches)["tokens"].tolist() != first[0]["tokens"].tolist()


def test_a_state_is_enough_to_go_on_from():
    batches = DocumentBatches(make(), rows=ROWS, width=WIDTH, seed=0)
    states, seen = [], []
    for _ in range(2 * batches.batches_per_epoch + 1):
        states.append(batches.get_state())
        seen.append(next(batches)["tokens"])
    for state, tokens in reversed(list(zip(states, seen, strict=True))):
        fresh = DocumentBatches(make(), rows=ROWS, width=WIDTH, seed=0)
        fresh.set_state(state)
        np.testing.assert_array_equal(next(fresh)["tokens"], tokens)


def test_evaluation_sees_every_prompt_once_and_alone():
    batches = eval_batches(make(), rows=ROWS, width=WIDTH)
    assert sum(int(batch["answer"].sum()) for batch in batches) == 40
    assert not any(SEPARATOR in batch["tokens"] for batch in batches)
    assert len({batch["tokens"].shape for batch in batches}) == 1


def test_files_come_back(tmp_path):
    documents = make()
    documents.save(tmp_path / "d.safetensors")
    loaded = Documents.load(tmp_path / "d.safetensors")
    for name in ("tokens", "answer", "texts", "prompts", "kind", "separator"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(documents, name))


def test_wrong_requests(tmp_path):
    with pytest.raises(ValueError, match="width is 4; the longest prompt has 8 tokens"):
        DocumentBatches(make(), rows=1, width=4, seed=0)
    with pytest.raises(ValueError, match="rows is 999; an epoch has"):
        DocumentBatches(make(), rows=999, width=WIDTH, seed=0)
    (tmp_path / "d.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="is no file of documents"):
        Documents.load(tmp_path / "d.safetensors")
