"""Counts of parameters, and configurations of equal count."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from models.transducer.model import TransducerConfig, transducer

__all__ = ["abstract", "matched", "param_count"]


def abstract(config: TransducerConfig) -> dict:
    """The shapes and types of a model's parameters; nothing is computed.

    Args:
      config: sizes.

    Returns:
      Tree of jax.ShapeDtypeStruct.

    Example:
      >>> from models.transducer.lstm import LstmConfig
      >>> from models.transducer.predictor import StatelessConfig
      >>> config = TransducerConfig(encoder=LstmConfig(), predictor=StatelessConfig(vocab_size=28), joint=64)
      >>> abstract(config)["joiner"]["output"]["kernel"].shape
      (64, 28)
    """
    model = transducer(config)
    # Two frames of the output: enough for every layer to be called.
    frames = 2 * model.encoder.stride
    x, mask = jnp.zeros((1, frames, model.encoder.d_in)), jnp.ones((1, frames), bool)
    return jax.eval_shape(model.init, jax.random.key(0), x, mask, jnp.zeros((1, 1), jnp.int32))["params"]


def param_count(config: TransducerConfig) -> int:
    """Parameters of a model.

    Args:
      config: sizes.

    Returns:
      The number.

    Example:
      >>> from models.transducer.lstm import LstmConfig
      >>> from models.transducer.predictor import StatelessConfig
      >>> encoder = LstmConfig(d_in=64, layers=5, hidden=640)
      >>> param_count(TransducerConfig(encoder=encoder, predictor=StatelessConfig(vocab_size=28), joint=64))
      15454172
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(config)))


def matched(
    make: Callable[[int], TransducerConfig], target: int, *, tolerance: float = 0.02, largest: int = 8192
) -> TransducerConfig:
    """The configuration of a family whose number of parameters is nearest to a target.

    Args:
      make: from a width to a configuration; the count must grow with the width.
      target: number of parameters.
      tolerance: by how much of the target it may be off.
      largest: the largest width to try.

    Returns:
      The configuration.

    Raises:
      ValueError: if none is within the tolerance.

    Example:
      >>> from models.transducer.lstm import LstmConfig
      >>> from models.transducer.predictor import StatelessConfig
      >>> words = StatelessConfig(vocab_size=28, embedding=16)
      >>> make = lambda n: TransducerConfig(encoder=LstmConfig(layers=1, hidden=n), predictor=words, joint=16)
      >>> matched(make, 100_000, largest=512).encoder.hidden
      86
    """
    low, high = 1, largest
    while low < high:  # the least width that reaches the target
        middle = (low + high) // 2
        low, high = (low, middle) if param_count(make(middle)) >= target else (middle + 1, high)
    widths = [width for width in (low - 1, low) if width >= 1]
    best = min(widths, key=lambda width: abs(param_count(make(width)) - target))
    found = param_count(make(best))
    if abs(found - target) > tolerance * target:
        raise ValueError(
            f"target is {target} parameters; of the widths 1 to {largest} the nearest is {best} with {found}, which is "
            f"more than {tolerance:.0%} off"
        )
    return make(best)
