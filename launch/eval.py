"""Evaluates the weights of a run.

    python -m launch.eval --workdir=runs/quickstart [--split=test] [--weights=last|best|base]

Prints one JSON object. Of a run of speech it prints a table instead: word and character errors of a greedy and of a
beam search, over whole utterances and as streams, with their times; those of the integers, where the run is on an
accelerator. The figures go to recognised_SPLIT_WEIGHTS.jsonl in the folder of the run, what was heard to
heard_SPLIT_WEIGHTS.jsonl.

    python -m launch.eval --workdir=runs/an4_rnnt [--beam=4] [--listed=WORDS] [--aligner=runs/an4_conformer:best]

WORDS is a file of words, for the errors on these and on all others apart; the aligner is a run that says when words are
said, for the emission delay.

    python -m launch.eval --workdir=runs/names_both --sizes=0,100,2000 [--distractors=alike] [--boost=0.5]

With --sizes each utterance has a list of phrases, its own and so many distractors: drawn ones, ones that sound alike,
or those of files of published lists; the errors on its own phrases and on other words are told apart. 0 is an empty
list. --boost leads the searches by an automaton, which is all that a run without adapters has. The figures go to
biased_SPLIT_WEIGHTS_DISTRACTORS.jsonl. Exit code 1: a stream gave another text than the whole utterance; 2: a wrong
request.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch.common import cli, schema
from launch.common.build import build
from launch.common.weights import FOLDERS, find_weights, load_weights
from launch.speech import evaluate, evaluate_biasing
from zojax import train
from zojax.train import checkpoint


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    try:
        values = cli.parse(argv, __doc__ or "", _define)
        workdir = Path(values["workdir"].value or "")
        config = schema.load(workdir)
        which, split = str(values["weights"].value), str(values["split"].value)
        path = find_weights(workdir, which)
        if config.model.name == "transducer":
            if values["sizes"].value:
                return evaluate_biasing.run(
                    workdir,
                    which,
                    split,
                    beam=int(values["beam"].value or 0),
                    sizes=cli.integers("sizes", values["sizes"].value),
                    distractors=str(values["distractors"].value),
                    boost=float(values["boost"].value or 0),
                )
            options = {name: values[name].value or "" for name in ("listed", "aligner")}
            return evaluate.run(workdir, which, split, beam=int(values["beam"].value or 0), **options)
        run = build(config, splits=tuple({"dev", split}))
    except (ValueError, FileNotFoundError) as error:
        cli.complain("eval", error)
        return cli.WRONG
    params = load_weights(path, run)
    metrics = train.evaluate(train.make_evaluate(run.task), params, run.frozen, run.evaluation[split])
    print(json.dumps({"split": split, "weights": which, "step": checkpoint.load_meta(path)["step"], **metrics}))
    return 0


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_enum("split", "test", ["train", "dev", "test", "unseen"], "which examples", flag_values=values)
    flags.DEFINE_enum("weights", "last", [*FOLDERS], "which weights", flag_values=values)
    flags.DEFINE_integer(
        "beam", 4, "hypotheses of a speech run's second search; 0: none", lower_bound=0, flag_values=values
    )
    flags.DEFINE_string("listed", None, "file of words whose errors are told apart", flag_values=values)
    flags.DEFINE_list("sizes", [], "distractors in each utterance's list of phrases", flag_values=values)
    flags.DEFINE_string("distractors", "drawn", "drawn, alike, or files of published lists", flag_values=values)
    flags.DEFINE_float("boost", 0.0, "nats a label of a phrase in the searches", lower_bound=0, flag_values=values)
    flags.DEFINE_string("aligner", None, "run of speech that says when words are said", flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
