"""Masks of sparse directions: bits where every weight has one, a threshold where magnitude or whole slices decide."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from zojax import ops

__all__ = ["apply_mask", "keep_mask", "layer_masks", "pack_mask", "unpack_mask"]

Params = Any


def pack_mask(mask: Array) -> Array:
    """Packs booleans along the last axis, 32 to a word: bit c % 32 of word (.., c // 32).

    Args:
      mask: bool [..., C].

    Returns:
      uint32 [..., ceil(C / 32)].

    Example:
      >>> pack_mask(jnp.array([True, False, True])).tolist()
      [5]
    """
    mask = jnp.asarray(mask, jnp.uint32)
    mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, -mask.shape[-1] % 32)])
    mask = mask.reshape(*mask.shape[:-1], -1, 32)
    return jnp.sum(mask << jnp.arange(32, dtype=jnp.uint32), axis=-1, dtype=jnp.uint32)


def unpack_mask(words: Array, columns: int) -> Array:
    """The booleans that `pack_mask` packed.

    Args:
      words: uint32 [..., ceil(columns / 32)].
      columns: C.

    Returns:
      bool [..., columns].

    Example:
      >>> unpack_mask(jnp.array([5], jnp.uint32), 3).tolist()
      [True, False, True]
    """
    spread = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & np.uint32(1)
    return spread.reshape(*words.shape[:-1], -1)[..., :columns].astype(bool)


def apply_mask(z: Array, mask: Array | None, weights: Any) -> Array:
    """z where the mask holds, else 0.

    Args:
      z: noise of a leaf, or rows of it.
      mask: None; uint32 words of `pack_mask`; or a float32 threshold (a scalar, or one a slice of the first axis), for
        "the weight's magnitude is at most this".
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
        return jnp.where(unpack_mask(mask, z.shape[-1]), z, 0.0)
    threshold = mask.reshape(mask.shape + (1,) * (z.ndim - mask.ndim))
    return jnp.where(jnp.abs(ops.value(weights)) <= threshold, z, 0.0)


def keep_mask(w: Any, mask: Array) -> Array:
    """A mask of booleans in the form that leaves keep: bits, or thresholds where it selects whole slices.

    Args:
      w: the weight.
      mask: True where the weight moves; of the weight's shape, or [L, 1, ..] for slices of the first axis.

    Returns:
      uint32 words, or float32 [L]: infinite where all of a slice moves, -1 where none does.

    Raises:
      ValueError: if the mask has another shape.

    Example:
      >>> keep_mask(jnp.ones((2, 3)), jnp.array([[True], [False]])).tolist()
      [inf, -1.0]
    """
    mask, shape = jnp.asarray(mask), tuple(w.shape)
    if mask.shape not in (shape, (*shape[:1], *(1,) * (len(shape) - 1))):
        raise ValueError(f"masks: shape {mask.shape} for a leaf of shape {shape}; its own, or one entry a slice")
    if len(shape) > 1 and mask.shape == shape:
        return pack_mask(mask)
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
