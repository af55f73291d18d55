"""A wrong request: one line that names the field, the value and what would be right; exit code 2; nothing written."""

import copy
import json

import ml_collections
import pytest

from launch import eval as eval_program
from launch import replay as replay_program
from launch import train
from launch.common import cli, schema


def refused(program, arguments, capsys) -> str:
    """The one line with which a program refuses."""
    assert program.main(["program", *arguments]) == cli.WRONG
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    # What libraries print while a data set is prepared does not count.
    own = [line for line in lines if line.startswith(("train: ", "eval: ", "replay: "))]
    assert len(own) == 1, captured.err
    assert lines[-1] == own[0]
    return own[0]


FLAGS = [
    (["--config.data.batch=3"], "--config.data.batch: no such field"),
    (["--config.data.batch_size"], "--config.data.batch_size: no value"),
    (["--config.data.batch_size=many"], "--config.data.batch_size=many"),
    (["--config.train.steps=1.5"], "--config.train.steps=1.5"),
    (["--config.data.batch_size=0"], "config.data.batch_size is 0; it must be an integer, 1 or more"),
    (["--config.method.eps=-1"], "config.method.eps is -1.0; it must be a number above 0"),
    (["--config.method.eps=nan"], "config.method.eps is nan"),
    (["--config.method.name=mezo"], "config.method.name is 'mezo'; it must be one of spsa, forward"),
    (["--config.optimizer.name=lion"], "config.optimizer.name is 'lion'"),
    (["--config.optimizer.weight_decay=0.1"], "config.optimizer.weight_decay is 0.1; adam has none"),
    (["--config.optimizer.warmup_steps=9"], "config.optimizer.warmup_steps is 9; it must be at most"),
    (["--config.train.microbatches=3"], "config.train.microbatches is 3; it must divide config.data.batch_size, 4"),
    (["--config.data.sampling=best"], "config.data.sampling is 'best'; it must be one of uniform, importance"),
    (
        ["--config.data.sampling=importance", "--config.model.head=zero"],
        "config.data.sampling is 'importance', but config.model.head is 'zero'",
    ),
    (["--config.trainable=()"], "config.trainable is []; it must be a tuple of patterns"),
    (["--config.trainable=('nowhere',)"], "trainable: the pattern 'nowhere' matches no leaf"),
    (["--config.data.source=/nowhere"], "/nowhere"),
    (["--config.model.source=/nowhere"], "/nowhere"),
    (["--config.data.train_examples=25"], "config.data.train_examples is 25;"),
    (["--config.method.name=fzoo", "--config.method.num_samples=1"], "num_samples: 1;"),
    (["--config.method.name=forward", "--config.method.probes=pair"], "probes: "),
    (["--steps=3"], "steps"),
    (["stray"], "not a flag: stray"),
]


@pytest.mark.parametrize(("arguments", "message"), FLAGS, ids=[" ".join(a) for a, _ in FLAGS])
def test_train_refuses(config_file, tmp_path, capsys, arguments, message):
    workdir = tmp_path / "run"
    line = refused(train, [f"--config={config_file}", f"--workdir={workdir}", *arguments], capsys)
    assert message in line
    assert not workdir.exists()


def test_train_needs_a_config_and_a_folder(config_file, tmp_path, capsys):
    assert "--config=FILE.py is needed" in refused(train, [f"--workdir={tmp_path / 'run'}"], capsys)
    assert "--workdir=FOLDER is needed" in refused(train, [f"--config={config_file}"], capsys)
    line = refused(train, ["--config=/nowhere.py", f"--workdir={tmp_path / 'run'}"], capsys)
    assert "--config=/nowhere.py: no such file" in line
    assert not (tmp_path / "run").exists()


def test_train_refuses_the_folder_of_another_run(config_file, tiny, tmp_path, capsys):
    schema.save(tmp_path, ml_collections.ConfigDict(tiny | {"seed": 3}))
    before = (tmp_path / schema.FILE).read_text()
    line = refused(train, [f"--config={config_file}", f"--workdir={tmp_path}"], capsys)
    assert "holds a run with config.seed=3, not 0" in line
    assert (tmp_path / schema.FILE).read_text() == before


def test_train_refuses_a_folder_of_other_things(config_file, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    assert "is not empty and holds no run" in refused(train, [f"--config={config_file}", f"--workdir={other}"], capsys)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("program", [eval_program, replay_program])
def test_eval_and_replay_need_a_run(program, tmp_path, capsys):
    assert "holds no run" in refused(program, [f"--workdir={tmp_path}"], capsys)
    (tmp_path / schema.FILE).write_text("{")
    assert "is no config" in refused(program, [f"--workdir={tmp_path}"], capsys)
    (tmp_path / schema.FILE).write_text(json.dumps({"seed": 0}))
    assert "config.trainable is missing" in refused(program, [f"--workdir={tmp_path}"], capsys)
    assert not list(tmp_path.glob("*/"))


def test_a_run_from_before_a_field_was_there(tiny, tmp_path):
    older = copy.deepcopy(tiny)
    del older["biasing"], older["speech"]["signals"]
    (tmp_path / schema.FILE).write_text(json.dumps(older))
    config = schema.load(tmp_path)
    assert config.biasing.kind == "none"
    assert list(config.speech.signals) == []
    assert config.speech.width == tiny["speech"]["width"]
    (tmp_path / schema.FILE).write_text(json.dumps(older | {"biasing": 3}))
    with pytest.raises(ValueError, match="is no config"):
        schema.load(tmp_path)


def test_eval_refuses_a_split_that_there_is_not(tmp_path, capsys):
    assert "--split=tset" in refused(eval_program, [f"--workdir={tmp_path}", "--split=tset"], capsys)


@pytest.mark.parametrize("name", list(schema.FIELDS))
def test_every_field_has_a_type(tiny, name):
    config = ml_collections.ConfigDict(tiny)
    schema.check(config)
    *path, last = name.split(".")
    node = config
    for part in path:
        node = node[part]
    with node.ignore_type():
        node[last] = {"a": 1.0} if name == "trainable" else None
    with pytest.raises(ValueError, match=rf"config\.{name}"):
        schema.check(config)


def test_help_shows_the_command(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["train", "--config=configs/quickstart.py", "--help"])
    assert stop.value.code == 0
    assert "python -m launch.train --config=" in capsys.readouterr().out
