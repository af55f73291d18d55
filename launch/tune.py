"""Tries learning rates: a short run of a config at each, compared on dev. The test split is not looked at.

    python -m launch.tune --config=configs/quickstart.py --workdir=runs/tune [--rates=1e-3,3e-3]

Each run goes to a folder of its own below the workdir, named by its rate, and is continued or taken as it is by the
same command. Set the length of a trial by --config.train.steps; other fields of the config as for launch.train.
Prints a table and writes it to tune.jsonl.
Exit code 0: done; 1: no run ended with a finite loss; 2: a wrong request, nothing was written; 130: after SIGINT.
"""

import copy
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch.common import cli, schema
from launch.common.build import Run, build
from launch.common.schema import Config
from launch.train import fit
from zojax import train
from zojax.train.metrics import read_metrics

__all__ = ["main"]

# Where no rates are given: these times the config's own.
FACTORS = (1 / 9, 1 / 3, 1, 3, 9)


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    try:
        config, values = cli.parse_config(argv, __doc__ or "", _define)
        if not values["workdir"].value:
            raise ValueError("--workdir=FOLDER is needed")
        if not config.train.steps:
            raise ValueError("config.train.steps is 0; a trial needs steps")
        workdir = Path(values["workdir"].value)
        trials = {rate: _trial(config, rate) for rate in _rates(values["rates"].value, config)}
        for rate, trial in trials.items():
            schema.check(trial)
            schema.require_same(_folder(workdir, rate), trial)
        built: Run | None = _build(next(iter(trials.values())))
    except (ValueError, FileNotFoundError) as error:
        cli.complain("tune", error)
        return cli.WRONG
    lines: list[dict[str, Any]] = []
    for rate, trial in trials.items():
        folder = _folder(workdir, rate)
        folder.mkdir(parents=True, exist_ok=True)
        schema.save(folder, trial)
        print(f"learning rate {rate:g}", flush=True)
        run, built = built or _build(trial), None
        try:
            result = fit(trial, run, folder)
        except train.NonFiniteError as error:
            cli.complain("tune", error)
            lines.append({"learning_rate": rate, "loss": None, "accuracy": None})
            continue
        if result.stopped_by:
            print(f"{result.stopped_by}: saved; the same command goes on")
            return cli.INTERRUPTED if result.stopped_by == "SIGINT" else 0
        start, end = _dev(folder)
        lines.append({"learning_rate": rate, **end, "loss_at_start": start["loss"]})
    (workdir / "tune.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(table(lines))
    return 0 if any(_finite(line) for line in lines) else cli.FAILED


def table(lines: Sequence[dict[str, Any]]) -> str:
    """One line a rate; the lowest loss on dev is marked, unless it is no lower than at the start."""
    finite = [line for line in lines if _finite(line)]
    best = min(finite, key=lambda line: line["loss"], default=None)
    if best is not None and best["loss"] >= best["loss_at_start"]:
        best = None
    rows = [f"{'learning rate':<14} {'dev loss':>8} {'accuracy':>9}"]
    for line in lines:
        numbers = f"{line['loss']:8.4f} {line['accuracy']:9.4f}" if _finite(line) else f"{'diverged':>8}"
        rows.append(f"{line['learning_rate']:<14g} {numbers}{'  lowest' if line is best else ''}")
    if best is None:
        rows.append("no rate lowers the loss on dev: try smaller ones, more steps, or another estimator")
    elif best in (lines[0], lines[-1]) and len(lines) > 1:
        rows.append("the lowest loss is at the end of the range: try further rates")
    return "\n".join(rows)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of the trials", flag_values=values)
    flags.DEFINE_string("rates", None, "learning rates by commas; else the config's, over and times 3 and 9", values)


def _rates(given: str | None, config: Config) -> list[float]:
    if given is None:
        return [config.optimizer.learning_rate * factor for factor in FACTORS]
    try:
        rates = sorted({float(rate) for rate in given.split(",")})
    except ValueError as error:
        raise ValueError(f"--rates={given}: numbers by commas are needed, such as 1e-3,3e-3") from error
    if not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"--rates={given}: each must be positive and finite")
    return rates


def _trial(config: Config, rate: float) -> Config:
    """The config at a rate, evaluated on dev before the first step and after the last alone."""
    trial = copy.deepcopy(config)
    trial.optimizer.learning_rate = rate
    trial.train.update(eval_every=config.train.steps, checkpoint_every=config.train.steps, keep_best="none")
    return trial


def _build(trial: Config) -> Run:
    return build(trial, splits=("train", "dev"))


def _folder(workdir: Path, rate: float) -> Path:
    return workdir / f"{rate:.3g}"


def _dev(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Dev loss and accuracy at the start and at the end."""
    rows = [row for row in read_metrics(folder) if row.get("split") == "dev"]
    first, last = ({name: row[name] for name in ("loss", "accuracy")} for row in (rows[0], rows[-1]))
    return first, last


def _finite(line: dict[str, Any]) -> bool:
    return line["loss"] is not None and math.isfinite(line["loss"])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
