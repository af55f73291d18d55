"""The definition: the product of codes, and its scales."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num

__all__ = ["scaled_product"]


def is_integer(dtype) -> bool:
    """Whether the dtype is one of the integer operands: int8 or int4."""
    return dtype in (jnp.int8, jnp.int4)


def is_float8(dtype) -> bool:
    """Whether the dtype is one of the 8-bit floats: e4m3 (finite only) or e5m2."""
    return dtype in (jnp.float8_e4m3fn, jnp.float8_e5m2)


def product(x: Num[Array, "*m k"], w: Num[Array, "k n"]) -> Num[Array, "*m n"]:
    """The product as the compiler's own dot: integers exactly in int32, 8-bit floats in float32.

    A float32 product of the integers, in pieces of k so short that it is exact, gives the same bits. It is not used: on
    a CPU with instructions for int8 (jax 0.10.2 and 0.11.2) it took 1.1 to 10 times as long for w as it is laid out
    here, beside a float32 copy of w.
    """
    if is_integer(x.dtype):  # no dot takes an 8-bit operand beside a 4-bit one
        return jnp.dot(x.astype(jnp.int8), w.astype(jnp.int8), preferred_element_type=jnp.int32)
    return jnp.dot(x, w, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def scaled_product(
    x: Num[Array, "m k"], w: Num[Array, "k n"], x_scale: Float[Array, "m 1"], w_scale: Float[Array, "groups n"]
) -> Float[Array, "m n"]:
    """The definition: sum over groups, in order, of (product of the group) * w_scale[group], then times x_scale.

    Args:
      x: codes.
      w: codes.
      x_scale: float32, one a row of x.
      w_scale: float32, one a group of rows and a column of w.

    Returns:
      float32.

    Example:
      >>> one = jnp.ones((1, 2), jnp.int8)
      >>> scaled_product(one, one.T, jnp.full((1, 1), 0.5), jnp.array([[3.0], [4.0]])).tolist()
      [[3.5]]
    """
    groups, n = w_scale.shape
    if groups == 1:
        return product(x, w).astype(jnp.float32) * w_scale * x_scale
    m, k = x.shape
    x_groups = x.reshape(m, groups, k // groups).swapaxes(0, 1)
    w_groups = w.reshape(groups, k // groups, n)

    def add(total, group):
        x_group, w_group, scale = group
        return total + product(x_group, w_group).astype(jnp.float32) * scale, None

    total, _ = lax.scan(add, jnp.zeros((m, n), jnp.float32), (x_groups, w_groups, w_scale))
    return total * x_scale
