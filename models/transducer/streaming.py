"""How layers stream: the protocol, layers in series, and the buffer that meets chunks of any size.

A layer maps frames [b, t, d_in] and their mask to frames [b, t / stride, d_out] and theirs. It does so for whole
sequences by a call, and for streams by `step`, and the two agree: the valid frames that the steps and the flush emit
are the valid frames of the call, whatever the chunks.

The mask of a row is True from its first frame to its last and False behind; no frame that is False changes a frame
that is True. In a stream the mask may also begin with False, where a layer upstream holds its first frames back: a
layer's state does not move on such frames.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

__all__ = ["HostBuffer", "Layer", "Serial", "serial", "silence"]

State = Any
Frames = Float[Array, "b t d"]
Mask = Bool[Array, "b t"]
Output = Float[Array, "b t2 d2"]
OutputMask = Bool[Array, "b t2"]


def silence(x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Float[Array, "b t d"]:
    """The frames, 0 where the mask is False: what a layer that mixes frames begins with.

    Args:
      x: frames.
      mask: True where there is a frame.

    Returns:
      Frames.

    Example:
      >>> silence(jnp.ones((1, 2, 1)), jnp.array([[True, False]]))[0, :, 0].tolist()
      [1.0, 0.0]
    """
    return jnp.where(mask[..., None], x, 0)


class Layer(nn.Module):
    """A layer that can stream. This class is one without memory: its step is its call.

    Shapes and delays are known without parameters, so that they can be asked of a module that is bound to none.
    States are trees of arrays whose first axis is the batch: rows can be replaced, saved and restored on their own.

    Args:
      d_in: width of the input.

    Example:
      >>> layer = Layer(3)
      >>> layer.d_out, layer.block, layer.stride, layer.delay, layer.latency
      (3, 1, 1, 0, 0)
    """

    d_in: int

    preserve_adopted_names = True  # a layer inside another keeps the name that it was given

    @property
    def d_out(self) -> int:
        """Width of the output."""
        return self.d_in

    @property
    def stride(self) -> int:
        """Input frames to an output frame."""
        return 1

    @property
    def block(self) -> int:
        """The input frames of a step are a multiple of this."""
        return self.stride

    @property
    def delay(self) -> int:
        """Output frames by which a step's output lags behind the call's; the flush emits them."""
        return 0

    @nn.nowrap
    def reach(self, frame: int) -> int:
        """The last input frame that output frame `frame` depends on."""
        return self.stride * (frame + 1) - 1

    @property
    def latency(self) -> int:
        """The most input frames past its own, stride * j, that an output frame j waits for."""
        return max(self.reach(j) - self.stride * j for j in range(max(self.block // self.stride, 1)))

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        """The state before the first step."""
        return jnp.zeros((batch, 0))

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        """Maps whole sequences."""
        raise NotImplementedError

    def step(self, x: Frames, mask: Mask, state: State) -> tuple[Output, OutputMask, State]:
        """Maps the next frames of a stream, a multiple of `block`."""
        return (*self(x, mask), state)

    def flush(self, state: State) -> tuple[Output, OutputMask]:
        """The frames that are still inside at the end of a stream; none where nothing is held back."""
        count = -(-self.delay * self.stride // self.block) * self.block
        batch = jax.tree.leaves(state)[0].shape[0]
        if not count:
            return jnp.zeros((batch, 0, self.d_out)), jnp.zeros((batch, 0), bool)
        return self.step(jnp.zeros((batch, count, self.d_in)), jnp.zeros((batch, count), bool), state)[:2]


class Serial(Layer):
    """Layers one after another; made by `serial`.

    Args:
      d_in: width of the input.
      layers: the layers.
    """

    layers: tuple[Layer, ...]

    @property
    def d_out(self) -> int:
        return self.layers[-1].d_out

    @property
    def stride(self) -> int:
        return math.prod(layer.stride for layer in self.layers)

    @property
    def block(self) -> int:
        block = stride = 1
        for layer in self.layers:
            block = math.lcm(block, stride * layer.block)
            stride *= layer.stride
        return block

    @property
    def delay(self) -> int:
        delay = 0
        for layer in self.layers:
            delay = delay // layer.stride + layer.delay
        return delay

    @nn.nowrap
    def reach(self, frame: int) -> int:
        for layer in reversed(self.layers):
            frame = layer.reach(frame)
        return frame

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return tuple(layer.initial_state(batch) for layer in self.layers)

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        for layer in self.layers:
            x, mask = layer(x, mask)
        return x, mask

    def step(self, x: Frames, mask: Mask, state: State) -> tuple[Output, OutputMask, State]:
        new = []
        for layer, old in zip(self.layers, state, strict=True):
            x, mask, kept = layer.step(x, mask, old)
            new.append(kept)
        return x, mask, tuple(new)


def serial(*layers: Layer, name: str | None = None) -> Serial:
    """Layers one after another.

    Args:
      *layers: one or more.
      name: name in the layer around it.

    Returns:
      The layer.

    Raises:
      ValueError: if two neighbours do not fit: in width, or because a delay would move the frames of a block.

    Example:
      >>> from models.transducer.layers import Dense, Stack
      >>> layer = serial(Stack(64, 3), Dense(192, 8))
      >>> layer.d_in, layer.d_out, layer.block, layer.latency
      (64, 8, 3, 2)
    """
    if not layers:
        raise ValueError("serial: no layers; one or more are needed")
    delay, width = 0, layers[0].d_in
    for place, layer in enumerate(layers):
        what = f"serial: layer {place} ({layer.name or type(layer).__name__})"
        if layer.d_in != width:
            raise ValueError(f"{what} takes frames of width {layer.d_in}; those before it give {width}")
        # A layer that holds frames back shifts them, and the blocks of those behind it must not move.
        if delay and delay % layer.block:
            raise ValueError(f"{what} works on blocks of {layer.block}; the delay before it is {delay}, no multiple")
        delay, width = delay // layer.stride + layer.delay, layer.d_out
    return Serial(layers[0].d_in, layers, name=name)


class HostBuffer:
    """Cuts the chunks of a stream, of any size, into pieces of one size, so that one compiled step serves them.

    The rows of a batch advance together; one that has ended is fed on with a mask of False. What waits in the buffer
    is plain numpy, `x` and `mask`; `HostBuffer(size, x, mask)` goes on from them.

    Args:
      size: frames in a piece: the layer's `block` or a multiple.
      x: the frames that wait, [b, n, d] with n < size; for a new stream [b, 0, d].
      mask: their mask; None: all True.

    Raises:
      ValueError: if the size is not positive, or more than size - 1 frames wait.

    Example:
      >>> buffer = HostBuffer(4, np.zeros((1, 0, 2), np.float32))
      >>> [piece.shape for piece, _ in buffer.push(np.ones((1, 9, 2), np.float32))]
      [(1, 4, 2), (1, 4, 2)]
      >>> [mask.tolist() for _, mask in buffer.finish()]
      [[[True, False, False, False]]]
    """

    def __init__(self, size: int, x: np.ndarray, mask: np.ndarray | None = None):
        if size < 1:
            raise ValueError(f"HostBuffer.size is {size}; it must be positive")
        if x.shape[1] >= size:
            raise ValueError(f"HostBuffer.x holds {x.shape[1]} frames; fewer than size = {size} can wait")
        self.size = size
        self.x = np.asarray(x)
        self.mask = np.ones(x.shape[:2], bool) if mask is None else np.asarray(mask, bool)

    def push(self, x: np.ndarray, mask: np.ndarray | None = None) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """Takes the next frames and returns the pieces that are full.

        Args:
          x: [b, n, d], n any number.
          mask: [b, n]; None: all True.

        Returns:
          Pairs ([b, size, d], [b, size]).

        Raises:
          ValueError: if the rows or the width are not the stream's.
        """
        if x.ndim != 3 or (x.shape[0], x.shape[2]) != (self.x.shape[0], self.x.shape[2]):
            raise ValueError(f"x has shape {x.shape}; it must be [{self.x.shape[0]}, frames, {self.x.shape[2]}]")
        self.x = np.concatenate([self.x, np.asarray(x, self.x.dtype)], axis=1)
        more = np.ones(x.shape[:2], bool) if mask is None else np.asarray(mask, bool)
        self.mask = np.concatenate([self.mask, more], axis=1)
        return list(self._pieces())

    def finish(self) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """The frames that wait, filled up with masked zeros to one piece; none if none wait."""
        if not self.x.shape[1]:
            return []
        fill = self.size - self.x.shape[1]
        none = np.zeros((self.x.shape[0], fill), bool)
        return self.push(np.zeros((*none.shape, self.x.shape[2]), self.x.dtype), none)

    def _pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while self.x.shape[1] >= self.size:
            yield self.x[:, : self.size], self.mask[:, : self.size]
            self.x, self.mask = self.x[:, self.size :], self.mask[:, self.size :]
