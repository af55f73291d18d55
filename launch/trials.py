"""Trains a config at several learning rates and seeds at once, side by side on the device.

    python -m launch.trials --config=configs/sst2_minilm_adazeta.py --workdir=runs/trials --rates=1e-4,1e-3 --seeds=0,1

The trials are one program: what a device does for one small run leaves most of it idle. Each has its own weights,
noise and batches, those that `launch.train` would give it with the same config; sums come in another order, so that
weights agree with those of a single run to float32's last bits. Nothing is saved but trials.jsonl: for each evaluation
on dev a line a trial, and at the end a line for the test split of the weights that were best on dev. Prints a table:
a trial has diverged if its last loss on dev is not finite or above the first (ours).
Zeroth-order methods over plain weights with sgd, momentum or sign, whose learning rate only scales an update.
Exit code 0: done; 2: a wrong request, nothing was written.
"""

import functools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from launch.common import cli, schema
from launch.common.build import Run, build
from launch.common.methods import make_method, queries
from launch.common.schema import Config
from zojax.train.progress import Progress
from zojax.train.task import prepared
from zojax.trees import merge

Trees = Any
FILE = "trials.jsonl"


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    try:
        config, values = cli.parse_config(argv, __doc__ or "", _define)
        given: dict[str, Any] = values.flag_values_dict()
        if not given["workdir"]:
            raise ValueError("--workdir=FOLDER is needed")
        workdir = Path(given["workdir"])
        if workdir.exists() and any(workdir.iterdir()):
            raise ValueError(f"--workdir={workdir}: the folder is not empty")
        check(config)
        rates, seeds = _numbers(given["rates"], "rates", float), _numbers(given["seeds"], "seeds", int)
        runs = [build(_seeded(config, seed), splits=("dev", "test")) for seed in seeds]
    except (ValueError, FileNotFoundError) as error:
        cli.complain("trials", error)
        return cli.WRONG
    workdir.mkdir(parents=True, exist_ok=True)
    schema.save(workdir, config)
    records = Trials(config, runs, rates, seeds).run()
    (workdir / FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
    print(table(records))
    return 0


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder for the records", flag_values=values)
    flags.DEFINE_string("rates", None, "learning rates by commas", flag_values=values)
    flags.DEFINE_string("seeds", "0", "seeds by commas", flag_values=values)


def _numbers(given: str | None, name: str, kind: Any) -> list[Any]:
    try:
        numbers = [kind(number) for number in (given or "").split(",")]
    except ValueError as error:
        raise ValueError(f"--{name}={given}: numbers by commas are needed") from error
    if len(set(numbers)) < len(numbers) or not all(0 <= number < math.inf for number in numbers):
        raise ValueError(f"--{name}={given}: they must be finite, not negative, and each another")
    return numbers


def check(config: Config) -> None:
    """Says which fields do not go with trials.

    Raises:
      ValueError: naming the field, its value and what would be right.
    """
    for name, value, right in (
        ("model.name", config.model.name, ("bert_classifier",)),
        ("optimizer.name", config.optimizer.name, ("sgd", "momentum", "sign")),
        ("optimizer.rounding", config.optimizer.rounding, ("none",)),
        ("quant.profile", config.quant.profile, ("none",)),
        ("multitask.tasks", tuple(config.multitask.tasks), ((),)),
        ("train.microbatches", config.train.microbatches, (1,)),
        ("method.auto_eps", config.method.auto_eps, (False,)),
    ):
        if value not in right:
            raise ValueError(f"config.{name} is {value!r}; of trials it must be {' or '.join(map(repr, right))}")
    if config.method.name in ("first_order", "per_example", "grzo", "mezo_svrg"):
        raise ValueError(f"config.method.name is {config.method.name!r}; of trials it must be another")
    if not config.train.eval_every:
        raise ValueError("config.train.eval_every is 0; trials are compared on dev")


def _seeded(config: Config, seed: int) -> Config:
    own = config.copy_and_resolve_references()
    own.seed = seed
    return own


class Trials:
    """Runs of one config side by side: trees have the axes [seeds, rates, ...]."""

    def __init__(self, config: Config, runs: Sequence[Run], rates: Sequence[float], seeds: Sequence[int]):
        self._config, self._runs, self._rates, self._seeds = config, runs, rates, seeds
        unit = config.copy_and_resolve_references()
        unit.optimizer.learning_rate = 1.0
        first = runs[0]

        def chain(key: jax.Array) -> Any:
            return make_method(
                unit, first.task, first.params, key, rounding_key=key, steps_per_epoch=first.steps_per_epoch
            )[1]

        def start(params: Trees, key: jax.Array) -> Trees:
            return chain(key).init(params)

        def loss(part: Trees, frozen: Trees, batch: Any) -> jax.Array:
            return first.task.loss(merge(part, frozen), batch)[0]

        def measure(params, frozen, state, batch, key, probes):
            batch = prepared(first.task, merge(params, frozen), batch)
            return chain(key).measure(params, state, lambda part: loss(part, frozen, batch), num_samples=probes)

        def apply(params, state, scalars, key, rate):
            updates, state = chain(key).update(params, state, params, scalars=scalars)
            return optax.apply_updates(params, jax.tree.map(lambda u: rate * u, updates)), state

        def evaluate(params, frozen, batch):
            return first.task.evaluate(merge(params, frozen), batch)

        def keep(best, params, better):
            return jax.tree.map(lambda old, new: jnp.where(better, new, old), best, params)

        def of_all(function: Any, *axes: tuple[int | None, int | None]) -> Any:
            """Over seeds, and within them over rates; `axes` says of each argument which of the two it has."""
            inner = jax.vmap(function, in_axes=tuple(rate for _, rate in axes))
            return jax.vmap(inner, in_axes=tuple(seed for seed, _ in axes))

        both, of_seed, of_rate, none = (0, 0), (0, None), (None, 0), (None, None)
        # Measure and apply are programs of their own, as in `zojax.train`.
        self._start = jax.jit(of_all(start, both, of_seed))
        self._measures = functools.cache(
            lambda probes: jax.jit(
                of_all(functools.partial(measure, probes=probes), both, of_seed, both, of_seed, of_seed)
            )
        )
        self._apply = jax.jit(of_all(apply, both, both, both, of_seed, of_rate), donate_argnums=(0, 1))
        self._evaluate = jax.jit(of_all(evaluate, both, of_seed, none))
        self._keep = jax.jit(of_all(keep, both, both, both), donate_argnums=0)

    def run(self) -> list[dict[str, Any]]:
        """All steps of all trials.

        Returns:
          The records, one a trial and evaluation.
        """
        config, runs, count = self._config, self._runs, len(self._rates)
        frozen = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(run.frozen for run in runs))
        params = jax.tree.map(
            lambda *leaves: jnp.stack([jnp.broadcast_to(leaf, (count, *leaf.shape)) for leaf in leaves]),
            *(run.params for run in runs),
        )
        keys, rates = jnp.stack([run.key for run in runs]), jnp.asarray(self._rates, jnp.float32)
        state, best = self._start(params, keys), jax.tree.map(jnp.copy, params)
        most, forwards = np.full((len(runs), count), -np.inf), 0
        schedule, progress = queries(config, runs[0].steps_per_epoch), Progress(config.train.steps, start=0)
        records: list[dict[str, Any]] = []

        def evaluate(step: int) -> float:
            nonlocal best
            found = self._metrics(params, frozen, runs[0].evaluation["dev"])
            records.extend(self._records(found, split="dev", step=step, forwards=forwards))
            better = np.nan_to_num(found["accuracy"], nan=-np.inf) > most
            most[better] = found["accuracy"][better]
            best = self._keep(best, params, jnp.asarray(better))
            return float(np.mean(found["loss"]))

        loss = evaluate(0)
        for step in range(1, config.train.steps + 1):
            probes = config.method.num_samples if schedule is None else schedule(step - 1)
            batch = _stacked([next(run.batches) for run in runs])
            scalars = self._measures(probes)(params, frozen, state, batch, keys)
            params, state = self._apply(params, state, scalars, keys, rates)
            forwards += runs[0].method.forwards(probes, step)
            if step % config.train.eval_every == 0 or step == config.train.steps:
                loss = evaluate(step)
            progress.update(step, forwards=forwards * most.size, loss=loss)  # on dev, the last that is known
        progress.close()
        found = self._metrics(best, frozen, runs[0].evaluation["test"])
        return [*records, *self._records(found, split="test", step=config.train.steps, forwards=forwards)]

    def _metrics(self, params: Trees, frozen: Trees, batches: Sequence[Any]) -> dict[str, np.ndarray]:
        found = [self._evaluate(params, frozen, batch) for batch in batches]
        total = jax.tree.map(lambda *parts: sum(np.asarray(part, np.float64) for part in parts), *found)
        return {name: value / weight for name, (value, weight) in total.items()}

    def _records(self, found: dict[str, np.ndarray], **shared: Any) -> list[dict[str, Any]]:
        return [
            {"seed": seed, "rate": rate, **shared, **{name: float(values[s, r]) for name, values in found.items()}}
            for s, seed in enumerate(self._seeds)
            for r, rate in enumerate(self._rates)
        ]


def _stacked(batches: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Batches side by side, padded to the width of the widest."""
    width = max(batch["tokens"].shape[1] for batch in batches)

    def widened(array: np.ndarray) -> np.ndarray:
        room = width - array.shape[1] if array.ndim > 1 else 0
        return np.pad(array, ((0, 0), (0, room))) if room else array

    return {name: np.stack([widened(batch[name]) for batch in batches]) for name in batches[0]}


def table(records: Sequence[dict[str, Any]]) -> str:
    """A line a rate: where its trials ended, how many diverged, and the test split of what was best on dev."""
    trials: dict[tuple[float, int], list[dict[str, Any]]] = {}
    for record in records:
        trials.setdefault((record["rate"], record["seed"]), []).append(record)
    lines = [f"{'rate':<10} {'dev loss':>9} {'accuracy':>9} {'best':>7} {'on test':>8} {'diverged':>9}"]
    total = 0
    for rate in sorted({rate for rate, _ in trials}):
        own = [trial for (of, _), trial in trials.items() if of == rate]
        dev = [[record for record in trial if record["split"] == "dev"] for trial in own]
        # Written so that NaN counts.
        diverged = sum(not curve[-1]["loss"] <= curve[0]["loss"] for curve in dev)
        total += diverged
        numbers = (
            np.mean([curve[-1]["loss"] for curve in dev]),
            np.mean([curve[-1]["accuracy"] for curve in dev]),
            np.mean([max(record["accuracy"] for record in curve) for curve in dev]),
            np.mean([trial[-1]["accuracy"] for trial in own]),
        )
        cells = [f"{number:{size}.4f}" for number, size in zip(numbers, (9, 9, 7, 8), strict=True)]
        lines.append(" ".join([f"{rate:<10g}", *cells, f"{f'{diverged}/{len(own)}':>9}"]))
    return "\n".join([*lines, f"diverged: {total} of {len(trials)}; forwards of a trial: {records[-1]['forwards']:,}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
