"""Addressed noise: any element of a random array from its key and its index.

The generator is threefry-2x32 in counter mode, written as plain uint32 arithmetic. Element i (row-major) of an array
is the exclusive or of the two words of threefry(key, (i >> 32, i & 0xffffffff)), which makes `bits`, `uniform`,
`normal` and `rademacher` equal to their namesakes in `jax.random` for the same key and the full shape. Because an
element depends on nothing but (key, index), any tile can be made anywhere: fused into the operation that consumes it,
inside a kernel, on another host, later.

`signs` is this library's own format: one 32-bit word serves 32 rows, so a random sign costs 1/32 of a draw.

Where a function takes a key, a pair of uint32 scalars does as well, the key's two words: kernels hold no typed keys.

Source of the generator: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer, Key, UInt32

from zojax._threefry import multiply_wide, threefry2x32

__all__ = [
    "bits",
    "bits_at",
    "key_words",
    "normal",
    "normal_at",
    "own",
    "rademacher",
    "signs",
    "signs_at",
    "stored",
    "threefry2x32",
    "uniform",
]

FORMAT = 1
"""Version of the noise format: how keys are derived and elements are addressed. A log of a run names it."""

KeyOrWords = Key[Array, ""] | tuple[Any, Any]
"""One typed threefry key, or the two uint32 scalars that are its data."""


def own(key: Key[Array, ""]) -> Key[Array, ""]:
    """The key in a buffer of its own, so that a state that holds it may be donated and the caller's key lives on.

    Args:
      key: typed threefry key.

    Returns:
      An equal key.

    Example:
      >>> bool(own(jax.random.key(3)) == jax.random.key(3))
      True
    """
    key_words(key)
    return jax.random.wrap_key_data(jnp.array(jax.random.key_data(key), copy=True), impl="threefry2x32")


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


def _coordinates(shape: Sequence[int], start, size: Sequence[int] | None) -> list[Array]:
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
    high, low = _counter([jnp.asarray(c).astype(jnp.uint32) for c in coordinates], shape)
    w0, w1 = threefry2x32(*key_words(key), high, low)
    return w0 ^ w1


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
    return bits_at(key, shape, _coordinates(shape, start, size))


def _uniform(words: UInt32[Array, "*s"], minval, maxval) -> Float[Array, "*s"]:
    # The same operations in the same order as jax.random.uniform: 23 bits as the mantissa of [1, 2).
    floats = lax.bitcast_convert_type((words >> np.uint32(9)) | np.uint32(0x3F800000), jnp.float32) - np.float32(1)
    minval, maxval = np.float32(minval), np.float32(maxval)
    return lax.max(minval, floats * (maxval - minval) + minval)


def uniform(
    key: KeyOrWords,
    shape: Sequence[int],
    *,
    minval: float = 0.0,
    maxval: float = 1.0,
    start=None,
    size: Sequence[int] | None = None,
) -> Float[Array, "..."]:
    """Uniform float32 in [minval, maxval): `jax.random.uniform(key, shape)`, or a tile of it.

    Args:
      key: typed threefry key, or its two words.
      shape: full shape.
      minval: lower bound, included.
      maxval: upper bound, excluded.
      start: first coordinate of the tile in each axis; None: the origin.
      size: shape of the tile; None: the full shape.

    Returns:
      float32 array of shape `size`.

    Raises:
      ValueError: as `bits`.

    Example:
      >>> key = jax.random.key(0)
      >>> bool((uniform(key, (4,)) == jax.random.uniform(key, (4,))).all())
      True
    """
    return _uniform(bits(key, shape, start=start, size=size), minval, maxval)


def _normal(words: UInt32[Array, "*s"]) -> Float[Array, "*s"]:
    u = _uniform(words, np.nextafter(np.float32(-1), np.float32(0)), 1.0)
    return np.float32(np.sqrt(2)) * lax.erf_inv(u)


def normal(
    key: KeyOrWords, shape: Sequence[int], *, start=None, size: Sequence[int] | None = None
) -> Float[Array, "..."]:
    """Standard normal float32: `jax.random.normal(key, shape)`, or a tile of it.

    Equal to it bit for bit within a backend, and to a few units in the last place across backends.

    Args:
      key: typed threefry key, or its two words.
      shape: full shape.
      start: first coordinate of the tile in each axis; None: the origin.
      size: shape of the tile; None: the full shape.

    Returns:
      float32 array of shape `size`.

    Raises:
      ValueError: as `bits`.

    Example:
      >>> normal(jax.random.key(0), (1000, 1000), start=(999, 0), size=(1, 3)).shape
      (1, 3)
    """
    return _normal(bits(key, shape, start=start, size=size))


def normal_at(
    key: KeyOrWords, shape: Sequence[int], coordinates: Sequence[Integer[Array, "..."]]
) -> Float[Array, "..."]:
    """Elements of `normal(key, shape)` at given coordinates.

    Args:
      key: typed threefry key, or its two words.
      shape: full shape.
      coordinates: one unsigned integer array an axis, broadcastable to each other.

    Returns:
      float32 array of the coordinates' common shape.

    Raises:
      ValueError: as `bits_at`.

    Example:
      >>> normal_at(jax.random.key(0), (10, 4), (jnp.uint32(7), jnp.arange(4, dtype=jnp.uint32))).shape
      (4,)
    """
    return _normal(bits_at(key, shape, coordinates))


def rademacher(
    key: KeyOrWords, shape: Sequence[int], *, start=None, size: Sequence[int] | None = None
) -> Float[Array, "..."]:
    """Random signs as float32: `jax.random.rademacher(key, shape)`, or a tile of it.

    `signs` draws from another format at 1/32 of the cost.

    Args:
      key: typed threefry key, or its two words.
      shape: full shape.
      start: first coordinate of the tile in each axis; None: the origin.
      size: shape of the tile; None: the full shape.

    Returns:
      float32 array of +1 and -1.

    Raises:
      ValueError: as `bits`.

    Example:
      >>> key = jax.random.key(0)
      >>> bool((rademacher(key, (9,)) == jax.random.rademacher(key, (9,))).all())
      True
    """
    # uniform(key) < 1/2, which jax.random tests, holds exactly where the top bit is 0.
    return _sign(bits(key, shape, start=start, size=size) & np.uint32(0x80000000))


def _sign(top_bit: UInt32[Array, "*s"]) -> Float[Array, "*s"]:
    """+1 where the top bit is clear and -1 where it is set (all other bits must be 0)."""
    return lax.bitcast_convert_type(top_bit | np.uint32(0x3F800000), jnp.float32)


def _sign_view(shape: Sequence[int]) -> tuple[int, ...]:
    """The array as [.., R, C]."""
    return (1,) * (2 - len(shape)) + tuple(shape)


def _word_shape(view: tuple[int, ...]) -> tuple[int, ...]:
    return (*view[:-2], -(-view[-2] // 32), view[-1])


def signs_at(
    key: KeyOrWords, shape: Sequence[int], coordinates: Sequence[Integer[Array, "..."]]
) -> Float[Array, "..."]:
    """Elements of `signs(key, shape)` at given coordinates, one draw an element.

    Args:
      key: typed threefry key, or its two words.
      shape: full shape.
      coordinates: one unsigned integer array an axis, broadcastable to each other.

    Returns:
      float32 array of +1 and -1 of the coordinates' common shape.

    Raises:
      ValueError: as `bits_at`.

    Example:
      >>> signs_at(jax.random.key(0), (10, 4), (jnp.uint32(7), jnp.arange(4, dtype=jnp.uint32))).shape
      (4,)
    """
    view = _sign_view(shape)
    *lead, row, column = [jnp.uint32(0)] * (2 - len(shape)) + [jnp.asarray(c).astype(jnp.uint32) for c in coordinates]
    words = bits_at(key, _word_shape(view), (*lead, row >> np.uint32(5), column))
    return _sign((words >> (row & np.uint32(31))) << np.uint32(31))


def stored(key: KeyOrWords, make: Callable[[], Array]) -> Array:
    """The array `make()`, kept in memory apart from its consumers.

    XLA would fuse a draw into what consumes it and so repeat it for every use of an element: 32 times for a word of
    signs, m times for a factor of a low-rank direction. A fusion does not cross a conditional (an optimization_barrier
    is gone before XLA:CPU fuses); the condition always holds, which the compiler does not see. For signs, on CPU: 0.1
    instead of 1.0 ns an element on top of the addition that consumes them.

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
    always = (key_words(key)[0] | np.uint32(1)) != np.uint32(0)
    like = jax.eval_shape(make)
    return lax.cond(always, make, lambda: jnp.zeros(like.shape, like.dtype))


def signs(
    key: KeyOrWords, shape: Sequence[int], *, start=None, size: Sequence[int] | None = None
) -> Float[Array, "..."]:
    """Random signs, 32 from one word: bit r % 32 of word (r // 32, c), for an array seen as [.., R, C].

    The words are `bits(key, [.., ceil(R / 32), C])`; a set bit is -1. A format of this library.

    Args:
      key: typed threefry key, or its two words.
      shape: full shape; fewer than two axes are seen as one row.
      start: first coordinate of the tile in each axis; None: the origin.
      size: shape of the tile; None: the full shape. A tile that covers whole rows and columns costs one draw for 32
        elements, another costs one draw an element.

    Returns:
      float32 array of +1 and -1 of shape `size`.

    Raises:
      ValueError: as `bits`.

    Example:
      >>> z = signs(jax.random.key(0), (64, 8))
      >>> bool((z[33:40] == signs(jax.random.key(0), (64, 8), start=(33, 0), size=(7, 8))).all())
      True
    """
    size = tuple(shape) if size is None else tuple(size)
    view = _sign_view(shape)
    if size[-2:] != tuple(shape)[-2:] or view[-2] == 1:
        return signs_at(key, shape, _coordinates(shape, start, size))
    word_shape = _word_shape(view)
    word_size = (*size[:-2], *word_shape[-2:])
    words = stored(key, lambda: bits(key, word_shape, start=start, size=word_size))
    shifts = jnp.arange(32, dtype=jnp.uint32)[:, None]
    spread = (words[..., :, None, :] << (np.uint32(31) - shifts)) & np.uint32(0x80000000)
    spread = spread.reshape(*word_size[:-2], word_size[-2] * 32, word_size[-1])
    return _sign(spread[..., : view[-2], :])
