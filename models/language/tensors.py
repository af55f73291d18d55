"""Folders of safetensors files: reading one tensor at a time, writing them as they come."""

import dataclasses
import json
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

__all__ = ["INDEX", "SCALE", "WEIGHTS", "Stored", "open_folder", "write_folder"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SCALE = "_scale"
"""Behind the name of a tensor of codes: the name of its scales."""

FLOATS: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
CODES = {np.dtype(np.int8): "I8", **{np.dtype(kind): code for code, kind in FLOATS.items()}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor of a file.

    Attributes:
      file: the file.
      name: the tensor's name in it.
      shape: its shape.
      dtype: safetensors' code of its type, such as "BF16".

    Example:
      >>> Stored(file=Path("model.safetensors"), name="w", shape=(2,), dtype="F32").shape
      (2,)
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Shaped[np.ndarray, "..."]:
        """The tensor.

        The file is opened for this tensor alone: it is mapped into memory, and pages that were read count as the
        process's until it is closed.
        """
        with safe_open(self.file, framework="np") as handle:
            return handle.get_tensor(self.name)


def open_folder(folder: Path) -> Iterator[Stored]:
    """Every tensor of a folder's safetensors files, without its data.

    Args:
      folder: a folder with `WEIGHTS`, or with `INDEX` and the files it names.

    Returns:
      The tensors.

    Raises:
      FileNotFoundError: if there is neither, or a file that the index names is missing.
      ValueError: if the index is malformed or names a file outside the folder, or a file is no safetensors file.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_folder(Path(folder), {"w": (2, 3)}, iter([np.zeros((2, 3), np.float32)]), dtype=np.float32)
      ...     [tensor.name for tensor in open_folder(Path(folder))]
      ['w']
    """
    if (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif (folder / INDEX).is_file():
        files = _shards(folder / INDEX)
    else:
        raise FileNotFoundError(
            f"{folder} holds neither {WEIGHTS} nor {INDEX}; other formats than safetensors are not read"
        )
    for file in files:
        try:
            with safe_open(folder / file, framework="np") as handle:
                for name in handle.keys():  # noqa: SIM118  (a handle is not a mapping)
                    piece = handle.get_slice(name)
                    shape = tuple(piece.get_shape())
                    yield Stored(file=folder / file, name=name, shape=shape, dtype=piece.get_dtype())
        except SafetensorError as error:
            raise ValueError(f"{folder / file} is not a safetensors file: {error}") from error


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


def write_folder(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Iterable[Shaped[np.ndarray, "..."]],
    *,
    dtype: Any,
    dtypes: Mapping[str, Any] = types.MappingProxyType({}),
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes tensors as they come, so that no more than one of them need be in memory.

    A safetensors file is the length of its header (8 bytes, little endian), the header (JSON: type, shape and place of
    each tensor), and the data. All shapes are known beforehand, so the header goes first.

    Args:
      folder: an existing folder.
      shapes: the shape of each tensor by its name, in the order of `arrays`.
      arrays: the tensors.
      dtype: the type of all of them in the file, a float, but for
      dtypes: the types of some, int8 or floats, by their names.
      shard_bytes: where a new file begins; with more than one file there is an index.

    Raises:
      ValueError: if an array has another shape than was said.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_folder(Path(folder), {"a": (2,), "b": (3,)}, iter([np.ones(2), np.ones(3)]), dtype=np.float32,
      ...                  shard_bytes=12)
      ...     sorted(path.name for path in Path(folder).iterdir())[0]
      'model-00001-of-00002.safetensors'
    """
    kinds = {name: np.dtype(dtypes.get(name, dtype)) for name in shapes}
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    total, used = 0, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=np.int64)) * kinds[name].itemsize
        if shards[-1] and used + size > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used, total = used + size, total + size
    count = len(shards)
    files = [WEIGHTS] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    remaining = iter(arrays)
    for file, shard in zip(files, shards, strict=True):
        _write(folder / file, shard, remaining, kinds)
    if count > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(path: Path, shapes: Mapping[str, Any], arrays: Iterator[Any], kinds: Mapping[str, np.dtype]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # what transformers asks for
    start = 0
    for name, shape in shapes.items():
        end = start + int(np.prod(shape, dtype=np.int64)) * kinds[name].itemsize
        header[name] = {"dtype": CODES[kinds[name]], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            array = next(arrays)
            if array.shape != shape:
                raise ValueError(f"{path}: the tensor {name!r} has shape {array.shape}; it was to have {shape}")
            file.write(np.ascontiguousarray(array.astype(kinds[name])).tobytes())
