"""The LSTM transducer on an integer accelerator: one network in float, emulation and integers.

The network is that of `model.Transducer` with an LSTM encoder. Weights come as leaves that know their grid: a `QArray`,
a `FakeQuant` over float masters, or one of them being probed; in the float mode any leaf will do. Activations have the
formats of `integer_formats`. Features are the accelerator's input, logits are its output.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from models.transducer.integer_formats import (
    CELL_BITS,
    FEATURES,
    Formats,
    LayerFormats,
    Note,
    cell_error,
    seen,
    span,
    unknown_formats,
)
from models.transducer.layers import NORM_EPS
from models.transducer.lstm import LstmConfig
from models.transducer.model import TransducerConfig
from models.transducer.predictor import START, LstmPredictorConfig
from zojax import ops
from zojax.accelerator import Accelerator, primitives
from zojax.accelerator import transducer as ends
from zojax.accelerator.emulate import Q0_7, Q3_12, Format, Mode, Value, emulated, quantise
from zojax.accelerator.fixed_point import Rescale, requantise
from zojax.accelerator.linear import FullyConnected, fully_connected, fully_connected_layer, linear_plan
from zojax.accelerator.lstm import Lstm, LstmState, LstmWeights, initial_state, lstm, lstm_layer, lstm_plan
from zojax.accelerator.normalise import LayerNorm, layer_norm, layer_norm_layer, layer_norm_plan
from zojax.quant.calibration import expand

__all__ = [
    "FrameInput",
    "Layer",
    "Network",
    "encode",
    "encoder_state",
    "frame_input",
    "input_codes",
    "join",
    "network",
    "observe",
    "output_layer",
    "predict",
    "predictor_state",
]

Params = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """An LSTM and the norm behind it."""

    lstm: Lstm
    norm: LayerNorm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A transducer in one of the modes; made by `network`.

    Attributes:
      encoder: its LSTM layers.
      table: of labels.
      predictor: its LSTM layers; none of a stateless one.
      linear: a stateless predictor's layer, or None.
      joiner: the joiner.
      stack: frames joined to one.
      context: labels that a stateless predictor sees; 0 of others.
    """

    encoder: tuple[Layer, ...]
    table: ends.Embedding
    predictor: tuple[Layer, ...]
    linear: FullyConnected | None
    joiner: ends.Joiner
    stack: int = dataclasses.field(metadata={"static": True})
    context: int = dataclasses.field(metadata={"static": True})


def _weight(leaf: Any) -> tuple[Array, Format]:
    """A weight as floats, on its grid where it has one, and its format."""
    grid = leaf
    while not hasattr(grid, "qvalue"):
        inner = getattr(grid, "quantized", None)
        inner = getattr(grid, "base", None) if inner is None else inner
        if inner is None:  # plain floats, for the float mode: no format is read there
            return ops.value(leaf), Format(scale=np.array(1, np.float32))
        grid = inner
    scale = jax.lax.stop_gradient(ops.value(grid.scale))
    scale = scale.reshape(()) if scale.size == 1 else expand(scale, (1, leaf.shape[-1])).reshape(-1)
    return ops.value(leaf), Format.on_grid(grid.grid, scale)


def _linear(params: Params, x: Format, y: Format, mode: Mode, *, relu: bool = False) -> FullyConnected:
    kernel, of_kernel = _weight(params["kernel"])
    bias = ops.value(params["bias"]) if "bias" in params else None
    return fully_connected_layer(kernel, bias, linear_plan(x, of_kernel, y, scales="float32"), mode, relu=relu)


def _layers(
    stack: Params, x: Format, formats: tuple[LayerFormats, ...], accelerator: Accelerator, mode: Mode
) -> tuple[Layer, ...]:
    made = []
    for number, of in enumerate(formats):
        of_lstm, of_norm = stack[f"lstm_{number}"], stack[f"norm_{number}"]["norm"]
        (w, w_format), (r, r_format) = _weight(of_lstm["input"]), _weight(of_lstm["recurrent"])
        projection, p_format = None, None
        if of.hidden is not None:
            kernel, p_format = _weight(of_lstm["projection"])
            projection = kernel, jnp.zeros(kernel.shape[-1])
        plan = lstm_plan(
            accelerator,
            input=x,
            input_weight=w_format,
            recurrent_weight=r_format,
            output=of.output,
            cell_integer_bits=of.cell_integer_bits,
            hidden=of.hidden,
            projection_weight=p_format,
        )
        layer = lstm_layer(LstmWeights(w, r, ops.value(of_lstm["bias"]), projection=projection), plan, mode)
        norm = dataclasses.replace(layer_norm_plan(of.output, of.gain, of.norm), epsilon=NORM_EPS)
        gain, bias = ops.value(of_norm["scale"]), ops.value(of_norm["bias"])
        made.append(Layer(lstm=layer, norm=layer_norm_layer(gain, bias, norm, mode)))
        x = of.norm
    return tuple(made)


def output_layer(params: Params, formats: Formats, mode: Mode) -> FullyConnected:
    """The joiner's last layer, from {"kernel", "bias"}: what a loss that holds these alone needs."""
    return _linear(params, Q0_7, formats.logits, mode)


def network(
    config: TransducerConfig, params: Params, formats: Formats, accelerator: Accelerator, mode: Mode
) -> Network:
    """A transducer in one of the modes, from its weights; may be called in a program.

    Args:
      config: sizes; see `integer_formats.check_integer`.
      params: the tree of `Transducer`; its matrices are leaves that know their grid, but in the float mode.
      formats: of the activations.
      accelerator: gives the widths.
      mode: "float", "emulation" or "integer".

    Returns:
      Network.
    """
    assert isinstance(config.encoder, LstmConfig)
    words, of_joiner = config.predictor, params["joiner"]
    table, of_table = _weight(params["predictor"]["table"])
    has_layers = isinstance(words, LstmPredictorConfig)
    made, linear = (), None
    if has_layers:
        made = _layers(params["predictor"], of_table, formats.predictor, accelerator, mode)
        predicted = formats.predictor[-1].norm
    else:
        assert formats.predicted is not None
        predicted = formats.predicted
        linear = _linear(params["predictor"]["linear"], of_table, predicted, mode, relu=True)
    return Network(
        encoder=_layers(params["encoder"]["lstm"], formats.input, formats.encoder, accelerator, mode),
        table=ends.Embedding(table=quantise(table, of_table, mode), format=of_table),
        predictor=made,
        linear=linear,
        joiner=ends.Joiner(
            encoder=_linear(of_joiner["encoded"], formats.encoder[-1].norm, Q3_12, mode),
            predictor=_linear(of_joiner["predicted"], predicted, Q3_12, mode),
            output=output_layer(of_joiner["output"], formats, mode),
        ),
        stack=config.encoder.stack,
        context=0 if has_layers else words.context,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameInput:
    """The affine map from the codes of features to those of the encoder's input.

    Attributes:
      offset: int32 [bins].
      factor: one a bin.
      output: format of the encoder's input.
    """

    offset: Int[Array | np.ndarray, "bins"]
    factor: Rescale
    output: Format


def input_codes(codes: Int[Array, "b t d"], of: FrameInput) -> Int[Array, "b t d"]:
    """(codes + offset) * factor + zero, rounded by the arithmetic "single" on every accelerator, and clamped."""
    rounded = requantise(codes.astype(jnp.int32) + of.offset, of.factor, "single")
    return of.output.clip(rounded + of.output.zero)


def frame_input(x: Float[Array, "b t d"] | Int[Array, "b t d"], formats: Formats, mode: Mode) -> Value:
    """Features as the encoder takes them: the affine map in integers, one multiplier a bin.

    Args:
      x: log-Mel features, float32, or their codes in `FEATURES`.
      formats: which hold the map.
      mode: "float", "emulation" or "integer".

    Returns:
      [b, t, d] in the format of the encoder's input; it has no gradient.
    """
    if mode == "float":
        return x * formats.gain + formats.bias
    codes = FEATURES.encode(x) if jnp.issubdtype(x.dtype, jnp.floating) else x
    to = formats.input
    codes = input_codes(codes, FrameInput(offset=formats.offset, factor=formats.factor, output=to))
    return emulated(codes, jnp.zeros(codes.shape), to.scale, to.zero) if mode == "emulation" else codes


def _run(
    x: Value, layers: tuple[Layer, ...], accelerator: Accelerator, state: Any, note: Note | None, name: str
) -> tuple[Value, tuple[LstmState, ...]]:
    states = []
    for number, layer in enumerate(layers):
        if note is not None:
            _note_inside(x, layer.lstm, accelerator, note, f"{name}/{number}")
        x, new = lstm(x, layer.lstm, accelerator, None if state is None else state[number])
        x = layer_norm(x, layer.norm, accelerator)
        if note is not None:
            note(f"{name}/{number}/norm", x)
        states.append(new)
    return x, tuple(states)


def _note_inside(x: Array, layer: Lstm, accelerator: Accelerator, note: Note, name: str) -> None:
    """Tells of the outputs of a float LSTM, and how far they are off where its cells alone are integers."""
    top = 2.0 ** (accelerator.cell_bits - 1)

    def outputs(scale: Array) -> Array:
        def step(state, frame):
            _, new = lstm(frame[:, None], layer, accelerator, state)
            held = jnp.clip(jnp.round(new.cell / scale), -top, top - 1) * scale
            return new._replace(cell=jnp.where(scale > 0, held, new.cell)), new.output

        _, seen = jax.lax.scan(step, initial_state(layer, x.shape[0]), jnp.moveaxis(x, 1, 0))
        return jnp.moveaxis(seen, 0, 1)

    scales = jnp.array([0.0, *(2.0**n / top for n in CELL_BITS)])
    exact, *held = jax.vmap(outputs)(scales)
    note(f"{name}/output", exact)
    for integer_bits, found in zip(CELL_BITS, held, strict=True):
        note(cell_error(name, integer_bits), jnp.mean((found - exact) ** 2, axis=-1, keepdims=True))


def encode(
    x: Value, net: Network, accelerator: Accelerator, state: Any = None, *, note: Note | None = None
) -> tuple[Value, Any]:
    """Frames of the joint width, from the encoder's input.

    Args:
      x: [b, t, d], of `frame_input`; t a multiple of `stack` in a stream, else a rest is left out.
      net: the network, of the same mode.
      accelerator: whose arithmetic.
      state: what an earlier call returned; None: the start.
      note: told of all activations, in the float mode.

    Returns:
      (frames [b, t / stack, joint] in Q3.12, state): chunks of any length give what the whole gives.
    """
    if note is not None:
        note("input", x)
    whole = primitives.parts(x)[0].shape[1] // net.stack

    def stacked(a):
        return a[:, : whole * net.stack].reshape(a.shape[0], whole, -1)

    y, state = _run(primitives.rearrange(x, stacked), net.encoder, accelerator, state, note, "encoder")
    return fully_connected(y, net.joiner.encoder, accelerator), state


def predict(
    labels: Int[Array, "b u"], net: Network, accelerator: Accelerator, state: Any = None, *, note: Note | None = None
) -> tuple[Value, Any]:
    """Symbols of the joint width, one a label; the first label of all is the blank, for the start.

    Args:
      labels: class numbers.
      net: the network.
      accelerator: whose arithmetic; it may lack "embedding".
      state: what an earlier call returned; None: the start.
      note: told of all activations, in the float mode.

    Returns:
      (symbols [b, u, joint] in Q3.12, state).
    """
    if net.linear is None:
        x = ends.embed(labels, net.table, accelerator)
        x, state = _run(x, net.predictor, accelerator, state, note, "predictor")
        return fully_connected(x, net.joiner.predictor, accelerator), state
    before = predictor_state(net, labels.shape[0]) if state is None else state
    seen = jnp.concatenate([before, labels.astype(jnp.int32)], axis=1)
    count = labels.shape[1]
    last = jnp.stack([seen[:, 1 + k : 1 + k + count] for k in range(net.context)], axis=-1)
    x = ends.embed(last, net.table, accelerator)
    x = primitives.rearrange(x, lambda a: a.reshape(*last.shape[:-1], -1))
    x = fully_connected(x, net.linear, accelerator)
    if note is not None:
        note("predicted", x)
    return fully_connected(x, net.joiner.predictor, accelerator), seen[:, count:]


def predictor_state(net: Network, batch: int) -> Any:
    """The state before the start: what `predict` begins with without one."""
    if net.linear is None:
        return tuple(initial_state(layer.lstm, batch) for layer in net.predictor)
    return jnp.full((batch, net.context), START, jnp.int32)


def encoder_state(net: Network, batch: int) -> Any:
    """The state before the first frame: what `encode` begins with without one."""
    return tuple(initial_state(layer.lstm, batch) for layer in net.encoder)


def join(frames: Value, symbols: Value, net: Network, accelerator: Accelerator) -> Value:
    """Logits, in 16 bits, of frames and symbols, which broadcast against each other."""
    return ends.join(frames, symbols, net.joiner.output, accelerator)


def observe(
    config: TransducerConfig,
    params: Params,
    x: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    labels: Int[Array, "b u"],
    accelerator: Accelerator,
) -> dict[str, tuple[Array, Array]]:
    """The ranges of all activations of a float network on a batch, and errors; may be called in a program.

    Args:
      config: sizes.
      params: float weights.
      x: features.
      mask: True where there is a frame; the others do not count.
      labels: the blank, then labels; what pads them counts.
      accelerator: any.

    Returns:
      {name: (least, greatest)}, see `integer_formats.seen`.
    """
    assert isinstance(config.encoder, LstmConfig)
    found: dict[str, tuple[Array, Array]] = {}
    stacked = mask[:, config.encoder.stack - 1 :: config.encoder.stack]

    def of_frames(name: str, value: Array) -> None:
        found[name] = seen(name, value, mask if name == "input" else stacked)

    def of_symbols(name: str, value: Array) -> None:
        found[name] = seen(name, value, jnp.ones(value.shape[:-1], bool))

    formats = unknown_formats(config, params)
    net = network(config, params, formats, accelerator, "float")
    frames, _ = encode(frame_input(x, formats, "float"), net, accelerator, note=of_frames)
    symbols, _ = predict(labels, net, accelerator, note=of_symbols)
    logits = join(frames[:, :, None], symbols[:, None], net, accelerator)
    found["logits"] = span(logits, jnp.broadcast_to(stacked[:, :, None], logits.shape[:3]))
    return found
