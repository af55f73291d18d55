"""One step of every estimator over the forwards it consists of, and populations over plain inference: time and memory.

The reference of a step is as many plain forwards of its batch as it runs. A population of N members evaluates N batches
in one batched forward; its throughput is a share of that of plain inference on a batch N times as large (EGGROLL,
arXiv 2511.16652, reports 91 % on a GPU). The steps of mezo_svrg that are timed are those between anchors.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from launch.bench._harness import Record, interleave, record, temporaries, timings
from launch.bench.zo_step import EPS, LEARNING_RATE, classifier, programs, random_batch
from launch.common.methods import FORWARDS
from launch.common.protocols import AnchoredTask, PerExampleTask
from models.language.bert import STACKED
from zojax import estimators
from zojax.directions import Direction, Gaussian, LowRank, Rademacher
from zojax.estimators import Estimator
from zojax.perturb import PerturbSpec

__all__ = ["CASES", "Case", "run"]

BENCH = "estimators"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """An estimator as it is timed.

    Attributes:
      make: (eps, spec, key=...) -> estimator.
      direction: of all leaves.
      probes: q, as `launch.common.methods.FORWARDS` counts.
    """

    make: Callable[..., Estimator]
    direction: Direction = Rademacher()
    probes: int = 1


def _case(name: str, probes: int = 1, direction: Direction | None = None, **options: Any) -> Case:
    make = functools.partial(getattr(estimators, name), num_samples=probes, **options)
    return Case(make=make, direction=direction or Rademacher(), probes=probes)


CASES: dict[str, Case] = {
    "spsa": _case("spsa"),
    "forward": _case("forward", 8),
    "fzoo": _case("fzoo", 8),
    "quzo": _case("quzo"),
    "eggroll": _case("eggroll", 8, LowRank(rank=1)),
    "lozo": _case("lozo", 1, LowRank(rank=2)),
    "lozo_m": _case("lozo", 1, LowRank(rank=2), momentum=0.9),
    "subzero": _case("subzero", 1, LowRank(rank=24)),
    "per_example": Case(make=estimators.per_example),
    "hizoo": _case("hizoo", 1, Gaussian()),
    "kerzoo": _case("kerzoo"),
    "mezo_svrg": _case("mezo_svrg", every=10**6),
}


def run(
    repeats: int = 5,
    *,
    source: str | Path = "minilm",
    shape: tuple[int, int] = (16, 64),
    names: Sequence[str] = tuple(CASES),
    populations: Sequence[int] = (8, 32),
) -> Iterator[Record]:
    """Measures a step of every estimator, and populations.

    Args:
      repeats: rounds of each interleaved timing.
      source: as `hub.load` takes it.
      shape: (rows, tokens) of the batch; a member of a population sees one such batch.
      names: names in CASES.
      populations: numbers of members, even.

    Yields:
      Lines: for every estimator bytes of its state and temporaries (compared with the forward's), times in ms
      (compared with the forwards of the step); for every population its share of the throughput of plain inference.
    """
    task, params = classifier(source)
    held, text = [params], f"{shape[0]}x{shape[1]}"
    batch = jax.device_put(random_batch(task.config.vocab_size, *shape))
    forward = jax.jit(lambda params, batch: task.loss(params, batch)[0])
    plain = forward.lower(params, batch).compile()
    base = f"forward, {text}"
    calls, sizes, steps = {base: lambda: plain(held[0], batch)}, {base: {"temporaries": temporaries(plain)}}, {}
    for name in names:
        case = CASES[name]
        step = programs(*_protocol(name, task, held, batch), _chain(case, shape[0] if name == "per_example" else None))
        parts = (f"measure, {name}, {text}", f"apply, {name}, {text}")
        calls[parts[0]], calls[parts[1]] = step.call_measure, step.call_apply
        sizes[parts[0]] = {"temporaries": temporaries(step.measure)}
        weights = sum(x.nbytes for x in jax.tree.leaves(params))
        arguments = step.apply.memory_analysis().argument_size_in_bytes
        sizes[parts[1]] = {"temporaries": temporaries(step.apply), "state": max(arguments - weights, 0)}
        steps[f"step, {name}, {text}"] = (*parts, FORWARDS[name.removesuffix("_m")](case.probes))
    for case, measured in sizes.items():
        for metric, value in measured.items():
            compared = case != base and metric == "temporaries"
            yield record(
                BENCH,
                case,
                metric,
                value,
                "bytes",
                reference=base if compared else None,
                reference_value=sizes[base]["temporaries"] if compared else None,
            )
    seconds, references = interleave(calls, repeats), {}
    for step, (measure, apply, forwards) in steps.items():
        seconds[f"{forwards} forwards, {text}"] = forwards * seconds[base]
        seconds[step] = seconds[measure] + seconds[apply]
        references |= dict.fromkeys((step, measure, apply), f"{forwards} forwards, {text}")
    yield from timings(BENCH, seconds, references)
    for members in populations:
        yield from _population(task, held[0], batch, shape, members, repeats, forward)


def _chain(case: Case, batch_size: int | None) -> Estimator:
    spec = PerturbSpec(direction=case.direction, stacked=STACKED)
    options = {} if batch_size is None else {"batch_size": batch_size}
    return estimators.chain(case.make(EPS, spec, key=jax.random.key(1), **options), optax.sgd(LEARNING_RATE))


def _protocol(name: str, task: Any, held: list[Any], batch: Any) -> tuple[Any, list[Any], Any]:
    """The task and the batch as the estimator takes them; the anchor batch is one of the same shape."""
    if name == "per_example":
        return PerExampleTask(task=task), held, batch
    if name == "mezo_svrg":
        return AnchoredTask(task=task), held, batch | {"anchor": jax.tree.map(lambda x: jnp.asarray(x)[None], batch)}
    return task, held, batch


def _population(
    task: Any, params: Any, batch: Any, shape: tuple[int, int], members: int, repeats: int, forward: Any
) -> Iterator[Record]:
    """A population's forward beside plain inference on as many rows."""
    rows, length = shape
    large = jax.device_put(random_batch(task.config.vocab_size, rows * members, length))
    spec = PerturbSpec(direction=LowRank(rank=1), stacked=STACKED)
    estimator = estimators.eggroll(EPS, spec, num_samples=members // 2, key=jax.random.key(1))
    state = estimator.init(params)
    measure = jax.jit(lambda p, s, b: estimator.measure(p, s, lambda t: task.loss(t, b)[0]))
    plain, population = forward.lower(params, large).compile(), measure.lower(params, state, batch).compile()
    cases = (f"inference, {rows * members}x{length}", f"population of {members}, {rows}x{length}")
    for case, program in zip(cases, (plain, population), strict=True):
        reference = None if case == cases[0] else cases[0]
        size = temporaries(plain)
        yield record(
            BENCH, case, "temporaries", temporaries(program), "bytes", reference=reference, reference_value=size
        )
    calls = {cases[0]: lambda: plain(params, large), cases[1]: lambda: population(params, state, batch)}
    seconds = interleave(calls, repeats)
    yield from timings(BENCH, seconds, {cases[1]: cases[0]})
    for metric, reduce in (("share of throughput, median", jnp.median), ("share of throughput, min", jnp.min)):
        share = float(reduce(seconds[cases[0]]) / reduce(seconds[cases[1]]))
        yield record(BENCH, cases[1], metric, share, "1")
