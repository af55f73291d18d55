"""Layers that the language models share; every weight is touched through `zojax.ops` alone."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.layers import LayerNorm, Linear
from zojax import ops

__all__ = ["ACTIVATIONS", "MASKED", "LayerNorm", "Linear", "RMSNorm", "cast_matrices"]

MASKED = -1e9
"""Score of a key that may not be seen: exp() of it is 0, and a row in which everything is masked stays finite."""


def _gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def cast_matrices(params: Any, dtype: str) -> Any:
    """Casts kernels and tables to `dtype` and leaves vectors (biases, gains; [L, d] when stacked) in float32.

    A half precision gain of 1 does not move under a perturbation of 1e-3, and vectors cost no memory.

    Args:
      params: the model's tree, or a tree that holds it.
      dtype: "float32", "bfloat16" or "float16".

    Returns:
      A tree of the same structure.

    Raises:
      ValueError: if dtype is none of the three.

    Example:
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> jax.tree.map(lambda x: str(x.dtype), cast_matrices(params, "bfloat16"))
      {'bias': 'float32', 'kernel': 'bfloat16'}
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is {dtype!r}; it must be 'float32', 'bfloat16' or 'float16'")

    def cast(path, leaf):
        # "kernel" and the tables are matrices by name: a stacked bias has two axes as well.
        vector = path[-1].key in ("bias", "scale")
        return leaf.astype(jnp.float32 if vector else jnp.dtype(dtype))

    return jax.tree_util.tree_map_with_path(cast, params)


class RMSNorm(nn.Module):
    """Division by the root of the mean square of the last axis, in float32, and a gain (arXiv:1910.07467).

    Args:
      eps: constant under the root.

    Example:
      >>> RMSNorm(0.0).init_with_output(jax.random.key(0), jnp.array([3.0, 3.0]))[0].tolist()
      [1.0, 1.0]
    """

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Normalises, then applies the gain."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps) * ops.value(scale)
