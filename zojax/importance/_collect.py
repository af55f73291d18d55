"""What the calibration pass puts in the place of weights, and where it collects what they say."""

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from zojax import ops, random
from zojax._observed import Observed, Observer
from zojax.importance.select import is_weight, matched
from zojax.trees import path_string

Params = Any


class Leaves:
    """The leaves of a tree that patterns match, by number."""

    def __init__(self, params: Params, where: Sequence[str]):
        flat, self._treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_weight)
        hits = self._treedef.flatten_up_to(matched(params, where))
        self.paths = {i: path_string(path) for i, (path, _) in enumerate(flat) if hits[i]}
        self.shapes = {i: tuple(flat[i][1].shape) for i in self.paths}

    def chosen(self, tree: Params) -> list[tuple[int, Any]]:
        leaves = self._treedef.flatten_up_to(tree)
        return [(i, leaves[i]) for i in self.paths]

    def replace(self, params: Params, make: Callable[[Any, int], Any]) -> Params:
        leaves = self._treedef.flatten_up_to(params)
        return self._treedef.unflatten([make(w, i) if i in self.paths else w for i, w in enumerate(leaves)])

    def unflatten(self, values: dict[int, Any]) -> Params:
        return self._treedef.unflatten([values.get(i) for i in range(self._treedef.num_leaves)])

    def keys(self, w: Any, number: int, key: Array) -> Array:
        """A key for each matrix of a leaf."""
        leaf_key = jax.random.fold_in(key, np.uint32(zlib.crc32(self.paths[number].encode())))
        lead = tuple(w.shape[:-2])
        indices = jnp.arange(math.prod(lead), dtype=jnp.uint32)
        return jax.vmap(lambda i: jax.random.fold_in(leaf_key, i))(indices).reshape(lead)


def _rows(leaf: Observed, x: Array, product: str) -> tuple[Array, Array]:
    """Inputs [t, m] of a product, and the weight [t, 1] of each."""
    if product != "dot" or len(leaf.shape) != 2:
        raise ValueError(
            f"where: a leaf of shape {leaf.shape} enters ops.{product}; only ops.dot by a matrix is scored"
        )
    counts = leaf.extra["counts"]
    if counts is None:
        counts = jnp.ones(x.shape[:-1], jnp.float32)
    if counts.shape != x.shape[:-1]:
        raise ValueError(f"tokens: shape {counts.shape}, but a layer's inputs are of shape {x.shape}")
    return x.reshape(-1, x.shape[-1]).astype(jnp.float32), counts.reshape(-1, 1)


def _signs(key: Array, x: Array, outputs: int) -> Array:
    return random.signs(key, (*x.shape[:-1], outputs)).astype(jnp.float32)


class Grams(Observer):
    """Sums of x x' in blocks along the diagonal, and the weight of the x."""

    def __init__(self, leaves: Leaves, block: int):
        super().__init__(self._reduce, self._record)
        self._leaves, self._block, self._sums, self._weights = leaves, block, {}, {}

    def _reduce(self, leaf: Observed, x: Array, product: str) -> tuple[Array, Array]:
        rows, weight = _rows(leaf, x, product)
        inputs = rows.shape[1]
        blocks = -(-inputs // self._block)
        rows = jnp.pad(rows, ((0, 0), (0, -inputs % blocks))).reshape(len(rows), blocks, -1)
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("tbs,tbr->bsr", rows * weight[..., None], rows, precision=highest), jnp.sum(weight)

    def _record(self, number: int, slices: tuple[int, ...], index: Any, value: Any) -> None:
        gram, weight = (np.asarray(x, np.float32) for x in value)
        sums = self._sums.setdefault(number, np.zeros((math.prod(slices), *gram.shape), np.float32))
        sums[int(index)] += gram
        self._weights.setdefault(number, np.zeros(math.prod(slices), np.float32))[int(index)] += weight

    def means(self) -> dict[int, np.ndarray]:
        means = {}
        for number, path in self._leaves.paths.items():
            if number not in self._sums or not np.all(self._weights[number] > 0):
                raise ValueError(f"batches: no inputs entered a product with {path!r}, or with one of its slices")
            mean = self._sums[number] / self._weights[number][:, None, None, None]
            means[number] = mean.reshape(*self._leaves.shapes[number][:-2], *mean.shape[1:])
        return means


class Products(Observer):
    """Sums of c X' U."""

    def __init__(self, leaves: Leaves):
        super().__init__(self._reduce, self._record)
        self._leaves, self._sums, self._calls = leaves, {}, {}

    def _reduce(self, leaf: Observed, x: Array, product: str) -> Array:
        rows, weight = _rows(leaf, x, product)
        signs = _signs(leaf.extra["key"], x, leaf.shape[-1]).reshape(len(rows), -1)
        return leaf.extra["weight"] * jnp.dot((rows * weight).T, signs, precision=jax.lax.Precision.HIGHEST)

    def _record(self, number: int, slices: tuple[int, ...], index: Any, value: Any) -> None:
        sums = self._sums.setdefault(number, np.zeros((math.prod(slices), *value.shape), np.float32))
        sums[int(index)] += np.asarray(value, np.float32)
        self._calls.setdefault(number, np.zeros(math.prod(slices), int))[int(index)] += 1

    def means(self, probes: int) -> dict[int, np.ndarray]:
        for number, path in self._leaves.paths.items():
            if not np.all(self._calls[number] == probes):
                raise ValueError(f"where: {path!r} enters several products of one forward; probes tell them not apart")
        return {
            number: (sums / np.float32(probes)).reshape(self._leaves.shapes[number])
            for number, sums in self._sums.items()
        }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Nudged:
    """A leaf beside whose products stand signs, x base + scale u."""

    base: Any
    key: Key[Array, "..."]
    scale: Float[Array, "..."]

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
        raise ValueError("where: a leaf that is probed enters another product than ops.dot")

    def dot(self, x: Array) -> Array:
        return ops.dot(x, self.base) + self.scale * _signs(self.key, x, self.shape[-1])
