"""Causal attention with a cache of keys and values, and rotary positions.

Rows of a batch may be padded on either side. A slot of the sequence (and of the cache) is an array index, the same for
all rows; a *position* counts the tokens of its row, so that no answer depends on where the padding is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from models.language.layers import MASKED

__all__ = ["Cache", "Frame", "attend", "empty_cache", "frame", "remember", "rotate"]


class Cache(NamedTuple):
    """Keys and values of the tokens so far.

    Attributes:
      key: [layers, b, slots, kv_heads, head_dim].
      value: of the same shape.
      mask: True where a slot holds a token.
      position: the token's position in its row.
      used: slots that are taken, of tokens or of padding.
    """

    key: Float[Array, "layers b t kv d"]
    value: Float[Array, "layers b t kv d"]
    mask: Bool[Array, "b t"]
    position: Int[Array, "b t"]
    used: Int[Array, ""]


class Frame(NamedTuple):
    """What every layer of one forward shares.

    Attributes:
      position: of each query in its row.
      allowed: whether a query may see a key, but for windows.
      distance: positions from a key to a query.
      start: slot at which the cache is written; None without a cache.
    """

    position: Int[Array, "b s"]
    allowed: Bool[Array, "b s t"]
    distance: Int[Array, "b s t"]
    start: Int[Array, ""] | None


def empty_cache(*, layers: int, batch: int, slots: int, kv_heads: int, head_dim: int) -> Cache:
    """A cache without tokens, in float32.

    Args:
      layers: layers of the model.
      batch: rows.
      slots: the most tokens and padding a row may come to; more are the caller's error and overwrite the last ones.
      kv_heads: heads of keys and values.
      head_dim: width of a head.

    Returns:
      The cache.

    Example:
      >>> empty_cache(layers=2, batch=3, slots=8, kv_heads=1, head_dim=4).key.shape
      (2, 3, 8, 1, 4)
    """
    kept = jnp.zeros((layers, batch, slots, kv_heads, head_dim), jnp.float32)
    mask, position = jnp.zeros((batch, slots), bool), jnp.zeros((batch, slots), jnp.int32)
    return Cache(key=kept, value=kept, mask=mask, position=position, used=jnp.int32(0))


def frame(
    mask: Bool[Array, "b s"], cache: Cache | None, segment: Int[Array, "b s"] | None = None
) -> tuple[Frame, Cache | None]:
    """Positions and visibility of new tokens, and the cache with their places marked.

    Args:
      mask: True where there is a token.
      cache: the tokens before, or None.
      segment: which text of its row a token belongs to, where several share a row; a token sees its own alone. Their
        positions run on, which rotary positions, being relative, do not see. Only without a cache.

    Returns:
      (frame, cache).

    Raises:
      ValueError: if there are more new slots than the cache has, or segments with a cache.

    Example:
      >>> frame(jnp.array([[False, True, True]]), None)[0].position.tolist()  # padded on the left
      [[0, 0, 1]]
    """
    before = 0 if cache is None else jnp.sum(cache.mask, axis=1, dtype=jnp.int32)[:, None]
    position = jnp.maximum(before + jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    seen, at, start = mask, position, None
    if cache is not None:
        if segment is not None:
            raise ValueError("segment: texts that share a row take no cache")
        if mask.shape[1] > cache.mask.shape[1]:
            raise ValueError(f"tokens has length {mask.shape[1]}; the cache has {cache.mask.shape[1]} slots")
        start = cache.used
        seen = jax.lax.dynamic_update_slice(cache.mask, mask, (0, start))
        at = jax.lax.dynamic_update_slice(cache.position, position, (0, start))
        cache = cache._replace(mask=seen, position=at, used=start + mask.shape[1])
    distance = position[:, :, None] - at[:, None, :]
    allowed = seen[:, None, :] & (distance >= 0)
    if segment is not None:
        allowed &= segment[:, :, None] == segment[:, None, :]
    return Frame(position, allowed, distance, start), cache


def remember(
    kept: Any, layer: Int[Array, ""], start: Int[Array, ""] | None, key: Float[Array, "b s kv d"], value: Array
) -> tuple[Any, Array, Array]:
    """Writes a layer's new keys and values and returns all that the layer may see.

    The whole cache is passed from layer to layer and written in place: a scan that took and returned a slice for each
    layer would copy all of it at each token.

    Args:
      kept: (key, value) of the cache, or None.
      layer: the layer's number.
      start: slot of the first new token.
      key: new keys.
      value: new values.

    Returns:
      (kept, keys [b, t, kv, d], values).

    Example:
      >>> remember(None, jnp.int32(0), None, jnp.ones((1, 2, 1, 4)), jnp.ones((1, 2, 1, 4)))[1].shape
      (1, 2, 1, 4)
    """
    if kept is None or start is None:
        return None, key, value
    at = (layer, 0, start, 0, 0)
    kept = tuple(jax.lax.dynamic_update_slice(old, new[None], at) for old, new in zip(kept, (key, value), strict=True))
    key, value = (jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False) for whole in kept)
    return kept, key, value


def rotate(
    x: Float[Array, "b s h d"], position: Int[Array, "b s"], frequency: Float[np.ndarray, " half"]
) -> Float[Array, "b s h d"]:
    """Rotary positions: (x_i, x_{i + d/2}) is turned by the angle position * frequency_i (RoFormer, arXiv:2104.09864).

    The pairs are those of Hugging Face's checkpoints; the paper pairs neighbours, which is the same up to the order of
    the rows of the projections.

    Args:
      x: queries or keys.
      position: of each token.
      frequency: radians a position, d / 2 of them.

    Returns:
      Array of x's shape.

    Example:
      >>> rotate(jnp.ones((1, 1, 1, 2)), jnp.array([[1]]), np.array([np.pi / 2], np.float32)).round(4).tolist()
      [[[[-1.0, 1.0]]]]
    """
    angle = (position[..., None] * jnp.asarray(frequency))[:, :, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b t kv d"],
    value: Float[Array, "b t kv d"],
    allowed: Bool[Array, "b s t"],
) -> Float[Array, "b s hd"]:
    """softmax(q k' / sqrt(d)) v with h / kv query heads to a head of keys (GQA, arXiv:2305.13245).

    Args:
      query: queries.
      key: keys.
      value: values.
      allowed: whether a query may see a key; where it may see none, the result is a mean without meaning.

    Returns:
      [b, s, h * d].

    Example:
      >>> x = jnp.ones((1, 2, 4, 3))
      >>> attend(x, x[:, :, :2], x[:, :, :2], jnp.ones((1, 2, 2), bool)).shape
      (1, 2, 12)
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    query = (query * width**-0.5).reshape(batch, length, groups, heads // groups, width)
    scores = jnp.einsum("bsgrd,btgd->bgrst", query, key)
    weights = jax.nn.softmax(jnp.where(allowed[:, None, None], scores, MASKED), axis=-1)
    return jnp.einsum("bgrst,btgd->bsgrd", weights, value).reshape(batch, length, heads * width)
