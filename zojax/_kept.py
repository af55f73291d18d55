"""Draws that stay in memory apart from what consumes them, also under vmap."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Key

from zojax import random

__all__ = ["kept", "normal_factor"]


def kept(draw: Callable[..., Array], key: Key[Array, ""], *at: Any) -> Array:
    """draw(words of the key, *at), stored.

    `random.stored` keeps a draw apart by a conditional on its key. Over many keys (the members of a population, the
    examples of a batch) vmap would turn that into a select, which fuses, and every use of an element would draw it
    anew; the rule here conditions all of a batch on its first key.

    Args:
      draw: (two words, *at) -> array; closes over no array.
      key: typed key.
      *at: arrays, where the draw begins and so on.

    Returns:
      The draw.
    """

    @custom_vmap
    def stored(words, *at):
        return random.stored((words[0], words[1]), lambda: draw((words[0], words[1]), *at))

    @stored.def_vmap
    def of_batch(axis_size, in_batched, words, *at):
        del axis_size
        first = words[0] if in_batched[0] else words
        axes = tuple(0 if batched else None for batched in in_batched)
        one = lambda words, *at: draw((words[0], words[1]), *at)  # noqa: E731
        return random.stored((first[0], first[1]), lambda: jax.vmap(one, axes)(words, *at)), True

    return stored(jax.random.key_data(key), *at)


def normal_factor(key: Key[Array, ""], shape: Sequence[int], *, start: Any, size: Sequence[int]) -> Float[Array, "..."]:
    """`random.normal(key, shape, start=start, size=size)`, stored: a fused product would draw a factor many times."""
    return kept(lambda words, at: random.normal(words, shape, start=at, size=size), key, start)
