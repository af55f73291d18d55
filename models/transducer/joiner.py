"""The joiner: from an encoder's frame and a predictor's output to the logits of the classes."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.layers import Linear
from zojax import ops

__all__ = ["Joiner", "join"]


def join(params: Any, encoded: Float[Array, "*#b j"], predicted: Float[Array, "*#b j"]) -> Float[Array, "*c classes"]:
    """logits = W tanh(encoded + predicted) + b: a `zojax.losses.transducer.Joiner`.

    Args:
      params: {"kernel" [j, classes], "bias" [classes]}, arrays or leaf types.
      encoded: frames, projected to the joint width; for the loss [b, chunk, 1, j].
      predicted: outputs of the predictor, projected likewise; for the loss [b, 1 or chunk, symbols, j].

    Returns:
      float32 logits [..., classes].

    Example:
      >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
      >>> join(params, jnp.ones((2, 5, 1, 4)), jnp.ones((2, 1, 6, 4))).shape
      (2, 5, 6, 3)
    """
    return ops.dot(jnp.tanh(encoded + predicted), params["kernel"]) + ops.value(params["bias"])


class Joiner(nn.Module):
    """Projects frames and predictor outputs, each once, and joins them.

    Parameters: "encoded" {kernel, bias}, "predicted" {kernel}, "output" {kernel, bias}; the last are those of `join`.

    Args:
      d_encoded: width of the encoder's output.
      d_predicted: width of the predictor's output.
      joint: joint width.
      classes: the blank among them.

    Example:
      >>> import jax
      >>> joiner = Joiner(8, 6, 4, 3)
      >>> variables = joiner.init(jax.random.key(0), jnp.ones((1, 2, 1, 8)), jnp.ones((1, 1, 5, 6)))
      >>> joiner.apply(variables, jnp.ones((1, 2, 1, 8)), jnp.ones((1, 1, 5, 6))).shape
      (1, 2, 5, 3)
    """

    d_encoded: int
    d_predicted: int
    joint: int
    classes: int

    def setup(self):
        self.encoded = Linear(self.joint, self.d_encoded**-0.5)
        self.predicted = Linear(self.joint, self.d_predicted**-0.5, use_bias=False)
        self.output = _Output(self.joint, self.classes)

    def project_encoded(self, x: Float[Array, "*b d"]) -> Float[Array, "*b j"]:
        """Frames to the joint width."""
        return self.encoded(x)

    def project_predicted(self, x: Float[Array, "*b e"]) -> Float[Array, "*b j"]:
        """Outputs of the predictor to the joint width."""
        return self.predicted(x)

    def join(self, encoded: Float[Array, "*#b j"], predicted: Float[Array, "*#b j"]) -> Float[Array, "*c classes"]:
        """`join` of what is projected already."""
        return self.output(encoded, predicted)

    def __call__(self, encoded: Float[Array, "*#b d"], predicted: Float[Array, "*#b e"]) -> Float[Array, "*c classes"]:
        """Projects both sides and joins them."""
        return self.join(self.encoded(encoded), self.predicted(predicted))


class _Output(nn.Module):
    """`join`, holding its parameters."""

    joint: int
    classes: int

    def setup(self):
        self.kernel = self.param("kernel", nn.initializers.normal(self.joint**-0.5), (self.joint, self.classes))
        self.bias = self.param("bias", nn.initializers.zeros, (self.classes,))

    def __call__(self, encoded: Array, predicted: Array) -> Array:
        return join({"kernel": self.kernel, "bias": self.bias}, encoded, predicted)
