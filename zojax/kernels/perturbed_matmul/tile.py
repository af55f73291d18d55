"""The noise of one tile of weights, made inside a kernel: arithmetic that Mosaic TPU and Triton both compile."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt32

from zojax import random
from zojax.kernels._platform import cdiv
from zojax.kernels.perturbed_matmul.reference import Direction

__all__ = ["noise"]

TOP_BIT = np.uint32(0x80000000)
ONE = np.uint32(0x3F800000)  # the float32 1.0


def noise(
    direction: Direction,
    words: tuple[Any, Any],
    full_shape: Sequence[int],
    start: Sequence[Any] | None,
    row: Any,
    column: Any,
    size: tuple[int, int],
) -> Float[Array, "rows columns"]:
    """The tile of direction(key) of shape `size` at (row, column) of the weight that stands at `start` of the leaf.

    Args:
      direction: name of the function of `zojax.random`.
      words: the key's two words.
      full_shape: shape of the leaf.
      start: uint32 scalars, first coordinate of the weight in each axis; None: the origin.
      row: first row of the tile in the weight; a multiple of 32.
      column: first column.
      size: rows (a multiple of 32) and columns.

    Returns:
      float32 tile. Elements beyond the leaf's last row or column are finite and mean nothing.

    Example:
      >>> import jax
      >>> words = random.key_words(jax.random.key(0))
      >>> z = noise("signs", words, (70, 8), None, 32, 0, (32, 8))
      >>> bool((z == random.signs(words, (70, 8))[32:64]).all())
      True
    """
    *lead, first_row, first_column = [jnp.uint32(0)] * len(full_shape) if start is None else start
    row = jnp.asarray(row).astype(jnp.uint32)
    column = first_column + jnp.asarray(column).astype(jnp.uint32)
    if direction == "signs":
        offset = None if start is None else first_row
        return _signs(words, full_shape, lead, offset, row, column, size)
    rows = lax.broadcasted_iota(jnp.uint32, size, 0) + (first_row + row)
    columns = lax.broadcasted_iota(jnp.uint32, size, 1) + column
    if direction == "normal":
        return random.normal_at(words, full_shape, (*lead, rows, columns))
    return _sign(random.bits_at(words, full_shape, (*lead, rows, columns)))


def _signs(words, full_shape, lead, offset, row, column, size) -> Float[Array, "rows columns"]:
    """Signs at 1/32 of a draw, or at 2/32 where `offset`, the weight's first row in the leaf, is not None."""
    shape = (*full_shape[:-2], cdiv(full_shape[-2], 32), full_shape[-1])
    lines = lax.broadcasted_iota(jnp.uint32, (size[0] // 32, size[1]), 0)
    columns = lax.broadcasted_iota(jnp.uint32, (size[0] // 32, size[1]), 1) + column

    def draw(line) -> UInt32[Array, "lines columns"]:
        return random.bits_at(words, shape, (*lead, lines + line, columns))

    if offset is None:
        aligned = draw(row >> np.uint32(5))
    else:
        # The tile may start within a word: bit i of an aligned word is row i of 32, out of two words of the leaf.
        line, shift = (offset + row) >> np.uint32(5), (offset + row) & np.uint32(31)
        above = (draw(line + np.uint32(1)) << np.uint32(1)) << (np.uint32(31) - shift)  # no shift by 32 in one
        aligned = (draw(line) >> shift) | above
    spread = (size[0] // 32, 32, size[1])
    shifts = np.uint32(31) - lax.broadcasted_iota(jnp.uint32, spread, 1)
    return _sign(jnp.broadcast_to(aligned[:, None, :], spread) << shifts).reshape(size)


def _sign(words: UInt32[Array, "*s"]) -> Float[Array, "*s"]:
    """-1 where the top bit is set, else +1."""
    return lax.bitcast_convert_type((words & TOP_BIT) | ONE, jnp.float32)
