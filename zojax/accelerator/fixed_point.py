"""Fixed-point arithmetic in int32, each variant by its name.

Shipped integer kernels round a product of two 32-bit integers in more than one way, and one runtime contains several.
So every operator here names the arithmetic that it emulates: see `REQUANTISE` and `SHIFTS`. No 64-bit integer is
needed: products are made of 16-bit limbs, which works without `jax_enable_x64`, under jit and vmap, and on TPU.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from zojax.accelerator import _wide
from zojax.accelerator._wide import i32

__all__ = [
    "REQUANTISE",
    "SHIFTS",
    "Rescale",
    "add_saturating",
    "quantize_multiplier",
    "rdpot",
    "requantise",
    "rescale",
    "rescale_float32",
    "saturate",
    "shift_right_rounding",
    "srdhm",
]

INT32_MAX, INT32_MIN = 2**31 - 1, -(2**31)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rescale:
    """A real factor as the integers of a requantisation: factor = multiplier / 2^31 * 2^shift.

    Attributes:
      multiplier: int32 in [2^30, 2^31), or 0; a scalar or one a channel.
      shift: int32 in [-31, 30], of the same shape.

    Example:
      >>> r = rescale(0.75)
      >>> int(r.multiplier) == 3 * 2**29, int(r.shift)
      (True, 0)
    """

    multiplier: Int32[Array, "..."]
    shift: Int32[Array, "..."]


def quantize_multiplier(factor) -> tuple[np.ndarray, np.ndarray]:
    """The 31-bit mantissa and the exponent of real factors, in float64 on the host.

    factor = q 2^s with q in [1/2, 1); m = round(q 2^31), halves away from zero; m = 2^31 becomes 2^30 with s + 1; below
    2^-32 both are 0.

    Args:
      factor: non-negative floats.

    Returns:
      (m, s), int32 arrays of their shape.

    Raises:
      ValueError: if a factor is negative, not finite, or 2^30 and more.

    Example:
      >>> m, s = quantize_multiplier(0.1)
      >>> int(m), int(s)
      (1717986918, -3)
    """
    factor = np.asarray(factor, np.float64)
    if not np.all(np.isfinite(factor)) or np.any(factor < 0) or np.any(factor >= 2.0**30):
        raise ValueError(f"factor: {factor.tolist()}; finite numbers in [0, 2^30) are needed")
    q, s = np.frexp(factor)
    m, s = np.floor(q * 2.0**31 + 0.5).astype(np.int64), s.astype(np.int64)
    s = np.where(m == 2**31, s + 1, s)
    m = np.where(m == 2**31, 2**30, m)
    tiny = s < -31
    return np.where(tiny, 0, m).astype(np.int32), np.where(tiny, 0, s).astype(np.int32)


def rescale(factor) -> Rescale:
    """The `Rescale` of real factors, computed on the host (see `quantize_multiplier`).

    Args:
      factor: non-negative floats below 2^30.

    Returns:
      Rescale of their shape.

    Raises:
      ValueError: as `quantize_multiplier`.

    Example:
      >>> int(requantise(jnp.int32(1000), rescale(0.0127), "single"))
      13
    """
    m, s = quantize_multiplier(factor)
    return Rescale(multiplier=jnp.asarray(m), shift=jnp.asarray(s))


def rescale_float32(factor: Float[Array, "..."]) -> Rescale:
    """The `Rescale` of float32 factors, in a program: their 24 bits fit the multiplier, so it is exact.

    Args:
      factor: non-negative, finite, below 2^30; nothing is checked.

    Returns:
      Rescale of their shape: that of `rescale` for the same numbers.

    Example:
      >>> r = jax.jit(rescale_float32)(jnp.float32(0.1))
      >>> int(r.multiplier) == int(rescale(np.float32(0.1)).multiplier), int(r.shift)
      (True, -3)
    """
    bits = jax.lax.bitcast_convert_type(jnp.asarray(factor, jnp.float32), jnp.int32)
    # 1.f 2^(e - 127) is 0.1f 2^(e - 126).
    multiplier, shift = ((bits & 0x7FFFFF) | 0x800000) << 7, (bits >> 23) - 126
    tiny = shift < -31
    return Rescale(multiplier=jnp.where(tiny, 0, multiplier), shift=jnp.where(tiny, 0, shift))


def srdhm(a: Int32[Array, "..."], b: Int32[Array, "..."]) -> Int32[Array, "..."]:
    """The saturating rounding doubling high product: the Q0.31 product of two Q0.31 numbers.

    trunc((a b + (2^30 if a b >= 0 else 1 - 2^30)) / 2^31), which is (a b + 2^30) >> 31; 2^31 - 1 for a = b = -2^31.

    Args:
      a: int32.
      b: int32, broadcastable.

    Returns:
      int32.

    Example:
      >>> srdhm(jnp.int32([3, -3, 1]), jnp.int32(2**30)).tolist()
      [2, -1, 1]
    """
    total = _wide.add(_wide.multiply(a, b), _wide.power_of_two(jnp.int32(30)))
    both_least = (a == INT32_MIN) & (b == INT32_MIN)
    return jnp.where(both_least, INT32_MAX, _wide.shift_right(total, jnp.int32(31)))


def rdpot(x: Int32[Array, "..."], exponent: Int32[Array, "..."] | int) -> Int32[Array, "..."]:
    """x / 2^exponent, rounded to nearest, halves away from zero.

    (x >> e) + ((x & (2^e - 1)) > (((2^e - 1) >> 1) + (x < 0)))

    Args:
      x: int32.
      exponent: in [0, 31], broadcastable.

    Returns:
      int32.

    Example:
      >>> rdpot(jnp.int32([5, -5, 6, -6, -7]), 2).tolist()
      [1, -1, 2, -2, -2]
    """
    mask = (jnp.int32(1) << i32(exponent)) - 1
    return (x >> i32(exponent)) + ((x & mask) > ((mask >> 1) + (x < 0))).astype(jnp.int32)


def _half_up(x: Int32[Array, "..."], exponent: Int32[Array, "..."] | int) -> Int32[Array, "..."]:
    """(x + 2^(e-1)) >> e without overflow: the last bit shifted out is added."""
    e = i32(exponent)
    return (x >> e) + jnp.where(e > 0, (x >> jnp.maximum(e - 1, 0)) & 1, 0)


def _floor(x: Int32[Array, "..."], exponent: Int32[Array, "..."] | int) -> Int32[Array, "..."]:
    return x >> i32(exponent)


def _half_even(x: Int32[Array, "..."], exponent: Int32[Array, "..."] | int) -> Int32[Array, "..."]:
    e = i32(exponent)
    down = x >> e
    rest, half = x & ((jnp.int32(1) << e) - 1), jnp.where(e > 0, jnp.int32(1) << jnp.maximum(e - 1, 0), INT32_MAX)
    return down + ((rest > half) | ((rest == half) & ((down & 1) == 1))).astype(jnp.int32)


SHIFTS: dict[str, Callable[..., Array]] = {
    "half_away": rdpot,
    "half_up": _half_up,
    "half_even": _half_even,
    "floor": _floor,
}
"""Shifts to the right by the name of their rounding."""


def shift_right_rounding(x: Int32[Array, "..."], exponent: Int32[Array, "..."] | int, how: str) -> Int32[Array, "..."]:
    """x / 2^exponent, rounded as named.

    Args:
      x: int32.
      exponent: in [0, 31], broadcastable.
      how: "half_away", "half_up", "half_even" or "floor".

    Returns:
      int32.

    Raises:
      ValueError: if there is no rounding of that name.

    Example:
      >>> [int(shift_right_rounding(jnp.int32(-5), 1, how)) for how in SHIFTS]
      [-3, -2, -2, -3]
    """
    if how not in SHIFTS:
        raise ValueError(f"how: {how!r} is not one of {', '.join(SHIFTS)}")
    return SHIFTS[how](x, exponent)


def saturate(x: Int32[Array, "..."], bits: int) -> Int32[Array, "..."]:
    """x clamped to the range of signed integers of so many bits.

    Args:
      x: int32.
      bits: 2 to 32.

    Returns:
      int32.

    Example:
      >>> saturate(jnp.int32([200, -200, 5]), 8).tolist()
      [127, -128, 5]
    """
    return jnp.clip(x, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def add_saturating(a: Int[Array, "..."], b: Int[Array, "..."], bits: int = 32) -> Int32[Array, "..."]:
    """a + b, clamped to so many bits.

    Args:
      a: integers of at most `bits` bits.
      b: the same, broadcastable.
      bits: 2 to 32.

    Returns:
      int32.

    Example:
      >>> int(add_saturating(jnp.int32(2**31 - 5), jnp.int32(10))) == 2**31 - 1
      True
    """
    a, b = i32(a), i32(b)
    total = a + b
    if bits < 32:
        return saturate(total, bits)
    # Two numbers of one sign whose sum has the other.
    overflow = ((a ^ total) & (b ^ total)) < 0
    return jnp.where(overflow, jnp.where(a < 0, INT32_MIN, INT32_MAX), total)


def _high_product(x: Array, r: Rescale) -> tuple[Array, Array]:
    """(SRDHM(x 2^max(s, 0), m), max(-s, 0))."""
    left, right = jnp.maximum(r.shift, 0), jnp.maximum(-r.shift, 0)
    return srdhm(x << left, r.multiplier), right


def _single(x: Array, r: Rescale) -> Array:
    total = _wide.add(_wide.multiply(x, r.multiplier), _wide.power_of_two(30 - r.shift))
    return _wide.shift_right(total, 31 - r.shift)


def _double_gemmlowp(x: Array, r: Rescale) -> Array:
    return rdpot(*_high_product(x, r))


def _double_half_up(x: Array, r: Rescale) -> Array:
    return _half_up(*_high_product(x, r))


def _float32(x: Array, r: Rescale) -> Array:
    # 2^(s - 31) from its bits, since exp2 may be inexact.
    power = jax.lax.bitcast_convert_type((r.shift + (127 - 31)) << 23, jnp.float32)
    y = jnp.round(x.astype(jnp.float32) * (r.multiplier.astype(jnp.float32) * power))
    # Beyond int32 a float has no defined integer; kernels clamp before they convert, to fewer bits than these.
    return jnp.clip(y, -(2.0**30), 2.0**30).astype(jnp.int32)


REQUANTISE: dict[str, Callable[[Array, Rescale], Array]] = {
    "single": _single,
    "double_gemmlowp": _double_gemmlowp,
    "double_half_up": _double_half_up,
    "float32": _float32,
}
"""Requantisations by name. single: one rounding, (x m + 2^(30-s)) >> (31-s). double_gemmlowp: SRDHM, then RDPOT.
double_half_up: SRDHM, then (h + 2^(e-1)) >> e. float32: a float32 product, rounded to nearest even."""


def requantise(x: Int32[Array, "..."], by: Rescale, arithmetic: str) -> Int32[Array, "..."]:
    """x times a real factor, rounded in a named arithmetic; not clamped.

    Beyond 32 bits the result, and in the double arithmetics x 2^max(s, 0), wrap around as they do in int32 kernels.

    Args:
      x: int32.
      by: the factor; multiplier and shift broadcast against x.
      arithmetic: "single", "double_gemmlowp", "double_half_up" or "float32".

    Returns:
      int32.

    Raises:
      ValueError: if there is no arithmetic of that name.

    Example:
      >>> [int(requantise(jnp.int32(-7), rescale(0.5), name)) for name in REQUANTISE]
      [-3, -3, -3, -4]
      >>> [int(requantise(jnp.int32(-6), rescale(0.25), name)) for name in REQUANTISE]
      [-1, -2, -1, -2]
    """
    if arithmetic not in REQUANTISE:
        raise ValueError(f"arithmetic: {arithmetic!r} is not one of {', '.join(REQUANTISE)}")
    return REQUANTISE[arithmetic](i32(x), by)
