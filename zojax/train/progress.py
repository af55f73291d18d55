"""One line of progress on stderr."""

import io
import sys
import time
from typing import Any

__all__ = ["Progress"]


class Progress:
    """Shows step, loss, speed and the time that is left: in place on a terminal, else a line now and then.

    Args:
      steps: last step.
      start: step that the run begins at.
      every: seconds between two lines where stderr is no terminal.
      stream: where to write; by default stderr.

    Example:
      >>> text = io.StringIO()
      >>> Progress(10, stream=text, every=0.0).update(5, forwards=10, loss=0.25)
      >>> print(text.getvalue())
      step 5/10  loss 0.2500  ... steps/s  ... forwards/s  ... left
    """

    def __init__(self, steps: int, *, start: int = 0, every: float = 10.0, stream: io.TextIOBase | None = None):
        self._steps = steps
        self._stream: Any = sys.stderr if stream is None else stream
        self._in_place = self._stream.isatty()
        self._every = 0.2 if self._in_place else every
        self._began = self._shown = time.monotonic()
        self._start, self._start_forwards, self._first = start, 0, True

    def update(self, step: int, *, forwards: int, loss: float) -> None:
        """Takes note of a step and shows a line if it is time.

        Args:
          step: the step.
          forwards: forward passes since `start`.
          loss: its mean loss.
        """
        now = time.monotonic()
        if now - self._shown >= self._every or step >= self._steps:
            self._shown = now
            seconds = max(now - self._began, 1e-9)
            rate = (step - self._start) / seconds
            left = int((self._steps - step) / rate) if rate else 0
            line = (
                f"step {step}/{self._steps}  loss {loss:.4f}  {rate:.2f} steps/s  "
                f"{(forwards - self._start_forwards) / seconds:.1f} forwards/s  {left // 60}:{left % 60:02d} left"
            )
            self._stream.write(f"\r\x1b[K{line}" if self._in_place else line + "\n")
            self._stream.flush()
        if self._first:
            # The first step compiles, which says nothing about the speed of the others.
            self._first = False
            self._start, self._start_forwards, self._began = step, forwards, now

    def close(self) -> None:
        """Ends the line on a terminal."""
        if self._in_place:
            self._stream.write("\n")
