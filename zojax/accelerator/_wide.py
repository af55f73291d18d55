"""64-bit integers as pairs (high int32 or uint32, low uint32), since int64 is absent without x64 and on TPU."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt32


def u32(x) -> Array:
    return jnp.asarray(x).astype(jnp.uint32)


def i32(x) -> Array:
    return jnp.asarray(x).astype(jnp.int32)


def multiply_unsigned(a: UInt32[Array, "..."], b: UInt32[Array, "..."]) -> tuple[Array, Array]:
    """The (high, low) uint32 words of a * b, from products of 16-bit limbs."""
    half, mask = np.uint32(16), np.uint32(0xFFFF)
    a1, a0, b1, b0 = a >> half, a & mask, b >> half, b & mask
    middle = a1 * b0 + ((a0 * b0) >> half)  # at most (2^16-1)^2 + 2^16-1 < 2^32
    return a1 * b1 + (middle >> half) + ((a0 * b1 + (middle & mask)) >> half), a * b


def multiply(a: Int32[Array, "..."], b: Int32[Array, "..."]) -> tuple[Array, Array]:
    """a * b as (high int32, low uint32)."""
    high, low = multiply_unsigned(u32(a), u32(b))
    # As unsigned numbers, negative ones are 2^32 too large.
    return i32(high) - jnp.where(a < 0, b, 0) - jnp.where(b < 0, a, 0), low


def add(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """The sum of two pairs, modulo 2^64."""
    low = a[1] + b[1]
    return a[0] + b[0] + (low < a[1]).astype(a[0].dtype), low


def negate(a: tuple[Array, Array]) -> tuple[Array, Array]:
    """Minus a pair, modulo 2^64."""
    low = ~a[1] + np.uint32(1)
    return ~a[0] + (low == 0).astype(a[0].dtype), low


def shift_left_16(a: tuple[Array, Array]) -> tuple[Array, Array]:
    """A pair times 2^16."""
    carried = (a[1] >> np.uint32(16)).astype(a[0].dtype)
    return (a[0] << 16) | carried, a[1] << np.uint32(16)


def power_of_two(n: Int32[Array, "..."]) -> tuple[Array, Array]:
    """2^n as (high int32, low uint32), 0 <= n <= 62."""
    bit = np.uint32(1) << u32(n & 31)
    return i32(jnp.where(n < 32, np.uint32(0), bit)), jnp.where(n < 32, bit, np.uint32(0))


def shift_right(a: tuple[Array, Array], n: Int32[Array, "..."]) -> Int32[Array, "..."]:
    """The low word of a >> n, as int32; 1 <= n <= 63."""
    high, low = a
    k = n & 31
    # k is 0 for n = 32 alone, where the second branch is taken; the mask keeps the shift of the first one defined.
    near = (u32(high) << u32((32 - k) & 31)) | (low >> u32(k))
    return jnp.where(n < 32, i32(near), high >> k)
