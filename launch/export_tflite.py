"""Writes layers of an exported integer transducer as .tflite files, and runs them in the runtime of ai-edge-litert.

    python -m launch.export_tflite --export=FILE.safetensors --out=DIR

The LSTM layers of encoder and predictor, a file each, and a stateless predictor's layer. (Norms, the joiner and the
affine map of features are no operators of that runtime in 8 bits: what runs a whole transducer is `launch.interpreter`
or a device.) Each file is run on what the layer hears in the golden utterance of the export; a line of JSON says how
many outputs differ from ours. Needs `make parity-env`, and a run with --config.integer.accelerator=tflite and
--config.integer.scales=gate. Exit code 1: an output differs. Exit code 2: a wrong request.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from launch.common import cli
from launch.speech import exported, tflite_file, tflite_layers
from models.transducer import integer
from models.transducer.predictor import START
from zojax.accelerator import transducer as ends
from zojax.accelerator.linear import fully_connected
from zojax.accelerator.lstm import lstm
from zojax.accelerator.normalise import layer_norm

KERNELS = "BUILTIN_REF"


class Written(NamedTuple):
    """A layer as a file, with an input and our outputs, in the layout of the runtime.

    Attributes:
      name: of the layer.
      model: the file's bytes.
      x: its input, int8.
      y: our outputs.
    """

    name: str
    model: bytes
    x: np.ndarray
    y: np.ndarray


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    try:
        given: dict[str, Any] = cli.parse(argv, __doc__ or "", _define).flag_values_dict()
        if not given["export"] or not given["out"]:
            raise ValueError("--export=FILE and --out=DIR are needed")
        out = Path(given["out"])
        if out.exists():
            raise ValueError(f"--out={out}: there is such a folder")
        found = exported.read(Path(given["export"]))
        made = list(layers(found))
        lines = [_compared(one) for one in made]
    except (ValueError, FileNotFoundError) as error:
        cli.complain("export_tflite", error)
        return cli.WRONG
    except ImportError as error:
        cli.complain("export_tflite", ValueError(f"{error}; `make parity-env` installs it"))
        return cli.WRONG
    out.mkdir(parents=True)
    for one, line in zip(made, lines, strict=True):
        (out / f"{one.name}.tflite").write_bytes(one.model)
        print(json.dumps(line), flush=True)
    return int(any(line["different"] for line in lines))


def layers(found: exported.Exported) -> Iterator[Written]:
    """The layers that the runtime has, each with what it hears in the golden utterance.

    Args:
      found: an exported transducer.

    Yields:
      A layer at a time.

    Raises:
      ValueError: if a layer is none that the runtime can run.
    """
    net, on = found.network, found.accelerator
    codes = jnp.asarray(found.tensors["features"])[None]
    codes = integer.input_codes(codes, found.frames)
    whole = codes.shape[1] // net.stack
    heard = codes[:, : whole * net.stack].reshape(1, whole, -1)
    yield from _stack("encoder", heard, net.encoder, on)
    labels = jnp.asarray(found.tensors["labels"])[None]
    if net.linear is None:
        said = jnp.pad(labels, ((0, 0), (1, 0)))  # the blank, for the start
        yield from _stack("predictor", ends.embed(said, net.table, on), net.predictor, on)
        return
    past = jnp.pad(labels[0], (net.context, 0), constant_values=START)
    last = jnp.stack([past[k : len(past) - net.context + 1 + k] for k in range(net.context)], axis=-1)
    x = ends.embed(last, net.table, on).reshape(len(last), -1)
    y = jax.jit(lambda x, p: fully_connected(x, p, on))(x, net.linear)
    model = tflite_layers.fully_connected_file(net.linear, len(last))
    yield Written("predictor_linear", model, np.asarray(x), np.asarray(y))


def _stack(name: str, x: Any, stack: Any, on: Any) -> Iterator[Written]:
    for number, layer in enumerate(stack):
        y, _ = jax.jit(lambda x, p: lstm(x, p, on))(x, layer.lstm)
        model = tflite_layers.lstm_file(layer.lstm, x.shape[1], x.shape[0])
        yield Written(f"{name}_lstm_{number}", model, np.asarray(x).swapaxes(0, 1), np.asarray(y).swapaxes(0, 1))
        x = layer_norm(y, layer.norm, on)


def _compared(one: Written) -> dict[str, Any]:
    theirs = tflite_file.run(one.model, KERNELS, one.x)
    return {
        "layer": one.name,
        "bytes": len(one.model),
        "kernels": KERNELS,
        "outputs": int(theirs.size),
        "distinct": len(np.unique(theirs)),
        "different": int((theirs != one.y).sum()),
    }


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("export", None, "file of launch.export", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write", flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
