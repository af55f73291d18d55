"""Compares the word error rates of two sets of runs, such as three seeds each: is the difference more than chance?

    python -m launch.compare_speech --runs=runs/convrnnt_0,runs/convrnnt_1 --baseline=runs/rnnt_0,runs/rnnt_1
    python -m launch.compare_speech --runs=runs/fusion_cnn --baseline=runs/fusion_beam --beam=wrong

Reads what `launch.eval` has written of them. Draws utterances, the same for all runs, and of either set as many runs as
it has, each with replacement; the difference is a tie where the 95 % interval of these draws holds 0. --beam takes the
utterances alone whose beam is steered so. Exit code 2: a wrong request.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from launch.common import cli
from launch.common.weights import FOLDERS
from zojax.metrics import word_errors

DRAWS = 10_000


class Counts(NamedTuple):
    """Errors of the runs of a set.

    Attributes:
      errors: [runs, utterances].
      words: [utterances] of the reference.
    """

    errors: np.ndarray
    words: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """The word error rate of each run."""
        return self.errors.sum(1) / self.words.sum()


class Difference(NamedTuple):
    """Mean rate of the runs less that of the baseline, and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def is_tie(self) -> bool:
        """Whether the interval holds 0."""
        return self.low <= 0 <= self.high


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    try:
        values = cli.parse(argv, __doc__ or "", _define)
        name = f"heard_{values['split'].value}_{values['weights'].value}.jsonl"
        search, beam = str(values["search"].value), values["beam"].value
        sets = {side: read(values[side].value or [], name, search, beam) for side in ("runs", "baseline")}
        found = difference(sets["runs"], sets["baseline"])
    except (ValueError, FileNotFoundError) as error:
        cli.complain("compare_speech", error)
        return cli.WRONG
    for side, counts in sets.items():
        each = ", ".join(f"{rate:.2%}" for rate in counts.rates)
        print(f"{side:<8}  {counts.rates.mean():.2%} mean of {len(counts.rates)}: {each}")
    verdict = "a tie" if found.is_tie else "fewer errors" if found.mean < 0 else "more errors"
    print(f"difference {found.mean:+.2%}, 95 % {found.low:+.2%} to {found.high:+.2%}: {verdict}")
    return 0


def read(folders: Sequence[str], name: str, search: str, beam: str | None = None) -> Counts:
    """The errors of some runs.

    Args:
      folders: of the runs.
      name: of the file that `launch.eval` has written.
      search: of which search and mode, as "greedy whole".
      beam: "right" or "wrong", for the utterances whose beam is steered so; None: all.

    Returns:
      The counts.

    Raises:
      ValueError: if there is no run, or they are of other utterances, or have no such search.
      FileNotFoundError: if a run has not been evaluated.
    """
    errors, words, said = [], [], None
    for folder in folders:
        path = Path(folder) / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; python -m launch.eval --workdir={folder} writes it")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if beam is not None:
            rows = [row for row in rows if row.get("beam") == beam]
            if not rows:
                raise ValueError(f"{path}: no utterance whose beam is {beam}")
        if any(search not in row for row in rows):
            known = ", ".join(sorted(rows[0].keys() - {"id", "said", "beam"}))
            raise ValueError(f"{path}: no {search!r}; there are {known}")
        if said is not None and said != [row["said"] for row in rows]:
            raise ValueError(f"{path}: other utterances than those of {folders[0]}")
        said = [row["said"] for row in rows]
        found = [word_errors(row["said"], row[search]) for row in rows]
        errors.append([one.errors for one in found])
        words = [one.words for one in found]
    if not errors:
        raise ValueError("--runs and --baseline need a run each, or several joined by commas")
    return Counts(np.array(errors), np.array(words))


def difference(runs: Counts, baseline: Counts) -> Difference:
    """The difference of two sets, by a paired bootstrap over utterances and runs (percentiles; fixed draws).

    Args:
      runs: one set.
      baseline: the other, of the same utterances.

    Returns:
      The difference.

    Raises:
      ValueError: if the utterances are not the same.

    Example:
      >>> words = np.full(50, 10)
      >>> worse, better = Counts(np.full((2, 50), 3), words), Counts(np.full((3, 50), 1), words)
      >>> tuple(round(x, 3) for x in difference(better, worse)), difference(better, worse).is_tie
      ((-0.2, -0.2, -0.2), False)
    """
    if not np.array_equal(runs.words, baseline.words):
        raise ValueError("--runs and --baseline: they have not heard the same utterances")
    rng, count = np.random.default_rng(0), len(runs.words)
    at = rng.integers(0, count, (DRAWS, count))
    words = np.maximum(runs.words[at].sum(1), 1)

    def rates(side: Counts) -> np.ndarray:
        seeds = rng.integers(0, len(side.errors), (DRAWS, len(side.errors)))
        # How often each run is drawn; then the errors of the drawn utterances.
        share = np.stack([(seeds == seed).mean(1) for seed in range(len(side.errors))], axis=1)
        return sum(share[:, i] * row[at].sum(1) for i, row in enumerate(side.errors)) / words

    drawn = rates(runs) - rates(baseline)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(float(runs.rates.mean() - baseline.rates.mean()), float(low), float(high))


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_list("runs", [], "folders of runs", flag_values=values)
    flags.DEFINE_list("baseline", [], "folders of the runs to compare with", flag_values=values)
    flags.DEFINE_string("search", "greedy whole", "search and mode", flag_values=values)
    flags.DEFINE_enum("beam", None, ["right", "wrong"], "utterances whose beam is so", flag_values=values)
    flags.DEFINE_enum("split", "test", ["train", "dev", "test"], "which examples", flag_values=values)
    flags.DEFINE_enum("weights", "best", [*FOLDERS], "which weights", flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
