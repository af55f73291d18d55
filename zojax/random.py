"""Addressed noise: any element of a random array from its key and its index.

The generator is threefry-2x32 in counter mode, written as plain uint32 arithmetic. Element i (row-major) of an array
is the exclusive or of the two words of threefry(key, (i >> 32, i & 0xffffffff)), which makes `bits`, `uniform`,
`normal` and `rademacher` equal to their namesakes in `jax.random` for the same key and the full shape. Because an
element depends on nothing but (key, index), any tile can be made anywhere: fused into the operation that consumes it,
inside a kernel, on another host, later.

`signs` and `halves` are this library's own formats: one 32-bit word serves 32 rows, so a random sign costs 1/32 of a
draw, or two rows with 16 bits each.

Where a function takes a key, a pair of uint32 scalars does as well, the key's two words: kernels hold no typed keys.

Source of the generator: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer, Key, UInt32

from zojax._threefry import KeyOrWords, bits, bits_at, both_words_at, coordinates_of, key_words, stored, threefry2x32

__all__ = [
    "bits",
    "bits_at",
    "halves",
    "halves_at",
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

FORMAT = 2
"""Version of the noise format: how keys are derived and elements are addressed. A log of a run names it."""


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


def _packed_view(shape: Sequence[int]) -> tuple[int, ...]:
    """The array as [.., R, C]."""
    return (1,) * (2 - len(shape)) + tuple(shape)


def _word_shape(view: tuple[int, ...], rows: int) -> tuple[int, ...]:
    return (*view[:-2], -(-view[-2] // rows), view[-1])


Words = Callable[[Sequence[int], Sequence[Array]], Array]
"""The random words of an array of a shape, at coordinates."""


def _packed_at(words: Words, shape: Sequence[int], coordinates: Sequence[Array], rows: int) -> UInt32[Array, "..."]:
    """Elements of `_packed` in the top bits of a word; what lies below them is not 0."""
    view = _packed_view(shape)
    *lead, row, column = [jnp.uint32(0)] * (2 - len(shape)) + [jnp.asarray(c).astype(jnp.uint32) for c in coordinates]
    count, width = np.uint32(rows), 32 // rows
    found = words(_word_shape(view, rows), (*lead, row // count, column))
    return found << (np.uint32(32 - width) - (row % count) * np.uint32(width))


def _packed(
    key: KeyOrWords, words: Words, shape: Sequence[int], start, size: Sequence[int] | None, rows: int
) -> UInt32[Array, "..."]:
    """Element (.., r, c) is field r % rows of word (.., r // rows, c), at the top of a word of its own.

    What lies below the field is not 0. The words are those of an array [.., ceil(R / rows), C].
    """
    size = tuple(shape) if size is None else tuple(size)
    view = _packed_view(shape)
    if size[-2:] != tuple(shape)[-2:] or view[-2] == 1:
        return _packed_at(words, shape, coordinates_of(shape, start, size), rows)
    word_shape = _word_shape(view, rows)
    word_size = (*size[:-2], *word_shape[-2:])
    tile = stored(key, lambda: words(word_shape, coordinates_of(word_shape, start, word_size)))
    width = 32 // rows
    shifts = np.uint32(32 - width) - jnp.arange(rows, dtype=jnp.uint32)[:, None] * np.uint32(width)
    spread = (tile[..., :, None, :] << shifts).reshape(*word_size[:-2], word_size[-2] * rows, word_size[-1])
    return spread[..., : view[-2], :]


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
    return _sign(_packed_at(partial(bits_at, key), shape, coordinates, 32) & np.uint32(0x80000000))


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
    return _sign(_packed(key, partial(bits_at, key), shape, start, size, 32) & np.uint32(0x80000000))


def _word(key: KeyOrWords, number: int) -> Words:
    if number not in (0, 1):
        raise ValueError(f"word: {number}; 0 or 1 is needed")
    return lambda shape, coordinates: both_words_at(key, shape, coordinates)[number]


def halves(
    key: KeyOrWords, shape: Sequence[int], *, word: int, start=None, size: Sequence[int] | None = None
) -> UInt32[Array, "..."]:
    """Random integers below 2^16 for an array seen as [.., R, C]; two rows share a draw of two words.

    Element (.., r, c) is half r % 2 (0 the low one) of the word with this number of threefry(key, i), i the index of
    (.., r // 2, c) in [.., ceil(R / 2), C]. So a draw gives two independent integers for each of two elements. A
    format of this library.

    Args:
      key: typed threefry key, or its two words.
      shape: full shape; fewer than two axes are seen as one row.
      word: 0 or 1.
      start: first coordinate of the tile in each axis; None: the origin.
      size: shape of the tile; None: the full shape. A tile of whole rows and columns costs one draw for 2 elements.

    Returns:
      uint32 array of shape `size`.

    Raises:
      ValueError: as `bits`, or if there is no such word.

    Example:
      >>> h = halves(jax.random.key(0), (4, 8), word=0) ^ halves(jax.random.key(0), (4, 8), word=1)
      >>> bool((h[0::2] | (h[1::2] << 16) == bits(jax.random.key(0), (2, 8))).all())
      True
    """
    return _packed(key, _word(key, word), shape, start, size, 2) >> np.uint32(16)


def halves_at(
    key: KeyOrWords, shape: Sequence[int], coordinates: Sequence[Integer[Array, "..."]], *, word: int
) -> UInt32[Array, "..."]:
    """Elements of `halves(key, shape, word=word)` at given coordinates, one draw an element for both words.

    Args:
      key: typed threefry key, or its two words.
      shape: full shape.
      coordinates: one unsigned integer array an axis, broadcastable to each other.
      word: 0 or 1.

    Returns:
      uint32 array of the coordinates' common shape.

    Raises:
      ValueError: as `bits_at`, or if there is no such word.

    Example:
      >>> at = (jnp.uint32(7), jnp.arange(4, dtype=jnp.uint32))
      >>> halves_at(jax.random.key(0), (10, 4), at, word=1).shape
      (4,)
    """
    return _packed_at(_word(key, word), shape, coordinates, 2) >> np.uint32(16)
