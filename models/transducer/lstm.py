"""LSTM layers with a projection, and the LSTM encoder."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from models.language.config import check_sizes
from models.transducer.layers import Affine, Dropout, Norm, Stack, check_rate
from models.transducer.streaming import Frames, Layer, Mask, Output, OutputMask, Serial, State, serial
from zojax import ops

__all__ = ["Lstm", "LstmConfig", "lstm_encoder", "lstm_stack", "recurrence"]


def recurrence(
    gates: Float[Array, "t b gates"],
    recurrent: Float[Array, "p gates"],
    projection: Float[Array, "h p"] | None,
    mask: Bool[Array, "t b"],
    cell: Float[Array, "b h"],
    output: Float[Array, "b p"],
) -> tuple[Float[Array, "t b p"], Float[Array, "b h"], Float[Array, "b p"]]:
    """The recurrent part of an LSTM with a projection (arXiv 1402.1128).

        i, f, g, o = gates_t + r_{t-1} R
        c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g),    r_t = sigmoid(o) tanh(c_t) P

    The gradient of R and P is one product over all frames behind the scan: left to autodiff, each step of the scan
    would add to an array of R's size.

    Args:
      gates: x W + b of all frames, 4 h wide, in the order i, f, g, o.
      recurrent: R, as wide.
      projection: P; None: r is not projected, p = h.
      mask: False where the state stays.
      cell: c before the first frame.
      output: r before the first frame.

    Returns:
      (r of all frames, last c, last r).

    Example:
      >>> zeros = jnp.zeros((1, 2))
      >>> r, c, _ = recurrence(jnp.ones((3, 1, 8)), jnp.zeros((2, 8)), None, jnp.ones((3, 1), bool), zeros, zeros)
      >>> r.shape, bool((r[2] > r[0]).all())
      ((3, 1, 2), True)
    """
    return _recurrence(gates, recurrent, projection, mask, cell, output)


def _run(gates, recurrent, projection, mask, cell, output, *, keep: bool):
    def step(carry, now):
        c_old, r_old = carry
        x, real = now[0], now[1][:, None]
        i, f, g, o = jnp.split(x + r_old @ recurrent, 4, axis=-1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        c = f * c_old + i * g
        m = o * jnp.tanh(c)
        r = m if projection is None else m @ projection
        c, r = jnp.where(real, c, c_old), jnp.where(real, r, r_old)
        return (c, r), ((r, c, jnp.concatenate([i, f, g, o], axis=-1)) if keep else r)

    return lax.scan(step, (cell, output), (gates, mask))


@jax.custom_vjp
def _recurrence(gates, recurrent, projection, mask, cell, output):
    (cell, output), outputs = _run(gates, recurrent, projection, mask, cell, output, keep=False)
    return outputs, cell, output


def _forward(gates, recurrent, projection, mask, cell, output):
    (last_c, last_r), (r, c, gates) = _run(gates, recurrent, projection, mask, cell, output, keep=True)
    return (r, last_c, last_r), (gates, recurrent, projection, mask, cell, output, r, c)


def _backward(kept, cotangents):
    gates, recurrent, projection, mask, cell, output, r, c = kept
    of_outputs, of_cell, of_output = cotangents
    c_before = jnp.concatenate([cell[None], c[:-1]])
    r_before = jnp.concatenate([output[None], r[:-1]])
    back = recurrent.T
    back_projection = None if projection is None else projection.T

    def step(carry, now):
        dc, dr = carry
        of_r, acts, c_old, c_new, real = now
        real = real[:, None]
        dr = dr + of_r
        held_c, held_r = jnp.where(real, 0, dc), jnp.where(real, 0, dr)
        dc, dr = jnp.where(real, dc, 0), jnp.where(real, dr, 0)
        i, f, g, o = jnp.split(acts, 4, axis=-1)
        dm = dr if back_projection is None else dr @ back_projection
        t = jnp.tanh(c_new)
        dc = dc + dm * o * (1 - t * t)
        of_gates = jnp.concatenate(
            [dc * g * i * (1 - i), dc * c_old * f * (1 - f), dc * i * (1 - g * g), dm * t * o * (1 - o)], axis=-1
        )
        # Where the state stays, dc and dm are 0, and so is all that is made of them.
        return (dc * f + held_c, of_gates @ back + held_r), (of_gates, dr)

    inputs = (of_outputs, gates, c_before, c, mask)
    (of_cell, of_output), (of_gates, dr) = lax.scan(step, (of_cell, of_output), inputs, reverse=True)
    of_recurrent = jnp.einsum("tbp,tbg->pg", r_before, of_gates)
    of_projection = None
    if projection is not None:
        m = gates[..., -c.shape[-1] :] * jnp.tanh(c)
        of_projection = jnp.einsum("tbh,tbp->hp", m, dr)
    return of_gates, of_recurrent, of_projection, None, of_cell, of_output


_recurrence.defvjp(_forward, _backward)


def _forget_one(key, shape, dtype=jnp.float32):
    """Zeros, but for the forget gates' 1: a new cell keeps what it has."""
    del key
    quarter = shape[0] // 4
    return jnp.zeros(shape, dtype).at[quarter : 2 * quarter].set(1)


class Lstm(Layer):
    """An LSTM layer, with a projection if wanted. The product with the input is one for all frames.

    Parameters: "input" [d_in, 4 h], "recurrent" [p, 4 h], "bias" [4 h], and "projection" [h, p] where there is one.

    Args:
      d_in: width of the input.
      hidden: h, cells.
      projection: p, width of the output; 0: no projection, p = h.

    Example:
      >>> layer, x, mask = Lstm(4, 8, 3), jnp.ones((2, 5, 4)), jnp.ones((2, 5), bool)
      >>> layer.init_with_output(jax.random.key(0), x, mask)[0][0].shape
      (2, 5, 3)
    """

    hidden: int
    projection: int = 0

    @property
    def d_out(self) -> int:
        return self.projection or self.hidden

    def setup(self):
        normal, wide = nn.initializers.normal, 4 * self.hidden
        self.of_input = self.param("input", normal(self.d_in**-0.5), (self.d_in, wide))
        self.recurrent = self.param("recurrent", normal(self.d_out**-0.5), (self.d_out, wide))
        self.bias = self.param("bias", _forget_one, (wide,))
        if self.projection:
            self.down = self.param("projection", normal(self.hidden**-0.5), (self.hidden, self.projection))

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        return {"cell": jnp.zeros((batch, self.hidden)), "output": jnp.zeros((batch, self.d_out))}

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        return self.step(x, mask, self.initial_state(x.shape[0]))[:2]

    def step(self, x: Frames, mask: Mask, state: State) -> tuple[Output, OutputMask, State]:
        gates = ops.dot(jnp.swapaxes(x, 0, 1), self.of_input) + ops.value(self.bias)
        # As values: a leaf that makes noise makes it once, before the scan, and not at each of its steps.
        weights = ops.value(self.recurrent), ops.value(self.down) if self.projection else None
        outputs, cell, output = recurrence(gates, *weights, mask.T, state["cell"], state["output"])
        return jnp.swapaxes(outputs, 0, 1), mask, {"cell": cell, "output": output}


def lstm_stack(
    d_in: int, *, layers: int, hidden: int, projection: int, dropout: float, name: str | None = None
) -> Serial:
    """LSTM layers, each followed by a layer normalisation of its output and dropout.

    (The norm stands behind the recurrence, not inside it: it costs one product for all frames. Ours.)

    Args:
      d_in: width of the input.
      layers: how many.
      hidden: cells of each.
      projection: width of each one's output; 0: `hidden`.
      dropout: rate behind each layer.
      name: name in the layer around it.

    Returns:
      The layers.

    Example:
      >>> lstm_stack(8, layers=2, hidden=16, projection=4, dropout=0.0).d_out
      4
    """
    stack = []
    for number in range(layers):
        layer = Lstm(stack[-1].d_out if stack else d_in, hidden, projection, name=f"lstm_{number}")
        stack += [layer, Norm(layer.d_out, name=f"norm_{number}"), Dropout(layer.d_out, dropout, name=f"drop_{number}")]
    return serial(*stack, name=name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LstmConfig:
    """The encoder of an LSTM RNN-T (arXiv 1811.06621): stacked frames, then LSTM layers with projections and norms.

    Attributes:
      d_in: bins of a frame.
      stack: frames joined to one: 3 of 64 bins make 192.
      layers: LSTM layers; the recipes have 5 to 8.
      hidden: cells of a layer.
      projection: width of a layer's output; 0: no projection.
      dropout: rate behind each layer, in training alone.

    Raises:
      ValueError: if a size is not positive, or the rate is out of range.

    Example:
      >>> lstm_encoder(LstmConfig(d_in=64, layers=5, hidden=640, projection=320)).latency  # the stack's
      2
    """

    d_in: int = 64
    stack: int = 3
    layers: int = 5
    hidden: int = 640
    projection: int = 0
    dropout: float = 0.0

    def __post_init__(self):
        check_sizes(self, may_be_zero=("projection",))
        check_rate(self, "dropout")


def lstm_encoder(config: LstmConfig) -> Serial:
    """The encoder of an LSTM RNN-T.

    Args:
      config: sizes.

    Returns:
      The encoder.

    Example:
      >>> encoder = lstm_encoder(LstmConfig(d_in=4, layers=2, hidden=8))
      >>> encoder.d_in, encoder.d_out, encoder.block
      (4, 8, 3)
    """
    c = config
    front = Affine(c.d_in, name="input"), Stack(c.d_in, c.stack, name="stack")
    layers = lstm_stack(
        c.d_in * c.stack, layers=c.layers, hidden=c.hidden, projection=c.projection, dropout=c.dropout, name="lstm"
    )
    return serial(*front, layers)
