"""Which integers the activations of an LSTM transducer are: ranges seen in float, and formats made of them."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from models.transducer.lstm import LstmConfig
from models.transducer.model import TransducerConfig
from models.transducer.predictor import LstmPredictorConfig
from zojax.accelerator import Accelerator
from zojax.accelerator.emulate import Format, activation_format, symmetric_format
from zojax.accelerator.fixed_point import Rescale, rescale

__all__ = [
    "CELL_BITS",
    "FEATURES",
    "Formats",
    "LayerFormats",
    "Ranges",
    "cell_error",
    "check_integer",
    "make_formats",
    "seen",
    "span",
    "unknown_formats",
    "widen",
]

Params = Any
Ranges = dict[str, tuple[float, float]]
"""Least and greatest value of each named activation, and 0 and the mean of each error, see `seen`."""

FEATURES = Format(scale=np.array(2.0**-9, np.float32), zero=np.array(0, np.int32), low=-(2**15), high=2**15 - 1)
"""Log-Mel features as they reach the accelerator: 16 bits, 6 before the point. The scale is a power of two, so that
every program rounds them alike."""

CELL_BITS = (3, 4, 5, 6)
"""Integer bits that a cell may have: those that tables of tanh take."""

# Powers of two by which trained numbers may outgrow what they were when their format was made.
ROOM = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerFormats:
    """The formats of an LSTM layer and of the norm behind it.

    Attributes:
      hidden: of what is projected; None without a projection.
      output: of the output and the recurrent input.
      norm: of the norm's output.
      gain: of the norm's gains, 16 bits.
      cell_integer_bits: of the cell.
    """

    hidden: Format | None
    output: Format
    norm: Format
    gain: Format
    cell_integer_bits: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Formats:
    """The formats of all activations of a transducer; concrete numbers, compared by identity.

    The affine map in front of the encoder is part of them: code = zero + (feature code + offset) * factor, with the
    weights that the map had when the formats were made. It is not trained any further.

    Attributes:
      gain: of the affine map, float32 [bins].
      bias: of the affine map, float32 [bins].
      offset: int32 [bins], in codes of `FEATURES`.
      factor: gain * 2^-9 / scale of `input`, one a bin.
      input: of the encoder's input.
      encoder: of its layers.
      predictor: of its layers; none of a stateless one.
      predicted: of the predictor's output, where there are no layers.
      logits: 16 bits.
    """

    gain: Array | np.ndarray
    bias: Array | np.ndarray
    offset: np.ndarray
    factor: Rescale
    input: Format
    encoder: tuple[LayerFormats, ...]
    predictor: tuple[LayerFormats, ...]
    predicted: Format | None
    logits: Format


def check_integer(config: TransducerConfig) -> None:
    """Refuses a transducer for which there is no integer network.

    Args:
      config: sizes.

    Raises:
      ValueError: if the encoder is no LSTM, it has several signals, or there are projections for the pruned loss.

    Example:
      >>> from models.transducer.conformer import ConformerConfig
      >>> from models.transducer.predictor import StatelessConfig
      >>> words = StatelessConfig(vocab_size=5)
      >>> check_integer(TransducerConfig(encoder=ConformerConfig(), predictor=words))
      Traceback (most recent call last):
      ...
      ValueError: TransducerConfig.encoder is a ConformerConfig; with an accelerator it must be a LstmConfig
    """
    if not isinstance(config.encoder, LstmConfig):
        name = type(config.encoder).__name__
        raise ValueError(f"TransducerConfig.encoder is a {name}; with an accelerator it must be a LstmConfig")
    if config.fusion is not None:
        raise ValueError(f"TransducerConfig.fusion is {config.fusion}; with an accelerator it must be None")
    if config.simple:
        raise ValueError("TransducerConfig.simple is True; with an accelerator it must be False: its loss is exact")


def span(x: Float[Array, "*b d"], mask: Bool[Array, "*b"] | None = None) -> tuple[Array, Array]:
    """The least and the greatest number where the mask is True, 0 among them."""
    inside = True if mask is None else mask[..., None]
    return jnp.min(jnp.where(inside, x, 0)), jnp.max(jnp.where(inside, x, 0))


def seen(name: str, x: Float[Array, "*b d"], mask: Bool[Array, "*b"]) -> tuple[Array, Array]:
    """What ranges hold of an activation: its `span`, or (0, the mean) of an error, see `cell_error`."""
    if "/cell_error/" not in name:
        return span(x, mask)
    total = jnp.sum(jnp.where(mask[..., None], x, 0))
    return jnp.zeros(()), total / jnp.maximum(jnp.sum(mask) * x.shape[-1], 1)


def widen(found: Iterable[dict[str, tuple[Any, Any]]]) -> Ranges:
    """The ranges of several batches together; of errors the largest.

    Args:
      found: ranges of each.

    Returns:
      Their union.

    Raises:
      ValueError: if there are none.

    Example:
      >>> widen([{"a": (-1.0, 0.0)}, {"a": (-0.5, 2.0)}])
      {'a': (-1.0, 2.0)}
    """
    every = [{name: (float(low), float(high)) for name, (low, high) in jax.device_get(r).items()} for r in found]
    if not every:
        raise ValueError("ranges: there is no batch to take them from")
    return {name: (min(r[name][0] for r in every), max(r[name][1] for r in every)) for name in every[0]}


def unknown_formats(config: TransducerConfig, params: Params) -> Formats:
    """Formats for the float mode, which reads none of them: as if all activations lay between -1 and 1.

    Args:
      config: sizes.
      params: weights.

    Returns:
      Formats.
    """
    one = activation_format(-1.0, 1.0)

    def layers(count: int, projection: int) -> tuple[LayerFormats, ...]:
        of = LayerFormats(hidden=one if projection else None, output=one, norm=one, gain=one, cell_integer_bits=3)
        return (of,) * count

    words = config.predictor
    assert isinstance(config.encoder, LstmConfig)
    has_layers = isinstance(words, LstmPredictorConfig)
    affine = params["encoder"]["input"]
    return Formats(
        gain=affine["scale"],
        bias=affine["bias"],
        offset=np.zeros(config.encoder.d_in, np.int32),
        factor=rescale(np.ones(config.encoder.d_in)),
        input=one,
        encoder=layers(config.encoder.layers, config.encoder.projection),
        predictor=layers(words.layers, words.projection) if has_layers else (),
        predicted=None if has_layers else one,
        logits=one,
    )


def make_formats(config: TransducerConfig, params: Params, ranges: Ranges, accelerator: Accelerator) -> Formats:
    """The formats of a transducer's activations, made on the host.

    Activations between operators are asymmetric with the range that was seen. Gains and logits are held in 16 bits of
    a power of two with room for twice of what was seen. The cell's format reaches the power of two of `CELL_BITS` with
    which the LSTM's outputs are nearest to those of float cells: one that reached all that was seen would leave a cell
    of 8 bits few codes where tanh still changes. (Ours.)

    Args:
      config: sizes.
      params: float weights, of which the affine map and the norms' gains are read.
      ranges: of activations, see `integer.observe`.
      accelerator: whose widths.

    Returns:
      Formats.

    Raises:
      ValueError: if a gain of the affine map is not positive.

    Example:
      >>> span(jnp.array([[0.5, -1.0], [9.0, 9.0]]), jnp.array([True, False]))
      (Array(-1., dtype=float32), Array(0.5, dtype=float32))
    """
    affine = {name: np.asarray(value, np.float32) for name, value in params["encoder"]["input"].items()}
    gain, bias = affine["scale"], affine["bias"]
    if not np.all(gain > 0):
        raise ValueError(f"encoder/input/scale: {float(gain.min())} is its least; positive numbers are needed")
    bits = accelerator.activation_bits

    def activation(name: str) -> Format:
        low, high = ranges[name]
        return activation_format(low, max(high, low + 1e-3), bits)

    def layers(name: str, stack: Params, count: int, projected: bool) -> tuple[LayerFormats, ...]:
        return tuple(
            LayerFormats(
                # o tanh(c) lies there, whatever is seen.
                hidden=activation_format(-1.0, 1.0, bits) if projected else None,
                output=activation(f"{name}/{i}/output"),
                norm=activation(f"{name}/{i}/norm"),
                gain=_wide(float(np.abs(np.asarray(stack[f"norm_{i}"]["norm"]["scale"])).max())),
                cell_integer_bits=min(CELL_BITS, key=lambda n: ranges[cell_error(f"{name}/{i}", n)][1]),
            )
            for i in range(count)
        )

    input_format = activation("input")
    step, scale = float(FEATURES.scale), float(np.asarray(input_format.scale))
    words = config.predictor
    has_layers = isinstance(words, LstmPredictorConfig)
    assert isinstance(config.encoder, LstmConfig)
    return Formats(
        gain=gain,
        bias=bias,
        offset=np.round(bias / gain.astype(np.float64) / step).astype(np.int32),
        factor=rescale(gain.astype(np.float64) * step / scale),
        input=input_format,
        encoder=layers("encoder", params["encoder"]["lstm"], config.encoder.layers, config.encoder.projection > 0),
        predictor=layers("predictor", params["predictor"], words.layers, words.projection > 0) if has_layers else (),
        predicted=None if has_layers else activation("predicted"),
        logits=_wide(max(abs(v) for v in ranges["logits"])),
    )


def _wide(largest: float) -> Format:
    return symmetric_format(ROOM * max(largest, 2.0**-10), 16, power_of_two=True)


def cell_error(layer: str, integer_bits: int) -> str:
    """The name, in ranges, of the squared error of a layer's outputs with a cell of so many integer bits."""
    return f"{layer}/cell_error/{integer_bits}"


Note = Callable[[str, Array], None]
"""What a float network tells of its activations: a name, and frames [batch, time, d]."""
