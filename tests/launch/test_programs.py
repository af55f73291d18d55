"""train, eval and replay on a tiny model; every config of the checkout is sound."""

import copy
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from launch import eval as eval_program
from launch import replay as replay_program
from launch.common import cli, schema
from launch.common.build import build
from launch.common.weights import load_weights
from zojax import _record, replay
from zojax.train import checkpoint
from zojax.train.metrics import read_metrics
from zojax.trees import merge

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "base"))


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_sound(name):
    module = importlib.import_module(f"configs.{name}")
    schema.check(module.get_config())
    if hasattr(module, "ARGUMENTS"):  # a file of several methods
        for argument in module.ARGUMENTS:
            schema.check(module.get_config(argument))
    elif module.get_config().model.weights:  # of a run's weights
        assert module.get_config("runs/mine:last").model.weights == "runs/mine:last"
    else:
        assert module.get_config("reviews").data.source == "reviews"
    assert f"--config=configs/{name}.py" in (module.__doc__ or "")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of processes that share what they have compiled and prepared."""
    shared = {"JAX_COMPILATION_CACHE_DIR": "xla", "ZOJAX_CACHE": "tfds"}
    folder = tmp_path_factory.mktemp("shared")
    paths = {name: str(folder / value) for name, value in shared.items()}
    return os.environ | paths | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory, environment):
    """A finished run of the tiny config: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.py").write_text(
        f"import ml_collections\ndef get_config(a=''):\n    return ml_collections.ConfigDict({tiny!r})\n"
    )
    command = [sys.executable, "-m", "launch.train", f"--config={folder / 'tiny.py'}", f"--workdir={folder / 'run'}"]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return folder / "run", process.stdout


def test_train_says_what_it_will_do_and_what_came_of_it(trained):
    workdir, printed = trained
    assert "4 forwards a step" in printed
    assert "6 steps of 4 examples: 24 forwards" in printed
    for row in ("zero head", "linear probe", "spsa, step 6", "spsa, best on dev", "weights trained: ", "moved: "):
        assert row in printed
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 6
    assert [row["step"] for row in read_metrics(workdir) if "split" not in row] == [1, 2, 3, 4, 5, 6]
    assert checkpoint.steps(workdir / "checkpoints") == [4, 6]


def test_eval_agrees_with_the_table(trained, capsys):
    workdir, printed = trained
    assert eval_program.main(["eval", f"--workdir={workdir}"]) == 0
    result = json.loads(capsys.readouterr().out)
    (row,) = (line for line in printed.splitlines() if line.startswith("spsa, step 6"))
    assert [f"{result['accuracy']:.4f}", f"{result['loss']:.4f}"] == row.split()[-2:]
    assert (result["split"], result["step"]) == ("test", 6)
    assert eval_program.main(["eval", f"--workdir={workdir}", "--split=dev", "--weights=best"]) == 0
    best = json.loads(capsys.readouterr().out)
    dev = [row for row in read_metrics(workdir) if row.get("split") == "dev"]
    assert best["accuracy"] == max(row["accuracy"] for row in dev)


def test_a_run_begins_where_another_ended(trained, tiny):
    workdir, _ = trained
    c = ml_collections.ConfigDict(copy.deepcopy(tiny))
    source = build(c)
    c.model.weights = str(workdir)
    run = build(c)
    own = merge(load_weights(workdir / "checkpoints" / "6", source), source.frozen)
    encoder = merge(run.params, run.frozen)["encoder"]
    assert replay.digest(encoder) == replay.digest(own["encoder"])
    assert replay.digest(encoder) != replay.digest(merge(source.params, source.frozen)["encoder"])
    # The head is fitted anew, to the features of these weights.
    assert replay.digest(merge(run.params, run.frozen)["head"]) != replay.digest(own["head"])


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ("{run}:first", ValueError, "after the colon must be one of last, best, base"),
        ("{run}/none", FileNotFoundError, "there is no folder"),
        ("{run}/base", FileNotFoundError, "has no last weights"),
    ],
)
def test_weights_that_are_not_there(trained, tiny, weights, error, message):
    c = ml_collections.ConfigDict(copy.deepcopy(tiny))
    c.model.weights = weights.format(run=trained[0])
    with pytest.raises(error, match=message):
        build(c)


def test_replay_makes_the_weights_again(trained, tmp_path, capsys):
    workdir, _ = trained
    assert replay_program.main(["replay", f"--workdir={workdir}", f"--out={tmp_path / 'out'}"]) == 0
    assert "bit-equal" in capsys.readouterr().out
    config = schema.load(workdir)
    like = build(config, splits=("dev",)).params
    again = checkpoint.load(tmp_path / "out", like)
    base = checkpoint.load(workdir / "base", like)
    assert replay.digest(again) != replay.digest(base)
    assert replay_program.main(["replay", f"--workdir={workdir}", "--step=4"]) == 0
    assert "bit-equal" in capsys.readouterr().out
    assert replay_program.main(["replay", f"--workdir={workdir}", "--step=5"]) == 0
    assert "no checkpoint of step 5" in capsys.readouterr().out
    assert replay_program.main(["replay", f"--workdir={workdir}", "--step=7"]) == cli.WRONG
    assert "the log holds the steps 1 to 6" in capsys.readouterr().err


def damaged(workdir, tmp_path, change) -> Path:
    """A copy of a run whose log holds other things."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for entry in workdir.iterdir():
        if entry.name != "scalars.log":
            (copy / entry.name).symlink_to(entry)
    header, steps, values = change(*replay.read(workdir / "scalars.log")[:3])
    records = [_record.encode_record(step, row) for step, row in zip(steps, values, strict=True)]
    (copy / "scalars.log").write_bytes(_record.encode_header(header) + b"".join(records))
    return copy


def test_replay_refuses_the_log_of_another_run(trained, tmp_path, capsys):
    copy = damaged(trained[0], tmp_path, lambda h, s, v: (h._replace(base_digest="0" * 64), s, v))
    assert replay_program.main(["replay", f"--workdir={copy}"]) == cli.WRONG
    assert "another run: base_digest" in capsys.readouterr().err


def test_replay_sees_scalars_that_were_changed(trained, tmp_path, capsys):
    def change(header, steps, values):
        return header, steps, (*values[:-1], np.float32(1.1) * values[-1])

    copy = damaged(trained[0], tmp_path, change)
    assert replay_program.main(["replay", f"--workdir={copy}"]) == cli.FAILED
    assert "not bit-equal" in capsys.readouterr().out


def test_replay_elsewhere_has_a_tolerance(trained, tmp_path, capsys):
    def change(header, steps, values):
        # A share of the last step that is well above a weight's last place and well below the tolerance.
        return header._replace(jaxlib="0.0.1"), steps, (*values[:-1], np.float32(1 + 2e-4) * values[-1])

    copy = damaged(trained[0], tmp_path, change)
    assert replay_program.main(["replay", f"--workdir={copy}"]) == 0
    assert "jaxlib: 0.0.1 then" in capsys.readouterr().out


def test_a_run_is_stopped_and_continued(config_file, trained, environment, tmp_path):
    command = [sys.executable, "-m", "launch.train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # The evaluation of step 0 is the first line; step 1, which compiles for longer than a signal takes, comes next.
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or not metrics.stat().st_size:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait() == 0
    assert "SIGTERM: saved in" in rest
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    for name in ("metrics.jsonl", "scalars.log", "config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (trained[0] / name).read_bytes()
