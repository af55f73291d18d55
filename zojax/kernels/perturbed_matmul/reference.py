"""The definition of the perturbed product, and how a CPU computes it."""

from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num

from zojax import random

__all__ = ["perturbed_matmul"]

Direction = Literal["signs", "normal", "rademacher"]
DRAWS = {"signs": random.signs, "normal": random.normal, "rademacher": random.rademacher}


def splits(dtype) -> bool:
    """Whether x (W + s Z) is computed as x W + s (x Z): in half precision and in codes W + s Z would round Z away."""
    return dtype != jnp.float32


def operand_dtype(dtype):
    """The dtype of both operands of a product with weights of the given dtype."""
    return jnp.bfloat16 if splits(dtype) else jnp.float32


def product(
    x: Float[Array, "m k"],
    w: Num[Array, "k n"],
    z: Float[Array, "k n"],
    scale: Float[Array, ""],
    w_scale: Float[Array, "#one #n"] | None,
) -> Float[Array, "m n"]:
    """x (W + scale z), W = w or w * w_scale, accumulated in float32: a whole product or one tile's part of it.

    float32 weights are added and multiplied in float32. Others are split; int8 and int4 are exact in bfloat16, and so
    are signs, while a normal z keeps 8 bits of each element.
    """
    dtype = operand_dtype(w.dtype)
    if splits(w.dtype):
        x = x.astype(dtype)
        clean = jnp.dot(x, w.astype(dtype), preferred_element_type=jnp.float32)
        clean = clean if w_scale is None else clean * w_scale
        return clean + scale * jnp.dot(x, z.astype(dtype), preferred_element_type=jnp.float32)
    weight = w if w_scale is None else w * w_scale
    # Not the default precision, in which a TPU would round the sum to bfloat16 and a GPU to 10 bits.
    return jnp.dot(x.astype(dtype), weight + scale * z, precision=lax.Precision.HIGHEST)


def perturbed_matmul(
    x: Float[Array, "sides m k"],
    w: Num[Array, "k n"],
    key: random.KeyOrWords,
    scale: Float[Array, ""],
    w_scale: Float[Array, "one n"] | None,
    start: Any,
    *,
    direction: Direction,
    full_shape: Sequence[int],
) -> Float[Array, "sides m n"]:
    """The operator in `jax.numpy`, with the arguments of the public function after its checks.

    Example:
      >>> import jax
      >>> key = random.key_words(jax.random.key(0))
      >>> arrays = (jnp.eye(4)[None], jnp.zeros((4, 3)), key, jnp.float32(1), None, None)
      >>> y = perturbed_matmul(*arrays, direction="normal", full_shape=(4, 3))
      >>> bool((y[0] == random.normal(key, (4, 3))).all())
      True
    """
    size = (1,) * (len(full_shape) - 2) + w.shape
    z = DRAWS[direction](key, full_shape, start=start, size=size).reshape(w.shape)
    return jnp.stack([product(x[side], w, z, scale if side == 0 else -scale, w_scale) for side in range(x.shape[0])])
