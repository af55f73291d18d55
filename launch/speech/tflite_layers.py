"""Layers of an integer network as .tflite files of one operator each, which an outside runtime can run."""

from typing import Any

import numpy as np

from launch.speech.tflite_file import TfliteFile
from zojax.accelerator.emulate import Format
from zojax.accelerator.linear import FullyConnected
from zojax.accelerator.lstm import Lstm

__all__ = ["fully_connected_file", "lstm_file"]

NONE, RELU, TANH = 0, 1, 4
NORM_BITS = 10
"""The runtime's layer norm keeps so many more bits of a bias than of a gain."""


def fully_connected_file(layer: FullyConnected, rows: int) -> bytes:
    """A fully connected layer of 8-bit outputs.

    Args:
      layer: in the integer mode.
      rows: of an input [rows, d_in].

    Returns:
      The file's bytes.

    Raises:
      ValueError: if its outputs are wider.
    """
    plan, weight = layer.plan, _codes(layer.weight)
    if plan.output.high > 127:
        raise ValueError(f"layer: outputs up to {plan.output.high}; the runtime's are 8 bits wide")
    d_in, d_out = weight.shape
    file, scale = TfliteFile(), np.asarray(plan.weight.scale, np.float32)
    x = _activation(file, (rows, d_in), plan.input)
    y = _activation(file, (rows, d_out), plan.output)
    w = file.tensor((d_out, d_in), "int8", scale=scale, data=weight.T)
    bias = _unfolded(layer.bias, weight, plan.input)
    b = file.tensor(bias.shape, "int32", scale=np.float32(plan.input.scale) * scale, data=bias)
    activation = RELU if layer.relu else NONE
    options = "FullyConnectedOptions"
    file.operator("FULLY_CONNECTED", [x, w, b], [y], options=options, version=5, fusedActivationFunction=activation)
    return file.finish([x], [y])


def lstm_file(layer: Lstm, time: int, batch: int) -> bytes:
    """An LSTM layer.

    Args:
      layer: in the integer mode, on an accelerator whose cells have 16 bits.
      time: frames of an input [time, batch, d_in].
      batch: its rows.

    Returns:
      The file's bytes.

    Raises:
      ValueError: if a kernel has more than one scale a gate, or cells are narrower, which no such file can say.
    """
    plan, cells = layer.plan, layer.cells
    gates, d_in, outputs = 3 if layer.cifg else 4, layer.input.shape[0], layer.recurrent.shape[0]
    if plan.cell.high != 2**15 - 1:
        raise ValueError(f"layer: cells up to {plan.cell.high}; the runtime's have 16 bits")
    of_input = _a_gate("input", plan.input.weight.scale, gates, cells)
    of_recurrent = _a_gate("recurrent", plan.recurrent.weight.scale, gates, cells)
    of_gates = _a_gate("gates", plan.input.output.scale, gates, cells)
    if layer.projection is not None and np.size(layer.projection.plan.weight.scale) > 1:
        raise ValueError("layer: the projection has several scales; the runtime's LSTM has one")
    file, absent = TfliteFile(), [-1] * (4 - gates)  # with coupled gates the tensors of the input gate are absent

    def per_gate(arrays: np.ndarray, dtype: str, scales: np.ndarray) -> list[int]:
        return absent + [file.tensor(a.shape, dtype, scale=s, data=a) for a, s in zip(arrays, scales, strict=True)]

    def kernel(codes: Any) -> np.ndarray:
        return _codes(codes).T.reshape(gates, cells, -1)

    x = _activation(file, (time, batch, d_in), plan.input.input)
    inputs = [x, *per_gate(kernel(layer.input), "int8", of_input)]
    inputs += [*per_gate(kernel(layer.recurrent), "int8", of_recurrent), -1, -1, -1]
    if layer.norm is None:
        bias = _unfolded(layer.input_bias, _codes(layer.input), plan.input.input).reshape(gates, cells)
        inputs += per_gate(bias, "int32", np.float32(plan.input.input.scale) * of_input)
        gain = []
    else:
        of_gain = np.broadcast_to(np.asarray(layer.norm.plan.gain.scale, np.float32).reshape(-1), gates)
        of_bias = of_gain * np.float32(2.0**-NORM_BITS)
        inputs += per_gate(np.asarray(layer.norm.bias, np.int32), "int32", of_bias)
        gain = per_gate(np.asarray(layer.norm.gain, np.int16), "int16", of_gain)
    if layer.projection is None:
        inputs += [-1, -1]
    else:
        of, weight = layer.projection.plan, _codes(layer.projection.weight)
        scale = np.asarray(of.weight.scale, np.float32)
        inputs.append(file.tensor((outputs, cells), "int8", scale=scale, data=weight.T))
        bias = _unfolded(layer.projection.bias, weight, of.input)
        inputs.append(file.tensor(bias.shape, "int32", scale=scale * np.float32(of.input.scale), data=bias))
    inputs.append(_activation(file, (batch, outputs), plan.output, variable=True))
    inputs.append(file.tensor((batch, cells), "int16", scale=np.float32(plan.cell.scale), variable=True))
    y = _activation(file, (time, batch, outputs), plan.output)
    between = [file.tensor((1,), "int16", scale=s) for s in (*[np.float32(2.0**-12)] * len(absent), *of_gates)]
    between.append(_activation(file, (1,), plan.hidden))
    file.operator(
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        inputs + gain,
        [y],
        options="UnidirectionalSequenceLSTMOptions",
        intermediates=between,
        version=3,
        fusedActivationFunction=TANH,
        cellClip=float(plan.cell_clip * np.float32(plan.cell.scale)),
        timeMajor=True,
    )
    return file.finish([x], [y])


def _codes(weight: Any) -> np.ndarray:
    return np.asarray(weight, np.int8)


def _activation(file: TfliteFile, shape: tuple[int, ...], of: Format, *, variable: bool = False) -> int:
    return file.tensor(shape, "int8", scale=np.float32(of.scale), zero=int(of.zero), variable=variable)


def _unfolded(bias: Any, weight: np.ndarray, x: Format) -> np.ndarray:
    """The bias without the input's zero point, see `zojax.accelerator.products.fold`."""
    return (np.asarray(bias, np.int64) + int(x.zero) * weight.astype(np.int64).sum(0)).astype(np.int32)


def _a_gate(name: str, scales: Any, gates: int, cells: int) -> np.ndarray:
    """The scale of each gate, from those of its columns."""
    each = np.broadcast_to(np.asarray(scales, np.float32).reshape(-1), gates * cells).reshape(gates, cells)
    if np.any(each != each[:, :1]):
        raise ValueError(f'layer: {name} has a scale a column; one a gate is needed (config.integer.scales="gate")')
    return each[:, 0]
