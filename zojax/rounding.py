"""Rounding to integers: to nearest even, and stochastically with addressed random words."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

__all__ = ["nearest", "stochastic"]


def nearest(y: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The nearest integer, ties to even.

    Args:
      y: float32.

    Returns:
      Integers in float32.

    Example:
      >>> nearest(jnp.array([0.5, 1.5, -0.6])).tolist()
      [0.0, 2.0, -1.0]
    """
    return jnp.round(y)


def stochastic(y: Float[Array, "*s"], words: UInt32[Array, "*s"]) -> Float[Array, "*s"]:
    """floor(y + u), u uniform on the multiples of 2^-32 in [0, 1): y on average, and integers stay.

    Complementing the words mirrors the rounding: stochastic(-y, ~words) = -stochastic(y, words), which makes the two
    sides of a probe opposite.

    Args:
      y: float32; its fraction counts to 2^-32.
      words: uniform random words, one an element.

    Returns:
      Integers in float32.

    Example:
      >>> import jax
      >>> from zojax import random
      >>> r = stochastic(jnp.full((4096,), 0.25), random.bits(jax.random.key(0), (4096,)))
      >>> sorted(set(r.tolist())), abs(float(r.mean()) - 0.25) < 0.03
      ([0.0, 1.0], True)
    """
    # The sum y + u would itself be rounded: beyond 1 it loses bits of u, and beyond 1/2 in 2^24 turns an integer into
    # the next one. The fraction of a magnitude is exact in float32, and so is its comparison with the word.
    negative, magnitude = y < 0, jnp.abs(y)
    whole = jnp.floor(magnitude)
    threshold = ((magnitude - whole) * np.float32(2.0**32)).astype(jnp.uint32)
    rounded = whole + (jnp.where(negative, words, ~words) < threshold).astype(jnp.float32)
    return jnp.where(negative, -rounded, rounded)
