"""Runs one benchmark and prints a JSON object a line, the environment first.

    python -m launch.bench NAME [--repeats N] [--scale SCALE] [--names PART ...]

NAME is one of BENCHES below. SCALE names a set of sizes and PART a part of the cases, where the benchmark has such: see
its module. Times are medians and minima over N interleaved rounds; quzo_statistics, which times
nothing, has none.
"""

import argparse
import functools
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence

from launch.bench._harness import Record, environment

Bench = Callable[..., Iterator[Record]]


def _load(name: str) -> Bench:
    """The benchmark of a module: what the others import is not needed."""
    return importlib.import_module(f"launch.bench.{name}").run


NAMES = (
    "noise",
    "zo_step",
    "mezo_torch",
    "quzo_statistics",
    "quzo_step",
    "transducer_loss",
    "integer_step",
    "estimators",
    "tensor_train",
    "kernels",
    "hub_import",
    "wake_word",
)
BENCHES: dict[str, Callable[[], Bench]] = {name: functools.partial(_load, name) for name in NAMES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a benchmark; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m launch.bench", description="One JSON object a line.")
    parser.add_argument("name", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--repeats", type=int, metavar="N", help="rounds of the timing; by default the benchmark's own")
    parser.add_argument("--scale", metavar="SCALE", help="sizes, where the benchmark has several")
    parser.add_argument("--names", nargs="+", metavar="PART", help="cases, where the benchmark lets choose")
    given = parser.parse_args(arguments)
    if given.name not in BENCHES:
        print(f"bench: {given.name!r} is not one of {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    if given.repeats is not None and given.repeats < 1:
        print(f"bench: --repeats is {given.repeats}; at least 1 is needed", file=sys.stderr)
        return 2
    options = {name: x for name in ("repeats", "scale", "names") if (x := getattr(given, name)) is not None}
    bench = BENCHES[given.name]()
    try:
        inspect.signature(bench).bind(**options)
    except TypeError as error:
        print(f"bench: {given.name}: {error}; the options that it has are in its module", file=sys.stderr)
        return 2
    print(json.dumps(environment(given.name)), flush=True)
    try:
        for line in bench(**options):
            print(json.dumps(line), flush=True)
    except (FileNotFoundError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
