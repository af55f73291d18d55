"""One file that holds an integer transducer: packed codes, tables, multipliers, its accelerator, golden activations.

A safetensors file whose metadata have one entry, "model": JSON. Its "network" is a tree of {"type", "fields"}; a field
is a number, null, a list, such a tree, or a tensor:

    {"tensor": NAME}                                    stored as it is
    {"indices": NAME, "table": NAME, "bits": b, "shape"}   weights: entry i of the table, i in b bits, the lowest first

Weights of no more than 128 levels are packed; the others are int8. Nothing in the file is a float but scales, which
describe and do not compute.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from models.transducer import integer
from models.transducer.integer_formats import FEATURES
from zojax.accelerator import Accelerator
from zojax.accelerator.emulate import Format
from zojax.accelerator.fixed_point import Rescale
from zojax.accelerator.linear import FullyConnected, LinearPlan
from zojax.accelerator.lstm import Lstm, LstmPlan
from zojax.accelerator.normalise import LayerNorm, LayerNormPlan
from zojax.accelerator.transducer import Embedding, Joiner
from zojax.data.audio.features import FilterBank
from zojax.data.audio.units import CharacterUnits, PieceUnits

FORMAT = 1

TYPES = {
    kind.__name__: kind
    for kind in (
        Embedding,
        Format,
        FullyConnected,
        Joiner,
        LayerNorm,
        LayerNormPlan,
        LinearPlan,
        Lstm,
        LstmPlan,
        Rescale,
        integer.FrameInput,
        integer.Layer,
        integer.Network,
    )
}

# Fields that are packed where they have few levels.
WEIGHTS = ("input", "recurrent", "table", "weight")


class Exported(NamedTuple):
    """What a file holds.

    Attributes:
      network: in the integer mode.
      frames: the map from feature codes to the encoder's input.
      accelerator: whose arithmetic.
      bank: the features, of which the codes are taken.
      units: what labels stand for.
      about: everything else: "labels", the text of each, and "max_symbols".
      tensors: golden activations by name.
    """

    network: integer.Network
    frames: integer.FrameInput
    accelerator: Accelerator
    bank: FilterBank
    units: CharacterUnits | PieceUnits
    about: dict[str, Any]
    tensors: dict[str, np.ndarray]


def pack(indices: np.ndarray, bits: int) -> np.ndarray:
    """Numbers below 2^bits, one behind the other in bytes, the lowest bit first.

    Args:
      indices: any shape; flattened row by row.
      bits: 1 to 8.

    Returns:
      uint8.

    Example:
      >>> pack(np.array([1, 2, 3]), 2).tolist()
      [57]
    """
    each = (indices.reshape(-1, 1).astype(np.uint8) >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(each.reshape(-1), bitorder="little")


def unpack(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack`.

    Example:
      >>> unpack(np.array([57], np.uint8), 2, (3,)).tolist()
      [1, 2, 3]
    """
    count = int(np.prod(shape))
    each = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return (each << np.arange(bits, dtype=np.uint8)).sum(-1, dtype=np.uint8).reshape(shape)


def write(
    path: Path,
    network: integer.Network,
    frames: integer.FrameInput,
    accelerator: Accelerator,
    bank: FilterBank,
    units: CharacterUnits | PieceUnits,
    *,
    about: Mapping[str, Any],
    golden: Mapping[str, np.ndarray],
) -> None:
    """Writes an integer transducer to one file.

    Args:
      path: the file.
      network: in the integer mode.
      frames: the map from feature codes to the encoder's input.
      accelerator: whose arithmetic.
      bank: the features.
      units: what labels stand for.
      about: what else is said of it, as JSON.
      golden: activations of an utterance by name, integers.
    """
    tensors = {f"golden/{name}": np.ascontiguousarray(value) for name, value in golden.items()}
    if isinstance(units, PieceUnits):
        tensors["units"] = np.frombuffer(units.model, np.uint8)
    model = {
        "format": FORMAT,
        "labels": ["", *(units.decode([label]) for label in range(1, units.size))],
        "accelerator": dataclasses.asdict(accelerator) | {"lacks": sorted(accelerator.lacks)},
        "features": dataclasses.asdict(bank) | {"scale": float(FEATURES.scale)},
        "frames": _described(frames, "frames", tensors),
        "network": _described(network, "network", tensors),
        **about,
    }
    save_file(tensors, path, metadata={"model": json.dumps(model)})


def _described(node: Any, name: str, tensors: dict[str, np.ndarray]) -> Any:
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, tuple):
        return [_described(item, f"{name}/{number}", tensors) for number, item in enumerate(node)]
    if type(node).__name__ in TYPES:
        of = {f.name: _described(getattr(node, f.name), f"{name}/{f.name}", tensors) for f in dataclasses.fields(node)}
        return {"type": type(node).__name__, "fields": of}
    array = np.asarray(node)
    if array.dtype == np.int8 and name.rpartition("/")[2] in WEIGHTS:
        table, indices = np.unique(array, return_inverse=True)
        if len(table) <= 128:
            bits = max(int(len(table) - 1).bit_length(), 1)
            tensors[f"{name}/table"], tensors[f"{name}/indices"] = table, pack(indices, bits)
            shape = list(array.shape)
            return {"indices": f"{name}/indices", "table": f"{name}/table", "bits": bits, "shape": shape}
    tensors[name] = np.asarray(array, order="C")  # ascontiguousarray makes a vector of a scalar
    return {"tensor": name}


def read(path: Path) -> Exported:
    """Reads a file of `write`.

    Args:
      path: the file.

    Returns:
      What it holds.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is no such file, or of another format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            model = json.loads((file.metadata() or {})["model"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no exported transducer: {error}") from error
    if model.get("format") != FORMAT:
        raise ValueError(f"{path}: its format is {model.get('format')!r}; {FORMAT} is needed")
    widths = model.pop("accelerator")
    accelerator = Accelerator(**{**widths, "lacks": frozenset(widths["lacks"])})
    features = {name: value for name, value in model.pop("features").items() if name != "scale"}
    network, frames = (_made(model.pop(name), tensors) for name in ("network", "frames"))
    golden = {name.removeprefix("golden/"): value for name, value in tensors.items() if name.startswith("golden/")}
    if "units" in tensors:
        units = PieceUnits(model=tensors["units"].tobytes())
    else:
        units = CharacterUnits(characters="".join(model["labels"]))
    return Exported(network, frames, accelerator, FilterBank(**features), units, model, golden)


def _made(node: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    if isinstance(node, list):
        return tuple(_made(item, tensors) for item in node)
    if not isinstance(node, dict):
        return node
    if "type" in node:
        return TYPES[node["type"]](**{name: _made(field, tensors) for name, field in node["fields"].items()})
    if "tensor" in node:
        return jnp.asarray(tensors[node["tensor"]])
    return jnp.asarray(tensors[node["table"]][unpack(tensors[node["indices"]], node["bits"], tuple(node["shape"]))])
