"""Value functions of estimators that ask a task for more than the loss of a batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from launch.common.schema import Config
from zojax import train
from zojax.per_example import map_examples

Params = Any

PER_EXAMPLE = ("per_example", "grzo")
ANCHORED = ("mezo_svrg",)
MULTI_TASK = ("multi_task",)


def wrap_task(config: Config, task: train.Task) -> train.Task:
    """The task whose loss is what the config's estimator asks for."""
    if config.method.name in PER_EXAMPLE:
        return PerExampleTask(task=task)
    if config.method.name in MULTI_TASK:
        return TaskLosses(task=task)
    return AnchoredTask(task=task) if config.method.name in ANCHORED else task


def constant(config: Config) -> Any:
    """What the value function of the config's estimator returns, of no consequence but for its shape."""
    zero = jnp.float32(0)
    if config.method.name in PER_EXAMPLE:
        return jnp.zeros(config.data.batch_size, jnp.float32)
    if config.method.name in MULTI_TASK:
        return jnp.zeros(len(config.multitask.tasks), jnp.float32)
    return (zero, zero) if config.method.name in ANCHORED else zero


def with_anchor(batches: train.Batches, anchor: list[Any]) -> train.Batches:
    """Training batches that each carry the evaluation batches `anchor`, all of one shape."""
    return _WithAnchor(batches, jax.tree.map(lambda *parts: jnp.stack(parts), *anchor))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerExampleTask:
    """The losses of the examples of a batch, each at its own weights. Rows weigh alike."""

    task: train.Task

    def init(self, key: jax.Array) -> Params:
        return self.task.init(key)

    def loss(self, params: Params, batch: Any, *, key: jax.Array | None = None) -> tuple[Any, train.Metrics]:
        def one(weights: Params, row: Any) -> jax.Array:
            return self.task.loss(weights, jax.tree.map(lambda x: x[None], row), key=key)[0]

        return map_examples(one, params, jax.tree.map(jnp.asarray, batch)), {}

    def evaluate(self, params: Params, batch: Any) -> train.Metrics:
        return self.task.evaluate(params, batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnchoredTask:
    """The pair (loss of the batch, mean loss of the anchor's batches, one after the other)."""

    task: train.Task

    def init(self, key: jax.Array) -> Params:
        return self.task.init(key)

    def loss(self, params: Params, batch: Any, *, key: jax.Array | None = None) -> tuple[Any, train.Metrics]:
        rest = {name: value for name, value in batch.items() if name != "anchor"}
        metrics = jax.lax.map(lambda part: self.task.loss(params, part, key=key)[1]["loss"], batch["anchor"])
        total, weight = jax.tree.map(jnp.sum, metrics)
        return (self.task.loss(params, rest, key=key)[0], total / weight), {}

    def evaluate(self, params: Params, batch: Any) -> train.Metrics:
        return self.task.evaluate(params, batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskLosses:
    """The losses of several tasks as they are; the estimator weighs them."""

    task: Any

    def init(self, key: jax.Array) -> Params:
        return self.task.init(key)

    def loss(self, params: Params, batch: Any, *, key: jax.Array | None = None) -> tuple[Any, train.Metrics]:
        del key
        return self.task.losses(params, batch), {}

    def evaluate(self, params: Params, batch: Any) -> train.Metrics:
        return self.task.evaluate(params, batch)


class _WithAnchor:
    """Batches that carry the anchor's beside them; it stays on the device."""

    def __init__(self, batches: train.Batches, anchor: Any):
        self._batches, self._anchor = batches, anchor

    def __next__(self) -> Any:
        return {**next(self._batches), "anchor": self._anchor}

    def get_state(self) -> Any:
        return self._batches.get_state()

    def set_state(self, state: Any) -> None:
        self._batches.set_state(state)
