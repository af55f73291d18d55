"""Bottleneck adapters whose two linear maps are tensor trains."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from zojax import ops
from zojax.adapters.tensor_train import init_tensor_train, tensor_train_dot

__all__ = ["Bottleneck", "bottleneck"]

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """Sizes of an adapter, and where it starts.

    Attributes:
      width: of the bottleneck.
      rank: of the tensor trains.
      identity: whether the adapter starts as the identity: the last core of "up" is 0 (ours). Otherwise it starts at
        the initialisation that AdaZeta's authors released.

    Raises:
      ValueError: if a size is below 1.

    Example:
      >>> params = Bottleneck().init(jax.random.key(0), 1024)
      >>> sum(core.size for core in jax.tree.leaves(params))  # 880 + 64 weights down, 880 + 1024 up
      2848

    References:
      AdaZeta, arXiv 2406.18060.
    """

    width: int = 64
    rank: int = 5
    identity: bool = True

    def __post_init__(self):
        for name in ("width", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"Bottleneck.{name} is {getattr(self, name)}; at least 1 is needed")

    def init(self, key: Key[Array, ""], d: int, *, lead: tuple[int, ...] = ()) -> dict[str, Any]:
        """An adapter's weights, all float32.

        Args:
          key: typed key.
          d: width of what is adapted.
          lead: leading axes of every leaf: adapters that a model scans over.

        Returns:
          {"down", "up"}, each {"kernel": TensorTrain, "bias"}; the biases are 0 (ours: the released code draws them).
        """

        def linear(key: Array, d_in: int, d_out: int, zero: bool) -> dict[str, Any]:
            kernel = init_tensor_train(key, d_in, d_out, rank=self.rank, lead=lead, zero=zero)
            return {"kernel": kernel, "bias": jnp.zeros((*lead, d_out), jnp.float32)}

        @jax.jit  # one program for all cores, not a few for each
        def start(key: Array) -> dict[str, Any]:
            down, up = (jax.random.fold_in(key, number) for number in range(2))
            return {"down": linear(down, d, self.width, False), "up": linear(up, self.width, d, self.identity)}

        return start(key)


def bottleneck(x: Float[Array, "*batch d"], params: Params) -> Float[Array, "*batch d"]:
    """Applies an adapter: y = x + up(relu(down(x))), in float32.

    Args:
      x: activations.
      params: what `Bottleneck.init` returned, without leading axes; its leaves are arrays or leaf types.

    Returns:
      [..., d], at least float32.

    Example:
      >>> x = jnp.ones((3, 12))
      >>> bool((bottleneck(x, Bottleneck(width=4).init(jax.random.key(0), 12)) == x).all())
      True

    References:
      AdaZeta, arXiv 2406.18060.
    """

    def linear(x: Array, own: Params) -> Array:
        return tensor_train_dot(x, own["kernel"]) + ops.value(own["bias"])

    return x + linear(jax.nn.relu(linear(x, params["down"])), params["up"])
