"""What hears with integers: a run on an accelerator and its export, whole and in streams, and the interpreter."""

import copy
import json

import jax
import numpy as np
import pytest

from launch import eval as eval_program
from launch import export, interpreter
from launch import transcribe as transcribe_program
from launch.common import schema
from launch.common.build import build
from launch.speech import exported, recogniser
from models.transducer.deployed import DeployedTask
from models.transducer.integer_formats import FEATURES
from tests.launch.test_signals import corpus, fields, of_module, write_run  # noqa: F401 (fixtures)
from zojax.data.audio.waves import read_wave


@pytest.fixture(scope="module")
def run(fields, tmp_path_factory):  # noqa: F811
    """The folder of a run on an accelerator, quantised after training (of which the float run has had none)."""
    small = copy.deepcopy(fields)
    small["speech"] |= {"width": 8, "embedding": 4, "joint": 8, "bins": 8, "speeds": (100,)}
    small["optimizer"] |= {"name": "adam", "weight_decay": 0.0}
    small["train"] |= {"steps": 0, "eval_every": 0, "keep_best": "none"}
    folder = tmp_path_factory.mktemp("integer_recogniser")

    float_run, params = write_run(small, folder / "float")
    small["model"]["weights"] = str(float_run)
    small["integer"]["accelerator"] = "tflite"
    folder, _ = write_run(small, folder / "integer", params)
    built = build(schema.load(folder), splits=("dev", "test"))
    # It takes seconds each time.
    with pytest.MonkeyPatch.context() as patch:
        for program in (recogniser, export):
            patch.setattr(program, "build", lambda config, splits: built)
        yield folder


@pytest.fixture(scope="module")
def found(run):
    return recogniser.load(run, "last")


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    """The file that `launch.export` writes of the run."""
    path = tmp_path_factory.mktemp("integer_file") / "tones.safetensors"
    assert export.main(["export", f"--workdir={run}", f"--out={path}", "--weights=last"]) == 0
    return path


def labels_of(lines: str) -> list[str]:
    """The last text of each file of a transcription."""
    return [line.split("\t")[1] for line in lines.splitlines() if line.count("\t") == 1 and "(said:" not in line]


def test_a_run_and_its_export_hear_what_the_interpreter_hears(run, found, file, corpus, capsys, monkeypatch):  # noqa: F811
    """Whole and as streams, of one token as of the other; the interpreter shares no code with them."""
    assert isinstance(found.task, DeployedTask)
    paths = [str(corpus / row.split("\t")[0]) for row in (corpus / "test.tsv").read_text().splitlines()[1:]]
    features = jax.jit(lambda pcm: FEATURES.encode(found.task.front_end(pcm)))
    model, _ = interpreter.load(file)
    want = []
    for path in paths:
        alone = interpreter.Transducer(model)
        for codes in np.asarray(features(read_wave(path)[None]))[0]:
            alone.hear(codes)
        want.append(found.units.decode(alone.labels))
    assert all(want)
    # The file holds the integers of the run, so that one set of programs will do for both.
    again = recogniser.of_export(exported.read(file))
    assert again.units == found.units
    for one, other in zip(jax.tree.leaves(again.params), jax.tree.leaves(found.params), strict=True):
        np.testing.assert_array_equal(one, other)
    monkeypatch.setattr(recogniser, "of_export", lambda _: again)
    monkeypatch.setattr(recogniser, "load", lambda *_: again._replace(config=found.config))
    capsys.readouterr()
    assert transcribe_program.main(["transcribe", *paths, f"--export={file}", "--stream"]) == 0
    assert labels_of(capsys.readouterr().out) == want
    # So does the table of the run, of whole utterances and of streams.
    assert eval_program.main(["eval", f"--workdir={run}", "--weights=last", "--split=test", "--beam=0"]) == 0
    heard = [json.loads(line) for line in (run / "heard_test_last.jsonl").read_text().splitlines()]
    assert [(row["greedy whole"], row["greedy stream"]) for row in heard] == [(text, text) for text in want]
    records = [json.loads(line) for line in (run / "recognised_test_last.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["loss"]) for record in records)
    assert transcribe_program.main(["transcribe", paths[0], f"--workdir={run}", "--stream"]) == 0
    assert labels_of(capsys.readouterr().out)[-1:] == want[:1]


def test_refusals(file, run, found, capsys, monkeypatch):
    assert transcribe_program.main(["transcribe", "test:0", f"--export={file}"]) == 1
    assert "an export has no data of its own" in capsys.readouterr().err
    assert transcribe_program.main(["transcribe", "test:0", f"--export={file}", f"--workdir={run}"]) == 2
    assert "--workdir=RUN or --export=FILE" in capsys.readouterr().err
    assert transcribe_program.main(["transcribe", "test:0", f"--export={file}.none"]) == 2
    monkeypatch.setattr(recogniser, "load", lambda *_: found)
    aligned = [f"--workdir={run}", "--weights=last", "--beam=0", f"--aligner={run}"]
    assert eval_program.main(["eval", *aligned]) == 2
    assert "it is on an accelerator; a float run is needed" in capsys.readouterr().err
