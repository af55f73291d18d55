"""A two-point step on a pretrained encoder, over the forwards it consists of: time and temporaries.

A step with q probes runs 2 q forwards; what `measure`, `apply` and both together cost beyond that is the price of the
noise. Back-propagation with SGD stands beside. The temporaries depend on XLA's scheduler on CPU: run once more with
XLA_FLAGS=--xla_cpu_enable_concurrency_optimized_scheduler=false, which the line of the environment shows.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from launch.bench._harness import Record, interleave, record, temporaries, timings
from launch.bench._sizes import Scale, chosen
from models.language import hub
from models.language.bert import STACKED, BertConfig
from models.language.classifier import TextClassifier
from zojax import estimators
from zojax.directions import Direction, Gaussian, LowRank, Rademacher
from zojax.estimators import Estimator
from zojax.perturb import PerturbSpec
from zojax.train.step import make_apply, make_measure
from zojax.trees import split

__all__ = ["DIRECTIONS", "Programs", "classifier", "programs", "random_batch", "run", "sgd_chain"]

BENCH = "zo_step"
Probes = Literal["turn", "pair", "batch"]
EPS, LEARNING_RATE = 1e-3, 1e-6

DIRECTIONS: dict[str, Direction] = {
    "Gaussian": Gaussian(),
    "Rademacher": Rademacher(),
    "LowRank(rank=1)": LowRank(rank=1),
}


def classifier(source: str | Path | BertConfig) -> tuple[TextClassifier, Any]:
    """A pretrained or random encoder with a random head.

    Args:
      source: as `hub.load` takes it, or the sizes of a random encoder.

    Returns:
      (task, params). The head is not zero: the loss would be log 2 whatever the encoder does.
    """
    config, pretrained = (source, None) if isinstance(source, BertConfig) else hub.load(source)
    task = TextClassifier(config=config, num_classes=2, pretrained=pretrained)
    params = task.init(jax.random.key(0))
    kernel = np.random.default_rng(0).normal(0.0, 0.1, params["head"]["kernel"].shape)
    params["head"]["kernel"] = jnp.asarray(kernel, jnp.float32)
    return task, params


def random_batch(vocab_size: int, rows: int, length: int) -> dict[str, np.ndarray]:
    """A batch of random tokens; the rows are between half and all of `length` tokens long.

    Args:
      vocab_size: tokens are below it.
      rows: B.
      length: S.

    Returns:
      tokens int32 [B, S], mask bool [B, S], label int32 [B], weight float32 [B].
    """
    rng = np.random.default_rng(0)
    lengths = rng.integers(max(1, length // 2), length + 1, rows)
    return {
        "tokens": rng.integers(0, vocab_size, (rows, length)).astype(np.int32),
        "mask": np.arange(length) < lengths[:, None],
        "label": rng.integers(0, 2, rows).astype(np.int32),
        "weight": np.ones(rows, np.float32),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """The two programs of a step, compiled, and calls of them for a timer.

    Attributes:
      measure: the compiled program of the forwards.
      apply: the compiled program of the update.
      call_measure: runs `measure` on the weights that are held.
      call_apply: runs `apply` on them with the last scalars, and holds the result.
    """

    measure: Any
    apply: Any
    call_measure: Callable[[], Any]
    call_apply: Callable[[], Any]


def sgd_chain(direction: Direction, *, num_samples: int = 1, probes: Probes = "turn") -> Estimator:
    """Two-point probes of every leaf along one direction, with SGD."""
    spec = PerturbSpec(direction=direction, stacked=STACKED)
    head = estimators.spsa(EPS, spec, num_samples=num_samples, key=jax.random.key(1), probes=probes)
    return estimators.chain(head, optax.sgd(LEARNING_RATE))


def programs(task: Any, held: list[Any], batch: Any, tx: Estimator) -> Programs:
    """Compiles the step of an estimator over all weights.

    Args:
      task: gives the loss.
      held: list of one tree, the weights; `apply` donates them and puts the new ones in their place.
      batch: the batch.
      tx: an estimator or a chain of one.

    Returns:
      Programs.
    """
    key, state = jax.random.key(1), tx.init(held[0])
    _, frozen = split(held[0], (".*",))
    measure = jax.jit(make_measure(task, tx)).lower(held[0], frozen, state, batch, key).compile()
    scalars = measure(held[0], frozen, state, batch, key)
    apply = jax.jit(make_apply(tx), donate_argnums=(0, 1)).lower(held[0], state, scalars).compile()
    last = {"state": state, "scalars": scalars}

    def call_measure():
        last["scalars"] = measure(held[0], frozen, last["state"], batch, key)
        return last["scalars"]

    def call_apply():
        held[0], last["state"] = apply(held[0], last["state"], last["scalars"])
        return held[0]

    return Programs(measure=measure, apply=apply, call_measure=call_measure, call_apply=call_apply)


def run(
    repeats: int = 5,
    *,
    scale: str = "minilm",
    source: str | Path | BertConfig | None = None,
    shapes: Sequence[tuple[int, int]] | None = None,
    samples: Sequence[int] | None = None,
    directions: Sequence[str] = tuple(DIRECTIONS),
) -> Iterator[Record]:
    """Measures the step for every shape of batch, number of probes, direction and order of probes.

    Args:
      repeats: rounds of each interleaved timing.
      scale: name in `_sizes.SCALES`, whose fields hold where an argument is None.
      source: as `classifier` takes it.
      shapes: (rows, tokens) of the batches.
      samples: numbers of probes q.
      directions: names in DIRECTIONS.

    Yields:
      Lines: bytes of weights, then for every shape and q temporaries in bytes (compared with the forward's) and times
      in ms (compared with 2 q forwards).
    """
    sizes: Scale = chosen(scale)
    task, params = classifier(sizes.source if source is None else source)
    held = [params]
    yield from _weights(params)
    for rows, length in sizes.shapes if shapes is None else shapes:
        batch = jax.device_put(random_batch(task.config.vocab_size, rows, length))
        for q in sizes.samples if samples is None else samples:
            yield from _group(task, held, batch, f"{rows}x{length}", q, directions, sizes.orders, repeats)


def _weights(params: Any) -> Iterator[Record]:
    """The bytes against which temporaries are to be seen."""
    layers = jax.tree.leaves(params["encoder"]["layers"])
    for case, size in (
        ("all weights", sum(x.nbytes for x in jax.tree.leaves(params))),
        ("largest layer", sum(x[0].nbytes for x in layers)),
        ("largest matrix of a layer", max(x[0].nbytes for x in layers)),
        ("largest table", max(x.nbytes for x in jax.tree.leaves(params["encoder"]["embeddings"]))),
    ):
        yield record(BENCH, case, "size", size, "bytes")


def _group(
    task: TextClassifier,
    held: list[Any],
    batch: Any,
    shape: str,
    q: int,
    directions: Sequence[str],
    orders: Sequence[Probes],
    repeats: int,
) -> Iterator[Record]:
    """One interleaving: the forward, back-propagation and all steps of q probes."""
    forward = jax.jit(lambda params, batch: task.loss(params, batch)[0]).lower(held[0], batch).compile()
    backward = jax.jit(_sgd(task), donate_argnums=0).lower(held[0], batch).compile()
    forward_case, backward_case, forwards_case = (
        f"{name}, {shape}" for name in ("forward", "back-propagation + sgd", f"{2 * q} forwards")
    )

    def call_backward():
        held[0], loss = backward(held[0], batch)
        return loss, held[0]

    calls = {forward_case: lambda: forward(held[0], batch), backward_case: call_backward}
    needed = {forward_case: temporaries(forward), backward_case: temporaries(backward)}
    chains = {
        f"{name}, q={q}, {probes}, {shape}": sgd_chain(DIRECTIONS[name], num_samples=q, probes=probes)
        for name in directions
        for probes in (orders if q == 1 else ("turn", "pair"))
    }
    with ThreadPoolExecutor() as pool:  # the compiler works on all of them at once
        steps = dict(zip(chains, pool.map(lambda tx: programs(task, held, batch, tx), chains.values()), strict=True))
    for setting, step in steps.items():
        calls[f"measure, {setting}"], calls[f"apply, {setting}"] = step.call_measure, step.call_apply
        needed[f"measure, {setting}"] = temporaries(step.measure)
        needed[f"apply, {setting}"] = temporaries(step.apply)

    for case, size in needed.items():
        reference = None if case == forward_case else forward_case
        yield record(
            BENCH, case, "temporaries", size, "bytes", reference=reference, reference_value=needed[forward_case]
        )

    seconds = interleave(calls, repeats)
    seconds[forwards_case] = 2 * q * seconds[forward_case]
    for setting in steps:
        seconds[f"step, {setting}"] = seconds[f"measure, {setting}"] + seconds[f"apply, {setting}"]
    references = {case: forwards_case for case in seconds if case not in (forward_case, forwards_case, backward_case)}
    references[backward_case] = forward_case
    yield from timings(BENCH, seconds, references)


def _sgd(task: TextClassifier) -> Callable[[Any, Any], Any]:
    def step(params, batch):
        loss, grads = jax.value_and_grad(lambda p: task.loss(p, batch)[0])(params)
        return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads), loss

    return step
