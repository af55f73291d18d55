"""What the benchmarks share: interleaved timing, temporaries, and the form of a line of output."""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

__all__ = [
    "Record",
    "environment",
    "finished",
    "import_torch",
    "interleave",
    "no_torch",
    "record",
    "temporaries",
    "timings",
    "torch_device",
]

Record = dict[str, Any]

# Long enough for the threads of one runtime (OpenMP's spin after a parallel region) to fall asleep before the other
# runtime is timed.
PAUSE_SECONDS = 0.01


def environment(bench: str) -> Record:
    """The first line of a benchmark: on what it was measured.

    Args:
      bench: name of the benchmark.

    Returns:
      The line; `commit` is None outside a git checkout.
    """
    git = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        commit = done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "bench": bench,
        "case": "environment",
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
        "cpu_count": os.cpu_count(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "commit": commit,
    }


def record(
    bench: str,
    case: str,
    metric: str,
    value: float,
    unit: str,
    *,
    reference: str | None = None,
    reference_value: float | None = None,
) -> Record:
    """One line of output.

    Args:
      bench: name of the benchmark.
      case: what was measured, with all its settings.
      metric: what of it.
      value: the measurement.
      unit: its unit.
      reference: the case that it is compared with.
      reference_value: the same metric of that case.

    Returns:
      The line; `ratio` is value / reference_value, None where there is no reference or it is 0.
    """
    ratio = value / reference_value if reference is not None and reference_value else None
    return {
        "bench": bench,
        "case": case,
        "metric": metric,
        "value": value,
        "unit": unit,
        "reference": reference,
        "ratio": ratio,
    }


def interleave(cases: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """Times cases in turn, A B C A B C ..., so that what slows the machine for a while slows them all.

    Args:
      cases: calls by name; a result is waited for. Each is called once beforehand, in order.
      repeats: rounds.

    Returns:
      Seconds [repeats] of each case.

    Raises:
      ValueError: if there are no rounds.
    """
    if repeats < 1:
        raise ValueError(f"repeats: {repeats}; at least 1 is needed")
    for call in cases.values():
        jax.block_until_ready(call())
    seconds = {case: np.zeros(repeats) for case in cases}
    for turn in range(repeats):
        for case, call in cases.items():
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter()
            result = call()
            jax.block_until_ready(result)
            seconds[case][turn] = time.perf_counter() - start
            del result  # freed outside the measurement
    return seconds


def timings(
    bench: str,
    seconds: Mapping[str, np.ndarray],
    references: Mapping[str, str],
    *,
    unit: str = "ms",
    scale: float = 1e3,
) -> Iterator[Record]:
    """The lines of a timing: the median and the least of every case.

    Args:
      bench: name of the benchmark.
      seconds: as `interleave` returns them.
      references: case -> the case it is compared with; those not in `seconds` (torch is absent) are left out.
      unit: unit of the lines.
      scale: units a second.

    Yields:
      Two lines a case, "time_median" and "time_min".
    """
    for case, measured in seconds.items():
        reference = references.get(case)
        reference = reference if reference in seconds else None
        for metric, reduce in (("time_median", np.median), ("time_min", np.min)):
            other = None if reference is None else scale * float(reduce(seconds[reference]))
            value = scale * float(reduce(measured))
            yield record(bench, case, metric, value, unit, reference=reference, reference_value=other)


def temporaries(compiled: Any) -> int:
    """Bytes that a compiled program needs beside its arguments and results.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` returns.

    Returns:
      Bytes.
    """
    return int(compiled.memory_analysis().temp_size_in_bytes)


def import_torch() -> Any:
    """torch, set to a thread for each core; None where it is not installed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    torch.set_num_threads(os.cpu_count() or 1)
    return torch


def torch_device(torch: Any) -> str:
    """Where torch computes beside JAX: "cuda" where JAX's default backend is a GPU, else "cpu"."""
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def finished(torch: Any, call: Callable[[], Any]) -> Callable[[], Any]:
    """`call`, waited for: on a GPU torch, too, returns before its work is done."""
    if torch_device(torch) == "cpu":
        return call

    def waiting():
        result = call()
        torch.cuda.synchronize()
        return result

    return waiting


def no_torch(bench: str) -> Record:
    """The line that stands in place of a comparison with torch.

    Args:
      bench: name of the benchmark.

    Returns:
      The line.
    """
    return {"bench": bench, "case": "torch", "absent": "torch is not installed: make parity-env adds it"}
