"""Block sizes by measurement: time the candidates once, remember the choice in a file.

Public functions of operators look choices up and never time anything: timing is an explicit call of `autotune`. A run
that is to be replayed bit for bit on a GPU or TPU keeps its cache file, for other blocks add floats in another order.
"""

import dataclasses
import functools
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

__all__ = ["autotune", "cached", "default_path"]

FORMAT = 1
C = TypeVar("C")


def default_path() -> Path:
    """The file of the choices: `zojax/autotune.json` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache).

    Returns:
      The path; the file need not exist.

    Example:
      >>> default_path().name
      'autotune.json'
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zojax" / "autotune.json"


def _entry(operator: str, args: Sequence[Any]) -> str:
    """What a choice depends on, as text."""
    shapes = ",".join(f"{a.dtype.name}[{','.join(map(str, a.shape))}]" for a in jax.tree.leaves(args))
    return f"jax {jax.__version__} | {jax.devices()[0].device_kind} | {operator}({shapes})"


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, version: tuple[int, ...]) -> dict[str, Any]:
    """The choices in the file; a file that is damaged counts as empty, is reported once and overwritten later."""
    del version  # a changed file is read anew
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, not {FORMAT}")
        choices = content["choices"]
        if not all(isinstance(choice["config"], dict) for choice in choices.values()):
            raise ValueError("a choice without a config")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"autotune: {path} is damaged and will be rebuilt: {error!r}", stacklevel=3)
        return {}
    return choices


def _choices(path: Path) -> dict[str, Any]:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return {}
    return _parsed(path, (stat.st_mtime_ns, stat.st_ino, stat.st_size))


def _store(path: Path, entry: str, choice: dict[str, Any]) -> None:
    """Adds a choice; readers see the old file or the new one, never a part."""
    content = {"format": FORMAT, "choices": {**_choices(path), entry: choice}}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, sort_keys=True)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def cached(operator: str, config_class: type[C], *args, path: Path | None = None) -> C | None:
    """The stored choice for these arguments on the first device, under this version of JAX.

    Args:
      operator: name of the operator and its back end, such as "quantized_matmul.gpu".
      config_class: the back end's `Config`.
      *args: arrays, or trees of them; their shapes and dtypes count.
      path: the file; None: `default_path()`.

    Returns:
      The config, or None where nothing is stored or what is stored is no `config_class` of today.

    Example:
      >>> import numpy as np
      >>> from zojax.kernels.quantized_matmul.gpu import Config
      >>> cached("quantized_matmul.gpu", Config, np.zeros((3, 5)), path=Path("/nowhere"))
    """
    choice = _choices(path or default_path()).get(_entry(operator, args))
    if choice is None:
        return None
    try:
        return config_class(**choice["config"])
    except TypeError:  # stored by another version of the operator
        return None


def _seconds(run: Callable[..., Any], args: Sequence[Any], runs: int) -> float:
    jax.block_until_ready(run(*args))
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def autotune(
    operator: str, run: Callable[..., Any], candidates: Sequence[C], *args, path: Path | None = None, runs: int = 5
) -> C:
    """The fastest of the candidates for these arguments, measured on the first device unless a choice is stored.

    Each candidate is compiled, run once, and timed `runs` times; the least median wins. One that does not compile is
    passed over.

    Args:
      operator: name of the operator and its back end, such as "quantized_matmul.gpu".
      run: the back end's function; `run(*args, config=candidate)`.
      candidates: configs, all of one class.
      *args: arrays.
      path: the file of the choices; None: `default_path()`.
      runs: timed runs of each candidate.

    Returns:
      The best candidate.

    Raises:
      ValueError: if there is no candidate or none runs.

    Example:
      >>> import numpy as np
      >>> @dataclasses.dataclass(frozen=True, kw_only=True)
      ... class Config:
      ...     repeats: int
      >>> run = lambda x, config: sum(x @ x for _ in range(config.repeats))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     autotune("example", run, [Config(repeats=1)], np.ones((8, 8)), path=Path(folder) / "choices.json")
      Config(repeats=1)
    """
    if not candidates:
        raise ValueError(f"candidates: {operator} was given none")
    path = path or default_path()
    stored = cached(operator, type(candidates[0]), *args, path=path)
    if stored is not None and stored in candidates:
        return stored
    seconds: dict[C, float] = {}
    failures = []
    for candidate in candidates:
        try:
            seconds[candidate] = _seconds(jax.jit(functools.partial(run, config=candidate)), args, runs)
        except Exception as error:  # a compiler refuses in many ways: shared memory, registers, an instruction
            failures.append(f"{candidate}: {(str(error) or repr(error)).splitlines()[0]}")
    if not seconds:
        raise ValueError(f"candidates: {operator} runs with none of them:\n" + "\n".join(failures))
    best = min(seconds, key=seconds.__getitem__)
    _store(path, _entry(operator, args), {"config": dataclasses.asdict(best), "seconds": seconds[best]})  # type: ignore[call-overload]
    return best
