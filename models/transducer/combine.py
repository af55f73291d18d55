"""Layers beside and around layers: residuals, branches, and many equal ones under one scan."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.transducer.streaming import Frames, Layer, Mask, Output, OutputMask, State

__all__ = ["STACKED", "Parallel", "Repeat", "Residual", "parallel", "repeat", "residual"]

STACKED = (r"(^|/)stacked/",)
"""Regular expressions of the leaves that `Repeat` scans over; for `PerturbSpec.stacked` where a model has any."""


class Residual(Layer):
    """y = x + scale * inner(x); made by `residual`.

    Args:
      d_in: width of the input and of the output.
      inner: the layer inside. Where it holds frames back, the step holds x back as well.
      scale: factor of the inner layer's output.
    """

    inner: Layer
    scale: float

    @property
    def block(self) -> int:
        return self.inner.block

    @property
    def delay(self) -> int:
        return self.inner.delay

    @nn.nowrap
    def reach(self, frame: int) -> int:
        return self.inner.reach(frame)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return {"inner": self.inner.initial_state(batch), "held": jnp.zeros((batch, self.delay, self.d_in))}

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        y, mask = self.inner(x, mask)
        return x + self.scale * y, mask

    def step(self, x: Frames, mask: Mask, state: State) -> tuple[Output, OutputMask, State]:
        y, mask, inner = self.inner.step(x, mask, state["inner"])
        x = jnp.concatenate([state["held"], x], axis=1)
        count = y.shape[1]
        return x[:, :count] + self.scale * y, mask, {"inner": inner, "held": x[:, count:]}


def residual(inner: Layer, *, scale: float = 1.0, name: str | None = None) -> Residual:
    """A layer added to its input: y = x + scale * inner(x).

    Args:
      inner: the layer.
      scale: factor of its output; a macaron feed-forward layer has 1/2.
      name: name in the layer around it.

    Returns:
      The layer.

    Raises:
      ValueError: if the layer changes the width or the rate of frames.

    Example:
      >>> from models.transducer.layers import Dense
      >>> residual(Dense(4, 4)).d_out
      4
    """
    if inner.d_out != inner.d_in or inner.stride != 1:
        what = f"{inner.d_in} -> {inner.d_out} at stride {inner.stride}"
        raise ValueError(f"residual: {inner.name or type(inner).__name__} maps {what}; it must keep width and rate")
    return Residual(inner.d_in, inner, scale, name=name)


class Parallel(Layer):
    """The outputs of several layers on one input, joined along the width; made by `parallel`.

    Args:
      d_in: width of the input.
      branches: the layers.
    """

    branches: tuple[Layer, ...]

    @property
    def d_out(self) -> int:
        return sum(branch.d_out for branch in self.branches)

    @property
    def stride(self) -> int:
        return self.branches[0].stride

    @nn.nowrap
    def reach(self, frame: int) -> int:
        return max(branch.reach(frame) for branch in self.branches)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return tuple(branch.initial_state(batch) for branch in self.branches)

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        found = [branch(x, mask) for branch in self.branches]
        return jnp.concatenate([y for y, _ in found], axis=-1), found[0][1]

    def step(self, x: Frames, mask: Mask, state: State) -> tuple[Output, OutputMask, State]:
        found = [branch.step(x, mask, old) for branch, old in zip(self.branches, state, strict=True)]
        return jnp.concatenate([y for y, _, _ in found], axis=-1), found[0][1], tuple(new for _, _, new in found)


def parallel(*branches: Layer, name: str | None = None) -> Parallel:
    """Layers on one input, their outputs joined along the width.

    Args:
      *branches: two or more, without delay and of one stride and block.
      name: name in the layer around it.

    Returns:
      The layer.

    Raises:
      ValueError: if the branches do not fit each other.

    Example:
      >>> from models.transducer.layers import Dense
      >>> parallel(Dense(4, 3), Dense(4, 5)).d_out
      8
    """
    kinds = {(b.d_in, b.stride, b.block, b.delay) for b in branches}
    if len(kinds) != 1 or branches[0].block != branches[0].stride or branches[0].delay:
        raise ValueError(
            f"parallel: branches of (width, stride, block, delay) {sorted(kinds)}; they must be equal, "
            "block = stride and delay = 0"
        )
    return Parallel(branches[0].d_in, branches, name=name)


class Repeat(Layer):
    """Equal layers one after another, each with weights of its own, compiled once; made by `repeat`.

    Parameters: "stacked", the layer's tree with a first axis over the repetitions (`STACKED`).

    Args:
      d_in: width of the input and of the output.
      stacked: the layer.
      count: repetitions.
    """

    stacked: Layer
    count: int

    @property
    def block(self) -> int:
        return self.stacked.block

    @property
    def delay(self) -> int:
        return self.count * self.stacked.delay

    @nn.nowrap
    def reach(self, frame: int) -> int:
        for _ in range(self.count):
            frame = self.stacked.reach(frame)
        return frame

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        # The batch stays the first axis, the repetitions are the second.
        one = self.stacked.initial_state(batch)
        return jax.tree.map(lambda x: jnp.repeat(x[:, None], self.count, axis=1), one)

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        return self._scan(lambda layer, carry, _: (layer(*carry), None))(self.stacked, (x, mask), None)[0]

    def step(self, x: Frames, mask: Mask, state: State) -> tuple[Output, OutputMask, State]:
        def body(layer, carry, old):
            x, mask, new = layer.step(*carry, old)
            return (x, mask), new

        (x, mask), state = self._scan(body)(self.stacked, (x, mask), state)
        return x, mask, state

    def _scan(self, body):
        return nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=1,
            out_axes=1,
            length=self.count,
        )


def repeat(layer: Layer, count: int, *, name: str | None = None) -> Repeat:
    """Equal layers one after another, under one scan.

    Args:
      layer: the layer.
      count: repetitions.
      name: name in the layer around it.

    Returns:
      The layer.

    Raises:
      ValueError: if there are none, or the layer changes width or rate, or its delay would move its own blocks.

    Example:
      >>> from models.transducer.layers import Dense
      >>> layer = repeat(Dense(4, 4), 3)
      >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 2, 4)), jnp.ones((1, 2), bool))
      >>> variables["params"]["stacked"]["linear"]["kernel"].shape
      (3, 4, 4)
    """
    what = f"repeat: {layer.name or type(layer).__name__}"
    if count < 1:
        raise ValueError(f"{what} {count} times; once or more is needed")
    if layer.d_out != layer.d_in or layer.stride != 1:
        raise ValueError(f"{what} maps {layer.d_in} -> {layer.d_out} at stride {layer.stride}; it must keep both")
    if count > 1 and layer.delay % layer.block:
        raise ValueError(f"{what} works on blocks of {layer.block}; its own delay is {layer.delay}, no multiple")
    return Repeat(layer.d_in, layer, count, name=name)
