"""The log of a run: a few float32 scalars a step, from which the weights can be made again.

A zeroth-order update is a function of (key, step, scalars), so a base checkpoint and this log *are* the run.
A file is, in little-endian order,

    header:  magic (8 bytes), format u32, length u32, JSON (length bytes), crc32 u32 of all before it
    record:  step u32, n u16, n float32, crc32 u32 of all before it in the record

Steps count from 1: the record of step s takes the weights from step s - 1 to step s.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np

from zojax import _record
from zojax._record import Header, flatten, layout, unflatten

__all__ = [
    "Header",
    "Log",
    "LogWriter",
    "digest",
    "flatten",
    "layout",
    "make_header",
    "merge",
    "platform",
    "read",
    "replay",
    "require_same",
    "unflatten",
]

Params = Any


class Log(NamedTuple):
    """A log in memory.

    Attributes:
      header: the header.
      steps: step of each record, increasing.
      values: float32[n] of each record.
      torn_bytes: bytes of an incomplete last record, which was left out.
    """

    header: Header
    steps: tuple[int, ...]
    values: tuple[np.ndarray, ...]
    torn_bytes: int = 0


def platform() -> dict[str, str]:
    """The backend, versions and device on which bit-equality is promised.

    A run that is continued elsewhere replays to a tolerance.

    Returns:
      backend, jax, jaxlib and device, as in `Header`.

    Example:
      >>> sorted(platform())
      ['backend', 'device', 'jax', 'jaxlib']
    """
    return {
        "backend": jax.default_backend(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "device": jax.devices()[0].device_kind,
    }


def digest(tree: Params) -> str:
    """SHA-256 over the leaf paths, dtypes, shapes and bytes of a tree.

    Args:
      tree: pytree of arrays and typed keys; None counts as no leaf.

    Returns:
      64 hexadecimal digits.

    Example:
      >>> digest({"w": np.zeros(2, np.float32)}) == digest({"w": np.zeros(2, np.float16)})
      False
    """
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        total.update(f"{name}|{array.dtype.name}|{array.shape}|".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def make_header(
    key: jax.Array,
    params: Params,
    scalars: Any,
    *,
    estimator: str,
    noise_format: int,
    worker: int = 0,
    workers: int = 1,
) -> Header:
    """The header of a run that starts on this machine.

    Args:
      key: typed run key.
      params: trainable weights before step 1.
      scalars: an example of the estimator's scalars, or `jax.ShapeDtypeStruct`.
      estimator: description of the estimator and of the optimiser after it.
      noise_format: version of the noise.
      worker: index of this worker.
      workers: number of workers whose records make one step.

    Returns:
      The header.

    Example:
      >>> scalars = {"projected": np.zeros(1, np.float32), "value": np.float32(0)}
      >>> make_header(jax.random.key(3), {"w": 1.0}, scalars, estimator="spsa", noise_format=1).key
      (0, 3)
    """
    return Header(
        noise_format=noise_format,
        key=tuple(int(word) for word in np.ravel(np.asarray(jax.random.key_data(key)))),
        key_impl=str(jax.random.key_impl(key)),
        base_digest=digest(params),
        estimator=estimator,
        layout=layout(scalars),
        worker=worker,
        workers=workers,
        **platform(),
    )


class LogWriter:
    """Appends records to a log; what `append` has returned from survives the death of the process.

    Args:
      path: file; created if absent. An existing log is continued; a torn last record is cut off first.
      header: header of the run. An existing log must have the same, but for what `platform` says.

    Raises:
      ValueError: if the file is the log of another run.

    Example:
      >>> import tempfile
      >>> header = make_header(jax.random.key(3), {}, {"value": np.float32(0)}, estimator="", noise_format=1)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     writer = LogWriter(f"{folder}/scalars.log", header)
      ...     writer.append(1, {"value": np.float32(0.5)})
      ...     writer.close()
      ...     read(f"{folder}/scalars.log").values
      (array([0.5], dtype=float32),)
    """

    def __init__(self, path: str | os.PathLike[str], header: Header):
        self.path = os.fspath(path)
        if os.path.exists(self.path):
            log = read(self.path)
            require_same(log.header, header, self.path)
            self._last = log.steps[-1] if log.steps else 0
            os.truncate(self.path, os.path.getsize(self.path) - log.torn_bytes)
        else:
            # Renamed into place, so that a log always has a whole header.
            with open(self.path + ".tmp", "wb") as file:
                file.write(_record.encode_header(header))
            os.replace(self.path + ".tmp", self.path)
            self._last = 0
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (stays open)

    def append(self, step: int, scalars: Any) -> None:
        """Writes the record of a step and hands it to the operating system.

        Args:
          step: step that the scalars lead to; larger than every step before it.
          scalars: the estimator's scalars.

        Raises:
          ValueError: if the step does not increase.
        """
        if step <= self._last:
            raise ValueError(f"{self.path}: step {step} after step {self._last}; steps must increase")
        self._file.write(_record.encode_record(step, flatten(scalars)))
        self._last = step

    def sync(self) -> None:
        """Waits until every record is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def require_same(old: Header, new: Header, where: str) -> None:
    """Says where two headers differ; what `platform` says may differ.

    Args:
      old: header of the log.
      new: header that the log should have.
      where: the log's name, for the message.

    Raises:
      ValueError: naming the first field that differs.

    Example:
      >>> header = make_header(jax.random.key(3), {}, {"value": np.float32(0)}, estimator="", noise_format=1)
      >>> require_same(header, header._replace(jaxlib="0.0"), "scalars.log")
      >>> require_same(header, header._replace(key=(0, 4)), "scalars.log")
      Traceback (most recent call last):
      ValueError: scalars.log: the log of another run: key is (0, 3) in the log and (0, 4) here
    """
    for name in Header._fields:
        a, b = getattr(old, name), getattr(new, name)
        if a != b and name not in ("backend", "jax", "jaxlib", "device"):
            raise ValueError(f"{where}: the log of another run: {name} is {a!r} in the log and {b!r} here")


def read(path: str | os.PathLike[str]) -> Log:
    """Reads a log; an incomplete or damaged last record is left out and its bytes are counted.

    Args:
      path: file.

    Returns:
      The log.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the header or a record before the last is damaged, or the steps do not increase.

    Example:
      See `LogWriter`:

      >>> read("/nowhere/scalars.log")
      Traceback (most recent call last):
      FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/scalars.log'
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        data = file.read()
    header, offset = _record.decode_header(data, path)
    steps: list[int] = []
    values: list[np.ndarray] = []
    while offset < len(data):
        record = _record.decode_record(data, offset)
        if record is None:
            # A torn tail has nothing behind it; a sound record further on means that the file was damaged.
            later = range(offset + 1, len(data))
            sound = next((o for o in later if _record.decode_record(data, o)), None)
            if sound is not None:
                raise ValueError(f"{path}: damaged record at byte {offset}; a sound one is at byte {sound}")
            break
        step, scalars, end = record
        if steps and step <= steps[-1]:
            order = f"step {step} at byte {offset} comes after step {steps[-1]}"
            raise ValueError(f"{path}: {order}; steps must increase")
        steps.append(step)
        values.append(scalars)
        offset = end
    return Log(header=header, steps=tuple(steps), values=tuple(values), torn_bytes=len(data) - offset)


def merge(logs: Sequence[Log]) -> Log:
    """Joins the logs of workers that shared every step, each with probes of its own.

    The vectors of a step are joined in the order of the workers; "value" becomes its mean; every other
    scalar must agree.

    Args:
      logs: one log a worker, in any order.

    Returns:
      The log of the run, as of a single worker.

    Raises:
      ValueError: if workers are missing or double, or their headers, steps or scalars do not fit.

    Example:
      >>> scalars = {"projected": np.zeros(1, np.float32), "value": np.float32(0)}
      >>> header = make_header(
      ...     jax.random.key(3), {}, scalars, estimator="spsa", noise_format=1, worker=0, workers=2
      ... )
      >>> first = Log(header, (1,), (np.array([3, 1], np.float32),))
      >>> second = Log(header._replace(worker=1), (1,), (np.array([4, 2], np.float32),))
      >>> merge([first, second]).values
      (array([3. , 4. , 1.5], dtype=float32),)
    """
    ordered = sorted(logs, key=lambda log: log.header.worker)
    workers = ordered[0].header.workers if ordered else 1
    found = [log.header.worker for log in ordered]
    if found != list(range(workers)):
        raise ValueError(f"merge: the logs of workers {found} are given; needed are 0 to {workers - 1}, once each")
    first = ordered[0]
    for log in ordered[1:]:
        require_same(first.header, log.header._replace(worker=0), f"merge: worker {log.header.worker}")
        if log.steps != first.steps:
            odd = sorted(set(log.steps) ^ set(first.steps))
            raise ValueError(f"merge: workers 0 and {log.header.worker} differ in the steps {odd[:5]}")
    rows = zip(*(log.values for log in ordered), strict=True)
    values = tuple(_join(step, row, first.header) for step, row in zip(first.steps, rows, strict=True))
    return Log(header=first.header._replace(workers=1), steps=first.steps, values=values)


def _join(step: int, row: Sequence[np.ndarray], header: Header) -> np.ndarray:
    columns = zip(*(_record.split(values, [axes for _, axes in header.layout]) for values in row), strict=True)
    joined = []
    for (name, axes), column in zip(header.layout, columns, strict=True):
        if axes:
            joined.append(np.concatenate(column))
        elif name == "value":
            joined.append(np.mean(column, axis=0, dtype=np.float32))
        elif any(part.tobytes() != column[0].tobytes() for part in column):
            raise ValueError(f"merge: step {step}: {name} differs: {[float(part[0]) for part in column]}")
        else:
            joined.append(column[0])
    return np.concatenate(joined)


def replay(
    apply: Callable[[Params, Any, Any], tuple[Params, Any]],
    params: Params,
    opt_state: Any,
    log: Log,
    *,
    like: Any,
    start: int = 0,
    stop: int | None = None,
) -> tuple[Params, Any]:
    """Makes the weights of step `stop` from those of step `start`.

    Args:
      apply: the program that trained: (params, opt_state, scalars) -> (params, opt_state). It may donate.
      params: trainable weights at step `start`.
      opt_state: optimiser state at step `start`.
      log: the log.
      like: an example of the estimator's scalars, or `jax.ShapeDtypeStruct`.
      start: step of params.
      stop: last step to apply; by default the last of the log.

    Returns:
      (params, opt_state) at step `stop`.

    Raises:
      ValueError: if the log lacks a step after `start` and up to `stop`, or is one of several workers.

    Example:
      >>> like = {"value": np.float32(0)}
      >>> header = make_header(jax.random.key(3), {}, like, estimator="", noise_format=1)
      >>> log = Log(header, (1, 2), (np.float32([0.5]), np.float32([0.25])))
      >>> replay(lambda p, s, scalars: (p - scalars["value"], s), 1.0, (), log, like=like)
      (np.float32(0.25), ())
    """
    if log.header.workers != 1:
        raise ValueError(f"replay: the log of one of {log.header.workers} workers; merge their logs first")
    stop = (log.steps[-1] if log.steps else start) if stop is None else stop
    chosen = [row for row in zip(log.steps, log.values, strict=True) if start < row[0] <= stop]
    if [step for step, _ in chosen] != list(range(start + 1, stop + 1)):
        held = f"{log.steps[0]} to {log.steps[-1]}, {len(log.steps)} in all" if log.steps else "none"
        raise ValueError(f"replay: needs the steps {start + 1} to {stop}; the log holds {held}")
    for _, values in chosen:
        params, opt_state = apply(params, opt_state, unflatten(values, like))
    return params, opt_state
