"""The program that evaluates a checkpoint on the prompted tasks."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from launch import evaluate_tasks, train
from launch.common import cli, schema
from launch.language import prompted
from launch.language.prompted import answers, load_checkpoint, stop_tokens, widths
from models.language import decode
from zojax.data import tasks

FAMILIES = Path(__file__).resolve().parents[1] / "golden" / "families"
WORDS = (
    "It was terrible great . film dull warm He fell because so he slipped. rain came. Context: Question: Answer: tea"
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_tokenizer(folder: Path, words: list[str]) -> None:
    vocab = {word: i for i, word in enumerate([*SPECIAL, *words])}
    fast = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    fast.save(str(folder / "tokenizer.json"))


def copied(tmp_path_factory, family: str) -> Path:
    folder = tmp_path_factory.mktemp(family)
    for file in ("config.json", "model.safetensors"):
        shutil.copy(FAMILIES / family / file, folder / file)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = copied(tmp_path_factory, "llama2")
    write_tokenizer(folder, WORDS.split())
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    # No two alike: a row that stands in the test set, too, is left out of the training set.
    reviews = [
        {"text": f"{['dull', 'warm'][i % 3 > 0]} film {'so ' * (i % 4)}{i}", "label": int(i % 3 > 0)} for i in range(14)
    ]
    copa = {"premise": "He fell.", "choice1": "He slipped.", "choice2": "Rain came.", "question": "cause", "label": 0}
    squad = {"context": "warm tea", "question": "film so", "answers": ["tea", "warm tea"]}
    rows = {
        "sst2": (reviews[:8], reviews[8:]),
        "copa": ([{**copa, "premise": f"He so {i}"} for i in range(2)], [copa, {**copa, "label": 1}, copa]),
        "squad": ([squad], [squad] * 3),
    }
    for name, splits in rows.items():
        (folder / name).mkdir()
        for split, part in zip(("train", "dev"), splits, strict=True):
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def run(*arguments: str) -> int:
    return evaluate_tasks.main(["evaluate_tasks", *arguments])


def by_hand(checkpoint, task, rows, shown=()):
    """Accuracy from one whole forward a candidate."""
    before, hits = "".join(task.demonstration(row) + "\n\n" for row in shown), []
    for row in rows:
        scores = []
        for candidate in task.candidates(row):
            prompt = checkpoint.tokenizer.encode(before + task.prompt(row))
            whole = checkpoint.tokenizer.encode(before + task.text(row, candidate))
            tokens, mask = decode.pad([whole], side="right", length=32)
            candidate_mask = (jnp.arange(32) >= len(prompt)) & mask
            scores.append(float(decode.scores(checkpoint.model, checkpoint.params, tokens, mask, candidate_mask)[0]))
        hits.append(int(np.argmax(scores)) in task.correct(row))
    return np.mean(hits)


def test_the_table_and_the_lines_of_a_causal_model(llama, data, tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    shape = ["--max_length=32", "--max_new_tokens=4", "--batch_size=4"]
    arguments = [f"--checkpoint={llama}", f"--data={data}", "--shots=2", f"--out={out}", *shape]
    assert run("--tasks=sst2,copa,squad", *arguments) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["task", "kind", "metric", "rows", "majority", "zero-shot", "2-shot"]
    assert [line[:4] for line in lines[1:]] == [
        ["sst2", "classification", "accuracy", "6"],
        ["copa", "multiple_choice", "accuracy", "3"],
        ["squad", "generation", "f1", "3"],
    ]
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["task"], r["setting"], r["shots"]) for r in records] == [
        *[("sst2", "zero_shot", 0), ("sst2", "in_context", 2)],
        *[("copa", "zero_shot", 0), ("copa", "in_context", 2)],
        *[("squad", "zero_shot", 0), ("squad", "in_context", 0)],
    ]
    for line, first, second in zip(lines[1:], records[::2], records[1::2], strict=True):
        assert line[5:] == [f"{first['value']:.3f}", f"{second['value']:.3f}"]
        assert first["checkpoint"] == str(llama)
    checkpoint = load_checkpoint(str(llama))
    for name, shots, record in (("sst2", 0, records[0]), ("sst2", 2, records[1]), ("copa", 0, records[2])):
        task = tasks.get_task(name)
        training, held_out = (tasks.load_rows(name, split, data) for split in ("train", "dev"))
        split = tasks.many_shot(training, held_out, task, seed=0, sizes=(1000, 0, 1000))
        shown = tasks.balanced(split.train, task, shots, seed=0)
        assert record["value"] == pytest.approx(by_hand(checkpoint, task, held_out, shown))
    # Of the 6 reviews that are held out 4 are positive; of two choices chance finds one.
    assert (records[0]["majority"], records[2]["majority"], records[4]["majority"]) == (pytest.approx(4 / 6), 0.5, None)
    assert {"f1", "exact_match", "loss"} <= records[4].keys()


@pytest.mark.parametrize("prompt", [0, 3])
def test_a_run_is_evaluated_with_the_weights_that_it_ended_with(llama, data, tiny, tmp_path, capsys, prompt):
    fields = {name: dict(value) if isinstance(value, dict) else value for name, value in tiny.items()}
    fields["trainable"] = (r"norm/scale$",) if not prompt else (r"word/prompt$",)
    fields["adapter"] |= {"kind": "prompt", "rank": prompt}
    fields["data"] |= {"source": str(data / "sst2"), "max_length": 16, "batch_size": 2, "eval_batch_size": 6}
    fields["model"] = {
        "name": "prompted_lm",
        "source": str(llama),
        "dtype": "float32",
        "weights": "",
        "head": "zero",
        "head_examples": 0,
        "objective": "accuracy",
    }
    fields["optimizer"] |= {"name": "sgd", "learning_rate": 3.0}
    fields["method"] |= {"eps": 0.5, "num_samples": 1}
    fields["train"] |= {"steps": 2, "eval_every": 2, "checkpoint_every": 2}
    file, workdir = tmp_path / "config.py", tmp_path / "run"
    file.write_text(f"import ml_collections\n\ndef get_config():\n    return ml_collections.ConfigDict({fields!r})\n")
    assert train.main(["train", f"--config={file}", f"--workdir={workdir}"]) == 0
    capsys.readouterr()
    losses = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert losses
    out = tmp_path / "run.jsonl"
    shape = ["--max_length=16", "--max_new_tokens=4", "--batch_size=6"]
    assert run(f"--checkpoint={workdir}", f"--data={data}", "--tasks=sst2", f"--out={out}", *shape) == 0
    (record,) = [json.loads(line) for line in out.read_text().splitlines()]
    (test,) = [json.loads(line) for line in (workdir / "eval.jsonl").read_text().splitlines() if '"last"' in line]
    # The same rows, weights and program; other batches only in the order of their rows.
    assert record["accuracy"] == pytest.approx(test["accuracy"])
    assert record["loss"] == pytest.approx(test["loss"], rel=1e-5)
    base, trained = load_checkpoint(str(llama)), evaluate_tasks.load(str(workdir))
    assert base.max_length - trained.max_length == trained.prompt == prompt
    if prompt:
        np.testing.assert_array_equal(trained.params["embeddings"]["word"].base, base.params["embeddings"]["word"])
    else:
        assert not np.array_equal(base.params["norm"]["scale"], trained.params["norm"]["scale"])
    # A run of a classifier answers no prompts.
    config = json.loads((workdir / "config.json").read_text())
    config["model"] |= {"name": "bert_classifier", "objective": "loss"}
    (workdir / "config.json").write_text(json.dumps(config))
    assert run(f"--checkpoint={workdir}", f"--data={data}", "--tasks=sst2") == cli.WRONG
    assert "config.model.name is 'bert_classifier'; it must be prompted_lm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "objective", "columns"),
    [("squad", "loss", ["loss"]), ("squad", "f1", ["reward", "loss"]), ("sst2", "loss", ["accuracy", "loss"])],
)
def test_generated_answers_and_few_shots_are_trained_on(llama, data, tiny, tmp_path, capsys, task, objective, columns):
    shutil.copytree(data / task, tmp_path / task)
    if task == "squad":  # rows that are not those of the test
        rows = [{"context": "dull film", "question": f"rain {i}", "answers": ["so dull"]} for i in range(4)]
        (tmp_path / task / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {name: dict(value) if isinstance(value, dict) else value for name, value in tiny.items()}
    fields["trainable"] = (r"norm/scale$",)
    fields["data"] |= {"source": str(tmp_path / task), "max_length": 64, "batch_size": 1, "eval_batch_size": 4}
    fields["data"]["shots"] = 1
    fields["model"] |= {"name": "prompted_lm", "source": str(llama), "head": "zero", "objective": objective}
    fields["method"] |= {"num_samples": 1}
    fields["train"] |= {"steps": 1, "eval_every": 0, "checkpoint_every": 0, "keep_best": "loss"}
    file, workdir = tmp_path / "config.py", tmp_path / "run"
    file.write_text(f"import ml_collections\n\ndef get_config():\n    return ml_collections.ConfigDict({fields!r})\n")
    assert train.main(["train", f"--config={file}", f"--workdir={workdir}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("on test"))
    assert lines[start].split()[2:] == columns
    if objective == "f1":  # a loss is what the reward leaves
        reward, loss = map(float, lines[start + 1].split()[-2:])
        assert reward + loss == pytest.approx(1, abs=2e-4)  # each is rounded to 4 digits


@pytest.mark.parametrize(
    ("task", "section", "changes", "message"),
    [
        ("squad", "model", {"objective": "accuracy"}, "config.model.objective is 'accuracy'; of .*loss or f1"),
        ("sst2", "model", {"objective": "f1"}, "config.model.objective is 'f1'; of .*loss or accuracy"),
        ("squad", "train", {"keep_best": "accuracy"}, "generated answers have none"),
        ("sst2", "data", {"shots": 9}, "of the class .* of sst2 there are"),
        ("sst2", "data", {"shots": 1, "train_examples": 2}, "one must be 0"),
    ],
)
def test_what_a_prompted_run_is_refused(llama, data, tiny, task, section, changes, message):
    fields = {name: dict(value) if isinstance(value, dict) else value for name, value in tiny.items()}
    fields["data"] |= {"source": str(data / task), "max_length": 64}
    fields["model"] |= {"name": "prompted_lm", "source": str(llama), "head": "zero"}
    fields["train"]["keep_best"] = "loss"
    fields[section] |= changes
    config = ml_collections.ConfigDict(fields)

    def made():
        schema.check(config)
        return prompted.load(config, jax.random.key(0))

    with pytest.raises(ValueError, match=message):
        made()


def test_no_single_answer_beats_the_majority():
    task = tasks.get_task("sst2")
    training, test = (
        [{"text": f"{i}", "label": label} for i, label in enumerate(labels)] for labels in ((0, 0, 1), (1, 1, 0))
    )
    assert evaluate_tasks.majority(task, tasks.Split(training, [], test)) == pytest.approx(2 / 3)


def test_all_names_the_tasks_without_data(llama, data, tmp_path, capsys):
    (tmp_path / "copa").symlink_to(data / "copa")
    assert run(f"--checkpoint={llama}", f"--data={tmp_path}", "--max_length=32", "--max_new_tokens=4", "--rows=2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(tasks.TASKS)
    assert [line.split()[0] for line in lines[1:] if not line.endswith("no data")] == ["copa"]
    assert [line.split()[3] for line in lines if line.startswith("copa")] == ["2"]


def test_a_masked_model_fills_in_its_word(tmp_path_factory, data, tmp_path, capsys):
    folder = copied(tmp_path_factory, "bert")
    vocab = [*SPECIAL, *WORDS.lower().split()]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocab)))
    out = tmp_path / "masked.jsonl"
    assert run(f"--checkpoint={folder}", f"--data={data}", "--shots=2", f"--out={out}", "--batch_size=8") == 0
    (record,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (record["task"], record["setting"]) == ("sst2", "zero_shot")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("copa")] == ["copa     no masked prompt"]
    checkpoint = load_checkpoint(str(folder))
    hits = []
    for row in tasks.load_rows("sst2", "dev", data):
        text = f"{row['text'].strip()} It was [MASK] ."
        tokens, mask = decode.pad([checkpoint.tokenizer.encode(text)], side="right", length=16)
        at = int(np.flatnonzero(np.asarray(tokens[0]) == 4)[0])
        logits = checkpoint.model.apply({"params": checkpoint.params}, tokens, mask, method="masked_logits")[0, at]
        words = [checkpoint.tokenizer.fast.token_to_id(word) for word in ("terrible", "great")]
        hits.append(int(np.argmax(np.asarray(logits)[words])) == row["label"])
    assert record["value"] == pytest.approx(np.mean(hits))


def test_an_answer_is_the_first_line_of_what_was_generated():
    class Letters:
        def encode(self, text):
            return [1, *map(ord, text)]

        def decode(self, tokens):
            return "".join(map(chr, tokens))

    tokens = np.array([[ord(c) for c in " Tea\nand"], [ord(c) for c in "a b c d "]])
    assert answers(Letters(), tokens, np.array([8, 3])) == ["Tea", "a b"]
    assert stop_tokens(Letters()) == (10,)
    assert widths(100) == (16, 32, 64, 100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks=sst2"], "--checkpoint=FOLDER is needed"),
        (["--checkpoint={llama}", "--tasks=sst3"], "there is no task 'sst3'; the tasks are boolq"),
        (["--checkpoint={llama}", "--tasks="], "--tasks names no task"),
        (["--checkpoint={llama}", "--data={data}", "--tasks=wic"], "holds no file of the split 'train' of wic"),
        (["--checkpoint={llama}", "--data=/nowhere", "--tasks=sst2"], "there is no folder /nowhere"),
        (["--checkpoint={llama}", "--data=/nowhere"], "there is no folder /nowhere"),
        (["--checkpoint=/nowhere", "--data={data}", "--tasks=sst2"], "'/nowhere'"),
        (["--checkpoint={data}", "--data={data}", "--tasks=sst2"], "holds no config.json"),
        (["--checkpoint={llama}", "--data={data}", "--tasks=sst2", "--out=/nowhere/x"], "--out=/nowhere/x: it must be"),
        (
            ["--checkpoint={llama}", "--data={data}", "--tasks=sst2", "--max_length=9999"],
            "--max_length=9999: the model reads",
        ),
        (["--checkpoint={llama}", "--data={data}", "--tasks=sst2", "--max_new_tokens=2048"], "--max_new_tokens=2048"),
        (["--checkpoint={llama}", "--data={data}", "--tasks=sst2", "--rows=0"], "rows"),
        (["stray"], "not a flag: stray"),
    ],
)
def test_a_wrong_request_is_one_line(llama, data, capsys, arguments, message):
    assert run(*[argument.format(llama=llama, data=data) for argument in arguments]) == cli.WRONG
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("evaluate_tasks: ")
    assert message in line


def test_a_tokenizer_that_is_too_large_is_refused(tmp_path_factory):
    folder = copied(tmp_path_factory, "llama2")
    write_tokenizer(folder, [f"word{i}" for i in range(100)])
    with pytest.raises(ValueError, match="the tokenizer has 105 tokens, the model 64"):
        load_checkpoint(str(folder))


def test_a_llama2c_model_is_found_by_file_and_by_folder(zojax_data, tmp_path):
    folder = zojax_data / "lm" / "stories260K"
    for source in (folder, folder / "stories260K.bin"):
        checkpoint = load_checkpoint(str(source))
        assert (checkpoint.config.vocab_size, checkpoint.max_length, checkpoint.masked) == (512, 512, False)
    shutil.copy(folder / "stories260K.bin", tmp_path / "stories260K.bin")
    with pytest.raises(FileNotFoundError, match=r"holds 0 files tok\*.bin"):
        load_checkpoint(str(tmp_path))
