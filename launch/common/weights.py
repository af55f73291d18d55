"""The weights that a run has saved."""

from pathlib import Path
from typing import Any

from zojax.train import checkpoint

__all__ = ["find_weights", "load_weights", "parse"]

FOLDERS = {"last": "checkpoints", "best": "best", "base": "base"}


def parse(text: str) -> tuple[Path, str]:
    """The folder of a run and which of its weights: "runs/x" are the last, "runs/x:best" those that were best on dev.

    Raises:
      ValueError: if what follows the colon is none of last, best and base.
      FileNotFoundError: if there is no such folder.
    """
    folder, colon, which = text.rpartition(":")
    if not colon:
        folder, which = text, "last"
    if which not in FOLDERS:
        raise ValueError(f"config.model.weights is {text!r}; after the colon must be one of {', '.join(FOLDERS)}")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"config.model.weights is {text!r}; there is no folder {folder}")
    return Path(folder), which


def find_weights(workdir: Path, which: str) -> Path:
    """The checkpoint of the last, best or base weights; of a run without steps the last are the base.

    Raises:
      FileNotFoundError: if the run has none.
    """
    folder = workdir / FOLDERS[which]
    saved = [] if which == "base" else checkpoint.steps(folder)
    path = folder / str(saved[-1]) if saved else workdir / "base"
    if not path.is_dir() or (which == "best" and not saved):
        raise FileNotFoundError(f"workdir: {workdir} has no {which} weights")
    return path


def load_weights(path: Path, run: Any) -> Any:
    """The trainable weights of a checkpoint, whether it holds the optimiser state too or not."""
    if path.parent.name == "checkpoints":
        return checkpoint.load(path, (run.params, run.method.init(run.params)))[0]
    return checkpoint.load(path, run.params)
