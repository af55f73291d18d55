"""Compares runs: curves against forward passes, and a table.

    python -m launch.report RUNDIR [RUNDIR ...] --out DIR

Runs whose config.json differ in nothing but the seed make one line, the mean over seeds, in a band from the least to
the greatest. DIR gets report.html (one file, figures inside), report.md and the figures as PNG. Accuracy on the test
split is read from RUNDIR/eval.jsonl, which launch.train writes when a run ends.

Exit code 2: a wrong request, nothing was written.
"""

import argparse
import base64
import html
import io
import json
import math
import re
import statistics
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from launch.common import cli, schema

__all__ = ["Curve", "Group", "Run", "band", "draw", "group", "main", "page", "read_run", "rows", "table"]

# Okabe and Ito's palette, distinct also to the colour-blind, without its yellow (too pale for a line on white). The
# eighth group begins again with another dash.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
DASHES = ("-", "--", ":", "-.")

# The loss of a batch is noisy: a point of the curve is the mean over this share of the run before it.
SMOOTHING = 0.05

METRICS, EVAL = "metrics.jsonl", "eval.jsonl"
HEADINGS = ("method", "seeds", "forwards", "learning rate", "dev best", "test (best on dev)", "test (last)")
CAPTION = (
    "Mean over seeds ± their standard deviation (n - 1). Dev best is the highest of a run's accuracies on dev, and so "
    "optimistic."
)


class Curve(NamedTuple):
    """Points of one run, or of a band's edge: `x` forward passes, ascending, and `y`, both float64 [n]."""

    x: np.ndarray
    y: np.ndarray


class Run(NamedTuple):
    """A run as its files tell it.

    Attributes:
      path: its folder.
      config: fields of config.json by dotted name, without the seed.
      seed: the seed.
      forwards: forward passes of the whole run.
      dev: accuracy on dev.
      train: training loss, smoothed.
      test: accuracy on test by weights, "best" and "last"; the last line of eval.jsonl for each.
    """

    path: Path
    config: dict[str, Any]
    seed: Any
    forwards: int
    dev: Curve
    train: Curve
    test: dict[str, float]


class Group(NamedTuple):
    """Runs that differ only in their seed; `name` is the method and what tells it from the other groups."""

    name: str
    runs: list[Run]


def read_run(path: Path) -> Run:
    """Reads a run, finished or not; a torn last line of its metrics is left out.

    Args:
      path: folder of the run.

    Returns:
      The run.

    Raises:
      FileNotFoundError: if config.json or metrics.jsonl is missing.
      ValueError: if a file is not what it should be, or metrics.jsonl has no whole line.
    """
    for name in (schema.FILE, METRICS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} holds no {name}; a folder that launch.train wrote is needed")
    try:
        config = schema.flat(json.loads((path / schema.FILE).read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path / schema.FILE} is no config: {error}") from error
    for field in ("seed", "method.name", "optimizer.learning_rate"):
        if field not in config:
            raise ValueError(f"{path / schema.FILE} is no config: it lacks {field}")
    lines = list(_json_lines(path / METRICS))
    if not lines:
        raise ValueError(f"{path / METRICS} has no whole line yet")
    loss = _curve([line for line in lines if "split" not in line], "loss")
    evaluated = list(_json_lines(path / EVAL)) if (path / EVAL).is_file() else []
    test = {str(line.get("weights")): line for line in evaluated if line.get("split") == "test"}
    return Run(
        path=path,
        seed=config.pop("seed"),
        config=config,
        forwards=max((line["forwards"] for line in lines if _is_number(line.get("forwards"))), default=0),
        dev=_curve([line for line in lines if line.get("split") == "dev"], "accuracy"),
        train=_smoothed(loss),
        test={weights: line["accuracy"] for weights, line in test.items() if _is_number(line.get("accuracy"))},
    )


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    whole, _, _ = path.read_bytes().rpartition(b"\n")  # what stands behind the last line break is torn
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number}: a JSON object is needed, not {line.decode()[:40]!r}")
        yield value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _curve(lines: Sequence[dict[str, Any]], metric: str) -> Curve:
    # A loss that was not finite is null; it has no place on the axis.
    points = [(x["forwards"], x[metric]) for x in lines if _is_number(x.get("forwards")) and _is_number(x.get(metric))]
    array = np.array(points, np.float64).reshape(-1, 2)
    return Curve(array[:, 0], array[:, 1])


def _smoothed(curve: Curve) -> Curve:
    window = max(1, round(SMOOTHING * len(curve.x)))
    sums = np.concatenate([[0.0], np.cumsum(curve.y)])
    last = np.arange(1, len(sums))
    first = np.maximum(last - window, 0)
    return Curve(curve.x, (sums[last] - sums[first]) / (last - first))


def group(runs: Sequence[Run]) -> list[Group]:
    """Puts runs that differ only in their seed together.

    Args:
      runs: the runs.

    Returns:
      Groups in the order of their first runs. A name is the method's, with the fewest other fields that tell groups of
      one method apart.

    Raises:
      ValueError: if two runs have the same config and the same seed.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        same = groups.setdefault(json.dumps(run.config, sort_keys=True), [])
        twin = next((other for other in same if other.seed == run.seed), None)
        if twin is not None:
            raise ValueError(f"{twin.path} and {run.path} have the same config and the same seed, {run.seed}")
        same.append(run)
    configs = [members[0].config for members in groups.values()]
    return [Group(name, members) for name, members in zip(_names(configs), groups.values(), strict=True)]


def _names(configs: Sequence[dict[str, Any]]) -> list[str]:
    names = [str(config["method.name"]) for config in configs]
    order = ("method.direction", "trainable", "method.", "optimizer.", "model.", "data.")
    rank = lambda field: next((i for i, prefix in enumerate(order) if field.startswith(prefix)), len(order))  # noqa: E731
    for field in sorted({field for config in configs for field in config}, key=lambda field: (rank(field), field)):
        values = [_text(config.get(field)) for config in configs]
        seen = {name: {v for v, other in zip(values, names, strict=True) if other == name} for name in names}
        names = [
            f"{name}, {field.rsplit('.', 1)[-1]} {value}" if len(seen[name]) > 1 else name
            for name, value in zip(names, values, strict=True)
        ]
    return names


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def band(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, least and greatest of curves, on all their points up to where the shortest ends.

    Args:
      curves: at least one, none empty; between its points a curve is a straight line.

    Returns:
      (x, mean, least, greatest), each float64 [n].
    """
    x = np.unique(np.concatenate([curve.x for curve in curves]))
    x = x[x <= min(curve.x[-1] for curve in curves)]
    values = np.stack([np.interp(x, curve.x, curve.y) for curve in curves])
    return x, values.mean(0), values.min(0), values.max(0)


def draw(curves: Sequence[tuple[str, Sequence[Curve]]], ylabel: str) -> bytes | None:
    """A figure with a line a group, labelled at its end.

    Args:
      curves: (name, one curve a seed) of each group; empty curves are left out.
      ylabel: what the curves show.

    Returns:
      PNG; None if there is nothing to draw.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    ends = []
    for number, (name, members) in enumerate(curves):
        members = [curve for curve in members if len(curve.x)]
        if not members:
            continue
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        x, mean, least, greatest = band(members)
        marker = "o" if len(x) == 1 else ""  # a run of no steps is a point
        axes.plot(x, mean, dash, color=colour, linewidth=1.6, marker=marker)
        axes.fill_between(x, least, greatest, color=colour, alpha=0.15, linewidth=0)
        ends.append((float(mean[-1]), float(x[-1]), name, colour))
    if not ends:
        return None
    axes.set_xlabel("forward passes")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.margins(x=0.01)
    bottom, top = axes.get_ylim()
    place, gap = -math.inf, 0.8 / max(len(ends), 10)
    for y, x, name, colour in sorted(ends):
        place = max(place + gap, (y - bottom) / (top - bottom))
        axes.annotate(
            textwrap.shorten(name, 60, placeholder=" …"),
            xy=(x, y),
            xytext=(1.03, place),
            textcoords="axes fraction",
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
            parse_math=False,  # a "$" in a name is no formula
            arrowprops=dict(
                arrowstyle="-", linestyle=":", color=colour, linewidth=0.7, shrinkA=2, shrinkB=0, relpos=(0, 0.5)
            ),
        )
    buffer = io.BytesIO()
    # Without a software field the same runs give the same bytes.
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def rows(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """The cells of the table under HEADINGS.

    Args:
      groups: the groups.

    Returns:
      A row a group.
    """

    def spread(values: Sequence[float], count: int) -> str:
        if not values:
            return "-"
        some = f" ({len(values)} of {count})" if len(values) < count else ""
        mean = f"{statistics.fmean(values):.4f}"
        return mean + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "") + some

    cells = []
    for name, runs in groups:
        dev = [float(run.dev.y.max()) for run in runs if len(run.dev.y)]
        best, last = ([run.test[weights] for run in runs if weights in run.test] for weights in ("best", "last"))
        forwards = f"{statistics.fmean(run.forwards for run in runs):,.0f}"
        rate = _text(runs[0].config["optimizer.learning_rate"])
        count = len(runs)
        cells.append((name, str(count), forwards, rate, *(spread(values, count) for values in (dev, best, last))))
    return cells


def table(cells: Sequence[Sequence[str]]) -> str:
    """The table in Markdown.

    Args:
      cells: as `rows` returns them.

    Returns:
      Lines of text.
    """

    def line(row: Sequence[str]) -> str:
        escaped = (re.sub(r"([\\|`*\[\]])", r"\\\1", html.escape(" ".join(c.split()), quote=False)) for c in row)
        return "| " + " | ".join(escaped) + " |"

    rule = "|" + "|".join([" --- "] + [" ---: "] * (len(HEADINGS) - 1)) + "|"
    return "\n".join([line(HEADINGS), rule, *map(line, cells), "", CAPTION, ""])


def page(groups: Sequence[Group], cells: Sequence[Sequence[str]], figures: Sequence[tuple[str, bytes]]) -> str:
    """The report as one HTML file.

    Args:
      groups: the groups.
      cells: as `rows` returns them.
      figures: (title, PNG).

    Returns:
      HTML; every text of the runs is escaped.
    """
    escape = html.escape
    parts = ["<h1>Runs</h1>", "<table><thead><tr>", *(f"<th>{escape(h)}</th>" for h in HEADINGS), "</tr></thead>"]
    for row in cells:
        parts.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    parts.append(f"</table><p>{escape(CAPTION)}</p>")
    for title, png in figures:
        data = base64.b64encode(png).decode()
        parts.append(f'<h2>{escape(title)}</h2><img alt="{escape(title)}" src="data:image/png;base64,{data}">')
    parts.append("<p>Lines are means over seeds, bands reach from the least to the greatest.</p><h2>Configs</h2>")
    for name, runs in groups:
        members = "\n".join(f"seed {run.seed}: {run.path}" for run in runs)
        fields = "\n".join(f"{field} = {_text(value)}" for field, value in sorted(runs[0].config.items()))
        parts.append(f"<details><summary>{escape(name)}</summary><pre>{escape(members)}\n\n{escape(fields)}</pre>")
        parts.append("</details>")
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.3rem .6rem;text-align:right;"
        "border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
    )
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Runs</title>'
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{style}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNDIR", help="folder that launch.train wrote")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the report")
    given = parser.parse_args(arguments)
    try:
        if given.out.exists() and not given.out.is_dir():
            raise ValueError(f"--out is {given.out}, which is no folder")
        groups = group([read_run(path) for path in given.runs])
    except (FileNotFoundError, ValueError) as error:
        cli.complain("report", error)
        return cli.WRONG
    figures = {}
    for file, title, metric in (
        ("dev_accuracy.png", "Accuracy on dev", "dev"),
        ("train_loss.png", "Training loss, smoothed", "train"),
    ):
        png = draw([(name, [getattr(run, metric) for run in runs]) for name, runs in groups], title)
        if png is not None:
            figures[file] = (title, png)
    cells = rows(groups)
    given.out.mkdir(parents=True, exist_ok=True)
    for file, (_, png) in figures.items():
        (given.out / file).write_bytes(png)
    (given.out / "report.md").write_text(table(cells), encoding="utf-8")
    (given.out / "report.html").write_text(page(groups, cells, list(figures.values())), encoding="utf-8")
    print(table(cells), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
