"""A leaf that reports what a model multiplies it by."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from zojax import ops


class Observer:
    """Where observed leaves report to.

    Equal to itself alone: as a part of the leaves' structure it keeps a function that was traced for one observer from
    reporting to it in the observation after.

    Args:
      reduce: (leaf, input of a product, which product) -> what is reported, under a trace.
      record: (number of the leaf, its leading axes, index of the matrix within them, what was reported), on the host.
    """

    def __init__(self, reduce: Callable[["Observed", Array, str], Any], record: Callable[..., None]):
        self.reduce, self.record = reduce, record


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Observed:
    """A leaf that reports the inputs of its products, and else is its base."""

    base: Any
    position: Any  # int32, counts the leaf's matrices; sliced with the leaf by a scan
    extra: Any = None  # arrays that `reduce` needs, with the leaf's leading axes
    number: int = dataclasses.field(metadata={"static": True})
    full_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    observer: Observer = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def ndim(self) -> int:
        return len(self.base.shape)

    @property
    def dtype(self):
        return self.base.dtype

    def materialize(self) -> Array:
        return ops.value_as_stored(self.base)

    def __jax_array__(self) -> Array:
        return self.materialize()

    def embed(self, ids: Array) -> Array:
        return ops.embed(self.base, ids)

    def dot(self, x: Array) -> Array:
        self._report(x, "dot")
        return ops.dot(x, self.base)

    def einsum(self, spec: str, x: Array) -> Array:
        self._report(x, "einsum")
        return ops.einsum(spec, x, self.base)

    def conv(self, x: Array, **options) -> Array:
        self._report(x, "conv")
        return ops.conv(x, self.base, **options)

    def _report(self, x: Array, product: str) -> None:
        index = self.position.reshape(-1)[0] // self.position.size
        slices = self.full_shape[: len(self.full_shape) - self.ndim]
        record = partial(self.observer.record, self.number, slices)
        jax.debug.callback(record, index, self.observer.reduce(self, x, product))


def observed(leaf: Any, number: int, observer: Observer, extra: Any = None) -> Observed:
    """A leaf that reports to an observer under a number of its own."""
    lead = tuple(leaf.shape[:-2])
    position = jnp.arange(math.prod(lead), dtype=jnp.int32).reshape(lead)
    return Observed(
        base=leaf, position=position, extra=extra, number=number, full_shape=tuple(leaf.shape), observer=observer
    )
