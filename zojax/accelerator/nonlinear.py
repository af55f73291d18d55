"""Sigmoid, tanh, exp, square roots and reciprocals of integers, each variant by its name.

gemmlowp: polynomials and Newton steps in fixed point. lut: a table of 256 entries of the sigmoid at multiples of 1/24
with linear interpolation, from which tanh(x) = 2 sigmoid(2 x) - 1 is read as well; the 16-bit operators of
microcontroller runtimes do this. The two disagree on most 16-bit inputs.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

from zojax.accelerator import _gemmlowp
from zojax.accelerator._wide import i32
from zojax.accelerator.fixed_point import Rescale

__all__ = ["NONLINEAR", "exp_table", "inverse_sqrt", "isqrt", "reciprocal", "sigmoid", "tanh"]

_WORD = _gemmlowp.Word(16)


def _sigmoid_table() -> np.ndarray:
    """sigmoid(i / 24) in Q0.16, i = 0 .. 255.

    A chord lies below a concave function, by |f''| h^2 / 8 in its middle. The runtimes' table is raised by half of
    that, so that the interpolation errs to both sides alike; its last entry is 1.
    """
    s = 1 / (1 + np.exp(-np.arange(256) / 24))
    chord = s * (1 - s) * (2 * s - 1) / 24**2 / 8
    table = np.floor(65536 * (s + chord / 2) + 0.5).astype(np.int32)
    table[255] = 65535
    return table


_SIGMOID = _sigmoid_table()


def _interpolated(x: Array, fraction_bits: int) -> Array:
    """sigmoid(|x|) in Q0.16 with so many fraction bits behind it; from entry 255 on 1."""
    table = jnp.asarray(_SIGMOID)
    at = x >> fraction_bits
    inside = jnp.minimum(at, 254)
    low, high = table[inside], table[inside + 1]
    return jnp.where(at >= 255, -1, (low << fraction_bits) + (x & ((1 << fraction_bits) - 1)) * (high - low))


def _lut_input(x: Array, integer_bits: int) -> Array:
    # Three quarters of Q3.12, times 4: steps of 1/24 are then 512 units. More integer bits shift it to the left.
    if not 0 <= integer_bits - 3 <= 12:
        raise ValueError(f"integer_bits: {integer_bits}; the table takes 3 to 15")
    return x * (3 << (integer_bits - 3))


def _lut_sigmoid(x: Array, integer_bits: int) -> Array:
    scaled = _lut_input(x, integer_bits)
    y = _interpolated(jnp.abs(scaled), 9)
    y = jnp.where(y < 0, 0x7FFF << 10, y)
    return jnp.where(scaled >= 0, y + (1 << 9), (1 << 25) - y + (1 << 9) - 1) >> 10


def _lut_tanh(x: Array, integer_bits: int) -> Array:
    scaled = _lut_input(x, integer_bits)
    y = _interpolated(jnp.abs(scaled), 8)
    y = jnp.where(y < 0, 0xFFFF << 8, y)
    return jnp.where(scaled >= 0, y - (1 << 23) + (1 << 7), -y + (1 << 23) + (1 << 7) - 1) >> 8


NONLINEAR: dict[str, tuple[Callable[[Array, int], Array], Callable[[Array, int], Array]]] = {
    "gemmlowp": (lambda x, n: _gemmlowp.logistic(_WORD, x, n), lambda x, n: _gemmlowp.tanh(_WORD, x, n)),
    "lut": (_lut_sigmoid, _lut_tanh),
}
"""(sigmoid, tanh) of 16-bit codes with some number of integer bits, by name."""


def _named(how: str) -> tuple[Callable[[Array, int], Array], Callable[[Array, int], Array]]:
    if how not in NONLINEAR:
        raise ValueError(f"how: {how!r} is not one of {', '.join(NONLINEAR)}")
    return NONLINEAR[how]


def sigmoid(x: Int[Array, "..."], how: str, *, integer_bits: int = 3) -> Int32[Array, "..."]:
    """The logistic function of 16-bit codes, in Q0.15.

    Args:
      x: codes in 16 bits, x / 2^(15 - integer_bits).
      how: "gemmlowp" or "lut".
      integer_bits: of x: 3 is Q3.12.

    Returns:
      int32 codes in [0, 2^15), times 2^-15.

    Raises:
      ValueError: if there is no function of that name, or the table does not take so many integer bits.

    Example:
      >>> x = jnp.int32([-32768, -100, 0, 10, 32767])
      >>> sigmoid(x, "gemmlowp").tolist(), sigmoid(x, "lut").tolist()
      ([11, 16183, 16384, 16402, 32756], [11, 16184, 16384, 16404, 32757])
    """
    return _named(how)[0](i32(x), integer_bits)


def tanh(x: Int[Array, "..."], how: str, *, integer_bits: int = 3) -> Int32[Array, "..."]:
    """The hyperbolic tangent of 16-bit codes, in Q0.15.

    Args:
      x: codes in 16 bits, x / 2^(15 - integer_bits).
      how: "gemmlowp" or "lut".
      integer_bits: of x: 3 is Q3.12; 0 to 6, for the table 3 to 15.

    Returns:
      int32 codes in (-2^15, 2^15), times 2^-15.

    Raises:
      ValueError: if there is no function of that name, or the table does not take so many integer bits.

    Example:
      >>> tanh(jnp.int32([-100, 10]), "gemmlowp").tolist(), tanh(jnp.int32([-100, 10]), "lut").tolist()
      ([-792, 76], [-800, 80])
    """
    return _named(how)[1](i32(x), integer_bits)


@functools.cache
def _all_codes(function: Callable, how: str, integer_bits: int) -> np.ndarray:
    """A function of every 16-bit code."""
    with jax.ensure_compile_time_eval():
        codes = jnp.arange(-(2**15), 2**15, dtype=jnp.int32)
        return np.asarray(jax.jit(lambda x: function(x, how, integer_bits=integer_bits))(codes)).astype(np.int16)


def looked_up(function: Callable, x: Int[Array, "..."], how: str, integer_bits: int) -> Int32[Array, "..."]:
    """`sigmoid` or `tanh` of 16-bit codes, read from a table of all of them: some 200 integer operations in one."""
    table = jnp.asarray(_all_codes(function, how, integer_bits))
    return i32(table.at[i32(x) + 2**15].get(mode="promise_in_bounds"))


def exp_table(scale: float) -> Int32[Array, "256"]:
    """exp(-i scale) for i = 0 .. 255 in Q0.15, computed on the host: the exponentials of differences of int8 codes.

    Args:
      scale: what a step of one code means.

    Returns:
      int32 [256]; 1 is 32767.

    Example:
      >>> exp_table(0.5)[:4].tolist()
      [32767, 19875, 12055, 7312]
    """
    return jnp.asarray(np.minimum(np.floor(np.exp(-np.arange(256) * scale) * 2**15 + 0.5), 2**15 - 1), jnp.int32)


def isqrt(x: Int32[Array, "..."]) -> Int32[Array, "..."]:
    """floor(sqrt(x)) of non-negative integers, a bit at a time.

    Args:
      x: int32, >= 0.

    Returns:
      int32.

    Example:
      >>> isqrt(jnp.int32([0, 15, 16, 2**31 - 1])).tolist()
      [0, 3, 4, 46340]
    """

    def step(i, root: Array) -> Array:
        trial = root | (jnp.int32(2**15) >> i)
        # trial^2 <= x without overflow: 46340^2 is the last square below 2^31.
        return jnp.where((trial <= 46340) & (jnp.minimum(trial, 46340) ** 2 <= x), trial, root)

    return jax.lax.fori_loop(0, 16, step, jnp.zeros_like(x))


def reciprocal(x: Int32[Array, "..."]) -> Rescale:
    """1 / x of positive integers, as a factor, by three Newton steps in Q0.31.

    Args:
      x: int32, > 0.

    Returns:
      Rescale of x's shape; off by a few units of 2^-30, relatively.

    Example:
      >>> r = reciprocal(jnp.int32(10))
      >>> abs(float(r.multiplier) / 2**31 * 2.0 ** int(r.shift) - 0.1) < 1e-9
      True
    """
    # As a number with 31 integer bits, x is itself.
    multiplier, exponent = _gemmlowp.reciprocal(x, 31)
    return Rescale(multiplier=multiplier, shift=-exponent)


def inverse_sqrt(x: Int32[Array, "..."]) -> Rescale:
    """1 / sqrt(x) of integers, as a factor, by five Newton steps in Q3.28; 1 for 0 and 1.

    Args:
      x: int32, >= 0.

    Returns:
      Rescale of x's shape.

    Example:
      >>> r = inverse_sqrt(jnp.int32(16))
      >>> abs(float(r.multiplier) / 2**31 * 2.0 ** int(r.shift) - 0.25) < 1e-7
      True
    """
    multiplier, shift = _gemmlowp.inverse_sqrt(x)
    return Rescale(multiplier=multiplier, shift=shift)
