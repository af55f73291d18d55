"""How well a run of speech recognises a split with lists of phrases: rows for each size of the lists."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.common import cli
from launch.speech import biasing, evaluate, recipe, recogniser
from launch.speech.evaluate import Condition, interval, record
from launch.speech.recogniser import Recogniser
from models.transducer.decode import phrase_boost
from zojax import train
from zojax.data.catalogues import read_lists
from zojax.metrics import BiasedErrors, biased_errors

__all__ = ["run"]


class _Listed(Sequence[Any]):
    """A split's batches with other lists; of one row each, where a search has an automaton for each utterance."""

    def __init__(self, inner: Sequence[Any], lists: biasing.Lists, *, adapters: bool, alone: bool):
        self._inner, self._lists, self._adapters, self._alone = inner, lists, adapters, alone
        self._rows = [(i, row) for i, batch in enumerate(inner) for row in np.flatnonzero(batch["weight"] > 0)]

    def __len__(self) -> int:
        return len(self._rows) if self._alone else len(self._inner)

    def __getitem__(self, index: Any) -> Any:
        if self._alone:
            number, row = self._rows[index]
            batch = {name: value[row : row + 1] for name, value in self._inner[number].items() if name != "catalogue"}
        else:
            batch = dict(self._inner[index])
        return batch | {"catalogue": self._lists.arrays(batch["id"].tolist())} if self._adapters else batch


def figures(row: Condition, lists: biasing.Lists) -> dict[str, Any]:
    """The errors of a row on each utterance's own phrases and on all other words, with 95 % intervals."""
    split = []
    for one in row.utterances:
        own = {word for phrase in lists.own(one.id) for word in phrase.split()}
        split.append(biased_errors(one.said, one.heard, own))
    total, values = sum(split, BiasedErrors()), {}
    for name, of in (("u", "unbiased"), ("b", "biased")):
        low, high = interval([getattr(one, of) for one in split])
        values |= {f"{name}_wer": getattr(total, of).rate, f"{name}_low": low, f"{name}_high": high}
        values |= {f"{name}_words": getattr(total, of).words, f"{name}_errors": getattr(total, of).errors}
    return values


def _lead(found: Recogniser, lists: biasing.Lists, boost: float) -> evaluate.Lead:
    def lead(_: Recogniser, batch: Any) -> Recogniser:
        led = evaluate.led(found, batch)
        if not boost:
            return led
        (number,) = batch["id"]
        labels = [biasing.labels_of(phrase, found.units) for phrase in lists.of(int(number))]
        return led._replace(boost=phrase_boost(labels, found.units.size, reward=boost))

    return lead


def run(
    workdir: Path, which: str, split: str, *, beam: int, sizes: Sequence[int], distractors: str, boost: float
) -> int:
    """What `launch.eval --sizes` does with a run of speech; returns its exit code.

    Args:
      workdir: folder of the run.
      which: weights.
      split: examples.
      beam: hypotheses of the second search; 0: none.
      sizes: distractors in the lists; 0: an empty list.
      distractors: "drawn", "alike", or files of published lists, parted by commas.
      boost: reward of a phrase's label in the search, in nats; 0: none.

    Raises:
      ValueError: if nothing reads lists, the config has no phrases, a size is not to be had, or a file is malformed.
      FileNotFoundError: if something is not there.
    """
    found = recogniser.load(workdir, which)
    adapters = found.task.biasing is not None
    if any(sizes) and not adapters and not boost:
        raise ValueError(f"--sizes={sizes}: the run has no adapters to phrases; --boost=NATS is needed, or --sizes=0")
    published = None
    if distractors not in ("drawn", "alike"):
        published = {one.text.lower(): one for path in distractors.split(",") for one in read_lists(path).values()}
    plain, texts = recipe.evaluation(found.config, found.units, split), recipe.texts(found.config, split)
    records, rows = [], []
    for size in sizes:
        lists = biasing.Lists(
            found.config, found.units, split, texts, size=size, distractors=distractors, published=published
        )
        batches = _Listed(plain, lists, adapters=adapters, alone=boost > 0)
        try:
            made = evaluate.conditions(found, batches, beam, _lead(found, lists, boost))
        except RuntimeError as error:
            cli.complain("eval", error)
            return cli.FAILED
        loss = train.evaluate(
            train.make_evaluate(found.task), found.params, jax.tree.map(lambda _: None, found.params), batches
        )
        for row in made:
            named = row._replace(search=f"{row.search}, {size} listed")
            values = record(found, named) | loss | figures(row, lists)
            records.append(values | {"size": size, "distractors": distractors, "boost": boost})
            rows.append(named)
    kind = "published" if published else distractors
    name = "_".join([split, which, *(["boost"] if boost else []), *([kind] if any(sizes) else [])])
    evaluate.save(workdir, f"heard_{name}.jsonl", rows)
    lines = [json.dumps({"split": split, "weights": which, **one}) + "\n" for one in records]
    (workdir / f"biased_{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    said = f", {boost:g} nats a label of a phrase" if boost else ""
    print(f"{split}, {which} weights, {len(rows[0].utterances)} utterances, lists of {distractors} phrases{said}")
    print(evaluate.table(records))
    return 0
