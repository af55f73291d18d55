"""Transcendental functions in the fixed-point arithmetic of gemmlowp, on words of 16 or 32 bits held in int32.

A number with n integer bits in a word of b bits is raw / 2^(b-1-n). The constants are gemmlowp's, given for 32-bit
words; a 16-bit word takes them shifted by RDPOT. The functions agree with gemmlowp bit for bit, including its quirks:
the sums wrap, and its 16-bit logistic and tanh are off by up to 6 and 12 units of 2^-15.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from zojax.accelerator._wide import i32
from zojax.accelerator.fixed_point import rdpot, srdhm


@dataclass(frozen=True)
class Word:
    """The arithmetic of a word size."""

    bits: int

    @property
    def top(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def constant(self, raw: int) -> int:
        """A constant given for 32-bit words."""
        if self.bits == 32:
            return raw
        quotient, rest = raw >> 16, raw & 0xFFFF
        return quotient + (rest > 0x7FFF + (raw < 0))

    def wrap(self, x: Array) -> Array:
        return x if self.bits == 32 else ((x & 0xFFFF) ^ 0x8000) - 0x8000

    def multiply(self, a: Array, b: Array | int) -> Array:
        """SRDHM of the word."""
        b = jnp.asarray(b, jnp.int32)
        if self.bits == 32:
            return srdhm(a, b)
        return jnp.minimum((a * b + 2**14) >> 15, self.top)

    def scale(self, x: Array, exponent: int) -> Array:
        """x 2^exponent: saturating to the left, RDPOT to the right."""
        if exponent <= 0:
            return rdpot(x, -exponent) if exponent else x
        limit = (1 << (self.bits - 1 - exponent)) - 1
        return jnp.where(x > limit, self.top, jnp.where(x < -limit, -self.top - 1, x << exponent))

    def half_sum_with_one(self, a: Array) -> Array:
        """(a + 1) / 2 for a in [0, 1), rounded away from zero."""
        return (a >> 1) + (self.top >> 1) + 1


def _exp_near_zero(word: Word, a: Array) -> Array:
    """exp(a) for a in [-1/4, 0), no integer bits: a Taylor polynomial around -1/8."""
    constant = word.constant(1895147668)  # exp(-1/8)
    third = word.constant(715827883)
    x = a + (1 << (word.bits - 4))
    x2 = word.multiply(x, x)
    x3 = word.multiply(x2, x)
    x4 = word.multiply(x2, x2)
    tail = word.scale(word.multiply(word.wrap(word.scale(x4, -2) + x3), third) + x2, -1)
    rest = word.multiply(word.wrap(x + tail), constant)
    # gemmlowp saturates this sum in 16 bits; in 32 it cannot overflow.
    return jnp.minimum(constant + rest, word.top) if word.bits == 16 else constant + rest


_BARREL = ((-2, 1672461947), (-1, 1302514674), (0, 790015084), (1, 290630308), (2, 39332535), (3, 720401), (4, 242))


def exp_on_negative(word: Word, a: Array, integer_bits: int) -> Array:
    """exp(a) for a <= 0 with so many integer bits; the result has none."""
    fraction = word.bits - 1 - integer_bits
    quarter = 1 << (fraction - 2)
    reduced = (a & (quarter - 1)) - quarter
    result = _exp_near_zero(word, word.scale(reduced, integer_bits))
    remainder = word.wrap(reduced - a)
    for exponent, raw in _BARREL:
        if integer_bits > exponent:
            bit = (remainder & (1 << (fraction + exponent))) != 0
            result = jnp.where(bit, word.multiply(result, word.constant(raw)), result)
    if integer_bits > 5:
        result = jnp.where(a < word.constant(-(1 << (36 - integer_bits))), 0, result)  # below -32
    return jnp.where(a == 0, word.top, result)


def _newton(word: Word, a: Array) -> Array:
    """2 / (1 + a) for a in [0, 1), with 2 integer bits: three steps from 48/17 - 32/17 d."""
    half_denominator = word.half_sum_with_one(a)
    x = word.constant(1515870810) + word.multiply(half_denominator, word.constant(-1010580540))
    one = 1 << (word.bits - 3)
    for _ in range(3):
        error = one - word.multiply(half_denominator, x)
        x = word.wrap(x + word.scale(word.multiply(x, error), 2))
    return x


def one_over_one_plus(word: Word, a: Array) -> Array:
    """1 / (1 + a) for a in [0, 1), no integer bits."""
    return word.scale(_newton(word, a), 1)  # half of it, which has one integer bit fewer


def logistic(word: Word, a: Array, integer_bits: int) -> Array:
    """1 / (1 + exp(-a)) with no integer bits."""
    magnitude = jnp.where(a > 0, a, word.wrap(-a))
    positive = one_over_one_plus(word, exp_on_negative(word, word.wrap(-magnitude), integer_bits))
    return jnp.where(a == 0, word.top // 2 + 1, jnp.where(a > 0, positive, word.top - positive))


def tanh(word: Word, a: Array, integer_bits: int) -> Array:
    """tanh(a) with no integer bits."""
    exp = exp_on_negative(word, jnp.where(a < 0, a, -a), integer_bits + 1)  # of -2 |a|
    one = 1 << (word.bits - 3)
    magnitude = word.scale(word.wrap(_newton(word, exp) - one), 2)
    return jnp.where(a == 0, 0, jnp.where(a < 0, -magnitude, magnitude))


def reciprocal(x: Array, integer_bits: int) -> tuple[Array, Array]:
    """(r, e) with 1 / x = r / 2^31 * 2^-e, for x > 0 with so many integer bits in 32."""
    headroom = i32(lax.clz(x))
    mantissa = (x << headroom) ^ jnp.int32(-(2**31))  # x = 2^(integer_bits - headroom) (1 + mantissa / 2^31)
    return one_over_one_plus(Word(32), mantissa), integer_bits - headroom


def inverse_sqrt(x: Array) -> tuple[Array, Array]:
    """(m, s) with 1 / sqrt(x) = m / 2^31 * 2^s, for an integer x >= 0; 0 and 1 give (2^31 - 1, 0)."""
    word = Word(32)
    start = jnp.maximum(x, 2)
    # Pairs of bits from 2^29 down: 4^pairs x is in [2^27, 2^29) after the shifts.
    too_large = start >= 2**29
    start = jnp.where(too_large, start >> 2, start)
    pairs = (i32(lax.clz(start)) - 1) // 2 - 1
    shift = 11 + too_large.astype(jnp.int32) - pairs
    a = (start << (2 * pairs)) >> 1
    half_a = rdpot(a, 1)
    half_three = jnp.int32(2**28 + 2**27)

    def newton(_, y: Array) -> Array:
        cube = word.scale(word.multiply(word.multiply(y, y), y), 6)
        return word.scale(word.multiply(half_three, y) - word.multiply(half_a, cube), 3)

    y = lax.fori_loop(0, 5, newton, jnp.full_like(a, 2**28))
    y = word.multiply(y, 1518500250)  # sqrt(1/2)
    y = y << jnp.maximum(-shift, 0)
    return jnp.where(x <= 1, 2**31 - 1, y), jnp.where(x <= 1, 0, -jnp.maximum(shift, 0))
