"""The record of a run for people and plots: metrics.jsonl and TensorBoard events."""

import json
import math
import os
from pathlib import Path

from tensorboardX import SummaryWriter

__all__ = ["MetricsWriter", "read_metrics"]


class MetricsWriter:
    """Writes one JSON line and one TensorBoard point a call; a line survives the death of the process.

    The lines hold no clock time, so that a run that was killed and resumed ends in the same file.

    Args:
      workdir: folder of the run.
      size: bytes of metrics.jsonl that are kept; what a killed process wrote after its checkpoint goes.
      step: step of that checkpoint.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     writer = MetricsWriter(folder)
      ...     writer.write(1, loss=0.5)
      ...     writer.close()
      ...     read_metrics(folder)
      [{'step': 1, 'loss': 0.5}]
    """

    def __init__(self, workdir: str | os.PathLike[str], *, size: int = 0, step: int = 0):
        path = Path(workdir) / "metrics.jsonl"
        path.touch()
        if path.stat().st_size < size:
            raise ValueError(f"{path}: {path.stat().st_size} bytes; the checkpoint of step {step} saw {size}")
        os.truncate(path, size)
        self._file = path.open("ab", buffering=0)
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=step + 1 if step else 0)

    @property
    def size(self) -> int:
        """Bytes of metrics.jsonl."""
        return self._file.tell()

    def write(self, step: int, **values: float | int | str) -> None:
        """Writes the values of a step.

        Args:
          step: the step.
          **values: numbers, and words such as split="dev"; a number that is not finite becomes null.
        """
        finite = {k: v if isinstance(v, str) or math.isfinite(v) else None for k, v in values.items()}
        self._file.write((json.dumps({"step": step, **finite}) + "\n").encode())
        prefix = next((v for v in values.values() if isinstance(v, str)), "train")
        for name, value in values.items():
            if not isinstance(value, str):
                self._board.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        self._board.close()


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict]:
    """The lines of metrics.jsonl; a torn last line is left out.

    Args:
      workdir: folder of the run.

    Returns:
      One dict a line.

    Raises:
      FileNotFoundError: if there is no metrics.jsonl.

    Example:
      See `MetricsWriter`:

      >>> read_metrics("/nowhere")
      Traceback (most recent call last):
      FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/metrics.jsonl'
    """
    whole, _, _ = (Path(workdir) / "metrics.jsonl").read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
