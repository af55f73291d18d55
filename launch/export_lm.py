"""Writes the language model of a run as a folder of safetensors, with its tokenizer.

    python -m launch.export_lm --workdir=runs/lm --out=FOLDER [--weights=best|last|base] [--dtype=float32]

Of a run that trained a model from scratch (config.model.name causal_lm). The dtypes float32, bfloat16 and float16 are
read by `transformers`; int8, a quarter of the size, by this library alone. Exit code 2: a wrong request.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch.common import cli, schema
from launch.common.build import build
from launch.common.weights import FOLDERS, find_weights, load_weights
from launch.language.pretraining import model_config
from models.language import hub
from zojax import trees

FILES = ("tokenizer.json", "about.json")


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    try:
        values = cli.parse(argv, __doc__ or "", _define)
        given: dict[str, Any] = values.flag_values_dict()
        if not given["out"]:
            raise ValueError("--out=FOLDER is needed")
        workdir, out = Path(given["workdir"] or ""), Path(given["out"])
        config = schema.load(workdir)
        if config.model.name != "causal_lm":
            raise ValueError(f"{workdir}: config.model.name is {config.model.name!r}; it must be causal_lm")
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"--out={out}: the folder is not empty")
        path = find_weights(workdir, given["weights"])
        run = build(config)
    except (ValueError, FileNotFoundError) as error:
        cli.complain("export_lm", error)
        return cli.WRONG
    params = trees.merge(load_weights(path, run), run.frozen)
    hub.save(out, model_config(config), params, dtype=given["dtype"])
    for name in FILES:
        shutil.copyfile(Path(config.data.source) / name, out / name)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"{out}: {size / 1e6:.1f} MB of weights, {given['dtype']}, from {path}")
    return 0


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write", flag_values=values)
    flags.DEFINE_enum("weights", "best", [*FOLDERS], "which weights", flag_values=values)
    kinds = ["float32", "bfloat16", "float16", "int8"]
    flags.DEFINE_enum("dtype", "float32", kinds, "type of the stored weights", flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
