"""What an accelerator computes with: its widths and its arithmetics, by name."""

import dataclasses

from zojax.accelerator.fixed_point import REQUANTISE
from zojax.accelerator.nonlinear import NONLINEAR

__all__ = ["NARROW", "OPERATORS", "PRESETS", "TFLITE", "Accelerator"]

OPERATORS = ("attention", "embedding", "layer_norm", "softmax", "squeeze_excite")
"""Operators that an accelerator may lack. Products, sums, requantisation, sigmoid and tanh it has."""

EXPONENTIALS = ("gemmlowp", "table")
NORMALISERS = ("newton", "isqrt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerator:
    """The widths and arithmetics of a neural network accelerator.

    Weights and the activations between operators are int8 at most, because the products are int8 by int8.

    Attributes:
      name: for reports.
      weight_bits: of weights, 2 to 8.
      activation_bits: of the tensors between operators, 4 to 8.
      cell_bits: of the LSTM's cell state, 4 to 16.
      accumulator_bits: of the sums of products, 16 to 32; below 32 they saturate after every tile.
      accumulator_tile: products that are added exactly before the sum enters the accumulator; 0 at 32 bits.
      requantise: arithmetic of feed-forward products, a name in `REQUANTISE`.
      recurrent: arithmetic of products inside the LSTM and of its layer norm.
      nonlinear: sigmoid and tanh, a name in `NONLINEAR`.
      exponential: "gemmlowp" or "table", in the softmax.
      normaliser: "newton" or "isqrt", how a layer norm finds 1 / deviation.
      lacks: names among `OPERATORS` that run elsewhere, in float32; see `transfers`.

    Raises:
      ValueError: if a width or a name is none of these.

    Example:
      >>> Accelerator(name="mine", cell_bits=24)
      Traceback (most recent call last):
      ...
      ValueError: cell_bits: 24; 4 to 16 is needed
    """

    name: str
    weight_bits: int = 8
    activation_bits: int = 8
    cell_bits: int = 16
    accumulator_bits: int = 32
    accumulator_tile: int = 0
    requantise: str = "single"
    recurrent: str = "double_gemmlowp"
    nonlinear: str = "gemmlowp"
    exponential: str = "gemmlowp"
    normaliser: str = "newton"
    lacks: frozenset[str] = frozenset()

    def __post_init__(self):
        for field, low, high in (
            ("weight_bits", 2, 8),
            ("activation_bits", 4, 8),
            ("cell_bits", 4, 16),
            ("accumulator_bits", 16, 32),
        ):
            if not low <= getattr(self, field) <= high:
                raise ValueError(f"{field}: {getattr(self, field)}; {low} to {high} is needed")
        for field, names in (
            ("requantise", tuple(REQUANTISE)),
            ("recurrent", tuple(REQUANTISE)),
            ("nonlinear", tuple(NONLINEAR)),
            ("exponential", EXPONENTIALS),
            ("normaliser", NORMALISERS),
        ):
            if getattr(self, field) not in names:
                raise ValueError(f"{field}: {getattr(self, field)!r} is not one of {', '.join(names)}")
        if unknown := self.lacks - set(OPERATORS):
            raise ValueError(f"lacks: {', '.join(sorted(unknown))} not among {', '.join(OPERATORS)}")
        narrow = self.accumulator_bits < 32
        if narrow != (self.accumulator_tile > 0):
            raise ValueError(
                f"accumulator_tile: {self.accumulator_tile} with accumulator_bits {self.accumulator_bits}; a tile is "
                "needed below 32 bits, and 0 at 32"
            )


TFLITE = Accelerator(name="tflite")
"""What TFLite's reference kernels compute, bit for bit: single rounding in fully connected layers and convolutions,
gemmlowp's double rounding, sigmoid and tanh in the LSTM."""

NARROW = Accelerator(
    name="narrow",
    cell_bits=8,
    accumulator_bits=20,
    accumulator_tile=32,
    requantise="double_half_up",
    recurrent="double_half_up",
    nonlinear="lut",
    exponential="table",
    normaliser="isqrt",
    lacks=frozenset({"embedding"}),
)
"""A small device of our own choice: 8-bit cells, accumulators of 20 bits, tables; embeddings are looked up outside."""

PRESETS = {accelerator.name: accelerator for accelerator in (TFLITE, NARROW)}
"""Accelerators by name."""
