"""Writes the integer transducer of a run to one file.

    python -m launch.export --workdir=runs/an4_aat --out=FILE.safetensors [--weights=best|last|base]

The file has packed codes, tables, multipliers, the accelerator's description, the units, and golden activations of the
first utterance of test (see `launch/speech/exported.py`); `python -m launch.interpreter FILE` recomputes those. Exit
code 2: a wrong request.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from launch.common import cli, quantization, schema
from launch.common.build import build
from launch.common.weights import FOLDERS, find_weights, load_weights
from launch.speech import exported, recipe
from launch.speech.recognition import MAX_SYMBOLS, search
from models.transducer import integer
from models.transducer.decode import decode
from models.transducer.deployed import deploy
from models.transducer.integer_formats import FEATURES
from models.transducer.integer_task import IntegerTask
from zojax.accelerator.emulate import Q3_12, value_of
from zojax.data.audio.features import FilterBank
from zojax.trees import merge

Params = Any


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    try:
        values = cli.parse(argv, __doc__ or "", _define)
        given: dict[str, Any] = values.flag_values_dict()
        if not given["workdir"] or not given["out"]:
            raise ValueError("--workdir=RUN and --out=FILE are needed")
        workdir, out = Path(given["workdir"]), Path(given["out"])
        config = schema.load(workdir)
        if config.model.name != "transducer" or config.integer.accelerator == "none":
            raise ValueError(f"workdir: {workdir} holds no run of an integer transducer (config.integer.accelerator)")
        if out.exists():
            raise ValueError(f"--out={out}: there is such a file")
        path = find_weights(workdir, given["weights"])
        run = build(config, splits=("dev", "test"))
    except (ValueError, FileNotFoundError) as error:
        cli.complain("export", error)
        return cli.WRONG
    task, params = quantization.deployed(run.task, merge(load_weights(path, run), run.frozen))
    assert isinstance(task, IntegerTask)
    units = recipe.make_units(config)
    write(out, task, params, run.evaluation["test"][0], bank=recipe.filter_bank(config), units=units)
    floats = 4 * sum(leaf.size for leaf in jax.tree.leaves(run.params) if leaf.dtype == jnp.float32)
    print(f"{out}: {out.stat().st_size:,} bytes, from {path}, whose floats take {floats:,}")
    return 0


def write(out: Path, task: IntegerTask, params: Params, batch: Any, *, bank: FilterBank, units: Any) -> None:
    """Writes a task's integers, with what they make of the first utterance of a batch.

    Args:
      out: the file.
      task: the transducer.
      params: leaves that know their grid.
      batch: as the task takes it.
      bank: the features.
      units: what labels stand for.
    """
    ships, integers = deploy(task, params)
    network, frames = integers["network"], integers["frames"]
    one = {name: value[:1] for name, value in batch.items() if np.ndim(value)}
    x, mask = task.features(one)
    count = int(np.asarray(mask).sum())
    codes = FEATURES.encode(x)[:, :count]
    encode = jax.jit(lambda codes, net: integer.encode(integer.input_codes(codes, frames), net, task.accelerator)[0])
    encoded = encode(codes, network)
    real = jnp.ones(encoded.shape[:2], bool)
    best = decode(search(encoded.shape[1], 0), ships.decodable(integers), value_of(encoded, Q3_12), real)

    @jax.jit
    def at_start(frame: jax.Array, net: integer.Network) -> jax.Array:
        symbol, _ = integer.predict(jnp.zeros((1, 1), jnp.int32), net, task.accelerator)
        return integer.join(frame, symbol, net, task.accelerator)

    golden = {
        "features": np.asarray(codes[0]),
        "frames": np.asarray(encoded[0]),
        "logits": np.asarray(at_start(encoded[:, :1], network)[0, 0]),
        "labels": np.asarray(best.tokens[0, 0, : int(best.lengths[0, 0])], np.int32),
    }
    about = {"max_symbols": MAX_SYMBOLS}
    exported.write(out, network, frames, task.accelerator, bank, units, about=about, golden=golden)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("out", None, "file to write", flag_values=values)
    flags.DEFINE_enum("weights", "best", [*FOLDERS], "which weights", flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
