"""The Conformer encoder: causal, in chunks, or over the whole utterance."""

import dataclasses

from models.language.config import check_sizes
from models.transducer.attention import Attention
from models.transducer.combine import Residual, repeat, residual
from models.transducer.convolution import Conv, Depthwise
from models.transducer.layers import Activation, Affine, Dense, Dropout, Norm, check_rate
from models.transducer.streaming import Layer, Serial, serial

__all__ = ["ConformerConfig", "conformer_block", "conformer_encoder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConformerConfig:
    """The encoder of a Conformer transducer (arXiv 2005.08100).

    Two causal convolutions over time and bins take a quarter of the frames; chunk and left count those.

    Attributes:
      d_in: bins of a frame.
      channels: of the two convolutions.
      width: d of the blocks.
      layers: blocks.
      heads: of the attention.
      expansion: width of the feed-forward layers over d.
      kernel: taps of the depthwise convolution.
      chunk: frames that see one another; 1: causal; None: the whole utterance, which does not stream.
      left: frames before the chunk that a frame sees; None (which does not stream): all.
      right: look-ahead of each block's depthwise convolution; None: half of the kernel without a chunk, else 0.
      ahead: look-ahead of each block's attention, with chunk 1.
      dropout: rate, in training alone.

    Raises:
      ValueError: if a size does not fit.

    Example:
      >>> config = ConformerConfig(d_in=80, width=144, layers=16, heads=4, chunk=4, left=32)
      >>> conformer_encoder(config).latency  # 4 frames of 4, less one
      15
    """

    d_in: int = 80
    channels: int = 32
    width: int = 144
    layers: int = 16
    heads: int = 4
    expansion: int = 4
    kernel: int = 31
    chunk: int | None = None
    left: int | None = None
    right: int | None = None
    ahead: int = 0
    dropout: float = 0.0

    def __post_init__(self):
        check_sizes(self, may_be_zero=("ahead",))
        check_rate(self, "dropout")
        if self.width % 2 or self.width % self.heads:
            raise ValueError(f"ConformerConfig.width is {self.width}; it must be even and divide by heads {self.heads}")
        for name, least in (("chunk", 1), ("left", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"ConformerConfig.{name} is {value}; it must be {least} or more, or None")
        if self.chunk is None and self.left is not None:
            raise ValueError(f"ConformerConfig.left is {self.left} without a chunk; give a chunk, or left None")
        if not 0 <= self.look_ahead < self.kernel:
            raise ValueError(f"ConformerConfig.right is {self.right}; it must be 0 to kernel - 1 = {self.kernel - 1}")
        if self.chunk is not None and self.look_ahead % self.chunk:
            raise ValueError(
                f"ConformerConfig.right is {self.right}; it must be a multiple of chunk = {self.chunk}: it delays the "
                "frames of the block behind"
            )
        if self.ahead and self.chunk != 1:
            raise ValueError(f"ConformerConfig.ahead is {self.ahead} with chunk {self.chunk}; chunk 1, or 0 is needed")

    @property
    def look_ahead(self) -> int:
        """Look-ahead of each block's depthwise convolution."""
        if self.right is not None:
            return self.right
        return (self.kernel - 1) // 2 if self.chunk is None else 0


def branch(name: str, *layers: Layer, config: ConformerConfig, scale: float = 1.0) -> Residual:
    """Layers behind a norm, added to their input."""
    d = config.width
    inner = serial(Norm(d, name="norm"), *layers, Dropout(d, config.dropout, name="drop"))
    return residual(inner, scale=scale, name=name)


def feed_forward(name: str, config: ConformerConfig) -> Residual:
    """Half a feed-forward layer."""
    d, wide = config.width, config.expansion * config.width
    inside = Activation(wide, "silu", name="silu"), Dropout(wide, config.dropout, name="drop_wide")
    return branch(name, Dense(d, wide, name="up"), *inside, Dense(wide, d, name="down"), config=config, scale=0.5)


def convolution(name: str, config: ConformerConfig, depthwise: Layer) -> Residual:
    """The convolution module around a depthwise convolution."""
    d = config.width
    return branch(
        name,
        Dense(d, 2 * d, name="up"),
        Activation(2 * d, "glu", name="glu"),
        depthwise,
        Norm(d, name="norm_inside"),
        Activation(d, "silu", name="silu"),
        Dense(d, d, name="down"),
        config=config,
    )


def conformer_block(config: ConformerConfig) -> Serial:
    """A block: half a feed-forward layer, attention, convolution, half a feed-forward layer, each a residual; a norm.

    The norm within the convolution is a layer norm, where the paper has a batch norm. Statistics of a batch would make
    a frame depend on other utterances and a probe of a zeroth-order estimator on which rows stand beside it; with the
    layer norm, stream, batch and single utterance agree exactly, in training as well.

    Args:
      config: sizes.

    Returns:
      The block.

    Example:
      >>> conformer_block(ConformerConfig(width=8, heads=2, kernel=3, chunk=2, left=4)).latency
      1
    """
    c, d = config, config.width
    return serial(
        feed_forward("feed_forward_0", c),
        branch("attention", Attention(d, c.heads, c.chunk, c.left, c.ahead, name="heads"), config=c),
        convolution("convolution", c, Depthwise(d, d, c.kernel, right=c.look_ahead, name="depthwise")),
        feed_forward("feed_forward_1", c),
        Norm(d, name="norm"),
    )


def front(config: ConformerConfig) -> tuple[Layer, ...]:
    """What comes before the blocks: two convolutions, and a map to the blocks' width."""
    c = config
    first = Conv(c.d_in, c.channels, 3, subsample=2, bins=c.d_in, bin_kernel=3, bin_stride=2, name="conv_0")
    bins = first.d_out // c.channels
    second = Conv(first.d_out, c.channels, 3, subsample=2, bins=bins, bin_kernel=3, bin_stride=2, name="conv_1")
    return (
        Affine(c.d_in, name="input"),
        first,
        Activation(first.d_out, "relu", name="relu_0"),
        second,
        Activation(second.d_out, "relu", name="relu_1"),
        Dense(second.d_out, c.width, name="project"),
        Dropout(c.width, c.dropout, name="drop"),
    )


def conformer_encoder(config: ConformerConfig) -> Serial:
    """The encoder of a Conformer transducer: an output frame every four input frames.

    Args:
      config: sizes.

    Returns:
      The encoder; its blocks are one scan (`combine.STACKED`).

    Example:
      >>> encoder = conformer_encoder(ConformerConfig(d_in=8, width=8, layers=2, heads=2, kernel=3, chunk=1, left=6))
      >>> encoder.d_out, encoder.stride, encoder.latency
      (8, 4, 3)
    """
    return serial(*front(config), repeat(conformer_block(config), config.layers, name="blocks"))
