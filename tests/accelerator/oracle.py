"""The arithmetics and operators again, in Python's integers and NumPy's int64, written from their definitions."""

import math

import numpy as np

TOP, LEAST = 2**31 - 1, -(2**31)


def wrap(x: int) -> int:
    """x modulo 2^32, as int32."""
    return (x - LEAST) % 2**32 + LEAST


def clamp(x, bits: int):
    return np.clip(x, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def truncated(a: int, b: int) -> int:
    """a / b rounded towards zero, as C divides."""
    return -(-a // b) if a < 0 else a // b


def srdhm(a: int, b: int) -> int:
    if a == b == LEAST:
        return TOP
    return truncated(a * b + (2**30 if a * b >= 0 else 1 - 2**30), 2**31)


def rdpot(x: int, e: int) -> int:
    """x / 2^e to nearest, halves away from zero: on magnitudes, half up."""
    magnitude = (abs(x) + (2**e >> 1)) >> e
    return magnitude if x >= 0 else -magnitude


def half_up(x: int, e: int) -> int:
    return (x + (2**e >> 1)) >> e


def single(x: int, m: int, s: int) -> int:
    return wrap((x * m + (1 << (30 - s))) >> (31 - s))


def double_gemmlowp(x: int, m: int, s: int) -> int:
    return rdpot(srdhm(wrap(x << max(s, 0)), m), max(-s, 0))


def double_half_up(x: int, m: int, s: int) -> int:
    return half_up(srdhm(wrap(x << max(s, 0)), m), max(-s, 0))


def float32(x: int, m: int, s: int) -> int:
    y = np.float32(x) * (np.float32(m) * np.float32(2.0 ** (s - 31)))
    return int(np.clip(np.rint(y), -(2**30), 2**30))


ARITHMETICS = {
    "single": single,
    "double_gemmlowp": double_gemmlowp,
    "double_half_up": double_half_up,
    "float32": float32,
}


def multiplier(factor: float) -> tuple[int, int]:
    q, s = math.frexp(factor)
    m = math.floor(q * 2**31 + 0.5)
    if m == 2**31:
        m, s = 2**30, s + 1
    return (0, 0) if s < -31 else (m, s)


def requantise(x, factor, how: str):
    """An array times a factor, or one factor for each entry of its last axis."""
    pairs = [multiplier(float(f)) for f in np.broadcast_to(factor, np.shape(x)[-1:])]
    rows = [
        [ARITHMETICS[how](int(v), *pair) for v, pair in zip(row, pairs, strict=True)]
        for row in np.reshape(x, (-1, len(pairs)))
    ]
    return np.asarray(rows, np.int64).reshape(np.shape(x))


def accumulate(x, w, start, accelerator):
    """start + x @ w, saturating after each tile of products where the accumulator is narrow."""
    x, w = np.asarray(x, np.int64), np.asarray(w, np.int64)
    bits, tile = accelerator.accumulator_bits, accelerator.accumulator_tile or x.shape[-1]
    total = clamp(np.asarray(start, np.int64), bits)
    for at in range(0, x.shape[-1], tile):
        total = clamp(total + x[..., at : at + tile] @ w[at : at + tile], bits)
    return total


def fully_connected(x, w, bias, accelerator, *, zero_in, factor, zero_out, bits=8, low=None, how=None):
    """Codes of a layer; `bias` without the input's zero point, which is folded here as the accelerator does."""
    w = np.asarray(w, np.int64)
    total = accumulate(x, w, np.asarray(bias, np.int64) - zero_in * w.sum(0), accelerator)
    y = requantise(total, factor, how or accelerator.requantise) + zero_out
    y = clamp(y, bits)
    return y if low is None else np.maximum(y, low)


def array_rdpot(x, e: int):
    magnitude = (np.abs(x) + (1 << e >> 1)) >> e
    return np.where(x < 0, -magnitude, magnitude)
