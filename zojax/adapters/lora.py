"""Low-rank adapters as leaves of the parameter tree.

A `Lora` leaf holds a frozen weight and two factors. Training the factors alone is `zojax.trees.split` with a pattern
such as "kernel/(a|b)$": the optimiser, the gradient and the noise of a probe then know the factors and nothing else,
and the base, an array or a `QArray`, stays as it is.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key

from zojax import ops, random
from zojax.quant.calibration import expand
from zojax.quant.qarray import QArray
from zojax.trees import path_string

__all__ = ["Lora", "add_lora", "merge_lora", "unmerge_lora"]

Params = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """The leaf "base + (alpha / r) a b".

    Products are sums of products, x base + (alpha / r) (x a) b, so a quantised base is multiplied by codes as it would
    be without the adapter. Leading axes index independent matrices; a model may scan over them, since every field
    carries them.

    Attributes:
      base: the frozen weight [*lead, m, n], an array or another leaf type; first, because Flax compares the first
        array's shape.
      a: first factor [*lead, m, r], an array or a leaf type such as `Perturbed`.
      b: second factor [*lead, r, n], likewise.
      alpha: numerator of the scale; a multiple of r keeps the size of an update when r is changed.

    Example:
      >>> w = Lora(base=jnp.eye(2), a=jnp.ones((2, 1)), b=jnp.array([[0.0, 0.5]]), alpha=2.0)
      >>> w.shape, ops.dot(jnp.ones((1, 2)), w).tolist()
      ((2, 2), [[1.0, 3.0]])

    References:
      LoRA, arXiv 2106.09685.
    """

    base: Any
    a: Any
    b: Any
    alpha: float = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.shape)

    @property
    def ndim(self) -> int:
        return len(self.base.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self):
        """Of what the leaf stands for: at least float32."""
        return jnp.promote_types(self.base.dtype, jnp.float32)

    @property
    def factor(self) -> float:
        """alpha / r."""
        return self.alpha / self.a.shape[-1]

    def delta(self) -> Float[Array, "*lead m n"]:
        """(alpha / r) a b, at least float32."""
        product = jnp.matmul(ops.value(self.a), ops.value(self.b), precision=jax.lax.Precision.HIGHEST)
        return self.factor * product

    def materialize(self) -> Float[Array, "*lead m n"]:
        """base + (alpha / r) a b, at least float32."""
        return ops.value(self.base) + self.delta()

    def __jax_array__(self) -> Array:
        return self.materialize()

    def dot(self, x: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        """x base + (alpha / r) (x a) b."""
        return ops.dot(x, self.base) + self.factor * ops.dot(ops.dot(x, self.a), self.b)

    def embed(self, ids: Integer[Array, "*batch"]) -> Float[Array, "*batch n"]:
        """Rows of base + (alpha / r) a b; the product is made for these rows alone."""
        return ops.embed(self.base, ids) + self.factor * ops.dot(ops.embed(self.a, ids), self.b)

    def einsum(self, spec: str, x: Array) -> Array:
        """The contraction of x with base + (alpha / r) a b."""
        return ops.einsum(spec, x, self.base) + ops.einsum(spec, x, self.delta())

    def conv(self, x: Array, **options) -> Array:
        """The convolution of x with base + (alpha / r) a b."""
        return ops.conv(x, self.base, **options) + ops.conv(x, self.delta(), **options)


def add_lora(params: Params, patterns: Sequence[str], *, rank: int, alpha: float | int, key: Key[Array, ""]) -> Params:
    """Puts adapters on the leaves whose path a pattern matches; the tree stands for the same weights as before.

    a ~ N(0, 1 / m),  b = 0. The zero is the paper's, the variance our choice: x a is then as large as x.

    Args:
      params: tree of arrays and leaf types.
      patterns: regular expressions, searched in the leaf paths.
      rank: r, columns of a and rows of b.
      alpha: see `Lora`; the paper's experiments with language models take 16 to 32.
      key: typed key; a leaf folds in the crc32 of its path.

    Returns:
      The tree with `Lora` leaves, whose factors are float32.

    Raises:
      ValueError: if rank or alpha is not positive, a pattern matches no leaf, or a leaf is no matrix or has an adapter
        already.

    Example:
      >>> from zojax import trees
      >>> params = {"kernel": jnp.ones((8, 4)), "bias": jnp.zeros(4)}
      >>> params = add_lora(params, ("kernel$",), rank=2, alpha=4.0, key=jax.random.key(0))
      >>> trainable, frozen = trees.split(params, ("kernel/(a|b)$",))
      >>> jax.tree.map(jnp.shape, trainable)
      {'bias': None, 'kernel': {'a': (8, 2), 'b': (2, 4)}}

    References:
      LoRA, arXiv 2106.09685; over an integer base with zeroth-order estimates: QuZO, arXiv 2502.12346.
    """
    if rank < 1:
        raise ValueError(f"rank: {rank}; at least 1 is needed")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha: {alpha}; a positive number is needed")
    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_weight)
    paths = [path_string(path) for path, _ in flat]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(f"patterns: {pattern!r} matches no leaf; the leaves are {', '.join(paths)}")

    def leaf(path: str, w: Any) -> Any:
        if not any(re.search(pattern, path) for pattern in patterns):
            return w
        if isinstance(w, Lora):
            raise ValueError(f"patterns: the leaf {path!r} has an adapter; merge it first")
        if len(w.shape) < 2:
            raise ValueError(f"patterns: the leaf {path!r} is of shape {tuple(w.shape)}; an adapter needs a matrix")
        *lead, m, n = w.shape
        leaf_key = jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode())))
        a = random.normal(leaf_key, (*lead, m, rank)) / math.sqrt(m)
        return Lora(base=w, a=a, b=jnp.zeros((*lead, rank, n), jnp.float32), alpha=float(alpha))

    return treedef.unflatten([leaf(path, w) for path, (_, w) in zip(paths, flat, strict=True)])


def merge_lora(params: Params) -> Params:
    """The tree with adapters added into their weights: base + (alpha / r) a b.

    Args:
      params: tree of arrays and leaf types.

    Returns:
      The tree with a float32 array for every `Lora` leaf; other leaves as they are.

    Example:
      >>> w = Lora(base=jnp.eye(2), a=jnp.ones((2, 1)), b=jnp.array([[0.0, 0.5]]), alpha=2.0)
      >>> merge_lora({"w": w})["w"].tolist()
      [[1.0, 1.0], [0.0, 2.0]]
    """
    return _at_adapters(lambda w: w.materialize(), params)


def unmerge_lora(merged: Params, adapted: Params) -> Params:
    """Undoes `merge_lora`: takes the adapters out of the weights and puts the bases back on their grids.

    base = round(merged - (alpha / r) a b),  to nearest, on the grid and scale of a quantised base or in the dtype of
    a float one. Let D = (alpha / r) |a| |b|, and gap the distance from an element of the base to the nearest other
    value that it could hold: the scale on an integer grid; at least 2^-9 (e4m3) or 2^-16 (e5m2) of it on a float8
    grid; at least 2^-8 (bfloat16) or 2^-11 (float16) of a normal value's magnitude. Where

        (r + 2) D <= 2^21 gap

    the element comes back bit for bit (a negative zero as zero), whatever the order in which either program sums over
    r. A float32 base comes back to rounding: within 2^-23 (|base| + (r + 2) D). The bound is our own.

    Args:
      merged: tree with an array for every `Lora` leaf of `adapted`.
      adapted: the tree with the adapters. Of its bases only grid, scale, zero point and dtype are read.

    Returns:
      Tree of the structure of `adapted`; leaves without an adapter are those of `merged`.

    Example:
      >>> from zojax.quant import quantize
      >>> params = add_lora({"w": quantize(jnp.eye(2), "int4")}, ("w",), rank=1, alpha=1.0, key=jax.random.key(0))
      >>> unmerge_lora(merge_lora(params), params)["w"].base.qvalue.tolist()
      [[7, 0], [0, 7]]
    """

    def restored(w: Lora, array: Array) -> Lora:
        back = array - w.delta()
        if not isinstance(w.base, QArray):
            return dataclasses.replace(w, base=back.astype(w.base.dtype))
        levels = back / expand(ops.value(w.base.scale), back.shape)
        if w.base.zero_point is not None:
            levels = levels + expand(w.base.zero_point, back.shape)
        return dataclasses.replace(w, base=dataclasses.replace(w.base, qvalue=w.base.grid.encode(levels)))

    return _at_adapters(restored, adapted, merged)


def _at_adapters(function: Callable[..., Any], tree: Params, *rest: Params) -> Params:
    """`function` at the adapters of a tree; elsewhere the leaves of the last tree."""
    return jax.tree.map(
        lambda w, *others: function(w, *others) if isinstance(w, Lora) else (w, *others)[-1],
        tree,
        *rest,
        is_leaf=lambda node: isinstance(node, Lora),
    )


def _is_weight(node: Any) -> bool:
    return hasattr(node, "materialize")
