"""The steps of which operators are made, each in float, emulation and integers (see `emulate`).

An operator is written once in these steps and those of `products`. Integer codes stay int32 between them; a step that
ends a tensor clamps.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from zojax.accelerator import nonlinear
from zojax.accelerator._wide import i32
from zojax.accelerator.device import Accelerator
from zojax.accelerator.emulate import Emulated, Format, Mode, Value, emulated
from zojax.accelerator.fixed_point import Rescale, add_saturating, rdpot
from zojax.accelerator.fixed_point import requantise as requantise_codes

__all__ = [
    "add",
    "mode_of",
    "multiply",
    "relu",
    "requantise",
    "shift",
    "sigmoid",
    "tanh",
    "to_format",
]


def mode_of(x: Value) -> Mode:
    """In which mode a value is held.

    Args:
      x: float array, Emulated, or integers.

    Returns:
      "float", "emulation" or "integer".

    Example:
      >>> mode_of(jnp.int8([1]))
      'integer'
    """
    if isinstance(x, Emulated):
        return "emulation"
    return "float" if jnp.issubdtype(x.dtype, jnp.floating) else "integer"


def is_float(x: Value) -> bool:
    """Whether a value is a plain float array."""
    return mode_of(x) == "float"


def codes_of(x: Value) -> Array:
    """The integers of a value in an integer mode."""
    return x.codes if isinstance(x, Emulated) else x


# ---------------------------------------------------------------- the parts of a value


def rearrange(x: Value, move: Callable[[Array], Array]) -> Value:
    """move(x) of all that x holds an element; scales and zero points must not vary along what moves."""
    return x.map(move) if isinstance(x, Emulated) else move(x)


def parts(x: Value) -> tuple[Array, ...]:
    """What x holds an element: what a scan may slice or stack."""
    return (x.codes, x.value) if isinstance(x, Emulated) else (x,)


def join(elements: tuple[Array, ...], like: Value) -> Value:
    """The value with these parts, and with the scale and zero point of another one."""
    if isinstance(like, Emulated):
        return dataclasses.replace(like, codes=elements[0], value=elements[1])
    return elements[0]


def concatenate(a: Value, b: Value) -> Value:
    """a and b of one format, one after the other in time, the second axis."""
    return join(tuple(jnp.concatenate(pair, axis=1) for pair in zip(parts(a), parts(b), strict=True)), b)


# ---------------------------------------------------------------- between formats


def requantise(x: Value, by: Rescale, to: Format, arithmetic: str, plus: Value | None = None) -> Value:
    """x in the scale of another format, not clamped yet; its zero point, and a value of that scale, added.

    Straight-through: the gradient is that of x (+ plus).

    Args:
      x: int32 codes, or what another mode holds.
      by: old scale / new scale.
      to: the new format.
      arithmetic: a name in `REQUANTISE`.
      plus: a value of the new scale without zero point.

    Returns:
      Codes of the new scale in int32.

    Example:
      >>> from zojax.accelerator.fixed_point import rescale
      >>> f = Format(scale=jnp.float32(2), zero=jnp.int32(-10))
      >>> requantise(jnp.int32([100]), rescale(0.5), f, "single").tolist()
      [40]
    """
    if is_float(x):
        return x if plus is None else x + plus
    codes = requantise_codes(codes_of(x), by, arithmetic) + to.zero
    if plus is not None:
        codes = codes + i32(codes_of(plus))
    if not isinstance(x, Emulated):
        return codes
    return emulated(codes, x.value if plus is None else x.value + plus.value, to.scale, to.zero)


def to_format(x: Value, to: Format, *, through: bool = False) -> Value:
    """x clamped to a format, whose scale and zero point it has already.

    Args:
      x: codes in int32, or what another mode holds.
      to: the format.
      through: whether the gradient passes where x was clamped, as for gates and cell states; for a tensor it is zero
        there.

    Returns:
      Codes in the format's type.

    Example:
      >>> to_format(jnp.int32([300]), Format(scale=jnp.float32(1))).tolist()
      [127]
    """
    if is_float(x):
        return x
    codes = to.clip(codes_of(x))
    if not isinstance(x, Emulated):
        return codes
    kept = x.value if through else jnp.where(codes == x.codes, x.value, 0)
    return emulated(codes, kept, to.scale, to.zero)


def shift(x: Value, bits: int, to: Format) -> Value:
    """x / 2^bits by RDPOT, clamped to a format without zero point that has 2^bits times its scale.

    Args:
      x: codes, or what another mode holds.
      bits: 1 to 31.
      to: the format.

    Returns:
      Codes in the format's type.

    Example:
      >>> shift(jnp.int32([1000, 32767]), 8, Format(scale=jnp.float32(2.0**-7))).tolist()
      [4, 127]
    """
    if is_float(x):
        return x
    codes = rdpot(i32(codes_of(x)), bits)
    return to_format(emulated(codes, x.value, to.scale) if isinstance(x, Emulated) else codes, to)


def relu(x: Value, of: Format) -> Value:
    """max(x, 0), in a format whose zero may have another code.

    Args:
      x: codes, or what another mode holds.
      of: its format.

    Returns:
      Codes of the same format.

    Example:
      >>> relu(jnp.int8([-5, 3]), Format(scale=jnp.float32(1), zero=jnp.int32(-2))).tolist()
      [-2, 3]
    """
    if is_float(x):
        return jax.nn.relu(x)
    codes = jnp.maximum(codes_of(x), of.zero.astype(codes_of(x).dtype))
    return emulated(codes, jax.nn.relu(x.value), of.scale, of.zero) if isinstance(x, Emulated) else codes


def multiply(a: Value, b: Value, *, shift: int) -> Value:
    """a b of two values of at most 16 bits, then RDPOT by a shift: the scale is the product of scales times 2^shift.

    Args:
      a: codes of at most 16 bits and no zero point, or what another mode holds.
      b: the same.
      shift: 0 to 31.

    Returns:
      int32 codes, or what the mode holds.

    Example:
      >>> multiply(jnp.int32([300]), jnp.int32([100]), shift=4).tolist()
      [1875]
    """
    if is_float(a):
        return a * b
    codes = rdpot(i32(codes_of(a)) * i32(codes_of(b)), shift)
    if not isinstance(a, Emulated):
        return codes
    return emulated(codes, a.value * b.value, a.scale * b.scale * 2.0**shift)


def add(a: Value, b: Value, to: Format, *, through: bool = False) -> Value:
    """a + b of two values in the scale of a format without zero point, saturating.

    Args:
      a: codes, or what another mode holds.
      b: the same, broadcastable.
      to: the format.
      through: as for `to_format`.

    Returns:
      Codes in the format's type.

    Example:
      >>> add(jnp.int8([100]), jnp.int8([100]), Format(scale=jnp.float32(1))).tolist()
      [127]
    """
    if is_float(a):
        return a + b
    codes = add_saturating(codes_of(a), codes_of(b))
    total = emulated(codes, a.value + b.value, to.scale) if isinstance(a, Emulated) else codes
    return to_format(total, to, through=through)


def one_minus(x: Value) -> Value:
    """1 - x of a number in Q0.15, with 1 as 32767."""
    if is_float(x):
        return 1 - x
    codes = 2**15 - 1 - i32(codes_of(x))
    return emulated(codes, 1 - x.value, x.scale) if isinstance(x, Emulated) else codes


def widen(x: Value, bits: int) -> Value:
    """The same number with so many more bits behind the point."""
    if is_float(x):
        return x
    codes = i32(codes_of(x)) << bits
    return emulated(codes, x.value, x.scale * 2.0**-bits) if isinstance(x, Emulated) else codes


def clip(x: Value, limit: int, to: Format) -> Value:
    """x clamped to +-limit codes of its format; the gradient passes."""
    if is_float(x):
        return jnp.clip(x, -limit * to.scale, limit * to.scale)
    codes = jnp.clip(codes_of(x), -limit, limit)
    return emulated(codes, x.value, to.scale, to.zero) if isinstance(x, Emulated) else codes


def gated(x: Value, gate: Value, of: Format) -> Value:
    """x times a gate in Q0.15, in the format of x."""
    if is_float(x):
        return x * gate
    codes = of.clip(rdpot((i32(codes_of(x)) - of.zero) * codes_of(gate), 15) + of.zero)
    return emulated(codes, x.value * gate.value, of.scale, of.zero) if isinstance(x, Emulated) else codes


def _nonlinear(x: Value, function: Callable, smooth: Callable) -> Value:
    if is_float(x):
        return smooth(x)
    codes = function(i32(codes_of(x)))
    return emulated(codes, smooth(x.value), 2.0**-15) if isinstance(x, Emulated) else codes


def sigmoid(x: Value, accelerator: Accelerator, *, integer_bits: int = 3) -> Value:
    """The logistic function of 16-bit codes, in Q0.15; its gradient is the true derivative.

    Args:
      x: codes in 16 bits, x / 2^(15 - integer_bits), or what another mode holds.
      accelerator: whose arithmetic.
      integer_bits: of x.

    Returns:
      Codes in Q0.15.

    Example:
      >>> from zojax.accelerator.device import TFLITE
      >>> sigmoid(jnp.int16([0]), TFLITE).tolist(), sigmoid(jnp.array([0.0]), TFLITE).tolist()
      ([16384], [0.5])
    """
    how = accelerator.nonlinear
    return _nonlinear(x, lambda c: nonlinear.looked_up(nonlinear.sigmoid, c, how, integer_bits), jax.nn.sigmoid)


def tanh(x: Value, accelerator: Accelerator, *, integer_bits: int = 3) -> Value:
    """The hyperbolic tangent of 16-bit codes, in Q0.15; its gradient is the true derivative.

    Args:
      x: codes in 16 bits, x / 2^(15 - integer_bits), or what another mode holds.
      accelerator: whose arithmetic.
      integer_bits: of x.

    Returns:
      Codes in Q0.15.

    Example:
      >>> from zojax.accelerator.device import NARROW
      >>> tanh(jnp.int16([32767]), NARROW).tolist()
      [32767]
    """
    how = accelerator.nonlinear
    return _nonlinear(x, lambda c: nonlinear.looked_up(nonlinear.tanh, c, how, integer_bits), jnp.tanh)
