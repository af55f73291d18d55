"""Training: the Task protocol, the programs of a step, the loop, checkpoints and metrics."""

from zojax.train.loop import Batches, NonFiniteError, Result, fit
from zojax.train.step import (
    Method,
    evaluate,
    first_order,
    make_apply,
    make_evaluate,
    make_measure,
    zeroth_order,
)
from zojax.train.task import Metrics, Task, add, average

__all__ = [
    "Batches",
    "Method",
    "Metrics",
    "NonFiniteError",
    "Result",
    "Task",
    "add",
    "average",
    "evaluate",
    "first_order",
    "fit",
    "make_apply",
    "make_evaluate",
    "make_measure",
    "zeroth_order",
]
