"""Threefry-2x32 as unrolled uint32 arithmetic: what `zojax.random` is made of, in XLA and in kernels alike."""

import numpy as np
from jaxtyping import Array, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


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


def multiply_wide(a: UInt32[Array, "..."], b: int) -> tuple[Array, Array]:
    """(high, low) words of a * b for a static b < 2^64 and a product < 2^64."""
    b_high, b_low = np.uint32(b >> 32), np.uint32(b & 0xFFFFFFFF)
    a1, a0 = a >> np.uint32(16), a & np.uint32(0xFFFF)
    b1, b0 = np.uint32(int(b_low) >> 16), np.uint32(int(b_low) & 0xFFFF)
    mid = a1 * b0 + ((a0 * b0) >> np.uint32(16))  # cannot overflow: (2^16-1)^2 + 2^16-1 < 2^32
    high = a1 * b1 + (mid >> np.uint32(16)) + ((a0 * b1 + (mid & np.uint32(0xFFFF))) >> np.uint32(16))
    return high + a * b_high, a * b_low
