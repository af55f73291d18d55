"""Compares the integer operators with the runtime of the package ai-edge-litert, output by output.

    python -m launch.parity_integers

The models are written here with random codes, scales and zero points (`launch.speech.tflite_layers`), so that operators
can be compared that no converter emits: LSTMs with layer norm, projection and coupled gates. A line of JSON a case: the
number of outputs, how many differ, and with which arithmetic of ours. It fails if one output differs.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.speech.tflite_file import run
from launch.speech.tflite_layers import NORM_BITS, fully_connected_file, lstm_file
from zojax.accelerator import TFLITE, Accelerator
from zojax.accelerator.emulate import Q3_12, Format
from zojax.accelerator.linear import FullyConnected, fully_connected, linear_plan
from zojax.accelerator.lstm import Lstm, lstm, lstm_plan
from zojax.accelerator.normalise import LayerNorm
from zojax.accelerator.products import fold

KERNELS = {"BUILTIN_REF": "single", "AUTO": "single", "BUILTIN_WITHOUT_DEFAULT_DELEGATES": "double_half_up"}
"""The runtime's three sets of kernels (reference; the default, XNNPACK; ruy) and the arithmetic of each in fully
connected layers."""


def int8(rng: np.random.Generator, *shape: int, least: int = -127) -> np.ndarray:
    return rng.integers(least, 128, shape).astype(np.int8)


def fmt(scale: Any, zero: int = 0) -> Format:
    return Format(scale=jnp.asarray(scale, jnp.float32), zero=jnp.int32(zero))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model as a file and as our operator.

    Attributes:
      name: for the report.
      model: the file's bytes.
      layer: ours, of integer codes.
      x: the input.
    """

    name: str
    model: bytes
    layer: Any
    x: np.ndarray


def fully_connected_case(seed: int, rows: int, d_in: int, d_out: int, *, per_channel: bool) -> Case:
    """A fully connected layer with random codes, scales and zero points."""
    rng = np.random.default_rng(seed)
    weight, bias = int8(rng, d_out, d_in), rng.integers(-20000, 20000, d_out).astype(np.int32)
    sx, zx, zy = np.float32(rng.uniform(0.005, 0.05)), int(rng.integers(-128, 128)), int(rng.integers(-100, 100))
    sw = rng.uniform(0.001, 0.01, d_out if per_channel else 1).astype(np.float32)
    # The sums spread over about twice the range of the output, so that some of them clamp.
    sy = np.float32(sx * sw.mean() * np.sqrt(d_in) * 74 * 74 / 60)
    scales = "float64" if per_channel else "float32_product"
    plan = linear_plan(fmt(sx, zx), fmt(sw if per_channel else sw[0]), fmt(sy, zy), scales=scales)
    codes = jnp.asarray(weight.T)
    layer = FullyConnected(plan=plan, weight=codes, bias=fold(jnp.asarray(bias), codes, plan.input))
    name = f"fully connected {d_in} -> {d_out}, {'a scale a channel' if per_channel else 'one scale'}"
    return Case(name=name, model=fully_connected_file(layer, rows), layer=layer, x=int8(rng, rows, d_in, least=-128))


def lstm_case(
    seed: int,
    batch: int,
    time: int,
    d_in: int,
    cells: int,
    *,
    d_out: int | None = None,
    norm: bool = False,
    cifg: bool = False,
    clip: float = 0.0,
    spread: float = 1.0,
) -> Case:
    """An LSTM with random codes, scales and zero points; `spread` is about the deviation of a gate before sigmoid."""
    rng = np.random.default_rng(seed)
    gates = 3 if cifg else 4
    outputs = d_out or cells
    sx, zx = np.float32(rng.uniform(0.02, 0.04)), int(rng.integers(-20, 20))
    sh, zh = np.float32(rng.uniform(0.006, 0.0078)), int(rng.integers(-20, 20))
    swx = (rng.uniform(0.8, 1.2, gates) * spread / (sx * 74 * 74 * np.sqrt(d_in))).astype(np.float32)
    swh = (rng.uniform(0.8, 1.2, gates) * spread / (sh * 74 * 40 * np.sqrt(outputs))).astype(np.float32)
    wx, wh = int8(rng, gates, cells, d_in), int8(rng, gates, cells, outputs)
    hidden = (np.float32(rng.uniform(0.006, 0.0078)), int(rng.integers(-20, 20))) if d_out else (sh, zh)
    gate_scale = rng.uniform(2e-4, 4e-4, gates).astype(np.float32) if norm else np.full(gates, 2.0**-12, np.float32)
    gain_scale = rng.uniform(4e-5, 6e-5, gates).astype(np.float32)
    bias_scale = gain_scale * np.float32(2.0**-NORM_BITS) if norm else sx * swx
    bias = np.stack([rng.integers(-1, 2) * rng.uniform(0, 1, cells) / s for s in bias_scale]).astype(np.int32)
    gain = rng.integers(10000, 32767, (gates, cells)).astype(np.int16)
    projection = None
    if d_out:
        scale = np.float32(1.0 / (74 * np.sqrt(cells)))
        projection = (scale, int8(rng, d_out, cells), rng.integers(-3000, 3000, d_out).astype(np.int32))

    def spread_out(scales):
        return np.repeat(scales, cells)

    guard = {int(max(1, 10000 * s)) for s in gain_scale}
    assert len(guard) == 1
    plan = lstm_plan(
        TFLITE,
        input=fmt(sx, zx),
        input_weight=fmt(spread_out(swx)),
        recurrent_weight=fmt(spread_out(swh)),
        output=fmt(sh, zh),
        cell_integer_bits=4,
        hidden=fmt(*hidden) if d_out else None,
        gates=dataclasses.replace(Q3_12, scale=jnp.asarray(spread_out(gate_scale))) if norm else Q3_12,
        gain=Format(scale=jnp.asarray(gain_scale)[:, None], low=-32768, high=32767) if norm else None,
        projection_weight=fmt(projection[0]) if projection else None,
        guard=guard.pop(),
        cell_clip=clip,
    )

    def columns(codes):
        return jnp.asarray(codes.reshape(gates * cells, -1).T)

    def folded(codes: Any, of: Format, bias: Any = 0) -> Any:
        zeros = jnp.zeros(codes.shape[-1], jnp.int32) + bias
        return fold(zeros, codes, of)

    flat = jnp.asarray(bias.reshape(-1))
    layer = Lstm(
        plan=plan,
        input=columns(wx),
        input_bias=folded(columns(wx), plan.input.input, 0 if norm else flat),
        recurrent=columns(wh),
        recurrent_bias=folded(columns(wh), plan.output),
        norm=LayerNorm(plan=plan.norm, gain=jnp.asarray(gain), bias=jnp.asarray(bias)) if plan.norm else None,
        projection=FullyConnected(
            plan=plan.projection,
            weight=jnp.asarray(projection[1].T),
            bias=folded(jnp.asarray(projection[1].T), plan.hidden, jnp.asarray(projection[2])),
        )
        if projection and plan.projection
        else None,
    )
    parts = [f"lstm {d_in} -> {cells}", *(["layer norm"] if norm else []), *([f"projection {d_out}"] if d_out else [])]
    parts += [*(["cifg"] if cifg else []), *([f"clip {clip}"] if clip else []), *([f"spread {spread}"])]
    return Case(
        name=", ".join(parts),
        model=lstm_file(layer, time, batch),
        layer=layer,
        x=int8(rng, time, batch, d_in, least=-128),
    )


def ours(case: Case, accelerator: Accelerator) -> np.ndarray:
    """Our outputs, in the layout of the runtime."""
    if isinstance(case.layer, FullyConnected):
        return np.asarray(jax.jit(lambda p, x: fully_connected(x, p, accelerator))(case.layer, jnp.asarray(case.x)))
    x = jnp.asarray(case.x.swapaxes(0, 1))
    y, _ = jax.jit(lambda p, x: lstm(x, p, accelerator))(case.layer, x)
    return np.asarray(y).swapaxes(0, 1)


def compare(case: Case, kernels: str, accelerator: Accelerator, arithmetic: str) -> int:
    """Prints one line and returns how many outputs differ."""
    theirs, mine = run(case.model, kernels, case.x), ours(case, accelerator)
    different = int((theirs != mine).sum())
    line = {"case": case.name, "kernels": kernels, "arithmetic": arithmetic, "outputs": int(theirs.size)}
    line |= {
        "different": different,
        "distinct": len(np.unique(theirs)),
        "clamped": int((np.abs(theirs + 0.5) == 127.5).sum()),
    }
    print(json.dumps(line), flush=True)
    return different


def cases(outputs: int) -> Iterator[tuple[Case, str, str]]:
    """All cases with the kernels they run in and our arithmetic: about so many outputs of each kind."""
    shapes = ((64, 96), (150, 64), (520, 128), (1100, 32))
    rows = -(-outputs // (2 * sum(d_out for _, d_out in shapes)))
    for kernels, arithmetic in KERNELS.items():
        for seed, (d_in, d_out) in enumerate(shapes):
            for per_channel in (False, True):
                yield fully_connected_case(seed, rows, d_in, d_out, per_channel=per_channel), kernels, arithmetic
    # Every fourth of the LSTM cases is the plain one; the rest have what converters do not emit.
    variants: list[dict[str, Any]] = [
        dict(spread=0.5),
        dict(spread=1.5),
        dict(spread=4.0),
        dict(clip=0.7),
        dict(cifg=True),
        dict(d_out=24),
        dict(norm=True),
        dict(norm=True, cifg=True, d_out=24, clip=2.0),
    ]
    batch, cells = 8, 40
    time = -(-outputs // (len(variants) * batch * cells))
    for seed, variant in enumerate(variants):
        yield lstm_case(seed, batch, time, 32, cells, **variant), "BUILTIN_REF", TFLITE.recurrent


def main() -> int:
    """Runs all cases; returns how many outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=int, default=300_000, help="how many outputs of each kind to compare")
    outputs = parser.parse_args().outputs
    different = 0
    for case, kernels, arithmetic in cases(outputs):
        field = "requantise" if isinstance(case.layer, FullyConnected) else "recurrent"
        accelerator = dataclasses.replace(TFLITE, **{field: arithmetic})
        different += compare(case, kernels, accelerator, arithmetic)
    return different


if __name__ == "__main__":
    sys.exit(bool(main()))
