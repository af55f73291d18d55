"""Threefry-2x32 as unrolled uint32 arithmetic: the words of a random array at any index, in XLA and in kernels alike.

What `zojax.random` makes its distributions of; the functions with a docstring are public there.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Integer, Key, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))

KeyOrWords = Key[Array, ""] | tuple[Any, Any]
"""One typed threefry key, or the two uint32 scalars that are its data."""


def threefry2x32(k0, k1, x0, x1):
    """The threefry-2x32 block function with 20 rounds, unrolled.

    Args:
      k0: first word of the key, uint32.
      k1: second word of the key, uint32.
      x0: high word of the counter, uint32.
      x1: low word of the counter, uint32.

    Returns:
      Two uint32 arrays of the operands' common shape.

    Example:
      >>> zero = np.zeros((), np.uint32)
      >>> [hex(int(w)) for w in threefry2x32(zero, zero, zero, zero)]
      ['0x6b200159', '0x99ba4efe']
    """
    keys = (k0, k1, k0 ^ k1 ^ np.uint32(0x1BD11BDA))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = ((x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))) ^ x0
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1


def key_words(key: KeyOrWords) -> tuple[Any, Any]:
    """The two words of a key, as kernels hold it.

    Args:
      key: typed threefry key, or its two words, which come back as they are.

    Returns:
      Two uint32 scalars.

    Raises:
      ValueError: if the key is neither.

    Example:
      >>> [int(word) for word in key_words(jax.random.key(3))]
      [0, 3]
    """
    if isinstance(key, tuple):
        kinds = [f"{word.dtype}{list(word.shape)}" if hasattr(word, "shape") else type(word).__name__ for word in key]
        if kinds != ["uint32[]", "uint32[]"]:
            raise ValueError(f"key: a typed key or a pair of uint32 scalars is needed, not ({', '.join(kinds)})")
        return key
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"key: a typed key is needed (jax.random.key(seed)), not an array of {key.dtype}")
    words = jax.random.key_data(key)
    if words.shape != (2,):
        raise ValueError(f"key: one threefry2x32 key is needed, not {key.dtype} of shape {key.shape}")
    return words[0], words[1]


def multiply_wide(a: UInt32[Array, "..."], b: int) -> tuple[Array, Array]:
    """(high, low) words of a * b for a static b < 2^64 and a product < 2^64."""
    b_high, b_low = np.uint32(b >> 32), np.uint32(b & 0xFFFFFFFF)
    a1, a0 = a >> np.uint32(16), a & np.uint32(0xFFFF)
    b1, b0 = np.uint32(int(b_low) >> 16), np.uint32(int(b_low) & 0xFFFF)
    mid = a1 * b0 + ((a0 * b0) >> np.uint32(16))  # cannot overflow: (2^16-1)^2 + 2^16-1 < 2^32
    high = a1 * b1 + (mid >> np.uint32(16)) + ((a0 * b1 + (mid & np.uint32(0xFFFF))) >> np.uint32(16))
    return high + a * b_high, a * b_low


def _counter(coordinates: Sequence[Array], shape: Sequence[int]) -> tuple[Array, Array]:
    """The 64-bit row-major index of elements, as (high, low) uint32 words."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    low = jnp.uint32(0)
    if math.prod(shape) <= 2**32:
        for index, stride in zip(coordinates, strides, strict=True):
            low = low + index * np.uint32(stride % 2**32)  # 2^32 only before an axis of length 1
        return jnp.uint32(0), low
    high = jnp.uint32(0)
    for index, stride in zip(coordinates, strides, strict=True):
        term_high, term_low = multiply_wide(index, stride)
        low = low + term_low
        high = high + term_high + (low < term_low).astype(jnp.uint32)
    return high, low


def coordinates_of(shape: Sequence[int], start, size: Sequence[int] | None) -> list[Array]:
    size = tuple(shape) if size is None else tuple(size)
    if len(size) != len(shape) or any(n > full for n, full in zip(size, shape, strict=True)):
        raise ValueError(f"size: a tile of shape {size} does not fit into an array of shape {tuple(shape)}")
    indices = [lax.broadcasted_iota(jnp.uint32, size, axis) for axis in range(len(size))]
    if start is None:
        return indices
    if len(start) != len(shape):
        raise ValueError(f"start: {len(start)} coordinates for an array of shape {tuple(shape)}")
    if any(isinstance(at, int) and not 0 <= at <= full - n for at, n, full in zip(start, size, shape, strict=True)):
        raise ValueError(f"start: a tile of shape {size} at {tuple(start)} does not fit into {tuple(shape)}")
    return [index + jnp.asarray(start[axis], jnp.uint32) for axis, index in enumerate(indices)]


def bits_at(
    key: KeyOrWords, shape: Sequence[int], coordinates: Sequence[Integer[Array, "..."]]
) -> UInt32[Array, "..."]:
    """Elements of `bits(key, shape)` at given coordinates.

    Args:
      key: typed threefry key, or its two words.
      shape: full shape of the array that is addressed.
      coordinates: one unsigned integer array an axis, broadcastable to each other.

    Returns:
      uint32 array of the coordinates' common shape.

    Raises:
      ValueError: if the key is not a single typed threefry key.

    Example:
      >>> key = jax.random.key(0)
      >>> rows = jnp.array([[3], [1]], jnp.uint32)
      >>> bool((bits_at(key, (4, 5), (rows, jnp.arange(5, dtype=jnp.uint32))) == bits(key, (4, 5))[rows[:, 0]]).all())
      True
    """
    w0, w1 = both_words_at(key, shape, coordinates)
    return w0 ^ w1


def both_words_at(
    key: KeyOrWords, shape: Sequence[int], coordinates: Sequence[Integer[Array, "..."]]
) -> tuple[Array, Array]:
    high, low = _counter([jnp.asarray(c).astype(jnp.uint32) for c in coordinates], shape)
    return threefry2x32(*key_words(key), high, low)


def bits(
    key: KeyOrWords, shape: Sequence[int], *, start=None, size: Sequence[int] | None = None
) -> UInt32[Array, "..."]:
    """Uniform random 32-bit words: `jax.random.bits(key, shape)`, or a tile of it.

    Args:
      key: typed threefry key, or its two words.
      shape: full shape.
      start: first coordinate of the tile in each axis (traced or not); None: the origin.
      size: shape of the tile; None: the full shape.

    Returns:
      uint32 array of shape `size`.

    Raises:
      ValueError: if the tile does not fit or the key is not a single typed threefry key.

    Example:
      >>> key = jax.random.key(0)
      >>> bool((bits(key, (8, 8), start=(2, 4), size=(3, 4)) == jax.random.bits(key, (8, 8))[2:5, 4:8]).all())
      True
    """
    return bits_at(key, shape, coordinates_of(shape, start, size))


def stored(key: KeyOrWords, make: Callable[[], Array]) -> Array:
    """The array `make()`, kept in memory apart from its consumers.

    XLA would fuse a draw into what consumes it and so repeat it for every use of an element: 32 times for a word of
    signs, m times for a factor of a low-rank direction. On a GPU an optimization_barrier keeps them apart. On a CPU it
    is gone before XLA fuses; there the draw stands in a conditional, which a fusion does not cross: the condition
    always holds, which the compiler does not see. (A GPU would wait for the host at each conditional.) For signs, on
    CPU: 0.1 instead of 1.0 ns an element on top of the addition that consumes them.

    Args:
      key: the key of the draw.
      make: the draw.

    Returns:
      make().

    Example:
      >>> key = jax.random.key(0)
      >>> stored(key, lambda: bits(key, (3,))).shape
      (3,)
    """

    def conditional():
        always = (key_words(key)[0] | np.uint32(1)) != np.uint32(0)
        like = jax.eval_shape(make)
        return lax.cond(always, make, lambda: jnp.zeros(like.shape, like.dtype))

    return lax.platform_dependent(cuda=lambda: lax.optimization_barrier(make()), default=conditional)
