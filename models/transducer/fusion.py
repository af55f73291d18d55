"""Fusion of several signals of one utterance in front of an encoder: a beam, and microphones that it was made of.

Redundancy in multiple audio signals, arXiv 2303.00692: the acoustic front end's signal and those of microphones go into
a small network, trained end to end with the transducer behind it. Where the beam is steered wrongly, the microphones
still have what it lost. The paper names a frequency LSTM and a CNN; its sizes are not public. Ours are all sizes, and:

- A signal that is missing, at run time or by channel dropout in training, is stood in for by the mean of those that are
  there, so that weights never see a hole. If all are missing, the frame is 0.
- Features are normalised here, all signals of a bin alike, since a mean and a hole ask for it. What comes out is
  normalised, too.
- Networks correct the first signal, y = x_0 + gain * f(x), from a gain of 0 on (arXiv 2003.04887): a pretrained encoder
  begins with the front end alone, as it knows it.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from models.language.config import check_sizes
from models.layers import Linear
from models.transducer.convolution import Conv
from models.transducer.layers import Activation, Dense, check_rate
from models.transducer.lstm import Lstm
from models.transducer.streaming import Frames, Layer, Mask, Output, OutputMask, Serial, State, serial
from zojax import ops

__all__ = ["MAX_SIGNALS", "Average", "Correction", "FrequencyLstm", "FusionConfig", "Signals", "fusion", "join_signals"]

MAX_SIGNALS = 8


def join_signals(
    x: Float[Array, "b t bins signals"], present: Bool[Array, "b signals"] | Bool[Array, "b t signals"]
) -> Float[Array, "b t d"]:
    """Frames of several signals as frames of one layer: all features, then a flag for each signal that is there.

    So a stream carries what is missing, which may change at any frame, and layers and buffers are those of one signal.

    Args:
      x: features; signal 0 is the front end's.
      present: True where a signal is there, for all frames or each one.

    Returns:
      Frames of width (bins + 1) * signals.

    Example:
      >>> x = jnp.arange(4.0).reshape(1, 1, 2, 2)
      >>> join_signals(x, jnp.array([[True, False]])).tolist()
      [[[0.0, 1.0, 2.0, 3.0, 1.0, 0.0]]]
    """
    batch, frames, _, signals = x.shape
    flags = jnp.broadcast_to(present.reshape(batch, -1, signals), (batch, frames, signals))
    return jnp.concatenate([x.reshape(batch, frames, -1), flags.astype(x.dtype)], axis=-1)


class Signals(Layer):
    """What all ways of fusion begin with: normalises, drops signals in training, and fills up those that are missing.

    Gain and bias of each bin start from the statistics of the training data, see `Affine`.

    A signal is dropped for a whole utterance, wherever the caller gives a "dropout" key; if that would drop all of
    them, all stay. Frames come out as [bins, signals], as a convolution takes them.

    Args:
      d_in: (bins + 1) * signals, see `join_signals`.
      signals: how many.
      dropout: share of the signals that is dropped.

    Raises:
      ValueError: if the number of signals is not 1 to 8 or does not divide the width, or the rate is out of range.

    Example:
      >>> layer, mask = Signals(9, 3), jnp.ones((1, 1), bool)
      >>> x = join_signals(jnp.array([[[[1.0, 3.0, 7.0], [0.0, 2.0, 7.0]]]]), jnp.array([[True, True, False]]))
      >>> layer.init_with_output(jax.random.key(0), x, mask)[0][0].tolist()
      [[[1.0, 3.0, 2.0, 0.0, 2.0, 1.0]]]
    """

    signals: int
    dropout: float = 0.0

    def __post_init__(self):
        if not 1 <= self.signals <= MAX_SIGNALS or self.d_in % self.signals:
            need = f"it must be 1 to {MAX_SIGNALS} and divide d_in = {self.d_in}"
            raise ValueError(f"Signals.signals is {self.signals}; {need}")
        check_rate(self, "dropout")
        super().__post_init__()

    @property
    def d_out(self) -> int:
        return self.d_in - self.signals

    def setup(self):
        bins = self.d_out // self.signals
        self.scale = self.param("scale", nn.initializers.ones, (bins,))
        self.bias = self.param("bias", nn.initializers.zeros, (bins,))

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        shape = (*x.shape[:2], -1, self.signals)
        # [b, t, signals, bins]
        features, present = jnp.swapaxes(x[..., : self.d_out].reshape(shape), 2, 3), x[..., self.d_out :, None] > 0.5
        present = self._drop(present)
        # Twice: what a missing signal holds may not be a number, and 0 is the mean of normalised features alone.
        features = jnp.where(present, features, 0) * ops.value(self.scale) + ops.value(self.bias)
        features = jnp.where(present, features, 0)
        count = jnp.sum(present, axis=2, keepdims=True)
        mean = jnp.sum(features, axis=2, keepdims=True) / jnp.maximum(count, 1)
        filled = jnp.where(present, features, mean)
        return jnp.swapaxes(filled, 2, 3).reshape(*x.shape[:2], self.d_out), mask

    def _drop(self, present: Bool[Array, "b t signals 1"]) -> Bool[Array, "b t signals 1"]:
        if not self.dropout or not self.has_rng("dropout"):
            return present
        shape = (present.shape[0], 1, self.signals, 1)
        kept = present & jax.random.bernoulli(self.make_rng("dropout"), 1 - self.dropout, shape)
        return jnp.where(kept.any(axis=2, keepdims=True), kept, present)


class Average(Layer):
    """The mean of the signals, a baseline.

    Args:
      d_in: bins * signals, as `Signals` gives them.
      signals: how many.

    Example:
      >>> Average(4, 2).apply({}, jnp.array([[[1.0, 3.0, 5.0, 9.0]]]), jnp.ones((1, 1), bool))[0].tolist()
      [[[2.0, 7.0]]]
    """

    signals: int

    @property
    def d_out(self) -> int:
        return self.d_in // self.signals

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        return x.reshape(*x.shape[:2], -1, self.signals).mean(axis=-1), mask


class FrequencyLstm(Layer):
    """An LSTM that runs over the bins of a frame, from low to high (for one signal: Li et al., ASRU 2015).

        r_k = LSTM(x[hop k : hop k + window], all signals; r_{k-1}),    y = W [r_0; r_1; ...] + b

    Bins that the windows do not fill are 0. It has no memory from frame to frame.

    Args:
      d_in: bins * signals, as `Signals` gives them.
      signals: how many.
      window: bins of a window.
      hop: bins from window to window.
      hidden: cells.

    Raises:
      ValueError: if the window is wider than the bins, or the hop would leave some out.

    Example:
      >>> layer, x, mask = FrequencyLstm(240, 3, 24, 8, 32), jnp.ones((1, 2, 240)), jnp.ones((1, 2), bool)
      >>> layer.windows, layer.init_with_output(jax.random.key(0), x, mask)[0][0].shape
      (8, (1, 2, 80))
    """

    signals: int
    window: int
    hop: int
    hidden: int

    def __post_init__(self):
        if not 1 <= self.hop <= self.window <= self.d_out:
            sizes = f"hop {self.hop} and window {self.window}"
            raise ValueError(f"FrequencyLstm has {sizes}; 1 <= hop <= window <= {self.d_out} bins is needed")
        super().__post_init__()

    @property
    def d_out(self) -> int:
        return self.d_in // self.signals

    @property
    def windows(self) -> int:
        """Windows over the bins of a frame."""
        return -(-(self.d_out - self.window) // self.hop) + 1

    def setup(self):
        self.lstm = Lstm(self.window * self.signals, self.hidden)
        self.project = Linear(self.d_out, (self.windows * self.hidden) ** -0.5)

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        batch, frames, _ = x.shape
        beyond = (self.windows - 1) * self.hop + self.window - self.d_out
        x = jnp.pad(x.reshape(batch * frames, self.d_out, self.signals), ((0, 0), (0, beyond), (0, 0)))
        index = self.hop * jnp.arange(self.windows)[:, None] + jnp.arange(self.window)
        x = x[:, index].reshape(batch * frames, self.windows, -1)
        y, _ = self.lstm(x, jnp.ones(x.shape[:2], bool))
        return self.project(y.reshape(batch, frames, -1)), mask


class Correction(Layer):
    """The first signal, corrected by a layer that sees all: y = x_0 + gain * inner(x), the gain 0 at first.

    Args:
      d_in: bins * signals, as `Signals` gives them.
      inner: a layer from that to bins, of stride 1 and without delay.

    Raises:
      ValueError: if the inner layer does not fit.

    Example:
      >>> layer, x, mask = Correction(4, Dense(4, 2)), jnp.array([[[1.0, 3.0, 5.0, 9.0]]]), jnp.ones((1, 1), bool)
      >>> layer.init_with_output(jax.random.key(0), x, mask)[0][0].tolist()
      [[[1.0, 5.0]]]
    """

    inner: Layer

    def __post_init__(self):
        if self.inner.stride != 1 or self.inner.delay or self.d_in % self.inner.d_out:
            what = f"{self.inner.d_in} -> {self.inner.d_out}, stride {self.inner.stride}, delay {self.inner.delay}"
            raise ValueError(f"Correction.inner is {what}; {self.d_in} -> bins, stride 1 and delay 0 is needed")
        super().__post_init__()

    @property
    def d_out(self) -> int:
        return self.inner.d_out

    @nn.nowrap
    def reach(self, frame: int) -> int:
        return self.inner.reach(frame)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return self.inner.initial_state(batch)

    def setup(self):
        self.gain = self.param("gain", nn.initializers.zeros, (self.d_out,))

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        return self._add(x, self.inner(x, mask)[0]), mask

    def step(self, x: Frames, mask: Mask, state: State) -> tuple[Output, OutputMask, State]:
        y, mask, state = self.inner.step(x, mask, state)
        return self._add(x, y), mask, state

    def _add(self, x: Frames, y: Output) -> Output:
        return x[..., :: self.d_in // self.d_out] + ops.value(self.gain) * y


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """A way of fusion and its sizes.

    Attributes:
      kind: "flstm", a frequency LSTM; "cnn", causal 3x3 convolutions over time and bins, the signals as planes;
        "concatenation", one linear map of all signals; or "average".
      bins: of a frame of one signal.
      signals: 1 to 8; the first is the front end's.
      dropout: share of the signals that is dropped in training.
      window: bins of a window of the LSTM.
      hop: bins from window to window.
      hidden: cells of the LSTM.
      convolutions: of the CNN, with the last, which has one plane.
      planes: of the others.

    Raises:
      ValueError: if the kind is none of these, or a size does not fit.

    Example:
      >>> fusion(FusionConfig(kind="cnn", bins=64, signals=3)).d_out
      64
    """

    kind: str
    bins: int = 80
    signals: int = 3
    dropout: float = 0.0
    window: int = 24
    hop: int = 8
    hidden: int = 32
    convolutions: int = 3
    planes: int = 16

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"FusionConfig.kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        check_sizes(self)
        check_rate(self, "dropout")


def _cnn(c: FusionConfig) -> Layer:
    layers: list[Layer] = []
    width = c.bins * c.signals
    for number in range(c.convolutions):
        last = number == c.convolutions - 1
        conv = Conv(width, 1 if last else c.planes, 3, bins=c.bins, bin_kernel=3, name=f"conv_{number}")
        width = conv.d_out
        layers += [conv] if last else [conv, Activation(width, "relu", name=f"relu_{number}")]
    return Correction(c.bins * c.signals, serial(*layers, name="cnn"), name="correction")


def _lstm(c: FusionConfig) -> Layer:
    width = c.bins * c.signals
    inner = FrequencyLstm(width, c.signals, c.window, c.hop, c.hidden, name="frequency_lstm")
    return Correction(width, inner, name="correction")


def _concatenation(c: FusionConfig) -> Layer:
    width = c.bins * c.signals
    return Correction(width, Dense(width, c.bins, name="linear"), name="correction")


KINDS: dict[str, Callable[[FusionConfig], Layer]] = {
    "average": lambda c: Average(c.bins * c.signals, c.signals, name="average"),
    "concatenation": _concatenation,
    "flstm": _lstm,
    "cnn": _cnn,
}


def fusion(config: FusionConfig, *, name: str | None = None) -> Serial:
    """What fuses several signals to one, to stand before an encoder.

    Its weights are small beside any encoder's, under 2 % of 8 million for eight signals. It holds no frame back.

    Args:
      config: kind and sizes.
      name: name in the layer around it.

    Returns:
      The layer, from the frames of `join_signals` to normalised features of one signal.

    Example:
      >>> from models.transducer.lstm import LstmConfig, lstm_encoder
      >>> encoder = serial(fusion(FusionConfig(kind="flstm", bins=64)), lstm_encoder(LstmConfig(d_in=64)))
      >>> encoder.d_in, encoder.block
      (195, 3)
    """
    signals = Signals((config.bins + 1) * config.signals, config.signals, config.dropout, name="signals")
    return serial(signals, KINDS[config.kind](config), name=name)
