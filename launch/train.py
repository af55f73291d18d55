"""Trains a run, or continues the one in a folder.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart [--config.FIELD=VALUE ...]

The folder gets config.json, the base weights, the log of scalars, checkpoints, the best weights and metrics.
Exit code 0: done, or saved after SIGTERM; 1: the loss was not finite; 2: a wrong request, nothing was written;
130: saved after SIGINT.
"""

import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from launch.common import cli, schema
from launch.common.build import Run, build
from launch.common.quantization import noise_line
from launch.common.schema import Config
from launch.language import multitask
from launch.speech import recipe, recognition
from zojax import random, train
from zojax.train import checkpoint


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    try:
        config, values = cli.parse_config(argv, __doc__ or "", _define)
        if not values["workdir"].value:
            raise ValueError("--workdir=FOLDER is needed")
        workdir = Path(values["workdir"].value)
        schema.require_same(workdir, config)
        run = build(config)
    except (ValueError, FileNotFoundError) as error:
        cli.complain("train", error)
        return cli.WRONG
    workdir.mkdir(parents=True, exist_ok=True)
    schema.save(workdir, config)
    recipe.save_units(config, workdir)
    print(plan(config, run), flush=True)
    try:
        result = fit(config, run, workdir)
    except train.NonFiniteError as error:
        cli.complain("train", error)
        return cli.FAILED
    if result.stopped_by:
        again = f"the same command goes on from step {result.step} of {config.train.steps}"
        print(f"{result.stopped_by}: saved in {workdir}; {again}")
        return cli.INTERRUPTED if result.stopped_by == "SIGINT" else 0
    print(table(config, run, workdir, result))
    return 0


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)


def fit(config: Config, run: Run, workdir: Path) -> train.Result:
    """Trains what a config has made, or continues, in a folder that holds the config.

    Raises:
      train.NonFiniteError: if the loss is not finite.
    """
    keep = config.train.keep_best if config.train.eval_every else "none"
    judge = functools.partial(recognition.metrics, config, run, split="dev") if keep == "wer" else None
    return train.fit(
        run.task,
        run.method,
        run.params,
        run.frozen,
        run.batches,
        key=run.key,
        workdir=workdir,
        steps=config.train.steps,
        dev=run.evaluation["dev"],
        judge=judge,
        eval_every=config.train.eval_every,
        checkpoint_every=config.train.checkpoint_every,
        log_every=config.train.log_every,
        keep_best=None if keep == "none" else keep,
        allow_nonfinite=config.method.skip_nonfinite,
        noise_format=random.FORMAT,
    )


def plan(config: Config, run: Run) -> str:
    """What is about to happen, in a few lines."""
    trained, total = weights(run.params), weights(run.params) + weights(run.frozen)
    name, steps = config.method.name, config.train.steps
    forwards = run.method.forwards(config.method.num_samples, 2)
    budget = sum(run.method.forwards(config.method.num_samples, step) for step in range(1, steps + 1))
    most = "at most " if config.method.queries == "adaptive" else ""
    of = f"{config.optimizer.name}, learning rate {config.optimizer.learning_rate:g} ({config.optimizer.schedule})"
    return "\n".join(
        [
            f"model   {config.model.source}, {config.model.dtype}: {total:,} weights, {trained:,} of them trained",
            f"method  {name} with {of}: {forwards} forwards a step",
            f"budget  {steps:,} steps of {config.data.batch_size} examples: {most}{budget:,} forwards",
        ]
    )


def weights(tree: Any) -> int:
    """Number of weights of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def table(config: Config, run: Run, workdir: Path, result: train.Result) -> str:
    """Accuracy and loss on the test split where training began and where it ended, and how much has moved.

    Of a transducer: word error rates.

    Writes the last and the best weights' metrics to eval.jsonl, as `launch.eval` prints them.
    """
    if config.model.name == "transducer":
        return recognition.table(config, run, workdir, result)
    program = train.make_evaluate(run.task)
    base = checkpoint.load(workdir / "base", result.params)
    records: list[dict[str, Any]] = []

    def measure(trainable: Any, frozen: Any, which: str = "", step: int = 0) -> dict[str, float]:
        metrics = train.evaluate(program, trainable, frozen, run.evaluation["test"])
        if which:
            records.append({"split": "test", "weights": which, "step": step, **metrics})
        return metrics

    unheaded = {"prompted_lm": "zero-shot", "causal_lm": "random weights"}.get(config.model.name, "zero head")
    start = unheaded if run.zero_head is None else "linear probe"
    start += "" if config.quant.profile == "none" else f", {config.quant.profile}"
    rows = [(start, measure(base, run.frozen, "" if result.step else "last"))]
    if run.zero_head is not None:
        rows.insert(0, ("zero head", measure(*_with_head(base, run.frozen, run.zero_head))))
    if result.step:
        name = f"{config.method.name}, step {result.step}"
        rows.append((name, measure(result.params, run.frozen, "last", result.step)))
    if result.step and result.best is not None:
        step = result.best["step"]
        best = checkpoint.load(workdir / "best" / str(step), result.params)
        rows.append((f"{config.method.name}, best on dev: step {step}", measure(best, run.frozen, "best", step)))
    (workdir / "eval.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    width = max(len(name) for name, _ in rows)
    # Answers that are generated have a reward, or the loss alone.
    columns = {name: max(len(name), 6) for name in ("accuracy", "reward", "loss") if name in rows[0][1]}
    lines = ["  ".join([f"{'on test':<{width}}", *(f"{name:>{size}}" for name, size in columns.items())])]
    for name, value in rows:
        cells = [f"{value[column]:{size}.4f}" for column, size in columns.items()]
        lines.append("  ".join([f"{name:<{width}}", *cells]) + multitask.columns(config, value))
    pairs = zip(jax.tree.leaves(base), jax.tree.leaves(result.params), strict=True)
    moved = sum(int(np.sum(np.asarray(a) != np.asarray(b))) for a, b in pairs)
    trained, total = weights(run.params), weights(run.params) + weights(run.frozen)
    lines.append(f"weights trained: {trained / total:.4%} of {total:,}; moved: {moved / total:.4%}")
    noise = noise_line(run.tx, result.params, result.opt_state)
    return "\n".join([*lines, *([noise] if noise else []), f"forward passes: {result.forwards:,}"])


def _with_head(trainable: Any, frozen: Any, head: Any) -> tuple[Any, Any]:
    # The head may be trained, frozen, or part of each.
    def swap(tree: Any) -> Any:
        own = jax.tree.map(lambda new, leaf: None if leaf is None else new, head, tree["head"])
        return tree | {"head": own}

    return swap(trainable), swap(frozen)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
