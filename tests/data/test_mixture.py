"""Mixed batches: quotas, seekable, tasks that do not depend on each other, texts where they belong."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zojax.data.mixture import TASKS, MixtureBatches, eval_batches, load_task
from zojax.data.tokenize import Tokenizer

MAX_LENGTH, BUCKETS = 12, (4, 8)


def make_examples(count, texts, base):
    """Tokens, label and lengths follow from task and id, so that a mix-up shows."""
    rng = np.random.default_rng(base)
    return [
        {
            "texts": tuple(
                np.arange(rng.integers(1, MAX_LENGTH + 1), dtype=np.int32) + base + 1000 * i + 100 * side + 1
                for side in range(texts)
            ),
            "label": i % 3,
            "id": i,
        }
        for i in range(count)
    ]


def make_tasks(counts=(9, 7, 5)):
    made = {"sst2": make_examples(counts[0], 1, 100_000), "rte": make_examples(counts[1], 2, 200_000)}
    return made | {"snli": make_examples(counts[2], 2, 300_000)}


def make(tasks=None, quotas=(2, 3, 1), seed=0):
    tasks = make_tasks() if tasks is None else tasks
    return MixtureBatches(tasks, quotas=quotas, seed=seed, max_length=MAX_LENGTH, buckets=BUCKETS)


def assert_faithful(batch, tasks):
    examples = list(tasks.values())
    rows = len(batch["task"])
    for row, (task, number) in enumerate(zip(batch["task"], batch["id"], strict=True)):
        if number < 0:
            continue
        example = examples[task][number]
        assert batch["label"][row] == example["label"]
        places = (row, batch["second"][row])
        assert (places[1] == row) == (len(example["texts"]) == 1)
        assert places[1] == row or rows <= places[1] < len(batch["tokens"])
        for place, tokens in zip(places, example["texts"], strict=False):
            np.testing.assert_array_equal(batch["tokens"][place][batch["mask"][place]], tokens)
            assert not batch["tokens"][place][~batch["mask"][place]].any()
    assert batch["tokens"].shape[1] in (*BUCKETS, MAX_LENGTH)
    longest = batch["mask"].sum(axis=1).max()
    assert batch["tokens"].shape[1] == next(width for width in (*BUCKETS, MAX_LENGTH) if width >= longest)


@settings(deadline=None, max_examples=25)
@given(quotas=st.tuples(*(st.integers(1, 5) for _ in range(3))), seed=st.integers(0, 2**32 - 1))
def test_every_batch_has_its_quotas_and_an_epoch_visits_no_example_twice(quotas, seed):
    tasks = make_tasks()
    batches = make(tasks, quotas, seed)
    seen = {name: [] for name in tasks}
    for _ in range(3):
        batch = next(batches)
        assert_faithful(batch, tasks)
        assert [int(np.sum(batch["task"] == t)) for t in range(3)] == list(quotas)
        assert (batch["weight"] == 1).all()
        assert len(batch["tokens"]) == sum(quotas) + quotas[1] + quotas[2]
        for t, name in enumerate(tasks):
            seen[name].append(batch["id"][batch["task"] == t])
    for (name, examples), quota in zip(tasks.items(), quotas, strict=True):
        epoch = np.concatenate(seen[name][: len(examples) // quota])
        assert len(set(epoch.tolist())) == len(epoch)


def test_a_batch_is_a_function_of_its_number():
    whole = [next(batches) for batches in [make()] for _ in range(9)]
    batches = make()
    for number in (7, 2, 8, 0):
        batches.set_state({"next_index": number})
        one = next(batches)
        assert json.loads(json.dumps(batches.get_state())) == {"next_index": number + 1}
        for name in one:
            np.testing.assert_array_equal(one[name], whole[number][name], strict=True)
    assert any((next(make(seed=1))[name] != whole[0][name]).any() for name in ("id", "label"))


def test_a_tasks_rows_do_not_depend_on_the_others():
    tasks = make_tasks()
    together, alone = make(tasks), make({"rte": tasks["rte"]}, quotas=(3,))
    for _ in range(6):
        both, one = next(together), next(alone)
        np.testing.assert_array_equal(both["id"][both["task"] == 1], one["id"])


def test_evaluation_sees_every_example_once_and_averages_over_tasks():
    tasks = make_tasks()
    batches = eval_batches(tasks, batch_size=4, max_length=MAX_LENGTH, buckets=BUCKETS)
    totals = np.zeros(3)
    seen = [[], [], []]
    for batch in batches:
        assert_faithful(batch, tasks)
        (task,) = set(batch["task"].tolist())
        assert len(batch["id"]) == 4
        np.testing.assert_array_equal(batch["weight"] > 0, batch["id"] >= 0)
        seen[task] += batch["id"][batch["id"] >= 0].tolist()
        totals[task] += batch["weight"].sum()
    assert [sorted(ids) for ids in seen] == [list(range(9)), list(range(7)), list(range(5))]
    np.testing.assert_allclose(totals, 7.0, rtol=1e-6)  # 21 examples, three tasks


def test_refusals():
    tasks = make_tasks()
    for quotas, message in (((2, 3), "one for each of 3 tasks"), ((2, 8, 1), "that of rte"), ((0, 1, 1), "sst2")):
        with pytest.raises(ValueError, match=f"quotas.*{message}"):
            make(tasks, quotas)
    with pytest.raises(ValueError, match=r"seed must lie in 0\.\.2\*\*32-1, got -1"):
        make(seed=-1)
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        eval_batches(tasks, batch_size=0, max_length=MAX_LENGTH)
    with pytest.raises(ValueError, match="tasks: rte has no examples"):
        eval_batches({**tasks, "rte": []}, batch_size=2, max_length=MAX_LENGTH)
    with pytest.raises(ValueError, match=r"1\.\.max_length=5 are allowed"):
        eval_batches(tasks, batch_size=2, max_length=5)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(40))]
    (folder / "vocab.txt").write_text("\n".join(words))
    return Tokenizer.from_folder(folder)


def write(folder, split, rows):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def cb_rows(count, start=0):
    return [{"premise": f"w{start + i} w1", "hypothesis": f"w{start + i} w2", "label": i % 3} for i in range(count)]


def test_splits_are_disjoint_and_fixed(tmp_path, tokenizer):
    write(tmp_path / "cb", "train", cb_rows(20))
    write(tmp_path / "cb", "dev", cb_rows(6, start=20))
    splits = load_task("cb", tokenizer, max_length=8, source=tmp_path, train_examples=10, dev_examples=9)
    assert [len(split) for split in splits] == [10, 4, 6]  # dev takes a fifth of 20 at most
    words = [{int(example["texts"][0][1]) for example in split} for split in splits]
    assert not words[0] & words[1]
    assert words[2] == set(range(25, 31))
    for split in splits:
        assert [example["id"] for example in split] == list(range(len(split)))
        for example in split:
            premise, hypothesis = example["texts"]
            assert premise[1] == hypothesis[1]
            assert (premise[2], hypothesis[2]) == (6, 7)
    again = load_task("cb", tokenizer, max_length=8, source=tmp_path, dev_examples=4)
    np.testing.assert_equal(again.dev, splits.dev)
    assert len(again.train) == 16
    write(tmp_path / "cb", "test", cb_rows(3, start=30))
    assert len(load_task("cb", tokenizer, max_length=8, source=tmp_path).test) == 3
    with pytest.raises(ValueError, match="train_examples is 17; task 'cb' has 16"):
        load_task("cb", tokenizer, max_length=8, source=tmp_path, train_examples=17)
    with pytest.raises(ValueError, match="test_examples is 4; task 'cb' has 3"):
        load_task("cb", tokenizer, max_length=8, source=tmp_path, test_examples=4)


def test_the_real_tasks_have_the_classes_that_are_said(zojax_data, tokenizer):
    for name, kind in TASKS.items():
        if not (zojax_data / "text" / name).is_dir():
            pytest.skip(f"no data of {name} in {zojax_data}")
        splits = load_task(
            name, tokenizer, max_length=8, source=zojax_data / "text", dev_examples=50, train_examples=100
        )
        for split in splits:
            labels = {example["label"] for example in split}
            assert labels == set(range(kind.num_classes))
            assert all(len(example["texts"]) == len(kind.fields) for example in split)
