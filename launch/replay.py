"""Makes the weights of a run again, from its base weights and its log of scalars, and compares them.

    python -m launch.replay --workdir=runs/quickstart [--step=N] [--out=FOLDER]

Without --step the weights of the last checkpoint are made. Exit code 0: equal in every bit, or within the tolerance
where another backend or version of JAX made the run; 1: they differ; 2: a wrong request.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from launch.common import cli, schema
from launch.common.build import build
from launch.common.weights import load_weights
from zojax import random, replay
from zojax.train import checkpoint

# Largest difference, as a share of the largest move of a weight, between two backends or versions: normals agree to
# 4 units in the last place and sums are contracted differently, which over 10^4 steps stays below this.
TOLERANCE = 1e-3


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    try:
        values = cli.parse(argv, __doc__ or "", _define)
        workdir = Path(values["workdir"].value or "")
        out = Path(values["out"].value) if values["out"].value else None
        config = schema.load(workdir)
        if config.method.name == "first_order":
            raise ValueError(f"workdir: {workdir} is a first-order run; only zeroth-order runs have a log")
        if out is not None and out.exists():
            raise ValueError(f"--out={out} exists; name another folder")
        log = replay.read(workdir / "scalars.log")
        run = build(config, splits=("dev",))
        base = checkpoint.load(workdir / "base", run.params)
        opt_state = run.method.init(checkpoint.load(workdir / "base", run.params))
        like = run.method.scalars_like(base, opt_state)
        header = replay.make_header(run.key, base, like, estimator=run.method.description, noise_format=random.FORMAT)
        replay.require_same(log.header, header, str(workdir / "scalars.log"))
        saved = {
            **{step: workdir / "best" / str(step) for step in checkpoint.steps(workdir / "best")},
            **{step: workdir / "checkpoints" / str(step) for step in checkpoint.steps(workdir / "checkpoints")},
        }
        step = values["step"].value
        step = max(saved, default=len(log.steps)) if step is None else step
        if not 0 <= step <= len(log.steps):
            raise ValueError(f"--step={step}: the log holds the steps 1 to {len(log.steps)}")
        expected = load_weights(saved[step], run) if step in saved else None
    except (ValueError, FileNotFoundError) as error:
        cli.complain("replay", error)
        return cli.WRONG
    start = jax.tree.map(np.asarray, jax.device_get(base))
    assert run.method.apply is not None
    params, _ = replay.replay(run.method.apply, base, opt_state, log, like=like, stop=step)
    if out is not None:
        checkpoint.save(out, params, {"step": step})
    print(f"step {step}: {replay.digest(params)} from {workdir / 'scalars.log'}")
    if expected is None:
        print(f"no checkpoint of step {step} to compare with; there are {sorted(saved)}")
        return 0
    return compare(log.header, start, params, expected, saved[step])


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("out", None, "where to save the weights", flag_values=values)
    flags.DEFINE_integer("step", None, "which step", flag_values=values)


def compare(header: replay.Header, start: Any, params: Any, expected: Any, path: Path) -> int:
    """Prints how two sets of weights compare; returns the exit code."""
    if replay.digest(params) == replay.digest(expected):
        print(f"bit-equal to {path}")
        return 0

    def largest(a: Any, b: Any) -> float:
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return max(float(np.max(np.abs(np.float64(x) - np.float64(y)))) for x, y in pairs)

    difference, move = largest(params, expected), largest(start, expected)
    here = replay.platform()
    moved_house = {name: (getattr(header, name), now) for name, now in here.items() if getattr(header, name) != now}
    print(f"not bit-equal to {path}: max abs difference {difference:.3e}; the weights moved by up to {move:.3e}")
    for name, (then, now) in moved_house.items():
        print(f"{name}: {then} then, {now} now")
    if moved_house and difference <= TOLERANCE * move:
        print(f"within the tolerance of {TOLERANCE:g} of the move")
        return 0
    return cli.FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv))
