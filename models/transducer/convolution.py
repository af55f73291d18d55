"""Convolutions over time, causal or with a stated look-ahead, and squeeze-and-excitation by a running mean."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models.layers import Linear
from models.transducer.streaming import Frames, Layer, Mask, Output, OutputMask, State, silence
from zojax import ops

__all__ = ["Conv", "Depthwise", "SqueezeExcite", "depthwise"]


class _TimeConv(Layer):
    """What convolutions over time share: the frames that they need and the state that keeps them.

    Output frame j sees the `span` input frames that end with stride * (j + 1) - 1 + right.
    """

    features: int
    kernel: int
    dilation: int = 1
    subsample: int = 1
    right: int = 0

    def __post_init__(self):
        what = type(self).__name__
        for name in ("d_in", "features", "kernel", "dilation", "subsample"):
            if getattr(self, name) < 1:
                raise ValueError(f"{what}.{name} is {getattr(self, name)}; it must be positive")
        if self.span < self.subsample:
            raise ValueError(f"{what}.subsample is {self.subsample}; a kernel that spans {self.span} frames skips some")
        if not 0 <= self.right < self.span or (self.right and self.subsample > 1):
            raise ValueError(f"{what}.right is {self.right}; it must be 0 to {self.span - 1}, and 0 with subsample > 1")
        super().__post_init__()

    @property
    def span(self) -> int:
        """Input frames from the first tap to the last."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def stride(self) -> int:
        return self.subsample

    @property
    def delay(self) -> int:
        return self.right

    @nn.nowrap
    def reach(self, frame: int) -> int:
        return self.subsample * (frame + 1) - 1 + self.right

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return {
            "frames": jnp.zeros((batch, self.span - self.subsample, self.d_in)),
            "mask": jnp.zeros((batch, self.right), bool),
        }

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        whole = x.shape[1] // self.subsample * self.subsample
        x = silence(x, mask)[:, :whole]
        x = jnp.pad(x, ((0, 0), (self.span - self.subsample - self.right, self.right), (0, 0)))
        return self.convolve(x), mask[:, self.subsample - 1 :: self.subsample]

    def step(self, x: Frames, mask: Mask, state: State) -> tuple[Output, OutputMask, State]:
        x = jnp.concatenate([state["frames"], silence(x, mask)], axis=1)
        late = jnp.concatenate([state["mask"], mask], axis=1)
        count = mask.shape[1]
        new = {"frames": x[:, count:], "mask": late[:, count:]}
        return self.convolve(x), late[:, self.subsample - 1 : count : self.subsample], new

    def convolve(self, x: Frames) -> Output:
        """The convolution of frames that hold all that is needed: span - 1 more than come out."""
        raise NotImplementedError


class Conv(_TimeConv):
    """A convolution over time, or over time and bins, with a bias.

    Each frame is [bins, channels], joined to one axis. Bins are padded evenly ("SAME"); time is causal, or looks
    `right` frames ahead. With subsample 2, frame j of the output is the one that frames 2j and 2j + 1 complete.

    Args:
      d_in: width of the input, bins * channels.
      features: channels of the output.
      kernel: taps over time.
      dilation: frames between the taps.
      subsample: input frames to an output frame.
      right: frames of look-ahead; the step holds back as many.
      bins: bins of the input.
      bin_kernel: taps over bins.
      bin_stride: input bins to an output bin.

    Raises:
      ValueError: if a size is not positive or does not fit.

    Example:
      >>> layer = Conv(80, 16, 3, subsample=2, bins=80, bin_kernel=3, bin_stride=2)
      >>> layer.d_out, layer.stride, layer.latency
      (640, 2, 1)
    """

    bins: int = 1
    bin_kernel: int = 1
    bin_stride: int = 1

    def __post_init__(self):
        for name in ("bins", "bin_kernel", "bin_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"Conv.{name} is {getattr(self, name)}; it must be positive")
        if self.d_in % self.bins:
            raise ValueError(f"Conv.bins is {self.bins}; it must divide d_in = {self.d_in}")
        super().__post_init__()

    @property
    def d_out(self) -> int:
        return -(-self.bins // self.bin_stride) * self.features

    def setup(self):
        channels = self.d_in // self.bins
        window = (self.kernel,) if self.bins == 1 else (self.kernel, self.bin_kernel)
        fan_in = channels * self.kernel * self.bin_kernel
        init = nn.initializers.normal((2 / fan_in) ** 0.5)  # He et al., for the ReLU behind
        self.weight = self.param("kernel", init, (*window, channels, self.features))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def convolve(self, x: Frames) -> Output:
        if self.bins == 1:
            y = ops.conv(x, self.weight, strides=self.subsample, dilation=self.dilation)
        else:
            wide = (self.d_out // self.features - 1) * self.bin_stride + self.bin_kernel
            total = max(wide - self.bins, 0)
            y = ops.conv(
                x.reshape(*x.shape[:2], self.bins, -1),
                self.weight,
                strides=(self.subsample, self.bin_stride),
                padding=((0, 0), (total // 2, total - total // 2)),
                dilation=(self.dilation, 1),
            )
        return (y + ops.value(self.bias)).reshape(*y.shape[:2], self.d_out)


class Depthwise(_TimeConv):
    """A convolution over time of each feature on its own, with a bias.

    Args:
      d_in: width of the input.
      features: the same width.
      kernel: taps.
      dilation: frames between the taps.
      subsample: 1.
      right: frames of look-ahead; the step holds back as many.

    Raises:
      ValueError: if a size is not positive or does not fit.

    Example:
      >>> layer = Depthwise(8, 8, 5, right=2)
      >>> layer.delay, layer.latency
      (2, 2)
    """

    def __post_init__(self):
        if self.features != self.d_in or self.subsample != 1:
            what = f"features {self.features} of d_in {self.d_in} and subsample {self.subsample}"
            raise ValueError(f"Depthwise has {what}; it must keep the width, and every frame")
        super().__post_init__()

    def setup(self):
        init = nn.initializers.normal(self.kernel**-0.5)
        self.weight = self.param("kernel", init, (self.kernel, self.d_in))
        self.bias = self.param("bias", nn.initializers.zeros, (self.d_in,))

    def convolve(self, x: Frames) -> Output:
        return jnp.asarray(depthwise(x, ops.value(self.weight), self.dilation)) + ops.value(self.bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: Float[Array, "b s d"], weight: Float[Array, "taps d"], dilation: int) -> Float[Array, "b t d"]:
    """A convolution over time of each feature on its own, t = s - (taps - 1) * dilation.

        y_t = sum_k w_k * x_(t + k dilation)

    A sum of shifted products, and so is its gradient: on a CPU that is many times faster than a grouped convolution,
    and than what autodiff makes of the sum, where each tap pads a gradient of its own.

    Args:
      x: frames.
      weight: of the taps, the earliest first.
      dilation: frames between the taps.

    Returns:
      The frames that have all that they need.

    Example:
      >>> depthwise(jnp.arange(4.0)[None, :, None], jnp.array([[1.0], [10.0]]), 1).ravel().tolist()
      [10.0, 21.0, 32.0]
    """
    count = x.shape[1] - (len(weight) - 1) * dilation
    y = jnp.zeros((), x.dtype)
    for moved, tap in zip(_shifts(x, len(weight), dilation, count), weight, strict=True):
        y = y + moved * tap
    return y


def _shifts(x: Array, taps: int, dilation: int, count: int) -> list[Array]:
    return [x[:, tap * dilation :][:, :count] for tap in range(taps)]


def _depthwise_forward(x: Array, weight: Array, dilation: int) -> tuple[Array, tuple[Array, Array]]:
    return depthwise(x, weight, dilation), (x, weight)


def _depthwise_backward(dilation: int, kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, weight = kept
    span = (len(weight) - 1) * dilation
    dx = depthwise(jnp.pad(dy, ((0, 0), (span, span), (0, 0))), weight[::-1], dilation)
    # A product with ones: XLA's sums over leading axes are several times slower on a CPU.
    ones = jnp.ones((1, dy.shape[0] * dy.shape[1]), dy.dtype)
    shifts = _shifts(x, len(weight), dilation, dy.shape[1])
    return jnp.asarray(dx), jnp.concatenate([ones @ (moved * dy).reshape(-1, dy.shape[2]) for moved in shifts])


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class SqueezeExcite(Layer):
    """Squeeze-and-excitation (arXiv 1709.01507) that is causal: the squeeze is the mean of the frames so far.

        y_t = x_t * sigmoid(W2 relu(W1 m_t)),    m_t = (x_0 + .. + x_t) / (t + 1)

    The mean over the whole utterance would let every frame see the last one. (The running mean is ours.)

    Args:
      d_in: width.
      ratio: d_in over the width of the bottleneck.

    Raises:
      ValueError: if the ratio leaves no bottleneck.

    Example:
      >>> layer, x, mask = SqueezeExcite(16, 8), jnp.ones((1, 3, 16)), jnp.ones((1, 3), bool)
      >>> layer.init_with_output(jax.random.key(0), x, mask)[0][0].shape
      (1, 3, 16)
    """

    ratio: int

    def __post_init__(self):
        if not 1 <= self.ratio <= self.d_in:
            raise ValueError(f"SqueezeExcite.ratio is {self.ratio}; it must be 1 to d_in = {self.d_in}")
        super().__post_init__()

    def setup(self):
        narrow = self.d_in // self.ratio
        self.down = Linear(narrow, self.d_in**-0.5)
        self.up = Linear(self.d_in, narrow**-0.5)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return {"sum": jnp.zeros((batch, self.d_in)), "count": jnp.zeros((batch,))}

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        return self.step(x, mask, self.initial_state(x.shape[0]))[:2]

    def step(self, x: Frames, mask: Mask, state: State) -> tuple[Output, OutputMask, State]:
        total = state["sum"][:, None] + jnp.cumsum(silence(x, mask), axis=1)
        count = state["count"][:, None] + jnp.cumsum(mask, axis=1, dtype=jnp.float32)
        gate = self._gate(total / jnp.maximum(count, 1)[..., None])
        return x * gate, mask, {"sum": total[:, -1], "count": count[:, -1]}

    def _gate(self, mean: Array) -> Array:
        return jax.nn.sigmoid(self.up(jax.nn.relu(self.down(mean))))
