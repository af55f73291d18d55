"""Quantisation with stochastic rounding in one pass, its noise addressed by (key, index)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from zojax import random
from zojax.kernels._platform import configured, dispatch
from zojax.kernels.stochastic_round import reference

__all__ = ["stochastic_round"]

NAME = "stochastic_round"


def _is_matrix(size: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether the tile is one of the array seen as [.., columns]: it is cut in its first and its last axis alone."""
    return tuple(size[1:-1]) == tuple(shape[1:-1]) and math.prod(shape[:-1]) < 2**32


def _as_matrices(x: Array, scale: Array, start: Array, shape: Sequence[int]) -> tuple[Array, Array, Array]:
    """x, its scale and its start, where all axes but the last are one; a constant scale keeps its axes of 1."""
    rows = math.prod(x.shape[:-1])
    if math.prod(scale.shape[:-1]) != 1:
        scale = jnp.broadcast_to(scale, (*x.shape[:-1], scale.shape[-1])).reshape(rows, scale.shape[-1])
    first = start[0] * np.uint32(math.prod(shape[1:-1]))
    return x.reshape(rows, x.shape[-1]), scale.reshape(-1, scale.shape[-1]), jnp.stack([first, start[-1]])


def stochastic_round(
    x: Float[Array, "*tile"],
    scale: Float[Array, "..."],
    key: random.KeyOrWords,
    *,
    low: int,
    high: int,
    shape: Sequence[int] | None = None,
    start=None,
    implementation: str | None = None,
    config=None,
) -> Int8[Array, "*tile"]:
    """Codes of a grid, rounded up or down at random so that they are right on average.

        code_i = clip(floor(x_i / scale_i + u_i), low, high),    u_i = (bits_i >> 8) 2^-24

    bits is `zojax.random.bits(key, shape)`: any tile of an array gets the codes that it has in the whole.

    Args:
      x: the values, float32 or bfloat16; divided in float32.
      scale: float32, broadcastable to x.
      key: typed threefry key, or its two words.
      low: least code, -128 or more.
      high: greatest code, 127 or less.
      shape: shape of the whole array of which x is a tile; None: x's own.
      start: first coordinate of x in each axis of it (traced or not); None: the origin.
      implementation: "reference", "tpu", "gpu" or None, the first that supports the arguments on the platform that the
        program is lowered for.
      config: the `Config` of the named implementation; None: what `autotune` has stored, else a default.

    Returns:
      int8 codes of x's shape.

    Raises:
      ValueError: if bounds, shapes or the key do not fit, or the named implementation does not support the arguments.

    Example:
      >>> import jax
      >>> key = jax.random.key(0)
      >>> codes = stochastic_round(jnp.full((1000,), 0.3), jnp.float32(0.1), key, low=-7, high=7)
      >>> sorted(set(codes.tolist()))
      [3]
      >>> codes = stochastic_round(jnp.full((1000,), 0.25), jnp.float32(0.1), key, low=-7, high=7)
      >>> sorted(set(codes.tolist()))
      [2, 3]
    """
    if not -128 <= low < high <= 127:
        raise ValueError(f"low, high: {low} and {high}; -128 <= low < high <= 127 is needed")
    shape = tuple(x.shape if shape is None else shape)
    if len(shape) != x.ndim or any(n > full for n, full in zip(x.shape, shape, strict=True)):
        raise ValueError(f"shape: {shape} holds no tile of shape {x.shape}")
    if start is not None and len(start) != len(shape):
        raise ValueError(f"start: {len(start)} coordinates in an array of shape {shape}")
    scale = jnp.asarray(scale, jnp.float32)
    trailing = x.shape[max(0, x.ndim - scale.ndim) :]
    if scale.ndim > x.ndim or any(n not in (1, full) for n, full in zip(scale.shape, trailing, strict=True)):
        raise ValueError(f"scale: shape {scale.shape} does not broadcast to {x.shape}")
    words = random.key_words(key)
    origin = jnp.asarray([0] * x.ndim if start is None else start, jnp.uint32)
    new = (1,) * max(0, 2 - x.ndim)  # axes that change no index
    tile, shape = x.reshape(*new, *x.shape), (*new, *shape)
    args = (
        tile,
        scale.reshape((1,) * (tile.ndim - scale.ndim) + scale.shape),
        words,
        jnp.concatenate([jnp.zeros(len(new), jnp.uint32), origin]),
    )
    define = partial(reference.stochastic_round, low=low, high=high, shape=shape)
    matrix = _is_matrix(tile.shape, shape)
    if (implementation == "reference" and config is None) or (implementation is None and not matrix):
        return define(*args).reshape(x.shape)
    if not matrix:
        raise ValueError(f"shape: {implementation!r} makes no tile {x.shape} of {shape}: it is cut in an inner axis")
    from zojax.kernels.stochastic_round import gpu, tpu  # Pallas takes a second to import

    def flat(run):
        def call(x, scale, words, start):
            x, scale, start = _as_matrices(x, scale, start, shape)
            return run(x, scale, words, start).reshape(tile.shape)

        return call

    modules, view = {"tpu": tpu, "gpu": gpu}, (math.prod(shape[:-1]), shape[-1])
    found = configured(NAME, modules, implementation, config, *args, low=low, high=high, shape=view)
    backends = {name: replace(backend, run=flat(backend.run)) for name, backend in found.items()}
    return dispatch(NAME, implementation, define, backends, *args).reshape(x.shape)
