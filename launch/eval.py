"""Evaluates the weights of a run.

    python -m launch.eval --workdir=runs/quickstart [--split=test] [--weights=last|best|base]

Prints one JSON object. Exit code 2: a wrong request.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import cli, recognition, schema
from launch.build import build
from launch.weights import FOLDERS, find_weights, load_weights
from zojax import train
from zojax.train import checkpoint


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    try:
        values = cli.parse(argv, __doc__ or "", _define)
        workdir = Path(values["workdir"].value or "")
        config = schema.load(workdir)
        which, split = str(values["weights"].value), str(values["split"].value)
        path = find_weights(workdir, which)
        run = build(config, splits=tuple({"dev", split}))
    except (ValueError, FileNotFoundError) as error:
        cli.complain("eval", error)
        return cli.WRONG
    params = load_weights(path, run)
    metrics = train.evaluate(train.make_evaluate(run.task), params, run.frozen, run.evaluation[split])
    metrics |= recognition.metrics(config, run, params, split=split)
    print(json.dumps({"split": split, "weights": which, "step": checkpoint.load_meta(path)["step"], **metrics}))
    return 0


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_enum("split", "test", ["train", "dev", "test"], "which examples", flag_values=values)
    flags.DEFINE_enum("weights", "last", [*FOLDERS], "which weights", flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
