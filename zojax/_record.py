"""The bytes of a log: the header, the records, and how an estimator's scalars become one record."""

import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = ["Header", "flatten", "layout", "unflatten"]

FORMAT = 1
MAGIC = b"ZOJAXLOG"
_PREFIX = struct.Struct("<8sII")
_RECORD = struct.Struct("<IH")
_CRC = struct.Struct("<I")


class Header(NamedTuple):
    """What has to agree before a log may be applied to weights.

    Attributes:
      noise_format: version of the noise that the estimator draws.
      key: words of the run key.
      key_impl: name of the key's generator.
      base_digest: `zojax.replay.digest` of the trainable weights before step 1.
      estimator: description of the estimator and of the optimiser after it.
      layout: (name, number of axes) of each scalar of a record, in order; see `layout`.
      backend: "cpu", "gpu" or "tpu".
      jax: version of jax.
      jaxlib: version of jaxlib.
      device: kind of the device.
      worker: index of this worker.
      workers: number of workers whose records make one step.
    """

    noise_format: int
    key: tuple[int, ...]
    key_impl: str
    base_digest: str
    estimator: str
    layout: tuple[tuple[str, int], ...]
    backend: str
    jax: str
    jaxlib: str
    device: str
    worker: int = 0
    workers: int = 1


def layout(scalars: Any) -> tuple[tuple[str, int], ...]:
    """Name and number of axes of each leaf of an estimator's scalars.

    Args:
      scalars: pytree of float32 arrays with at most one axis, or of `jax.ShapeDtypeStruct`.

    Returns:
      (name, 0 or 1) for each leaf.

    Raises:
      ValueError: if a leaf is not float32 or has more than one axis.

    Example:
      >>> layout({"projected": np.zeros(3, np.float32), "value": np.float32(0)})
      (('projected', 1), ('value', 0))
    """
    names = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(scalars)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.dtype != np.float32 or len(leaf.shape) > 1:
            kind = f"{leaf.dtype}{list(leaf.shape)}"
            raise ValueError(f"scalars: {name} is {kind}; a record holds float32[] and float32[q]")
        names.append((name, len(leaf.shape)))
    return tuple(names)


def flatten(scalars: Any) -> np.ndarray:
    """An estimator's scalars as one flat record.

    Args:
      scalars: pytree of float32 arrays with at most one axis.

    Returns:
      float32[n].

    Example:
      >>> flatten({"projected": np.ones(2, np.float32), "value": np.float32(3)})
      array([1., 1., 3.], dtype=float32)
    """
    layout(scalars)
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(scalars)])


def unflatten(values: np.ndarray, like: Any) -> Any:
    """The inverse of `flatten`; the vectors may have another length than in `like`, the same for all.

    Args:
      values: float32[n].
      like: scalars, or `jax.ShapeDtypeStruct`, whose structure is taken.

    Returns:
      Pytree of numpy float32 arrays.

    Raises:
      ValueError: if n does not fit the structure.

    Example:
      >>> like = {"projected": np.zeros(1, np.float32), "value": np.float32(0)}
      >>> unflatten(np.arange(3, dtype=np.float32), like)["projected"]
      array([0., 1.], dtype=float32)
    """
    axes = [axis for _, axis in layout(like)]
    parts = [part if axis else part[0] for part, axis in zip(split(values, axes), axes, strict=True)]
    return jax.tree.structure(like).unflatten(parts)


def split(values: np.ndarray, axes: Sequence[int]) -> list[np.ndarray]:
    """The leaves of a flat record, each float32[q] (axes 1) or float32[1] (axes 0)."""
    vectors = sum(axes)
    rest = len(values) - (len(axes) - vectors)
    if rest < 0 or (rest % vectors if vectors else rest):
        kinds = f"{len(axes) - vectors} scalars and {vectors} vectors of one length"
        raise ValueError(f"log: a record of {len(values)} floats does not fit {kinds}")
    sizes = [rest // vectors if axis else 1 for axis in axes]
    return np.split(values, np.cumsum(sizes)[:-1])


def encode_header(header: Header) -> bytes:
    """The bytes with which a log begins."""
    text = json.dumps(header._asdict(), sort_keys=True).encode()
    body = _PREFIX.pack(MAGIC, FORMAT, len(text)) + text
    return body + _CRC.pack(zlib.crc32(body))


def decode_header(data: bytes, path: str) -> tuple[Header, int]:
    """The header and the offset of the first record."""
    if len(data) < _PREFIX.size or data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{path}: not a log of zojax (it does not start with {MAGIC.decode()})")
    _, version, length = _PREFIX.unpack_from(data)
    if version != FORMAT:
        raise ValueError(f"{path}: log format {version}; this version reads format {FORMAT}")
    end = _PREFIX.size + length
    if len(data) < end + _CRC.size or zlib.crc32(data[:end]) != _CRC.unpack_from(data, end)[0]:
        raise ValueError(f"{path}: the header is damaged")
    fields = json.loads(data[_PREFIX.size : end])
    fields["key"] = tuple(fields["key"])
    fields["layout"] = tuple((name, axes) for name, axes in fields["layout"])
    return Header(**fields), end + _CRC.size


def encode_record(step: int, values: np.ndarray) -> bytes:
    """The bytes of one record."""
    body = _RECORD.pack(step, len(values)) + values.astype("<f4").tobytes()
    return body + _CRC.pack(zlib.crc32(body))


def decode_record(data: bytes, offset: int) -> tuple[int, np.ndarray, int] | None:
    """(step, values, end) of the record at an offset; None where no whole and sound record stands."""
    if offset + _RECORD.size > len(data):
        return None
    step, count = _RECORD.unpack_from(data, offset)
    start = offset + _RECORD.size
    end = start + 4 * count
    if count == 0 or end + _CRC.size > len(data):
        return None
    if zlib.crc32(data[offset:end]) != _CRC.unpack_from(data, end)[0]:
        return None
    return step, np.frombuffer(data, "<f4", count, start).astype(np.float32), end + _CRC.size
