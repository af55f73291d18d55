"""Causal convolutions in integers: over time, over time and frequency, with groups of channels."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zojax.accelerator import primitives, products
from zojax.accelerator.device import Accelerator
from zojax.accelerator.emulate import Mode, Value, quantise
from zojax.accelerator.linear import LinearPlan, weight_and_bias

__all__ = ["Convolution", "convolution", "convolution_layer"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution in one of the modes.

    Attributes:
      plan: formats and factor.
      kernel: [*window, c_in / groups, c_out], time first.
      bias: [c_out] in the scale of the product, the input's zero point folded in.
      strides: steps in each spatial axis, time first.
      padding: (before, after) in each spatial axis but time, which is causal.
      groups: groups of channels; c_in for a depthwise convolution.
      relu: whether negative outputs become 0.

    Example:
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> from zojax.accelerator.linear import linear_plan
      >>> f = symmetric_format(127.0)
      >>> convolution_layer(jnp.ones((3, 1, 2)), None, linear_plan(f, f, f), "integer").strides
      (1,)
    """

    plan: LinearPlan
    kernel: Value
    bias: Value
    strides: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
    padding: tuple[tuple[int, int], ...] = dataclasses.field(metadata=dict(static=True))
    groups: int = dataclasses.field(default=1, metadata=dict(static=True))
    relu: bool = dataclasses.field(default=False, metadata=dict(static=True))


def convolution_layer(
    kernel: Float[Array, "*window c_in c_out"],
    bias: Float[Array, "c_out"] | None,
    plan: LinearPlan,
    mode: Mode,
    *,
    strides: tuple[int, ...] | None = None,
    padding: tuple[tuple[int, int], ...] = (),
    groups: int = 1,
    relu: bool = False,
) -> Convolution:
    """A convolution from float weights; in the emulation mode gradients reach them.

    Args:
      kernel: float weights, time first.
      bias: float bias, or None.
      plan: formats and factor; scales of the weight are one, or one an output channel.
      mode: "float", "emulation" or "integer".
      strides: steps in each spatial axis; None: 1.
      padding: (before, after) in each spatial axis but time.
      groups: groups of channels.
      relu: whether negative outputs become 0.

    Returns:
      Convolution.

    Raises:
      ValueError: if strides or padding do not fit the kernel.

    Example:
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> from zojax.accelerator.linear import linear_plan
      >>> f = symmetric_format(127.0)
      >>> convolution_layer(jnp.ones((2, 1, 1)), None, linear_plan(f, f, f), "integer", strides=(3,))
      Traceback (most recent call last):
      ...
      ValueError: strides: (3,) for a window of (2,); one an axis, 1 to the window's length in time, is needed
    """
    window = kernel.shape[:-2]
    strides = (1,) * len(window) if strides is None else strides
    if len(strides) != len(window) or min(strides) < 1 or strides[0] > window[0]:
        raise ValueError(
            f"strides: {strides} for a window of {window}; one an axis, 1 to the window's length in time, is needed"
        )
    padding = padding or ((0, 0),) * (len(window) - 1)
    if len(padding) != len(window) - 1:
        raise ValueError(f"padding: {padding} for a window of {window}; one pair for each axis but time is needed")
    weight, folded = weight_and_bias(kernel, bias, plan, mode)
    return Convolution(
        plan=plan, kernel=weight, bias=folded, strides=strides, padding=padding, groups=groups, relu=relu
    )


def convolution(x: Value, p: Convolution, accelerator: Accelerator, state: Value | None = None) -> tuple[Value, Value]:
    """y = x * W + b, causal in time; requantised by the accelerator's `requantise` arithmetic and clamped.

    An output sees the frame of its own time and those before; before the first frame all are 0. With a stride s,
    outputs stand at the frames 0, s, 2 s, ...

    Args:
      x: [batch, time, *spatial, c_in] in the plan's input format.
      p: the layer, of the same mode.
      accelerator: whose arithmetic.
      state: the frames that an earlier call has left over; None: the start.

    Returns:
      (y [batch, frames, *out, c_out] in the plan's output format, state): chunks of any length, one frame and less than
      a stride too, give what the whole gives.

    Example:
      >>> from zojax.accelerator import TFLITE
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> from zojax.accelerator.linear import linear_plan
      >>> f = symmetric_format(127.0)
      >>> layer = convolution_layer(jnp.array([[[1.0]], [[10.0]]]), None, linear_plan(f, f, f), "integer")
      >>> convolution(jnp.int8([[[1], [2], [3]]]), layer, TFLITE)[0].tolist()
      [[[10], [21], [32]]]
    """
    window, codes = p.kernel.shape[:-2], primitives.parts(x)[0]
    if state is None:
        before = jnp.zeros((codes.shape[0], window[0] - 1, *codes.shape[2:]))
        state = quantise(before, p.plan.input, primitives.mode_of(x))
    frames = primitives.concatenate(state, x)
    count = codes.shape[1] + primitives.parts(state)[0].shape[1]
    outputs = max((count - window[0]) // p.strides[0] + 1, 0)
    left_over = primitives.rearrange(frames, lambda a: a[:, outputs * p.strides[0] :])
    if not outputs:
        # No output yet: a program of one output for frames of zeros tells its shape.
        need = [(0, 0), (window[0] - count, 0), *[(0, 0)] * (codes.ndim - 2)]
        frames = primitives.rearrange(frames, lambda a: jnp.pad(a, need))
    padded = _pad(frames, p)
    total = products.convolve(padded, p.kernel, p.bias, accelerator, strides=p.strides, groups=p.groups)
    y = primitives.requantise(total, p.plan.rescale, p.plan.output, accelerator.requantise)
    y = primitives.to_format(y, p.plan.output)
    y = primitives.relu(y, p.plan.output) if p.relu else y
    return primitives.rearrange(y, lambda a: a[:, :outputs]), left_over


def _pad(x: Value, p: Convolution) -> Value:
    """Zeros before and after in each spatial axis but time."""
    pads = [(0, 0), (0, 0), *p.padding, (0, 0)]
    if primitives.is_float(x):
        return jnp.pad(x, pads)
    zero = p.plan.input.zero
    codes, *values = primitives.parts(x)
    codes = jnp.pad(codes, pads, constant_values=jnp.asarray(zero).astype(codes.dtype))
    return primitives.join((codes, *(jnp.pad(v, pads) for v in values)), x)
