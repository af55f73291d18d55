"""Trials of learning rates."""

import json

import pytest

from launch import tune
from launch.common import cli
from zojax.train.metrics import read_metrics


def run(config_file, workdir, *arguments):
    return tune.main(["tune", f"--config={config_file}", f"--workdir={workdir}", *arguments])


def test_the_rates_are_compared_on_dev_alone(config_file, tmp_path, capsys):
    workdir = tmp_path / "trials"
    sgd = ["--config.optimizer.name=sgd", "--config.train.steps=3"]
    assert run(config_file, workdir, "--rates=1e-1,1e-4,1e30", *sgd) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in (workdir / "tune.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines] == [1e-4, 1e-1, 1e30]
    assert lines[-1]["loss"] is None
    assert "not finite" in printed.err
    assert [line.split()[0] for line in printed.out.splitlines() if "diverged" in line] == ["1e+30"]
    for line in lines[:2]:
        (end,) = [row for row in read_metrics(workdir / f"{line['learning_rate']:g}") if row.get("split") == "dev"][1:]
        assert (end["step"], end["loss"]) == (3, line["loss"])
        assert not (workdir / f"{line['learning_rate']:g}" / "eval.jsonl").exists()
    # The same command takes the finished trials as they are.
    assert run(config_file, workdir, "--rates=1e-1,1e-4", *sgd) == 0
    again = [json.loads(line) for line in (workdir / "tune.jsonl").read_text().splitlines()]
    assert again == lines[:2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rates=1e-3,fast"], "--rates=1e-3,fast: numbers by commas are needed"),
        (["--rates=0"], "--rates=0: each must be positive and finite"),
        (["--config.train.steps=0"], "config.train.steps is 0; a trial needs steps"),
    ],
)
def test_wrong_requests_write_nothing(config_file, tmp_path, capsys, arguments, message):
    assert run(config_file, tmp_path / "trials", *arguments) == cli.WRONG
    assert message in capsys.readouterr().err
    assert not (tmp_path / "trials").exists()


def test_the_table_says_what_to_try_next():
    def lines(*losses):
        return [
            {"learning_rate": 10.0**i, "loss": x, "accuracy": 0.5, "loss_at_start": 1.0} for i, x in enumerate(losses)
        ]

    assert tune.table(lines(0.9, 0.8, 0.95)).count("lowest") == 1
    assert tune.table(lines(0.9, 0.8, 0.95)).splitlines()[2].endswith("lowest")
    assert "at the end of the range" in tune.table(lines(0.9, 0.8, 0.7))
    assert "no rate lowers the loss" in tune.table(lines(1.1, 1.2, 1.3))
