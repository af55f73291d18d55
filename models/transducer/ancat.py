"""ANCAT: a Conformer encoder of which every frame of every layer chooses how far to look ahead."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.language.config import check_sizes
from models.language.layers import MASKED
from models.layers import LayerNorm, Linear
from models.transducer.attention import Attention
from models.transducer.conformer import ConformerConfig, convolution, feed_forward, front
from models.transducer.convolution import Depthwise
from models.transducer.layers import NORM_EPS, Dropout, Norm, check_rate
from models.transducer.lookahead import openness
from models.transducer.streaming import Frames, Layer, Mask, Output, OutputMask, Serial, State, serial

__all__ = ["Ancat", "AncatConfig", "LookAhead", "ancat_encoder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AncatConfig:
    """The encoder of an adaptive non-causal attention transducer (arXiv 2305.04159).

    The paper's is the idea: each frame and layer decides from its input how far to look ahead, and training trades
    accuracy for latency. Its text is not followed beyond that; the layer (`LookAhead`), the terms of the loss
    (`lookahead`) and the streaming are ours. All convolutions are causal. The other fields are `ConformerConfig`'s.

    Attributes:
      d_in: bins of a frame.
      channels: of the two convolutions before the blocks.
      width: d of the blocks.
      layers: blocks.
      heads: of the attention.
      expansion: width of the feed-forward layers over d.
      kernel: taps of the depthwise convolution.
      left: frames before its own that a frame sees.
      reach: R, the most frames that a frame of a layer looks ahead.
      dropout: rate, in training alone.

    Raises:
      ValueError: if a size does not fit.

    Example:
      >>> config = AncatConfig(d_in=80, width=144, layers=16, heads=4, reach=4)
      >>> ancat_encoder(config).latency  # at most: 16 layers of 4 frames of 4, and a frame's own
      259
    """

    d_in: int = 80
    channels: int = 32
    width: int = 144
    layers: int = 16
    heads: int = 4
    expansion: int = 4
    kernel: int = 31
    left: int = 32
    reach: int = 8
    dropout: float = 0.0

    def __post_init__(self):
        check_sizes(self, may_be_zero=("left",))
        check_rate(self, "dropout")
        _ = self.conformer  # refuses what does not fit

    @property
    def conformer(self) -> ConformerConfig:
        """The causal Conformer that it is without look-ahead."""
        sizes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "reach"}
        return ConformerConfig(**sizes, chunk=1)


class LookAhead(nn.Module):
    """Self-attention whose frames choose their look-ahead, behind a norm and added to its input.

        r_i = R sigmoid(w . h_i + b),    frame i sees frames i - left .. i + floor(r_i),    h = norm(x)

    In training, `look` with a temperature, the output is the same, and its gradient is that of the attention whose
    weights are multiplied by the soft mask of `lookahead.openness` before they are normalised (a straight-through
    estimator: what the loss sees is what will run, and forwards alone can train it, too).

    In a stream a frame leaves as soon as the last frame that it sees has come, and those before it have left.

    floor(r) is a step: where r is a whole number but for rounding, a stream may round to the other side of it.

    Parameters: "norm", "attention" (`Attention`) and "span" {kernel [d, 1], bias [1]}. At the start all frames look
    R / 2 ahead.

    Args:
      d_in: d.
      heads: number of heads.
      left: frames before its own that a frame sees.
      reach: R.
      dropout: rate.
    """

    d_in: int
    heads: int
    left: int
    reach: int
    dropout: float

    preserve_adopted_names = True

    def setup(self):
        self.norm = LayerNorm(NORM_EPS)
        self.attention = Attention(self.d_in, self.heads, 1, self.left)
        self.span = Linear(1, 0.0)
        self.drop = Dropout(self.d_in, self.dropout)

    def look(self, x: Frames, mask: Mask, temperature: Any) -> tuple[Frames, Float[Array, "b t"]]:
        """Whole sequences.

        Args:
          x: frames.
          mask: True where there is a frame.
          temperature: of the gradient; None: the gradient of the spans is 0.

        Returns:
          (frames, spans r).
        """
        h = self.norm(x)
        spans = self._spans(h)
        place = jnp.arange(x.shape[1])
        ahead = place - place[:, None]
        near = mask[:, None] & (ahead >= -self.left)
        soft = None
        if temperature is not None:
            seen = near & (ahead <= self.reach)
            soft = jnp.where(seen, openness(spans[..., None], ahead, temperature), MASKED)
        hard = near & (ahead <= jnp.floor(spans)[..., None])
        y = self.attention.attend(h, *self.attention.keys_values(h), hard, soft)
        return x + self.drop(y, mask)[0], spans

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        """Nothing seen, nothing waiting."""
        kept, none = self.left + self.reach, jnp.zeros(batch, jnp.int32)
        of_head = jnp.zeros((batch, kept, self.heads, self.d_in // self.heads))
        held = {"x": jnp.zeros((batch, self.reach, self.d_in)), "ahead": jnp.zeros((batch, self.reach), jnp.int32)}
        return {"key": of_head, "value": of_head, "held": held, "seen": none, "gone": none}

    def step(
        self, x: Frames, mask: Mask, ended: Bool[Array, " b"], state: State
    ) -> tuple[Frames, Bool[Array, "b t"], State]:
        """The next frames of a stream.

        Args:
          x: frames, those that there are first.
          mask: True where there is one.
          ended: whether no more will come.
          state: of `initial_state` or the step before.

        Returns:
          (the frames that need not wait any longer, first; their mask; state). There are never more of them than room,
          if there is room for what can come out of the last layer at once: see `_Blocks.step`.
        """
        size, seen = x.shape[1], state["seen"] + jnp.sum(mask, axis=1, dtype=jnp.int32)
        h = self.norm(x)
        key, value = self.attention.keys_values(h)
        new = {"key": key, "value": value, "held": {"x": x, "ahead": jnp.floor(self._spans(h)).astype(jnp.int32)}}
        old = {name: state[name] for name in new}
        whole = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), old, new)

        # The number of each frame that is asked, and of each key; before the first and behind the last there are none.
        late = whole["held"]["x"]
        place = state["seen"][:, None] - self.reach + jnp.arange(late.shape[1])
        ends = place + whole["held"]["ahead"]
        keys = state["seen"][:, None] - self.left - self.reach + jnp.arange(whole["key"].shape[1])
        there = (keys >= 0) & (keys < seen[:, None])
        allowed = (keys[:, None] >= place[..., None] - self.left) & (keys[:, None] <= ends[..., None])
        y = late + self.attention.attend(self.norm(late), whole["key"], whole["value"], there[:, None] & allowed)

        waiting = (place >= state["gone"][:, None]) & (place < seen[:, None])
        held_up = waiting & (ends >= seen[:, None]) & ~ended[:, None]
        leaving = jnp.sum(waiting & (jnp.cumsum(held_up, axis=1) == 0), axis=1, dtype=jnp.int32)
        first = self.reach - (state["seen"] - state["gone"])
        count = seen - state["seen"]
        kept = {name: jax.tree.map(lambda v: _rows(v, count, v.shape[1] - size), whole[name]) for name in whole}
        y = _rows(y, first, size)
        return y, jnp.arange(size) < leaving[:, None], {**kept, "seen": seen, "gone": state["gone"] + leaving}

    def _spans(self, h: Frames) -> Float[Array, "b t"]:
        return self.reach * jax.nn.sigmoid(self.span(h)[..., 0])


def _rows(x: Array, start: Int[Array, " b"], size: int) -> Array:
    """Of each row of x [b, n, ...] so many from its own start on."""
    return jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, size))(x, start)


class _Packed(Depthwise):
    """A causal depthwise convolution whose step takes pieces with their frames first and nothing behind."""

    def step(self, x: Frames, mask: Mask, state: State) -> tuple[Output, OutputMask, State]:
        x = jnp.concatenate([state["frames"], x], axis=1)
        count = jnp.sum(mask, axis=1, dtype=jnp.int32)
        return self.convolve(x), mask, state | {"frames": _rows(x, count, self.span - 1)}


class _Block(nn.Module):
    """A block of the Conformer around `LookAhead`."""

    before: Layer
    attention: LookAhead
    behind: Layer

    preserve_adopted_names = True

    def look(self, x: Frames, mask: Mask, temperature: Any) -> tuple[Frames, Float[Array, "b t"]]:
        """See `LookAhead.look`."""
        x, spans = self.attention.look(self.before(x, mask)[0], mask, temperature)
        return self.behind(x, mask)[0], spans

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        """Of the attention and of the convolution behind it."""
        return {"attention": self.attention.initial_state(batch), "behind": self.behind.initial_state(batch)}

    def step(self, x: Frames, mask: Mask, ended: Bool[Array, " b"], state: State) -> tuple[Frames, Mask, State]:
        """See `LookAhead.step`."""
        x, mask, attention = self.attention.step(self.before(x, mask)[0], mask, ended, state["attention"])
        x, mask, behind = self.behind.step(x, mask, state["behind"])
        return x, mask, {"attention": attention, "behind": behind}


class _Blocks(Layer):
    """Blocks one after another, under one scan; they emit frames as soon as these have what they chose to wait for.

    `delay`, `reach` and `latency` are the most that it can be.
    """

    stacked: _Block
    count: int

    @property
    def delay(self) -> int:
        return self.count * self.stacked.attention.reach

    @nn.nowrap
    def reach(self, frame: int) -> int:
        return frame + self.delay

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        one = self.stacked.initial_state(batch)
        blocks = jax.tree.map(lambda x: jnp.repeat(x[:, None], self.count, axis=1), one)
        return {"blocks": blocks, "begun": jnp.zeros(batch, bool)}

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        return self.look(x, mask, None)[0], mask

    def look(self, x: Frames, mask: Mask, temperature: Any) -> tuple[Frames, Float[Array, "b layers t"]]:
        """See `LookAhead.look`; the spans of all layers."""

        return self._scan(lambda block, x, _: block.look(x, mask, temperature))(self.stacked, x, None)

    def step(self, x: Frames, mask: Mask, state: State) -> tuple[Output, OutputMask, State]:
        begun = state["begun"] | jnp.any(mask, axis=1)
        ended = begun & ~mask[:, -1]
        order = jnp.argsort(~mask, axis=1, stable=True)
        x, mask = jnp.take_along_axis(x, order[..., None], axis=1), jnp.take_along_axis(mask, order, axis=1)
        # All that has been seen but the last `delay` frames has left before; the rest may leave now, and all that came.
        x, mask = jnp.pad(x, ((0, 0), (0, self.delay), (0, 0))), jnp.pad(mask, ((0, 0), (0, self.delay)))

        def body(block, carry, old):
            x, mask, new = block.step(*carry, ended, old)
            return (x, mask), new

        (x, mask), blocks = self._scan(body)(self.stacked, (x, mask), state["blocks"])
        return x, mask, {"blocks": blocks, "begun": begun}

    def _scan(self, body):
        return nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=1,
            out_axes=1,
            length=self.count,
        )


class Ancat(Serial):
    """The layers of `ancat_encoder`: `Serial`, whose last layer can be asked how far its frames look.

    Args:
      d_in: width of the input.
      layers: the layers.
    """

    def look(
        self, x: Frames, mask: Mask, temperature: Any = None
    ) -> tuple[Output, OutputMask, Float[Array, "b layers t2"]]:
        """The call, and the spans of all layers.

        Args:
          x: frames.
          mask: True where there is a frame.
          temperature: of the soft masks behind the gradient; None: for no gradient.

        Returns:
          (frames, mask, spans).
        """
        for layer in self.layers[:-1]:
            x, mask = layer(x, mask)
        last = self.layers[-1]
        assert isinstance(last, _Blocks)
        x, spans = last.look(x, mask, temperature)
        return x, mask, spans

    def flush(self, state: State) -> tuple[Output, OutputMask]:
        # One block says that the stream has ended; then nothing waits any longer.
        batch = jax.tree.leaves(state)[0].shape[0]
        x, mask = jnp.zeros((batch, self.block, self.d_in)), jnp.zeros((batch, self.block), bool)
        return self.step(x, mask, state)[:2]


def ancat_encoder(config: AncatConfig) -> Ancat:
    """The encoder of a configuration: an output frame every four input frames, each when its look-ahead has come.

    The step takes any multiple of 4 frames and has room for all frames that it may emit at once, `delay` more than come
    in; those that it emits are first. Its state and its sizes are fixed.

    Args:
      config: sizes.

    Returns:
      The encoder; its blocks are one scan (`combine.STACKED`).

    Example:
      >>> encoder = ancat_encoder(AncatConfig(d_in=8, channels=2, width=8, layers=2, heads=2, kernel=3, reach=3))
      >>> encoder.d_out, encoder.stride, encoder.delay
      (8, 4, 6)
    """
    c = config.conformer
    d = c.width
    block = _Block(
        feed_forward("feed_forward_0", c),
        LookAhead(d, c.heads, config.left, config.reach, c.dropout, name="attention"),
        serial(
            convolution("convolution", c, _Packed(d, d, c.kernel, name="depthwise")),
            feed_forward("feed_forward_1", c),
            Norm(d, name="norm"),
        ),
    )
    layers = serial(*front(c), _Blocks(d, block, c.layers, name="blocks")).layers
    return Ancat(c.d_in, layers)
