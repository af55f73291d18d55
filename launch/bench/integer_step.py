"""A training step of an LSTM transducer for an accelerator, over the same step in float: what the emulation costs.

A step is loss, gradient and an Adam update of the sizes of `configs/an4_rnnt.py`, without dropout, on a batch of noise.
The cases:

    float           the float network: what the others are compared with
    qat             the float network with weights on their 8-bit grid, straight-through gradients
    aat, PRESET     what the accelerator computes, in emulation (accelerator-aware training), of each preset
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import an4_rnnt
from launch.bench._harness import Record, interleave, record, temporaries, timings
from launch.bench._sizes import chosen
from launch.common.quantization import QuantisedTask
from launch.speech import integers, shapes
from models.transducer.integer_task import IntegerTask, calibrate
from zojax.accelerator import PRESETS

__all__ = ["run"]

BENCH = "integer_step"
CLASSES = 28  # AN4's characters, and the blank


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of a batch.

    Attributes:
      rows: utterances.
      seconds: of each.
      labels: of each.
    """

    rows: int
    seconds: float
    labels: int


SCALES: dict[str, Scale] = {
    "core": Scale(rows=4, seconds=3.0, labels=20),
    "large": Scale(rows=64, seconds=7.0, labels=40),  # a batch of AN4's recipe
}


def run(
    repeats: int = 5,
    *,
    scale: str = "core",
    sizes: Mapping[str, Any] | None = None,
    batch: Scale | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Record]:
    """Measures all cases.

    Args:
      repeats: rounds of the interleaved timing.
      scale: name in SCALES, whose batch holds where `batch` is None.
      sizes: fields of `speech` that differ from those of the config; None: none.
      batch: size of the batch.
      names: presets; None: all.

    Yields:
      Lines: weights trained, temporaries in bytes, times in ms. What compares with "float" has the cost as its ratio.

    Raises:
      ValueError: if there is no such scale or preset.
    """
    of = chosen(scale, SCALES) if batch is None else batch
    presets = tuple(PRESETS) if names is None else tuple(names)
    if unknown := [name for name in presets if name not in PRESETS]:
        raise ValueError(f"names: {unknown}; presets are {', '.join(PRESETS)}")
    params, tasks, filled = _tasks(sizes or {}, of, presets)
    yield record(BENCH, "float", "weights", sum(leaf.size for leaf in jax.tree.leaves(params)), "weights")
    tx, key = optax.adam(1e-3), jax.random.key(1)
    state, cases = tx.init(params), {}
    for case, task in tasks.items():
        step = jax.jit(functools.partial(_step, task.loss, tx))
        compiled = step.lower(params, state, filled, key).compile()
        yield record(BENCH, case, "temporaries", temporaries(compiled), "bytes")
        cases[case] = functools.partial(compiled, params, state, filled, key)
    yield from timings(BENCH, interleave(cases, repeats), {case: "float" for case in cases if case != "float"})


def _step(loss: Callable[..., Any], tx: optax.GradientTransformation, params, state, batch, key) -> Any:
    (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch, key=key)
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


def _tasks(sizes: Mapping[str, Any], of: Scale, presets: Sequence[str]) -> tuple[Any, dict[str, Any], Any]:
    """Float weights, the task of each case, and a batch of noise."""
    config: Any = an4_rnnt.get_config()
    config.speech.update({"dropout": 0.0, "alone": 0, "seconds": max(round(of.rows * of.seconds), 1), **sizes})
    config.data.batch_size = of.rows
    found = shapes.shapes(config, seconds=of.seconds, labels=of.labels, characters=CLASSES - 1)
    rng = np.random.default_rng(0)
    rows, samples = found.batch["pcm"].shape
    batch = {
        "pcm": jnp.asarray(rng.integers(-3000, 3000, (rows, samples)), jnp.int16),
        "frame_lengths": jnp.full(rows, samples // 160 - 2, jnp.int32),
        "labels": jnp.asarray(rng.integers(1, CLASSES, (rows, of.labels)), jnp.int32),
        "label_lengths": jnp.full(rows, of.labels, jnp.int32),
        "weight": jnp.ones(rows),
    }
    params = found.task.init(jax.random.key(0))
    tasks: dict[str, Any] = {"float": found.task}
    own = {field.name: getattr(found.task, field.name) for field in dataclasses.fields(found.task)}
    absmax = integers.QUANTISERS["absmax"](config, params).forward
    for preset in presets:
        accelerator = PRESETS[preset]
        formats = calibrate(found.task, params, [batch], accelerator)
        made = IntegerTask(**own, formats=formats, accelerator=accelerator, forward="emulation")
        if "qat" not in tasks:  # of all presets the same
            floats = dataclasses.replace(made, forward="float")
            tasks["qat"] = QuantisedTask(task=floats, forward=absmax)
        tasks[f"aat, {preset}"] = QuantisedTask(task=made, forward=absmax)
    return params, tasks, batch
