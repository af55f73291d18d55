"""A transducer of tones, end to end: training by config, evaluation, transcription of files and streams."""

import copy
import importlib
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
import soundfile

from launch import eval as eval_program
from launch import train as train_program
from launch import transcribe as transcribe_program
from launch.common import schema
from launch.common.build import build
from launch.common.methods import make_method
from launch.speech import endpoints, evaluate, recipe, recogniser, recognition, shapes, streams
from models.transducer.decode import decode
from models.transducer.model import decodable
from models.transducer.sizes import param_count
from tests.kernels.lowering import lower_for_cuda
from zojax.data.audio import recordings
from zojax.data.audio.features import num_frames
from zojax.data.audio.waves import RATE, read_wave
from zojax.train.metrics import read_metrics

TONES = {"A": 400.0, "B": 1300.0, "C": 3100.0}


def write_tones(path, text: str, seed: int) -> None:
    """A tone of 0.15 s and a rest of 0.05 s a letter, silence for the space, a little noise all over."""
    rng = np.random.default_rng(seed)
    at = np.arange(RATE // 5) / RATE
    loud = np.where(at < 0.15, 0.3, 0)
    parts = [np.sin(2 * np.pi * TONES[c] * at) * loud if c != " " else 0 * at for c in f" {text} "]
    x = np.concatenate(parts)
    # An odd number of samples: utterances end within frames and within pieces.
    x = np.concatenate([x, np.zeros(int(rng.integers(1, 700)))])
    soundfile.write(path, (x + 0.003 * rng.normal(size=len(x))).astype(np.float32), RATE)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder of tones with lists train, dev and test."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    number = 0
    for split, count in (("train", 48), ("dev", 6), ("test", 7)):
        rows = ["path\ttext"]
        for _ in range(count):
            text = "".join(rng.choice(list(TONES), 5))
            # Words of 1 to 4 letters; those of train and dev are of one length, and so of one shape.
            cut = int(rng.integers(1, 4))
            text = f"{text[:cut]} {text[cut + 1 :]}" if split != "test" or number % 2 else text[:cut]
            write_tones(folder / f"{number}.wav", text, number)
            rows.append(f"{number}.wav\t{text}")
            number += 1
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def fields(tiny, corpus):
    """The fields of a config of a transducer of tones."""
    fields = copy.deepcopy(tiny)
    fields["trainable"] = (".*",)
    fields["data"] |= {"source": str(corpus), "batch_size": 8, "eval_batch_size": 8}
    fields["model"] |= {"name": "transducer", "source": "random", "head": "zero"}
    fields["method"]["name"] = "first_order"
    fields["speech"] |= {"bins": 16, "stack": 4, "width": 32, "embedding": 16, "joint": 32, "acoustic": 0.5}
    fields["speech"] |= {"seconds": 30, "gain": 3.0, "speeds": (95, 100)}
    fields["optimizer"] |= {"name": "adamw", "weight_decay": 0.01, "learning_rate": 1e-2, "clip_norm": 1.0}
    fields["train"] |= {"steps": 400, "eval_every": 200, "checkpoint_every": 0, "log_every": 10, "keep_best": "wer"}
    return fields


def config_of(fields, **changes) -> Any:  # a type checker does not know a ConfigDict's fields
    """The config, with fields of `speech` changed."""
    config: Any = ml_collections.ConfigDict(copy.deepcopy(fields))
    config.speech.update(changes)
    schema.check(config)
    return config


@pytest.fixture(scope="session")
def trained(fields, tmp_path_factory):
    """The folder of a finished run, and what it printed."""
    folder = tmp_path_factory.mktemp("speech")
    (folder / "tones.py").write_text(
        f"import ml_collections\ndef get_config(a=''):\n    return ml_collections.ConfigDict({fields!r})\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOJAX_CACHE", str(tmp_path_factory.getbasetemp() / "zojax_cache"))
        code = train_program.main(["train", f"--config={folder / 'tones.py'}", f"--workdir={folder / 'run'}"])
    assert code == 0
    return folder / "run"


def test_training_keeps_the_weights_of_the_least_dev_wer(trained):
    lines = [line for line in read_metrics(trained) if line.get("split") == "dev"]
    rates = {line["step"]: line["wer"] for line in lines}
    assert list(rates) == [0, 200, 400]
    kept = [int(path.name) for path in (trained / "best").iterdir()]
    assert kept == [min(rates, key=lambda step: rates[step])]
    ends = [json.loads(line) for line in (trained / "eval.jsonl").read_text().splitlines()]
    assert {(line["split"], line["weights"]) for line in ends} == {
        (split, which) for split in ("dev", "test") for which in ("last", "best")
    }
    # Three tones are told apart by their bins alone. A chance is 1.0 or more.
    assert ends[-1]["wer"] <= 0.3


@pytest.fixture(scope="module")
def found(trained):
    """What recognises tones."""
    return recogniser.load(trained, "best")


def files(corpus, split="test"):
    """The paths and texts of a split."""
    rows = [line.split("\t") for line in (corpus / f"{split}.tsv").read_text().splitlines()[1:]]
    return [(corpus / path, text) for path, text in rows]


def test_a_run_is_read_without_its_optimizer(trained):
    mine = recogniser.load(trained, "last")
    batches = recipe.evaluation(mine.config, mine.units, "test")
    errors = recognition.errors(mine.task, mine.params, batches, mine.units)
    records = [json.loads(line) for line in (trained / "eval.jsonl").read_text().splitlines()]
    (wanted,) = (line for line in records if (line["split"], line["weights"]) == ("test", "last"))
    assert (errors.errors, errors.words) == (wanted["errors"], wanted["words"])


@pytest.mark.parametrize("beam", [0, 3])
def test_no_answer_depends_on_the_batch_or_its_padding(found, fields, beam):
    answers = []
    for rows in (1, 8):
        config = config_of(fields)
        config.data.eval_batch_size = rows
        best = {}
        for batch in recipe.evaluation(config, found.units, "test"):
            frames, mask = recognition.encoder_program(found.task)(found.params, batch)
            # More padding on top of the bucket's.
            frames = jnp.pad(frames, ((0, 0), (0, rows), (0, 0)), constant_values=9.0)
            mask = jnp.pad(mask, ((0, 0), (0, rows)))
            heard = decode(recognition.search(64, beam), decodable(found.task.config, found.params), frames, mask)
            for row in np.flatnonzero(batch["weight"] > 0):
                labels = recognition.best_labels(heard)[row].tolist()
                best[int(batch["id"][row])] = labels, float(heard.log_probs[row, 0])
        answers.append([best[key] for key in sorted(best)])
    single, together = answers
    assert [labels for labels, _ in together] == [labels for labels, _ in single]
    # Products over rows of other sizes are summed in another order: float32 over some 30 frames.
    np.testing.assert_allclose([p for _, p in together], [p for _, p in single], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beam", [0, 3])
def test_streams_of_any_chunks_find_what_the_whole_gives(found, corpus, beam):
    rng = np.random.default_rng(beam)
    for path, _ in files(corpus)[:4]:
        pcm = read_wave(path)
        whole = transcribe_program.transcribe(found, pcm, beam)
        stream = streams.Stream(found.task, found.params, found.bank, recognition.search(64, beam))
        cuts = np.sort(rng.integers(0, len(pcm), 5))
        for part in np.split(pcm, cuts):
            stream.push(part[None])
        stream.finish()
        assert found.units.decode(recognition.best_labels(stream.found())[0]) == whole


def test_rows_of_a_stream_end_when_they_end(found, corpus):
    waves = [read_wave(path) for path, _ in files(corpus)]
    longest = max(len(x) for x in waves)
    pcm = np.stack([np.pad(x, (0, longest - len(x)), constant_values=77) for x in waves])
    lengths = np.array([num_frames(len(x), found.bank) for x in waves])
    stream = streams.Stream(found.task, found.params, found.bank, recognition.search(64, 0), frame_lengths=lengths)
    stream.push(pcm)
    stream.finish()
    heard = [found.units.decode(labels) for labels in recognition.best_labels(stream.found())]
    assert heard == [transcribe_program.transcribe(found, x) for x in waves]


def test_transcribe_names_what_it_cannot_read(trained, corpus, tmp_path, capsys):
    (tmp_path / "broken.flac").write_bytes(b"fLaC and no more")
    good = [str(path) for path, _ in files(corpus)[:2]]
    listed = [good[0], str(tmp_path / "broken.flac"), good[1], str(tmp_path / "none.wav")]
    assert transcribe_program.main(["transcribe", *listed, f"--workdir={trained}"]) == 0
    printed = capsys.readouterr()
    offline = dict(line.split("\t") for line in printed.out.splitlines())
    assert list(offline) == good
    assert "broken.flac: " in printed.err
    assert "none.wav: no such file" in printed.err
    assert "2 of 4 files could not be read" in printed.err

    assert transcribe_program.main(["transcribe", *good, f"--workdir={trained}", "--stream", "--beam=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"2 files, \d+\.\d s, real-time factor \d+\.\d{3}, emission latency \d+\.\d{3} s, at most \d+\.\d{3} s, "
        r"after the end \d+\.\d{3} s",
        lines[-1],
    )
    partial = [float(line.split("\t")[1]) for line in lines if line.startswith("\t")]
    assert len(partial) >= 4
    assert partial[0] < partial[1]
    assert [line.split("\t")[0] for line in lines[:-1] if not line.startswith("\t")] == good

    assert transcribe_program.main(["transcribe", listed[1], f"--workdir={trained}"]) == 1


def test_transcribe_hears_the_runs_own_data(trained, corpus, capsys):
    path, text = files(corpus)[1]
    assert transcribe_program.main(["transcribe", "test:1", str(path), f"--workdir={trained}"]) == 0
    said, heard, again = capsys.readouterr().out.splitlines()
    assert said == f"test:1\t(said: {text})"
    assert heard.split("\t")[1] == again.split("\t")[1]
    assert transcribe_program.main(["transcribe", "test:99", f"--workdir={trained}"]) == 1
    assert "utterance 99 of a split of 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one FILE or more"),
        (("a.wav", "--workdir=/nowhere"), "holds no run"),
        (("a.wav", "--beam=-1"), "beam"),
    ],
)
def test_transcribe_refuses_wrong_requests(arguments, message, capsys):
    assert transcribe_program.main(["transcribe", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"rank": 2}}, "config.adapter.rank=2; 0 is needed"),
        ({"trainable": ("norm_0/",)}, "of random weights; the others were not kept"),
        ({"model": {"name": "bert_classifier"}, "train": {"keep_best": "loss"}}, "not transducer"),
    ],
)
def test_a_run_that_cannot_recognise_says_so(trained, tmp_path, changes, message):
    config = schema.load(trained)
    config.update(changes)
    schema.save(tmp_path, config)
    for name in ("units.json", "base"):
        (tmp_path / name).symlink_to(trained / name)
    with pytest.raises(ValueError, match=message):
        recogniser.load(tmp_path, "base")


def test_what_sees_the_whole_utterance_does_not_stream(fields, tmp_path, capsys):
    config = config_of(fields, encoder="conformer", chunk=0, channels=(2,), width=8)
    run = build(config, splits=("dev",))
    schema.save(tmp_path, config)
    recipe.save_units(config, tmp_path)
    recogniser.checkpoint.save(tmp_path / "base", run.params, {"step": 0})
    arguments = ["transcribe", "a.wav", f"--workdir={tmp_path}", "--weights=base", "--stream"]
    assert transcribe_program.main(arguments) == 2
    assert "whole sequence" in capsys.readouterr().err


def test_eval_is_one_table(trained, tmp_path, capsys):
    listed = tmp_path / "listed.txt"
    listed.write_text("A AB\n")
    arguments = [
        f"--workdir={trained}",
        "--weights=best",
        "--beam=2",
        f"--listed={listed}",
        f"--aligner={trained}:best",
    ]
    assert eval_program.main(["eval", *arguments]) == 0
    printed = capsys.readouterr().out.splitlines()
    for column in ("WER", "CER", "U-WER", "B-WER", "RTF", "delay", "first", "last", "after end"):
        assert column in printed[1]
    assert [line.split()[:3] for line in printed[2:]] == [
        ["greedy", "whole", "10"],
        ["greedy", "stream", "10"],
        ["beam", "2", "whole"],
        ["beam", "2", "stream"],
    ]
    records = [json.loads(line) for line in (trained / "recognised_test_best.jsonl").read_text().splitlines()]
    kept = [json.loads(line) for line in (trained / "eval.jsonl").read_text().splitlines()]
    (wanted,) = (line for line in kept if (line["split"], line["weights"]) == ("test", "best"))
    greedy, stream = records[:2]
    assert (greedy["errors"], greedy["words"]) == (stream["errors"], stream["words"]) == (wanted["errors"], 10)
    np.testing.assert_allclose(greedy["nats_per_label"], wanted["nats_per_label"], rtol=1e-5)
    assert greedy["low"] <= greedy["wer"] <= greedy["high"]
    # A tone has to be heard before it is known, and is told from others within its 0.2 s and the next.
    assert -0.2 < stream["delay"] < 0.4
    assert 0 < stream["first"] < 0.4
    heard = [json.loads(line) for line in (trained / "heard_test_best.jsonl").read_text().splitlines()]
    assert [line["id"] for line in heard] == list(range(7))
    assert all(line["greedy whole"] == line["greedy stream"] for line in heard)


def test_what_never_ends_is_cut_off_alike(found, fields):
    """A label at every chance: more than the batch alone has room for."""
    bias = found.params["joiner"]["output"]["bias"].at[1].add(1e3)
    joiner = found.params["joiner"] | {"output": found.params["joiner"]["output"] | {"bias": bias}}
    babbles = found._replace(params=found.params | {"joiner": joiner})
    batches = recipe.evaluation(found.config, found.units, "test")
    batch = batches[0]
    rows = evaluate.conditions(babbles, [batch], 0)  # raises where a stream differs
    assert recognition.search(batch["pcm"].shape[1] // 640, 0).max_labels == 64
    assert all(max(len(one.labels) for one in row.utterances) > 64 for row in rows)


def test_streams_that_differ_end_the_evaluation(trained, monkeypatch, capsys):
    honest = evaluate.stream
    monkeypatch.setattr(evaluate, "stream", lambda *a, **k: honest(*a, **k)._replace(labels=np.array([1])))
    assert eval_program.main(["eval", f"--workdir={trained}", "--beam=0"]) == 1
    assert "streams give another text" in capsys.readouterr().err


def test_words_are_aligned_to_where_they_are(found, corpus):
    aligner = endpoints.Aligner(found)
    for path, text in files(corpus)[:3]:
        ends = aligner(read_wave(path), text)
        # Silence of 0.2 s comes first, then 0.2 s a character; see `write_tones`.
        where = np.cumsum([len(word) + 1 for word in text.split()]) * 0.2
        np.testing.assert_allclose(ends, where, atol=0.3)
    assert aligner(np.zeros(0, np.int16), "A") == []


LOWERED = ("an4_convrnnt", "an4_conformer_streaming", "librispeech_rnnt", "librispeech_conformer:l", "wake_word:dual:x")


@pytest.mark.parametrize("name", LOWERED)
def test_steps_lower_from_shapes_alone(name):
    module, _, argument = name.partition(":")
    config = importlib.import_module(f"configs.{module}").get_config(*filter(None, [argument]))
    schema.check(config)
    found = shapes.shapes(config, seconds=16.0, labels=60)
    tx = make_method(
        config, found.task, found.params, jax.random.key(0), rounding_key=jax.random.key(0), steps_per_epoch=1
    )[1]

    def step(params, state, batch, key):
        value, gradient = jax.value_and_grad(lambda p: found.task.loss(p, batch, key=key)[0])(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = jax.eval_shape(tx.init, found.params)
    key = jax.eval_shape(lambda: jax.random.key(0))
    text = lower_for_cuda(step, found.params, state, found.batch, key)
    assert "__gpu$xla.gpu.triton" in text  # the lattice


@pytest.mark.parametrize(
    ("name", "argument", "published"),
    [
        ("librispeech_conformer", "s", 10.3e6),  # arXiv 2005.08100, table 1
        ("librispeech_conformer", "m", 30.7e6),
        ("librispeech_conformer", "l", 118.8e6),
    ],
)
def test_sizes_are_the_papers(name, argument, published):
    config = importlib.import_module(f"configs.{name}").get_config(argument)
    # Word pieces, their joiner and the norms are not told in the paper.
    assert param_count(recipe.model_config(config, 1001)) == pytest.approx(published, rel=0.06)


@pytest.mark.parametrize(("base", "classes"), [("an4", 28), ("librispeech", 2501)])
def test_conv_rnnt_is_compared_at_the_same_size(base, classes):
    sizes = [
        param_count(recipe.model_config(importlib.import_module(f"configs.{base}_{name}").get_config(), classes))
        for name in ("rnnt", "convrnnt")
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def test_a_split_may_be_several(monkeypatch):
    asked = []
    corpus = recordings.Recordings(
        files={name: [recordings.Recording("a", Path("a.wav"), "A", "")] for name in ("train_a", "train_b", "dev")}
    )
    monkeypatch.setattr(recipe, "source", lambda config: corpus)
    monkeypatch.setattr(recipe.prepared, "load", lambda source, name: asked.append(name))
    for name in ("train", "dev", "test"):
        recipe._split(None, name)
    assert asked == ["train_a+train_b", "dev", "test"]  # the last is refused there, by its name


def test_zeroth_order_steps_go_on_from_a_first_order_run(trained, fields, tmp_path):
    fields = copy.deepcopy(fields)
    fields["trainable"] = (r"norm_0/", r"joiner/encoded/")
    fields["model"]["weights"] = f"{trained}:best"
    fields["method"] |= {"name": "spsa", "num_samples": 4, "eps": 1e-3}
    fields["speech"] |= {"noise": "pink", "snr": (0, 5), "speeds": (100,)}
    fields["optimizer"] |= {"name": "adam", "weight_decay": 0.0, "learning_rate": 3e-3, "clip_norm": 0.0}
    fields["train"] |= {"steps": 60, "eval_every": 60, "keep_best": "loss"}
    (tmp_path / "zo.py").write_text(
        f"import ml_collections\ndef get_config(a=''):\n    return ml_collections.ConfigDict({fields!r})\n"
    )
    assert train_program.main(["train", f"--config={tmp_path / 'zo.py'}", f"--workdir={tmp_path / 'run'}"]) == 0
    before, after = [line for line in read_metrics(tmp_path / "run") if line.get("split") == "dev"]
    assert after["loss"] < before["loss"]
    # What it kept frozen is read from the run that it began with.
    first, second = recogniser.load(trained, "best"), recogniser.load(tmp_path / "run", "best")
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), first.params, second.params)
    assert moved["joiner"]["encoded"] == {"bias": True, "kernel": True}
    assert not moved["encoder"]["lstm"]["lstm_0"]["input"]
    assert not any(jax.tree.leaves(moved["predictor"]))
