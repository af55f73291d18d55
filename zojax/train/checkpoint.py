"""Checkpoints: a tree of arrays and a little JSON, each in a folder that appears whole or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

__all__ = ["load", "load_meta", "prune", "save", "steps"]

_DOOMED = ".deleted"


def save(path: str | os.PathLike[str], tree: Any, meta: dict[str, Any]) -> None:
    """Writes a checkpoint beside its place and renames it there; one that exists is left as it is.

    Args:
      path: folder of the checkpoint.
      tree: pytree of arrays and typed keys. It is copied to the host first, so that donating it later is safe.
      meta: JSON.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/2", {"w": jax.numpy.ones(2)}, {"step": 2})
      ...     steps(folder), load(f"{folder}/2", {"w": jax.numpy.zeros(2)})
      ([2], {'w': Array([1., 1.], dtype=float32)})
    """
    path = Path(path).absolute()
    if path.exists():
        return
    if path.parent.is_dir():
        # What a killed process left: half written or half deleted.
        for leftover in path.parent.glob("*.*"):
            if ".orbax-checkpoint-tmp" in leftover.name or leftover.name.endswith(_DOOMED):
                shutil.rmtree(leftover)
    ocp.save(str(path), jax.device_get(tree), custom_metadata=meta)


def load(path: str | os.PathLike[str], like: Any) -> Any:
    """Reads the tree of a checkpoint.

    Args:
      path: folder of the checkpoint.
      like: pytree of arrays or typed keys, whose structure, shapes and dtypes are taken.

    Returns:
      The tree, on the first device.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: if the checkpoint holds another tree.

    Example:
      See `save`:

      >>> load("/nowhere/2", {})
      Traceback (most recent call last):
      FileNotFoundError: /nowhere/2: no checkpoint
    """
    _exists(path)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
    return ocp.load(os.path.abspath(path), abstract)


def load_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the JSON of a checkpoint.

    Args:
      path: folder of the checkpoint.

    Returns:
      What `save` was given.

    Raises:
      FileNotFoundError: if there is no such checkpoint.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/2", {"w": jax.numpy.ones(2)}, {"step": 2})
      ...     load_meta(f"{folder}/2")
      {'step': 2}
    """
    _exists(path)
    meta: Any = ocp.metadata(os.path.abspath(path)).custom_metadata
    return dict(meta)


def _exists(path: str | os.PathLike[str]) -> None:
    if not os.path.isdir(path):
        raise FileNotFoundError(f"{path}: no checkpoint")


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """The whole checkpoints in a folder.

    Args:
      folder: folder of checkpoints named by their step; it need not exist.

    Returns:
      Steps, increasing.

    Example:
      >>> steps("/nowhere")
      []
    """
    folder = Path(folder)
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def prune(folder: str | os.PathLike[str], keep: int) -> None:
    """Deletes all but the last checkpoints.

    Args:
      folder: folder of checkpoints named by their step.
      keep: how many stay.

    Example:
      >>> import os, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for step in (10, 20, 30):
      ...         os.mkdir(f"{folder}/{step}")
      ...     prune(folder, 2)
      ...     steps(folder)
      [20, 30]
    """
    for step in steps(folder)[:-keep]:
        # Renamed first: a checkpoint that is half deleted must not look like one.
        doomed = Path(folder) / f"{step}{_DOOMED}"
        os.replace(Path(folder) / str(step), doomed)
        shutil.rmtree(doomed)
