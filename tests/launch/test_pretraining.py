"""A language model from scratch: its data, its training, and the folder that it becomes."""

import json

import jax
import ml_collections
import numpy as np
import pytest

from launch import corpus, evaluate_tasks, export_lm, train
from launch.common import cli, schema
from launch.common.build import build
from models.language import hub
from zojax.data import tasks
from zojax.data.documents import Documents

WORDS = ["the", "cat", "sat", "on", "a", "warm", "mat", "and", "rain", "came", "so", "he", "slipped"]


def sentence(generator, count=8):
    return " ".join(generator.choice(WORDS, count)).capitalize() + "."


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two books, and every task that is read; of the others there are no files at all."""
    root = tmp_path_factory.mktemp("sources")
    generator = np.random.default_rng(0)
    (root / "corpus" / "old").mkdir(parents=True)
    for name in ("corpus/one.txt", "corpus/old/two.txt"):
        lines = [" ".join(sentence(generator) for _ in range(3)) for _ in range(120)]
        (root / name).write_text("\n".join(lines).replace(". ", ".\n"))

    def pair(names, label):
        return {name: sentence(generator) for name in names} | {"label": label}

    rows = {name: [pair(("premise", "hypothesis"), i % 3) for i in range(12)] for name in ("mnli", "snli")}
    rows["qnli"] = [pair(("question", "sentence"), i % 2) for i in range(12)]
    rows["boolq"] = [pair(("question", "passage"), i % 2) for i in range(12)]
    rows["squad"] = [{"context": "rain came", "question": f"what {i}", "answers": ["rain"]} for i in range(12)]
    for name, own in rows.items():
        (root / "text" / name).mkdir(parents=True)
        # The first train row of each stands among the dev rows, too.
        for split, part in (("train", own), ("dev", [own[0]])):
            (root / "text" / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return root


@pytest.fixture(scope="module")
def prepared(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "lm_data"
    assert corpus.main(["corpus", f"--data={data}", f"--out={out}", "--vocab=512", "--max_length=96"]) == 0
    return out


@pytest.fixture(scope="module")
def run(tiny, prepared, tmp_path_factory):
    """A finished run of a tiny model; what it printed is thrown away."""
    config = ml_collections.ConfigDict(tiny)
    config.trainable = (".*",)
    config.data.update(source=str(prepared), max_length=96, batch_size=8)
    config.model.update(name="causal_lm", source="llama", head="zero")
    config.method.name = "first_order"
    config.train.update(steps=12, eval_every=6)
    schema.check(config)
    workdir = tmp_path_factory.mktemp("run") / "lm"
    workdir.mkdir()
    schema.save(workdir, config)
    built = build(config)
    result = train.fit(config, built, workdir)
    return workdir, built, result


def test_what_is_read_and_what_is_not(prepared):
    tokenizer = tasks.TextTokenizer.from_folder(prepared)
    documents = [Documents.load(prepared / f"{name}.safetensors") for name in ("train", "dev")]
    about = json.loads((prepared / "about.json").read_text())
    assert about["held_out"] == ["sst2", "rte", "cb", "copa", "wsc"]
    assert about["repeated"] == 7  # one row of each of seven forms, whose prompt is a dev row's
    texts = [
        tokenizer.fast.decode(own.tokens[a:b].tolist(), skip_special_tokens=False)
        for own in documents
        for a, b in own.prompts.tolist()
    ]
    assert all(text.startswith("<s>") and "<s>" not in text[3:] for text in texts)
    # Of 11 rows of each of 7 forms, and what is made of the texts, whose premises are not the tasks'.
    assert sum(text.startswith("<s>Suppose") for text in texts) == 2 * 11
    assert sum("Does this answer the question" in text for text in texts) == 11
    for own in documents:
        answers = {tokenizer.decode(own.tokens[a:b][own.answer[a:b]].tolist()).strip() for a, b in own.prompts.tolist()}
        assert answers <= {"Yes", "No", "Maybe", "rain"}
    # Lines of a paragraph are joined, and every token of a text is in train or dev.
    for a, b in documents[0].texts.tolist():
        assert "\n" not in tokenizer.decode(documents[0].tokens[a:b].tolist())


def test_made_pairs_say_what_their_passage_says():
    text = " ".join(" ".join(f"w{i}x{j}" for j in range(9)) + "." for i in range(40))
    rows = corpus.made([text], 400)
    assert 380 <= len(rows) <= 400
    share = {label: [] for label in (0, 1)}
    for row in rows:
        said, asked = row["premise"].split(), row["hypothesis"].split()
        share[row["label"]].append(np.mean([word in said for word in asked]))
    assert min(share[0]) == 1.0  # words are left out, none put in
    assert np.mean(share[1]) < 0.5
    assert 0.4 < len(share[0]) / len(rows) < 0.6


def test_training_lowers_the_loss_and_is_resumed(run):
    workdir, _, result = run
    values = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    dev = [value["loss"] for value in values if value.get("split") == "dev"]
    assert dev[-1] < dev[0] - 0.1  # 12 steps of Adam from log(512)
    again = train.fit(schema.load(workdir), build(schema.load(workdir)), workdir)
    assert again.step == result.step
    np.testing.assert_array_equal(again.params["norm"]["scale"], result.params["norm"]["scale"])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_folder_is_a_checkpoint(run, tmp_path, dtype):
    workdir, _, result = run
    out = tmp_path / "model"
    words = ["export_lm", f"--workdir={workdir}", f"--out={out}", f"--dtype={dtype}", "--weights=last"]
    assert export_lm.main(words) == 0
    config, params = hub.load(out)
    assert config.max_position_embeddings == 96
    flat = zip(jax.tree.leaves(params), jax.tree.leaves(result.params), strict=True)
    for stored, own in flat:
        # Half a step of a grid of 127 levels either side; a vector is stored as it is.
        step = 0 if dtype == "float32" or stored.ndim == 1 else np.abs(own).max() / 127
        assert np.abs(stored - np.asarray(own)).max() <= step / 2 * (1 + 1e-5)


def test_the_folder_answers_prompts(run, data, tmp_path, capsys):
    out = tmp_path / "model"
    assert export_lm.main(["export_lm", f"--workdir={run[0]}", f"--out={out}", "--dtype=int8"]) == 0
    words = ["evaluate_tasks", f"--checkpoint={out}", f"--data={data / 'text'}", "--tasks=qnli,snli"]
    assert evaluate_tasks.main(words) == 0
    assert "qnli" in capsys.readouterr().out


def test_wrong_requests(data, run, tmp_path, capsys):
    assert corpus.main(["corpus", f"--data={data}"]) == cli.WRONG
    assert corpus.main(["corpus", f"--data={tmp_path}", f"--out={tmp_path / 'x'}"]) == cli.WRONG
    assert "it must be a folder that holds corpus/" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    assert export_lm.main(["export_lm", f"--workdir={run[0]}", f"--out={tmp_path / 'full'}"]) == cli.WRONG
    assert "is not empty" in capsys.readouterr().err
