"""The definition of quantisation with stochastic rounding, in words addressed by (key, index)."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, UInt32

from zojax import random, rounding

__all__ = ["stochastic_round"]


def to_codes(
    x: Float[Array, "*s"], scale: Float[Array, "..."], words: UInt32[Array, "*s"], low: int, high: int
) -> Int8[Array, "*s"]:
    """x / scale in float32, rounded with the words and clipped to the grid."""
    y = rounding.stochastic(x.astype(jnp.float32) / scale, words)
    return jnp.clip(y, low, high).astype(jnp.int8)


def stochastic_round(
    x: Float[Array, "*tile"],
    scale: Float[Array, "..."],
    words: tuple[UInt32[Array, ""], UInt32[Array, ""]],
    start: UInt32[Array, "axes"],
    *,
    low: int,
    high: int,
    shape: Sequence[int],
) -> Int8[Array, "*tile"]:
    """The tile at `start` of an array of `shape`: `to_codes` with `random.bits(key, shape)` at its place.

    Args:
      x: float tile.
      scale: float32, broadcastable to x.
      words: the key's two words.
      start: first coordinate of the tile in each axis.
      low: least code.
      high: greatest code.
      shape: shape of the whole.

    Returns:
      int8 codes.

    Example:
      >>> words, start = (jnp.uint32(0), jnp.uint32(1)), jnp.zeros(1, jnp.uint32)
      >>> stochastic_round(jnp.arange(3.0), jnp.float32(0.5), words, start, low=-7, high=7, shape=(3,)).tolist()
      [0, 2, 4]
    """
    return to_codes(x, scale, random.bits(words, shape, start=start, size=x.shape), low, high)
