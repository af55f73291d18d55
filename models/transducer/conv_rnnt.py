"""ConvRNN-T: convolutions over a local and a global context before the LSTM layers."""

import dataclasses

from models.language.config import check_sizes
from models.transducer.combine import parallel, residual
from models.transducer.convolution import Conv, Depthwise, SqueezeExcite
from models.transducer.layers import Activation, Affine, BinsLast, Dense, Norm, Stack, check_rate
from models.transducer.lstm import lstm_stack
from models.transducer.streaming import Layer, Serial, serial

__all__ = ["ConvRnntConfig", "conv_rnnt_encoder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvRnntConfig:
    """The encoder of ConvRNN-T (arXiv 2209.14868): two causal convolutional encoders beside each other, then LSTMs.

    Local: Conv2d over time and bins with ReLU, then a linear layer. Global: residual blocks of pointwise -> depthwise
    causal -> pointwise convolutions, 3 taps at dilation 2^b, with squeeze-and-excitation.

    Ours: the stacked frames are the channels of the first Conv2d; the strides over bins, which make it affordable;
    layer norms and SiLU in the blocks; b from 1 on, which makes the 252 frames of left context of 6 blocks; the running
    mean (see `SqueezeExcite`).

    Attributes:
      d_in: bins of a frame.
      stack: frames joined to one.
      channels: of the local convolutions.
      bin_strides: input bins to an output bin of each of them.
      kernel: taps of the local convolutions, over time and over bins.
      local: width of the local encoder's output.
      blocks: residual blocks of the global encoder.
      width: of the global encoder.
      ratio: of squeeze-and-excitation.
      project: width of what goes into the LSTM layers.
      layers: LSTM layers, as the three that follow: see `LstmConfig`.
      hidden: cells of a layer.
      projection: width of a layer's output; 0: no projection.
      dropout: rate behind each LSTM layer, in training alone.

    Raises:
      ValueError: if a size does not fit.

    Example:
      >>> ConvRnntConfig().left_context
      252
    """

    d_in: int = 64
    stack: int = 3
    channels: tuple[int, ...] = (100, 100, 64, 64)
    bin_strides: tuple[int, ...] = (2, 2, 2, 1)
    kernel: int = 5
    local: int = 256
    blocks: int = 6
    width: int = 256
    ratio: int = 16
    project: int = 512
    layers: int = 5
    hidden: int = 640
    projection: int = 0
    dropout: float = 0.0

    def __post_init__(self):
        check_sizes(self, may_be_zero=("projection",))
        check_rate(self, "dropout")
        for name in ("channels", "bin_strides"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"ConvRnntConfig.{name} is {getattr(self, name)}; it must hold positive numbers")
        if len(self.bin_strides) != len(self.channels):
            raise ValueError(
                f"ConvRnntConfig.bin_strides is {self.bin_strides}; there must be one for each of {self.channels}"
            )
        if self.ratio > self.width:
            raise ValueError(f"ConvRnntConfig.ratio is {self.ratio}; it must be at most width = {self.width}")

    @property
    def left_context(self) -> int:
        """Stacked frames before its own that a frame of the global encoder's convolutions sees."""
        return sum(2 * 2**b for b in range(1, self.blocks + 1))


def _local(c: ConvRnntConfig) -> Serial:
    width, bins = c.d_in * c.stack, c.d_in
    layers: list[Layer] = [BinsLast(width, bins, name="bins_last")]
    for number, (channels, stride) in enumerate(zip(c.channels, c.bin_strides, strict=True)):
        name = f"conv_{number}"
        conv = Conv(width, channels, c.kernel, bins=bins, bin_kernel=c.kernel, bin_stride=stride, name=name)
        width, bins = conv.d_out, conv.d_out // channels
        layers += [conv, Activation(width, "relu", name=f"relu_{number}")]
    return serial(*layers, Dense(width, c.local, name="project"), name="local")


def _global(c: ConvRnntConfig) -> Serial:
    d = c.width

    def block(b: int) -> Layer:
        inner = serial(
            Dense(d, d, name="pointwise_0"),
            Norm(d, name="norm_0"),
            Activation(d, "silu", name="silu_0"),
            Depthwise(d, d, 3, dilation=2**b, name="depthwise"),
            Norm(d, name="norm_1"),
            Activation(d, "silu", name="silu_1"),
            Dense(d, d, name="pointwise_1"),
            SqueezeExcite(d, c.ratio, name="squeeze_excite"),
        )
        return residual(inner, name=f"block_{b}")

    blocks = [block(b) for b in range(1, c.blocks + 1)]
    return serial(Dense(c.d_in * c.stack, d, name="project"), *blocks, name="global")


def conv_rnnt_encoder(config: ConvRnntConfig) -> Serial:
    """The encoder of ConvRNN-T.

    Args:
      config: sizes.

    Returns:
      The encoder.

    Example:
      >>> encoder = conv_rnnt_encoder(ConvRnntConfig())
      >>> encoder.d_out, encoder.block, encoder.latency
      (640, 3, 2)
    """
    c = config
    front = parallel(_local(c), _global(c), name="front")
    return serial(
        Affine(c.d_in, name="input"),
        Stack(c.d_in, c.stack, name="stack"),
        front,
        Dense(front.d_out, c.project, name="project"),
        Norm(c.project, name="norm"),
        lstm_stack(
            c.project, layers=c.layers, hidden=c.hidden, projection=c.projection, dropout=c.dropout, name="lstm"
        ),
    )
