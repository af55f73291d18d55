"""Word errors against latency: what `launch.eval` has written of runs of speech, seeds together.

    python -m launch.latency_curve RUNDIR [RUNDIR ...] [--split=dev] [--weights=best] [--search="greedy whole"] \
        [--out=curve.png]

Runs that differ in nothing but the seed make one line, in the order of their latency: means over seeds, ± their
standard deviation. Latency is what the encoder's frames wait for others; see `launch/speech/latency.py`. Exit code 2:
a wrong request.
"""

import argparse
import io
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from launch.common import cli
from launch.common.weights import FOLDERS
from launch.report import COLOURS, group, read_run

__all__ = ["Point", "draw", "main", "points", "table"]

HEADINGS = ("runs", "seeds", "WER", "latency", "95th")


class Point(NamedTuple):
    """Runs that differ in their seed.

    Attributes:
      name: what tells them from the others.
      wer: word error rate of each.
      latency: mean latency of each, in ms.
      late: 95th percentile of the latency of each, in ms.
    """

    name: str
    wer: list[float]
    latency: list[float]
    late: list[float]


def points(runs: Sequence[Path], file: str, search: str) -> list[Point]:
    """The runs, by latency.

    Args:
      runs: folders.
      file: that `launch.eval` has written of each.
      search: search and mode, as "greedy whole".

    Returns:
      A point for each config.

    Raises:
      FileNotFoundError: if a folder holds no run, or the run has not been evaluated.
      ValueError: if two runs are the same, or have no such search.
    """
    found = []
    for name, members in group([read_run(path) for path in runs]):
        values = []
        for path in (member.path / file for member in members):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: no such file; python -m launch.eval --workdir={path.parent} writes it"
                )
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            own = [one for one in records if f"{one['search']} {one['mode']}" == search]
            if not own or "latency_ms" not in own[0]:
                raise ValueError(f"{path}: no latency of {search!r}")
            values.append((own[0]["wer"], own[0]["latency_ms"], own[0]["latency_95_ms"]))
        found.append(Point(name, *map(list, zip(*values, strict=True))))
    return sorted(found, key=lambda point: statistics.fmean(point.latency))


def _spread(values: Sequence[float], form: str) -> str:
    mean = form.format(statistics.fmean(values))
    return mean if len(values) < 2 else f"{mean} ± {form.format(statistics.stdev(values))}"


def table(found: Sequence[Point]) -> str:
    """The points as a table in Markdown.

    Args:
      found: the points.

    Returns:
      Lines of text.
    """
    rows = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1))]
    for one in found:
        times = (_spread(values, "{:.0f}") + " ms" for values in (one.latency, one.late))
        rows.append((one.name.replace("|", "\\|"), str(len(one.wer)), _spread(one.wer, "{:.2%}"), *times))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def draw(found: Sequence[Point]) -> bytes:
    """The points as a figure, a bar of a standard deviation on each.

    Args:
      found: the points.

    Returns:
      PNG.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, one in enumerate(found):
        x, y = statistics.fmean(one.latency), 100 * statistics.fmean(one.wer)
        bar = 100 * statistics.stdev(one.wer) if len(one.wer) > 1 else None
        axes.errorbar([x], [y], yerr=bar, fmt="o", color=COLOURS[number % len(COLOURS)], label=one.name, capsize=3)
    axes.set_xlabel("mean algorithmic latency, ms")
    axes.set_ylabel("word error rate, %")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    # Without a software field the same runs give the same bytes.
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.latency_curve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNDIR", help="folder that launch.train wrote")
    parser.add_argument("--split", choices=("train", "dev", "test"), default="test", help="which examples")
    parser.add_argument("--weights", choices=[*FOLDERS], default="best", help="which weights")
    parser.add_argument("--search", default="greedy whole", help="search and mode")
    parser.add_argument("--out", type=Path, help="file of the figure")
    given = parser.parse_args(arguments)
    try:
        found = points(given.runs, f"recognised_{given.split}_{given.weights}.jsonl", given.search)
    except (FileNotFoundError, ValueError) as error:
        cli.complain("latency_curve", error)
        return cli.WRONG
    if given.out is not None:
        given.out.write_bytes(draw(found))
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
