"""A small encoder, predictor and joiner of all operators, buildable in each mode from the same float weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax.accelerator import Accelerator
from zojax.accelerator.attention import Attention, AttentionWeights, attention, attention_layer, attention_plan
from zojax.accelerator.convolution import Convolution, convolution, convolution_layer
from zojax.accelerator.emulate import Q0_7, Q3_12, Format, Mode, Value, activation_format, quantise, symmetric_format
from zojax.accelerator.linear import FullyConnected, fully_connected_layer, linear_plan
from zojax.accelerator.lstm import Lstm, LstmWeights, lstm, lstm_layer, lstm_plan
from zojax.accelerator.normalise import (
    LayerNorm,
    SqueezeExcite,
    layer_norm,
    layer_norm_layer,
    layer_norm_plan,
    squeeze_excite,
)
from zojax.accelerator.transducer import Embedding, Joiner, embed, joiner

MEL, WIDTH, CELLS, VOCABULARY = 6, 8, 8, 5
ACTIVATION = activation_format(-2.0, 2.5)
SIGNED = symmetric_format(2.0)
H = activation_format(-0.9, 1.0)


def weights(seed: int) -> dict[str, Any]:
    """Random float weights by name."""
    rng = np.random.default_rng(seed)
    shapes = dict(
        conv=(3, MEL, WIDTH),
        depthwise=(4, 1, WIDTH),
        squeeze=(WIDTH, 4),
        excite=(4, WIDTH),
        lstm_x=(WIDTH, 4 * CELLS),
        lstm_h=(WIDTH, 4 * CELLS),
        projection=(CELLS, WIDTH),
        query=(WIDTH, WIDTH),
        key=(WIDTH, WIDTH),
        value=(WIDTH, WIDTH),
        mixed=(WIDTH, WIDTH),
        table=(VOCABULARY, WIDTH),
        cifg_x=(WIDTH, 3 * CELLS),
        cifg_h=(CELLS, 3 * CELLS),
        encoder=(WIDTH, 12),
        predictor=(CELLS, 12),
        output=(12, VOCABULARY),
    )
    made = {n: rng.normal(size=s) * (1.5 / np.sqrt(np.prod(s[:-1]))) for n, s in shapes.items()}
    made |= {f"{n}_bias": 0.3 * rng.normal(size=s[-1]) for n, s in shapes.items()}
    made["gain"] = rng.uniform(0.5, 1.5, (4, CELLS))
    made["norm"] = rng.uniform(0.5, 1.5, WIDTH)
    made["norm_bias"] = 0.3 * rng.normal(size=WIDTH)
    return {n: jnp.asarray(w, jnp.float32) for n, w in made.items()}


def of(w: jax.Array, bits: int = 8) -> Format:
    """A scale an output channel, as plans are made once on the host."""
    return symmetric_format(np.abs(np.asarray(w)).reshape(-1, w.shape[-1]).max(0), bits)


def plans(accelerator: Accelerator, w: dict[str, Any]) -> dict[str, Any]:
    """The plans of all layers, from the float weights, on the host; they do not change while those train."""
    bits = accelerator.weight_bits

    def linear(name, x, y):
        return linear_plan(x, of(w[name], bits), y)

    gates = Format(scale=jnp.float32(2.0**-11), low=-(2**15), high=2**15 - 1)
    gain = symmetric_format(np.abs(np.asarray(w["gain"])).max(1, keepdims=True), 16)
    sides = [linear(n, ACTIVATION, SIGNED) for n in ("query", "key", "value")]
    mixed = linear("mixed", SIGNED, ACTIVATION)
    return dict(
        conv=linear("conv", ACTIVATION, ACTIVATION),
        depthwise=linear("depthwise", ACTIVATION, ACTIVATION),
        squeeze=linear("squeeze", ACTIVATION, ACTIVATION),
        excite=linear("excite", ACTIVATION, Q3_12),
        lstm=lstm_plan(
            accelerator,
            input=ACTIVATION,
            input_weight=of(w["lstm_x"], bits),
            recurrent_weight=of(w["lstm_h"], bits),
            output=H,
            cell_integer_bits=3,
            hidden=activation_format(-0.8, 0.9),
            gates=gates,
            gain=gain,
            projection_weight=symmetric_format(float(jnp.abs(w["projection"]).max()), bits),
        ),
        norm=layer_norm_plan(H, symmetric_format(float(w["norm"].max()), 16), ACTIVATION),
        attention=attention_plan(*sides, mixed, scores=symmetric_format(3.0), width=WIDTH, heads=2, window=4),
        cifg=lstm_plan(
            accelerator,
            input=SIGNED,
            input_weight=of(w["cifg_x"], bits),
            recurrent_weight=of(w["cifg_h"], bits),
            output=H,
            cell_integer_bits=3,
            cell_clip=4.0,
        ),
        encoder=linear("encoder", ACTIVATION, Q3_12),
        predictor=linear("predictor", H, Q3_12),
        output=linear("output", Q0_7, activation_format(-6.0, 6.0)),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Networks:
    """All layers in one mode."""

    conv: Convolution
    depthwise: Convolution
    gate: SqueezeExcite
    lstm: Lstm
    norm: LayerNorm
    attention: Attention
    embedding: Embedding
    cifg: Lstm
    joiner: Joiner


def build(w: dict[str, Any], p: dict[str, Any], mode: Mode) -> Networks:
    def linear(name: str, **options: Any) -> FullyConnected:
        return fully_connected_layer(w[name], w[f"{name}_bias"], p[name], mode, **options)

    sides = AttentionWeights(*((w[n], w[f"{n}_bias"]) for n in ("query", "key", "value", "mixed")))
    recurrent = LstmWeights(
        w["lstm_x"], w["lstm_h"], w["lstm_x_bias"], w["gain"], (w["projection"], w["projection_bias"])
    )
    return Networks(
        conv=convolution_layer(w["conv"], w["conv_bias"], p["conv"], mode, strides=(2,), relu=True),
        depthwise=convolution_layer(w["depthwise"], w["depthwise_bias"], p["depthwise"], mode, groups=WIDTH),
        gate=SqueezeExcite(squeeze=linear("squeeze", relu=True), excite=linear("excite")),
        lstm=lstm_layer(recurrent, p["lstm"], mode),
        norm=layer_norm_layer(w["norm"], w["norm_bias"], p["norm"], mode),
        attention=attention_layer(sides, p["attention"], mode),
        embedding=Embedding(table=quantise(w["table"], SIGNED, mode), format=SIGNED),
        cifg=lstm_layer(LstmWeights(w["cifg_x"], w["cifg_h"], w["cifg_x_bias"]), p["cifg"], mode),
        joiner=Joiner(encoder=linear("encoder"), predictor=linear("predictor"), output=linear("output")),
    )


def encode(x: Value, n: Networks, accelerator: Accelerator, state=None) -> tuple[Value, Any]:
    """Frames of the encoder, a frame for two of the input."""
    conv, depthwise, gate, recurrent, attend = state or (None,) * 5
    x, conv = convolution(x, n.conv, accelerator, conv)
    x, depthwise = convolution(x, n.depthwise, accelerator, depthwise)
    x, gate = squeeze_excite(x, n.gate, accelerator, gate)
    x, recurrent = lstm(x, n.lstm, accelerator, recurrent)
    x = layer_norm(x, n.norm, accelerator)
    x, attend = attention(x, n.attention, accelerator, attend)
    return x, (conv, depthwise, gate, recurrent, attend)


def predict(ids: jax.Array, n: Networks, accelerator: Accelerator, state=None) -> tuple[Value, Any]:
    """States of the predictor."""
    return lstm(embed(ids, n.embedding, accelerator), n.cifg, accelerator, state)


def join(x: Value, y: Value, n: Networks, accelerator: Accelerator) -> Value:
    return joiner(x, y, n.joiner, accelerator)
