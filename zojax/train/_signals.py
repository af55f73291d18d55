"""SIGTERM and SIGINT, noted so that a run can save itself."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def signals_noted() -> Iterator[list[str]]:
    """Collects the names of SIGTERM and SIGINT instead of dying of them; the second one acts as it did before.

    Outside the main thread, where Python allows no handlers, nothing is collected.
    """
    caught: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: Any) -> None:
        del frame
        caught.append(signal.Signals(number).name)
        # A second signal ends the process at once.
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
