"""The seam between a model and the loop: a task has weights, a loss and metrics."""

from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float

__all__ = ["Metrics", "Prepares", "Task", "add", "average", "prepared"]

Params = Any
Batch = Any
Metrics = dict[str, tuple[Any, Any]]


@runtime_checkable
class Task(Protocol):
    """What the loop asks of a model.

    Every metric is a pair (sum, weight) of float32 scalars, so that batches of any size add up exactly.
    """

    def init(self, key: jax.Array) -> Params:
        """The weights before training."""
        ...

    def loss(self, params: Params, batch: Batch, *, key: jax.Array | None = None) -> tuple[Float[Array, ""], Metrics]:
        """Mean loss of a batch in float32, and its metrics; it need not be differentiable."""
        ...

    def evaluate(self, params: Params, batch: Batch) -> Metrics:
        """The metrics of a batch, rows of weight 0 left out."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A task of which some part is the same in all forwards of a step, and need not be computed in each."""

    def prepare(self, params: Params, batch: Batch) -> Batch:
        """The batch with what the unperturbed weights make of it; `loss` takes either."""
        ...


def prepared(task: Task, params: Params, batch: Batch) -> Batch:
    """The batch of a step, prepared if the task does.

    Args:
      task: the task.
      params: all weights, unperturbed.
      batch: the batch.

    Returns:
      What `task.loss` is given in every forward of the step.

    Example:
      >>> class Doubled(Task):
      ...     def prepare(self, params, batch):
      ...         return 2 * batch
      >>> prepared(Doubled(), {}, 3), prepared(Task, {}, 3)
      (6, 3)
    """
    return task.prepare(params, batch) if isinstance(task, Prepares) else batch


def add(a: Metrics, b: Metrics) -> Metrics:
    """The metrics of two batches together.

    Args:
      a: metrics.
      b: metrics of the same names.

    Returns:
      Sums and weights added.

    Example:
      >>> add({"loss": (3.0, 2.0)}, {"loss": (1.0, 2.0)})
      {'loss': (4.0, 4.0)}
    """
    return jax.tree.map(lambda x, y: x + y, a, b)


def average(metrics: Metrics) -> dict[str, float]:
    """Sum over weight of every metric.

    Args:
      metrics: pairs (sum, weight).

    Returns:
      float for each name; not a number where the weight is 0.

    Example:
      >>> average({"accuracy": (3.0, 4.0)})
      {'accuracy': 0.75}
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: float(np.float32(total) / np.float32(weight)) for name, (total, weight) in metrics.items()}
