"""Masks of sparse directions: bits where every weight has one, a threshold where magnitude or whole slices decide."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from zojax import ops

__all__ = ["apply_mask", "keep_mask", "layer_masks", "mask_rows", "pack_mask", "unpack_mask"]

Params = Any


def pack_mask(mask: Array, *, axis: int = -1) -> Array:
    """Packs booleans along an axis, 32 to a word: of the last one, bit c % 32 of word (.., c // 32).

    Args:
      mask: bool [..., C], or [..., R, C].
      axis: -1, or -2 for matrices of few columns, whose rows would leave most of a word unused.

    Returns:
      uint32 [..., ceil(C / 32)], or [..., ceil(R / 32), C].

    Example:
      >>> pack_mask(jnp.array([True, False, True])).tolist()
      [5]
    """
    mask = jnp.moveaxis(jnp.asarray(mask, jnp.uint32), axis, -1)
    mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, -mask.shape[-1] % 32)])
    mask = mask.reshape(*mask.shape[:-1], -1, 32)
    words = jnp.sum(mask << jnp.arange(32, dtype=jnp.uint32), axis=-1, dtype=jnp.uint32)
    return jnp.moveaxis(words, -1, axis)


def unpack_mask(words: Array, length: int, *, axis: int = -1) -> Array:
    """The booleans that `pack_mask` packed.

    Args:
      words: uint32, as `pack_mask` returned them.
      length: C, or R of masks that are packed along their rows' axis.
      axis: that of `pack_mask`.

    Returns:
      bool [..., C].

    Example:
      >>> unpack_mask(jnp.array([5], jnp.uint32), 3).tolist()
      [True, False, True]
    """
    words = jnp.moveaxis(words, axis, -1)
    spread = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & np.uint32(1)
    bits = spread.reshape(*words.shape[:-1], -1)[..., :length].astype(bool)
    return jnp.moveaxis(bits, -1, axis)


def _packed_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    packed = list(shape)
    packed[axis] = -(-packed[axis] // 32)
    return tuple(packed)


def _axis_of(words: Array, shape: tuple[int, ...]) -> int:
    # Both axes give one shape to a matrix of one element alone, and then one word too.
    return -1 if words.shape == _packed_shape(shape, -1) else -2


def mask_rows(words: Array, ids: Integer[Array, "*batch"], shape: Sequence[int]) -> Array:
    """The mask of some rows of a matrix.

    Args:
      words: uint32, the packed mask of the matrix.
      ids: row numbers.
      shape: of the matrix.

    Returns:
      bool [*batch, C].

    Example:
      >>> mask_rows(pack_mask(jnp.array([[True, False], [False, True]])), jnp.array([1]), (2, 2)).tolist()
      [[False, True]]
    """
    if _axis_of(words, tuple(shape)) == -1:
        return unpack_mask(jnp.take(words, ids, axis=0), shape[-1])
    bits = jnp.take(words, ids // 32, axis=0) >> (ids % 32).astype(jnp.uint32)[..., None]
    return (bits & np.uint32(1)).astype(bool)


def apply_mask(z: Array, mask: Array | None, weights: Any) -> Array:
    """z where the mask holds, else 0.

    Args:
      z: noise of a leaf, or rows of it.
      mask: None; booleans; uint32 words of `pack_mask`; or a float32 threshold (a scalar, or one a slice of the first
        axis), for "the weight's magnitude is at most this".
      weights: the leaf's weights, of z's shape; read for a threshold alone.

    Returns:
      Array of z's shape.

    Example:
      >>> apply_mask(jnp.ones((3,)), jnp.float32(0.5), jnp.array([0.1, -0.4, 2.0])).tolist()
      [1.0, 1.0, 0.0]
    """
    if mask is None:
        return z
    if mask.dtype == jnp.uint32:
        axis = _axis_of(mask, z.shape)
        mask = unpack_mask(mask, z.shape[axis], axis=axis)
    if mask.dtype == bool:
        return jnp.where(mask, z, 0.0)
    threshold = mask.reshape(mask.shape + (1,) * (z.ndim - mask.ndim))
    return jnp.where(jnp.abs(ops.value(weights)) <= threshold, z, 0.0)


def keep_mask(w: Any, mask: Array | None, *, stacked: bool = False) -> Array | None:
    """A mask of booleans in the form that leaves keep: bits, or thresholds where it selects whole slices.

    Bits are packed along the last axis, or along the rows' where that takes fewer words, as for a factor of low rank.

    Args:
      w: the weight.
      mask: True where the weight moves; of the weight's shape, or [L, 1, ..] for slices of the first axis. Words of
        `pack_mask` stay as they are; None: all of the weight moves.
      stacked: whether the first axis is one that the model scans over, along which nothing is packed.

    Returns:
      uint32 words, or float32 [L]: infinite where all of a slice moves, -1 where none does; or None.

    Raises:
      ValueError: if the mask has another shape.

    Example:
      >>> keep_mask(jnp.ones((2, 3)), jnp.array([[True], [False]])).tolist()
      [inf, -1.0]
    """
    if mask is None:
        return None
    mask, shape = jnp.asarray(mask), tuple(w.shape)
    matrix = len(shape) - stacked > 1
    if mask.dtype == jnp.uint32 and mask.shape in [_packed_shape(shape, axis) for axis in (-1, -2)[: 1 + matrix]]:
        return mask
    if mask.dtype != bool or mask.shape not in (shape, (*shape[:1], *(1,) * (len(shape) - 1))):
        what = "" if mask.dtype == bool else f" and dtype {mask.dtype}"
        raise ValueError(f"masks: shape {mask.shape}{what} for a leaf of shape {shape}; its own, or one entry a slice")
    if len(shape) > 1 and mask.shape == shape:
        fewer = matrix and math.prod(_packed_shape(shape, -2)) < math.prod(_packed_shape(shape, -1))
        return pack_mask(mask, axis=-2 if fewer else -1)
    # Of a vector, too: a model that scans over it takes single entries, which have no axis to pack.
    return jnp.where(mask, jnp.inf, -1.0).astype(jnp.float32).reshape(shape[:1])


def layer_masks(layers: Sequence[int]) -> Callable[[Params], Params]:
    """Masks that select whole layers of stacked leaves, for `PerturbSpec.masks` beside `Sparse` directions.

    Args:
      layers: numbers of the layers that move.

    Returns:
      Function from weights, all of them stacked, to masks [L, 1, ..].

    Raises:
      ValueError: (the function) if a layer is out of range.

    Example:
      >>> layer_masks((1,))({"w": jnp.ones((2, 3))})["w"].tolist()
      [[False], [True]]
    """

    def masks(params):
        def leaf(w):
            if not layers or not all(0 <= layer < w.shape[0] for layer in layers):
                raise ValueError(f"layers: {tuple(layers)}; numbers in [0, {w.shape[0]}) are needed")
            chosen = np.isin(np.arange(w.shape[0]), np.array(layers))
            return jnp.asarray(chosen.reshape(-1, *(1,) * (len(w.shape) - 1)))

        return jax.tree.map(leaf, params, is_leaf=lambda node: hasattr(node, "materialize"))

    return masks
