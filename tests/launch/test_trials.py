"""Trials side by side are the runs that `launch.train` would make, one by one."""

import json

import numpy as np
import pytest

from launch import train, trials
from launch.common import cli


@pytest.fixture
def config_file(tiny, tmp_path):
    config = {**tiny, "optimizer": {**tiny["optimizer"], "name": "momentum"}}
    config["method"] = {**tiny["method"], "queries": "adaptive", "num_samples": 3}
    config["adapter"] = {**tiny["adapter"], "rank": 2}
    config["model"] = {**tiny["model"], "head": "zero"}
    config["data"] = {**tiny["data"], "train_examples": 4}  # a step an epoch, so that the probes of a step grow to 2
    config["trainable"] = ("kernel/(a|b)$", "^head/")
    config["train"] = {**tiny["train"], "steps": 20, "eval_every": 10, "checkpoint_every": 0}
    path = tmp_path / "config.py"
    path.write_text(f"import ml_collections\ndef get_config(a=''):\n    return ml_collections.ConfigDict({config!r})\n")
    return path


def test_each_trial_is_the_run_of_its_rate_and_seed(config_file, tmp_path, capsys):
    words = ["trials", f"--config={config_file}", f"--workdir={tmp_path / 'all'}", "--rates=0.01,0.1", "--seeds=0,3"]
    assert trials.main(words) == 0
    records = [json.loads(line) for line in (tmp_path / "all" / trials.FILE).read_text().splitlines()]
    assert len(records) == 4 * (3 + 1)
    capsys.readouterr()
    for seed, rate in ((0, 0.1), (3, 0.01)):
        own = [f"--config.seed={seed}", f"--config.optimizer.learning_rate={rate}"]
        folder = tmp_path / f"{seed}_{rate}"
        assert train.main(["train", f"--config={config_file}", f"--workdir={folder}", *own]) == 0
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        single = {line["step"]: line for line in lines if line.get("split") == "dev"}
        trial = [r for r in records if (r["seed"], r["rate"], r["split"]) == (seed, rate, "dev")]
        assert [r["step"] for r in trial] == [0, 10, 20]
        assert [r["forwards"] for r in trial] == [0, single[10]["forwards"], single[20]["forwards"]]
        # float32 losses summed in another order; a difference of losses over 2 eps = .02 magnifies that fiftyfold, and
        # 20 steps of rates up to .1 add it up.
        np.testing.assert_allclose([r["loss"] for r in trial], [single[r["step"]]["loss"] for r in trial], atol=2e-3)
        moved = abs(single[20]["loss"] - single[0]["loss"])
        assert moved > 1e-2 or rate < 0.1  # so that the tolerance can tell a run from another
    print(trials.table(records))
    assert "diverged: 0 of 4" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_counts_as_diverged():
    record = {"seed": 0, "rate": 0.1, "step": 0, "forwards": 0, "loss": 0.5, "accuracy": 0.5}
    end = {**record, "step": 5, "loss": float("nan"), "accuracy": 0.4}
    records = [{**record, "split": "dev"}, {**end, "split": "dev"}, {**record, "split": "test"}]
    assert "diverged: 1 of 1" in trials.table(records)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rates=0.1,0.1"], "each another"),
        (["--rates=x"], "numbers by commas"),
        (["--rates=0.1", "--config.optimizer.name=adam"], "config.optimizer.name is 'adam'"),
        (["--rates=0.1", "--config.train.eval_every=0"], "eval_every is 0"),
    ],
)
def test_wrong_requests(config_file, tmp_path, capsys, words, message):
    assert trials.main(["trials", f"--config={config_file}", f"--workdir={tmp_path / 'no'}", *words]) == cli.WRONG
    assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
