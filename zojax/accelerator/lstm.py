"""The integer LSTM: 8-bit weights and activations, 16-bit gates, a cell of 16 bits or fewer."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zojax.accelerator import primitives, products
from zojax.accelerator._recurrence import Link, run_with_weights_outside
from zojax.accelerator.device import Accelerator
from zojax.accelerator.emulate import Q3_12, Emulated, Format, Mode, Value, quantise
from zojax.accelerator.fixed_point import Rescale, rescale
from zojax.accelerator.linear import (
    FullyConnected,
    LinearPlan,
    fully_connected_layer,
    linear_plan,
    weight_and_bias,
)
from zojax.accelerator.normalise import LayerNorm, LayerNormPlan, layer_norm, layer_norm_layer, layer_norm_plan

__all__ = ["Lstm", "LstmPlan", "LstmState", "LstmWeights", "initial_state", "lstm", "lstm_layer", "lstm_plan"]


class LstmWeights(NamedTuple):
    """The float parameters of an LSTM, gates along the last axis in the order input, forget, cell, output.

    With CIFG the input gate is absent, and 1 - forget stands for it.

    Attributes:
      input: [d_in, gates * cells].
      recurrent: [d_out, gates * cells].
      bias: [gates * cells].
      gain: [gates, cells] of a layer norm of each gate, whose bias is then `bias`; None: no layer norm.
      projection: (kernel [cells, d_out], bias [d_out]); None: d_out is the number of cells.
    """

    input: Float[Array, "d_in gates_cells"]
    recurrent: Float[Array, "d_out gates_cells"]
    bias: Float[Array, "gates_cells"]
    gain: Float[Array, "gates cells"] | None = None
    projection: tuple[Float[Array, "cells d_out"], Float[Array, "d_out"]] | None = None


class LstmState(NamedTuple):
    """What an LSTM carries from frame to frame.

    Attributes:
      output: [batch, d_out], in the plan's output format.
      cell: [batch, cells], in the plan's cell format.
    """

    output: Value
    cell: Value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LstmPlan:
    """The formats of an LSTM and the factors between them.

    Attributes:
      input: linear plan of the input weights, to the gates.
      recurrent: linear plan of the recurrent weights, to the gates.
      hidden: format of o * tanh(c).
      hidden_rescale: 2^-30 / s_hidden.
      cell: format of the cell state, with a power of two for its scale and no zero point.
      norm: plan of the gates' layer norm, or None.
      projection: plan of the projection, or None.
      cell_integer_bits: of the cell: its scale is 2^(1 + cell_integer_bits - bits).
      cell_clip: greatest magnitude of cell codes; 0: none but that of the format.

    Example:
      >>> LstmPlan.__dataclass_fields__["cell_clip"].default
      0
    """

    input: LinearPlan
    recurrent: LinearPlan
    hidden: Format
    hidden_rescale: Rescale
    cell: Format
    norm: LayerNormPlan | None = None
    projection: LinearPlan | None = None
    cell_integer_bits: int = dataclasses.field(metadata=dict(static=True))
    cell_clip: int = dataclasses.field(default=0, metadata=dict(static=True))

    @property
    def output(self) -> Format:
        """Format of the output and of the recurrent input."""
        return self.recurrent.input


def lstm_plan(
    accelerator: Accelerator,
    *,
    input: Format,
    input_weight: Format,
    recurrent_weight: Format,
    output: Format,
    cell_integer_bits: int,
    hidden: Format | None = None,
    gates: Format = Q3_12,
    gain: Format | None = None,
    projection_weight: Format | None = None,
    guard: int = 1,
    cell_clip: float = 0.0,
) -> LstmPlan:
    """The plan of an LSTM, made on the host; factors in float32, as in TFLite's LSTM.

    Args:
      accelerator: gives the width of the cell.
      input: format of the input.
      input_weight: format of the input weights; one scale, or [gates * cells].
      recurrent_weight: format of the recurrent weights, likewise.
      output: format of the output and of the recurrent input.
      cell_integer_bits: the cell reaches 2^cell_integer_bits; 0 to 6.
      hidden: format of o * tanh(c) before a projection; without one it is the output's.
      gates: format of the gates before the nonlinearity, or before the layer norm.
      gain: format of the layer norm's gains, scales [gates, 1]; None: no layer norm.
      projection_weight: format of the projection's weights; None: no projection.
      guard: of the layer norm, see `LayerNormPlan`.
      cell_clip: greatest magnitude of the cell; 0: none but that of the format.

    Returns:
      LstmPlan.

    Raises:
      ValueError: if the cell's range or the hidden format does not fit.

    Example:
      >>> from zojax.accelerator import NARROW
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> f = symmetric_format(1.0)
      >>> plan = lstm_plan(NARROW, input=f, input_weight=f, recurrent_weight=f, output=f, cell_integer_bits=3)
      >>> float(plan.cell.scale), plan.cell.high
      (0.0625, 127)
    """
    if not 0 <= cell_integer_bits <= 6:
        raise ValueError(f"cell_integer_bits: {cell_integer_bits}; 0 to 6 is needed")
    if accelerator.nonlinear == "lut" and cell_integer_bits < 3:
        raise ValueError(f"cell_integer_bits: {cell_integer_bits}; the table of tanh takes 3 to 6")
    if (hidden is not None) != (projection_weight is not None):
        raise ValueError("hidden: a format is needed with a projection, and with one only")
    bits = accelerator.cell_bits
    hidden = output if hidden is None else hidden
    cell = Format(
        scale=np.array(2.0 ** (1 + cell_integer_bits - bits), np.float32),
        low=-(2 ** (bits - 1)),
        high=2 ** (bits - 1) - 1,
    )
    clip = int(min(np.float32(cell_clip) / np.float32(cell.scale), cell.high)) if cell_clip > 0 else 0
    norm = None if gain is None else layer_norm_plan(gates, gain, Q3_12, guard=guard)
    hidden_scale = np.asarray(jax.device_get(hidden.scale), np.float32)
    return LstmPlan(
        input=linear_plan(input, input_weight, gates, scales="float32"),
        recurrent=linear_plan(output, recurrent_weight, gates, scales="float32"),
        hidden=hidden,
        hidden_rescale=rescale((np.float32(2.0**-30) / hidden_scale).astype(np.float64)),
        cell=cell,
        norm=norm,
        projection=None
        if projection_weight is None
        else linear_plan(hidden, projection_weight, output, scales="float32"),
        cell_integer_bits=cell_integer_bits,
        cell_clip=clip,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lstm:
    """An LSTM in one of the modes.

    Attributes:
      plan: formats and factors.
      input: [d_in, gates * cells].
      input_bias: [gates * cells], the input's zero point folded in.
      recurrent: [d_out, gates * cells].
      recurrent_bias: [gates * cells], the output's zero point.
      norm: layer norm of the gates, or None.
      projection: layer, or None.

    Example:
      >>> [field.name for field in dataclasses.fields(Lstm)][-2:]
      ['norm', 'projection']
    """

    plan: LstmPlan
    input: Value
    input_bias: Value
    recurrent: Value
    recurrent_bias: Value
    norm: LayerNorm | None
    projection: FullyConnected | None

    @property
    def cells(self) -> int:
        """The number of cells."""
        return self.recurrent.shape[0] if self.projection is None else self.projection.weight.shape[0]

    @property
    def cifg(self) -> bool:
        """Whether the input gate is coupled to the forget gate."""
        return self.input.shape[1] == 3 * self.cells


def lstm_layer(weights: LstmWeights, plan: LstmPlan, mode: Mode) -> Lstm:
    """An LSTM from float weights; in the emulation mode gradients reach them.

    Args:
      weights: float parameters.
      plan: formats and factors.
      mode: "float", "emulation" or "integer".

    Returns:
      Lstm.

    Raises:
      ValueError: if plan and weights disagree about a layer norm, a projection or the number of gates.

    Example:
      >>> from zojax.accelerator import TFLITE
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> f = symmetric_format(1.0)
      >>> plan = lstm_plan(TFLITE, input=f, input_weight=f, recurrent_weight=f, output=f, cell_integer_bits=3)
      >>> lstm_layer(LstmWeights(jnp.ones((3, 8)), jnp.ones((2, 8)), jnp.zeros(8)), plan, "integer").cells
      2
    """
    for field, given, planned in (
        ("gain", weights.gain, plan.norm),
        ("projection", weights.projection, plan.projection),
    ):
        if (given is None) != (planned is None):
            raise ValueError(f"{field}: weights and plan must both have one, or neither")
    cells = weights.recurrent.shape[0] if weights.projection is None else weights.projection[0].shape[0]
    if weights.input.shape[1] not in (3 * cells, 4 * cells):
        raise ValueError(f"input: {weights.input.shape[1]} columns for {cells} cells; 3 or 4 gates are needed")
    input_weight, input_bias = weight_and_bias(
        weights.input, None if plan.norm is not None else weights.bias, plan.input, mode
    )
    recurrent, recurrent_bias = weight_and_bias(weights.recurrent, None, plan.recurrent, mode)
    norm = projection = None
    if plan.norm is not None and weights.gain is not None:
        norm = layer_norm_layer(weights.gain, weights.bias.reshape(-1, cells), plan.norm, mode)
    if plan.projection is not None and weights.projection is not None:
        kernel, bias = weights.projection
        projection = fully_connected_layer(kernel, bias, plan.projection, mode)
    return Lstm(
        plan=plan,
        input=input_weight,
        input_bias=input_bias,
        recurrent=recurrent,
        recurrent_bias=recurrent_bias,
        norm=norm,
        projection=projection,
    )


def initial_state(p: Lstm, batch: int) -> LstmState:
    """The state before the first frame: zeros, whose code in the output's format is its zero point.

    Args:
      p: the LSTM, in any mode.
      batch: number of sequences.

    Returns:
      LstmState of the same mode.

    Example:
      >>> from zojax.accelerator import TFLITE
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> f = symmetric_format(1.0)
      >>> plan = lstm_plan(TFLITE, input=f, input_weight=f, recurrent_weight=f, output=f, cell_integer_bits=3)
      >>> layer = lstm_layer(LstmWeights(jnp.ones((3, 8)), jnp.ones((2, 8)), jnp.zeros(8)), plan, "integer")
      >>> initial_state(layer, 1).cell.dtype
      dtype('int16')
    """
    mode = primitives.mode_of(p.input)
    outputs, cells = jnp.zeros((batch, p.recurrent.shape[0])), jnp.zeros((batch, p.cells))
    return LstmState(output=quantise(outputs, p.plan.output, mode), cell=quantise(cells, p.plan.cell, mode))


def _input_gates(x: Value, p: Lstm, accelerator: Accelerator) -> Value:
    """The input's share of the gates, 16 bits."""
    plan = p.plan.input
    total = products.matmul(x, p.input, p.input_bias, accelerator)
    return primitives.to_format(
        primitives.requantise(total, plan.rescale, plan.output, accelerator.recurrent), plan.output, through=True
    )


def _frame(
    gates: Value, state: LstmState, p: Lstm, accelerator: Accelerator, links: tuple[Link, ...] = ()
) -> tuple[LstmState, tuple[Value, ...]]:
    """One step from the input's share of the gates: (the new state, what the two matrices were multiplied with)."""
    plan, seen = p.plan, (state.output,)
    of_recurrent, of_projection = (*links, None, None)[:2]
    total = products.matmul(state.output, p.recurrent, p.recurrent_bias, accelerator, of_recurrent)
    gates = primitives.requantise(
        total, plan.recurrent.rescale, plan.recurrent.output, accelerator.recurrent, plus=gates
    )
    gates = primitives.to_format(gates, plan.recurrent.output, through=True)
    gates = primitives.rearrange(gates, lambda a: a.reshape(*a.shape[:-1], -1, p.cells))
    if p.norm is not None:
        gates = layer_norm(gates, p.norm, accelerator)

    # With CIFG the gates are forget, cell, output; counted from the end they have the same places.
    def gate(of: Value, index: int) -> Value:
        return primitives.rearrange(of, lambda a: a[..., index, :])

    # One sigmoid of all that take one: a third of the program.
    opened = primitives.rearrange(gates, lambda a: jnp.concatenate([a[..., :-2, :], a[..., -1:, :]], axis=-2))
    opened = primitives.sigmoid(opened, accelerator)
    forget, output = gate(opened, -2), gate(opened, -1)
    entry = primitives.one_minus(forget) if p.cifg else gate(opened, -3)
    log2_scale = 1 + plan.cell_integer_bits - accelerator.cell_bits
    kept = primitives.multiply(forget, state.cell, shift=15)
    entered = primitives.multiply(entry, primitives.tanh(gate(gates, -2), accelerator), shift=30 + log2_scale)
    cell = primitives.add(kept, entered, plan.cell, through=True)
    if plan.cell_clip:
        cell = primitives.clip(cell, plan.cell_clip, plan.cell)
    squashed = primitives.tanh(
        primitives.widen(cell, 16 - accelerator.cell_bits), accelerator, integer_bits=plan.cell_integer_bits
    )
    hidden = primitives.multiply(output, squashed, shift=0)
    hidden = primitives.requantise(hidden, plan.hidden_rescale, plan.hidden, accelerator.recurrent)
    hidden = primitives.to_format(hidden, plan.hidden)
    if p.projection is not None:
        layer = p.projection
        seen = *seen, hidden
        total = products.matmul(hidden, layer.weight, layer.bias, accelerator, of_projection)
        hidden = primitives.to_format(
            primitives.requantise(total, layer.plan.rescale, layer.plan.output, accelerator.recurrent),
            layer.plan.output,
        )
    return LstmState(output=hidden, cell=cell), seen


def _scan(tree: Any, accelerator: Accelerator, links: tuple[Link, ...], leaves: list[Any]) -> Any:
    """All frames, time first, as `run_with_weights_outside` takes it; `tree` is that of (gates, state, p) in leaves."""
    gates, state, p = jax.tree.unflatten(tree, map(jnp.asarray, leaves))
    backs, taps = [link.back for link in links], [link.tap for link in links]

    def body(state, now):
        gates_now, taps = now
        new, seen = _frame(primitives.join(gates_now, gates), state, p, accelerator, tuple(map(Link, backs, taps)))
        return new, (primitives.parts(new.output), tuple(x.value for x in seen if isinstance(x, Emulated)))

    state, (outputs, seen) = jax.lax.scan(body, state, (primitives.parts(gates), taps))
    return (outputs, *map(primitives.parts, state)), seen


def lstm(x: Value, p: Lstm, accelerator: Accelerator, state: LstmState | None = None) -> tuple[Value, LstmState]:
    """An LSTM over time: i, f, o = sigmoid, g = tanh of the gates; c = f c + i g; h = o tanh(c).

    The gates are clamp16(rq(W_h h) + clamp16(rq(W_x x + b))), rq the requantisation by the accelerator's `recurrent`
    arithmetic; then, with a layer norm, the norm of each gate. The cell is sat(RDPOT(f c, 15) + RDPOT(i g, 30 + log2
    s_c)), and h is clamp8(rq(o tanh(c)) + zero), before a projection.

    Args:
      x: [batch, time, d_in] in the plan's input format.
      p: the LSTM, of the same mode.
      accelerator: whose arithmetic.
      state: what an earlier call returned; None: the start.

    Returns:
      (outputs [batch, time, d_out], state): chunks of any length give what the whole gives.

    Example:
      >>> from zojax.accelerator import TFLITE
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> f = symmetric_format(1.0)
      >>> plan = lstm_plan(TFLITE, input=f, input_weight=f, recurrent_weight=f, output=f, cell_integer_bits=3)
      >>> layer = lstm_layer(LstmWeights(jnp.ones((1, 4)), jnp.zeros((1, 4)), jnp.zeros(4)), plan, "integer")
      >>> lstm(jnp.int8([[[127], [127]]]), layer, TFLITE)[0].tolist()
      [[[47], [69]]]

    References:
      The deployed 8x8->16 recipe of TFLite; measured equal to its runtime (`launch.parity_integers`).
    """
    state = initial_state(p, x.shape[0]) if state is None else state
    gates = primitives.rearrange(_input_gates(x, p, accelerator), lambda a: jnp.moveaxis(a, 1, 0))

    leaves, tree = jax.tree.flatten((gates, state, p))
    run = functools.partial(_scan, tree, accelerator)
    if isinstance(gates, Emulated):
        weights = (p.recurrent, *([] if p.projection is None else [p.projection.weight]))
        found: Any = run_with_weights_outside(run, tuple(w.value for w in weights), leaves)
    else:
        found, _ = run((), leaves)
    outputs, *last = found
    state = LstmState(*map(primitives.join, last, state))
    return primitives.rearrange(primitives.join(outputs, state.output), lambda a: jnp.moveaxis(a, 0, 1)), state
