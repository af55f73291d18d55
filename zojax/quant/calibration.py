"""Scales: from the largest magnitude, or from the least mean squared error."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zojax.quant.grids import Grid

__all__ = ["CALIBRATIONS", "expand", "find_scale"]

Calibration = Literal["absmax", "mse"]
CALIBRATIONS: tuple[str, ...] = ("absmax", "mse")

# Shares of the absmax that the search for the least squared error tries.
SHARES = tuple(1.0 - 0.02 * i for i in range(36))

# Blocks whose scale would lie below are taken for zeros.
SMALLEST = 2.0**-120


def expand(per_block: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Repeats a scale over its blocks, so that it broadcasts against `shape`.

    Args:
      per_block: an axis of length 1, of the array's length, or of a number that divides it (one entry a group).
      shape: the array's shape.

    Returns:
      Array whose axes are of length 1 or the array's.

    Example:
      >>> expand(jnp.array([[1.0], [2.0]]), (4, 3)).tolist()
      [[1.0], [1.0], [2.0], [2.0]]
    """
    for axis, (blocks, length) in enumerate(zip(per_block.shape, shape, strict=True)):
        if blocks not in (1, length):
            per_block = jnp.repeat(per_block, length // blocks, axis=axis, total_repeat_length=length)
    return per_block


def find_scale(
    w: Float[Array, "*s"],
    grid: Grid,
    blocks: tuple[int, ...],
    *,
    calibration: Calibration = "absmax",
    power_of_two: bool = False,
) -> tuple[Float[Array, "*blocks"], Float[Array, "*blocks"] | None]:
    """The scale (and zero point) of every block of an array.

    absmax: s = max|w| / span; on an asymmetric grid s = (max - min) / span with 0 inside the range, and the zero point
    z = low - round(min / s), so that the value 0 has a code of its own. mse: the share of that s, among 36 from 1 down
    to 0.3, which gives the least squared error (the shares are our choice). A block of zeros has scale 1; one that is
    not finite has a scale that is not.

    Args:
      w: float32 array.
      grid: where it will lie.
      blocks: number of blocks along each axis; divides the axis.
      calibration: "absmax" or "mse".
      power_of_two: round the scale up to a power of two (what a shift can undo).

    Returns:
      (scale, zero point or None), float32 of shape `blocks`.

    Raises:
      ValueError: if an axis is not divided by its number of blocks.

    Example:
      >>> from zojax.quant.grids import get_grid
      >>> find_scale(jnp.array([[7.0, -3.5], [0.5, 0.1]]), get_grid("int4"), (1, 2))[0].tolist()
      [[1.0, 0.5]]
    """
    if len(blocks) != w.ndim or any(n % b for n, b in zip(w.shape, blocks, strict=True)):
        raise ValueError(f"blocks: {blocks} do not divide an array of shape {w.shape}")
    if calibration not in CALIBRATIONS:
        raise ValueError(f"calibration: {calibration!r}; one of {', '.join(CALIBRATIONS)} is needed")
    high, low = _reduce(jnp.max, w, blocks), _reduce(jnp.min, w, blocks)
    if grid.asymmetric:
        high, low = jnp.maximum(high, 0.0), jnp.minimum(low, 0.0)
        full = (high - low) / grid.span
    else:
        full = jnp.maximum(high, -low) / grid.span
    # A quotient by a subnormal scale may overflow. NaN and infinity stay: what is not finite must show in the result.
    full = jnp.where(full < SMALLEST, 1.0, full)

    def finished(share: Array) -> tuple[Array, Array | None]:
        scale = full * share
        if power_of_two:
            mantissa, exponent = jnp.frexp(scale)  # exact, as a logarithm is not; the mantissa lies in [1/2, 1)
            scale = jnp.ldexp(jnp.where(mantissa > 0.5, 1.0, mantissa), exponent)
        # The code of the value 0; on a clipped range the ends saturate.
        zero = jnp.clip(grid.low - jnp.round(low * share / scale), grid.low, grid.high) if grid.asymmetric else None
        return scale, zero

    if calibration == "absmax":
        return finished(jnp.float32(1))

    def error(share: Array) -> Array:
        scale, zero = finished(share)
        s = expand(scale, w.shape)
        z = 0.0 if zero is None else expand(zero, w.shape)
        back = (grid.levels(grid.encode(w / s + z)) - z) * s
        return _reduce(jnp.sum, jnp.square(back - w), blocks)

    shares = jnp.array(SHARES, jnp.float32)
    best = jnp.argmin(jax.lax.map(error, shares), axis=0)
    return finished(shares[best])


def _reduce(function, x: Array, blocks: tuple[int, ...]) -> Array:
    split = [n for length, b in zip(x.shape, blocks, strict=True) for n in (b, length // b)]
    return function(x.reshape(split), axis=tuple(range(1, 2 * x.ndim, 2)))
