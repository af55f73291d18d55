"""Layers that the models of text and of speech share; every weight is touched through `zojax.ops` alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zojax import ops

__all__ = ["LayerNorm", "Linear"]


class Linear(nn.Module):
    """Affine map y = x W + b, with W [d_in, d_out].

    Args:
      features: d_out.
      stddev: standard deviation of the random kernel.
      use_bias: whether there is a b.

    Example:
      >>> layer = Linear(3, 0.02, use_bias=False)
      >>> jax.tree.map(jnp.shape, layer.init(jax.random.key(0), jnp.ones((1, 2))))
      {'params': {'kernel': (2, 3)}}
    """

    features: int
    stddev: float
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*b d_in"]) -> Float[Array, "*b d_out"]:
        """Applies the map to the last axis."""
        kernel = self.param("kernel", nn.initializers.normal(self.stddev), (x.shape[-1], self.features))
        y = ops.dot(x, kernel)
        return y + ops.value(self.param("bias", nn.initializers.zeros, (self.features,))) if self.use_bias else y


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, its statistics in float32.

    Args:
      eps: constant under the root.

    Example:
      >>> LayerNorm(0.0).init_with_output(jax.random.key(0), jnp.array([1.0, 3.0]))[0].tolist()
      [-1.0, 1.0]
    """

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Normalises, then applies gain and bias."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + self.eps) * ops.value(scale) + ops.value(bias)
