"""Layers without memory: maps of single frames, stacking, activations, dropout."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from models.layers import LayerNorm, Linear
from models.transducer.streaming import Frames, Layer, Mask, Output, OutputMask
from zojax import ops

__all__ = ["Activation", "Affine", "BinsLast", "Dense", "Dropout", "Norm", "Stack"]

NORM_EPS = 1e-5


def _glu(x: Array) -> Array:
    a, b = jnp.split(x, 2, axis=-1)
    return a * jax.nn.sigmoid(b)


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "glu": _glu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def check_rate(config: Any, name: str) -> None:
    """Refuses a field that is no rate of dropout."""
    rate = getattr(config, name)
    if not 0 <= rate < 1:
        raise ValueError(f"{type(config).__name__}.{name} is {rate}; it must be at least 0 and below 1")


class Stack(Layer):
    """Joins each `count` frames to one: 3 of 64 bins every 10 ms become 192 every 30 ms.

    A rest of fewer frames is left out.

    Args:
      d_in: width of a frame.
      count: frames in a stack.

    Example:
      >>> x, mask = jnp.ones((1, 7, 64)), jnp.ones((1, 7), bool)
      >>> y, mask = Stack(64, 3).apply({}, x, mask)
      >>> y.shape, mask.shape
      ((1, 2, 192), (1, 2))
    """

    count: int

    @property
    def d_out(self) -> int:
        return self.d_in * self.count

    @property
    def stride(self) -> int:
        return self.count

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        batch, frames, _ = x.shape
        whole = frames // self.count
        x = x[:, : whole * self.count].reshape(batch, whole, self.d_out)
        return x, mask[:, self.count - 1 :: self.count]


class BinsLast(Layer):
    """Turns stacked frames [count, bins] into [bins, count]: for a convolution over bins, the stack is channels.

    Args:
      d_in: count * bins.
      bins: bins of a frame.

    Example:
      >>> x = jnp.array([[[1.0, 2.0, 10.0, 20.0]]])  # two frames of two bins
      >>> BinsLast(4, 2).apply({}, x, jnp.ones((1, 1), bool))[0].tolist()
      [[[1.0, 10.0, 2.0, 20.0]]]
    """

    bins: int

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        apart = x.reshape(*x.shape[:2], -1, self.bins)
        return jnp.swapaxes(apart, 2, 3).reshape(x.shape), mask


class Dense(Layer):
    """An affine map of each frame.

    Args:
      d_in: width of the input.
      features: width of the output.
      use_bias: whether there is a bias.

    Example:
      >>> layer, mask = Dense(4, 2), jnp.ones((1, 3), bool)
      >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 3, 4)), mask)
      >>> layer.apply(variables, jnp.ones((1, 3, 4)), mask)[0].shape
      (1, 3, 2)
    """

    features: int
    use_bias: bool = True

    @property
    def d_out(self) -> int:
        return self.features

    def setup(self):
        self.linear = Linear(self.features, self.d_in**-0.5, self.use_bias)

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        return self.linear(x), mask


class Norm(Layer):
    """Layer normalisation of each frame.

    Args:
      d_in: width.

    Example:
      >>> x, mask = jnp.array([[[1.0, 3.0]]]), jnp.ones((1, 1), bool)
      >>> Norm(2).init_with_output(jax.random.key(0), x, mask)[0][0].round(3).tolist()
      [[[-1.0, 1.0]]]
    """

    def setup(self):
        self.norm = LayerNorm(NORM_EPS)

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        return self.norm(x), mask


class Affine(Layer):
    """A gain and a bias for each feature: y = gain * x + bias.

    It stands before an encoder and starts from the statistics of the training data (gain 1 / sigma, bias -mu / sigma),
    so that a stream needs none of its own. It is trained like all weights.

    Args:
      d_in: width.

    Example:
      >>> x, mask = jnp.ones((1, 1, 2)), jnp.ones((1, 1), bool)
      >>> Affine(2).init_with_output(jax.random.key(0), x, mask)[0][0].tolist()
      [[[1.0, 1.0]]]
    """

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, (self.d_in,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.d_in,))

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        return x * ops.value(self.scale) + ops.value(self.bias), mask


class Activation(Layer):
    """A function of each frame.

    Args:
      d_in: width.
      function: "relu", "silu", or "glu", which halves the width: a * sigmoid(b).

    Raises:
      ValueError: if the function is none of these.

    Example:
      >>> Activation(2, "relu").apply({}, jnp.array([[[-1.0, 2.0]]]), jnp.ones((1, 1), bool))[0].tolist()
      [[[0.0, 2.0]]]
    """

    function: str

    def __post_init__(self):
        if self.function not in FUNCTIONS:
            raise ValueError(f"Activation.function is {self.function!r}; it must be one of {', '.join(FUNCTIONS)}")
        super().__post_init__()

    @property
    def d_out(self) -> int:
        return self.d_in // 2 if self.function == "glu" else self.d_in

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        return FUNCTIONS[self.function](x), mask


class Dropout(Layer):
    """Sets a share of the numbers to 0 and scales the rest, wherever the caller gives a "dropout" key.

    Without that key, as in evaluation and in streams, it changes nothing.

    Args:
      d_in: width.
      rate: share that is set to 0, in [0, 1).

    Raises:
      ValueError: if the rate is out of range.

    Example:
      >>> x, mask = jnp.ones((1, 2, 2)), jnp.ones((1, 2), bool)
      >>> bool((Dropout(2, 0.5).apply({}, x, mask)[0] == x).all())
      True
      >>> y, _ = Dropout(2, 0.5).apply({}, x, mask, rngs={"dropout": jax.random.key(0)})
      >>> sorted(set(y.ravel().tolist()))
      [0.0, 2.0]
    """

    rate: float

    def __post_init__(self):
        check_rate(self, "rate")
        super().__post_init__()

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        if not self.rate or not self.has_rng("dropout"):
            return x, mask
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), 0), mask
