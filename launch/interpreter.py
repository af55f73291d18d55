"""Runs an exported integer transducer with NumPy alone, sharing no code with what trained and wrote it.

    python -m launch.interpreter FILE

Recomputes the golden activations in the file from its feature codes, frame by frame, and says whether they and the
labels are the same. It needs numpy and the safetensors format, which is read here as well: eight bytes of length, a
JSON header, then the tensors. All arithmetic is on 64-bit integers, brought back to 32 bits where a device would.
Exit code 1: something differs; 2: a wrong request.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {"I8": np.int8, "U8": np.uint8, "I16": np.int16, "I32": np.int32, "F32": np.float32}


class Node(dict):
    """A dictionary whose entries are attributes, too."""

    __getattr__ = dict.__getitem__


def load(path: str | Path) -> tuple[Node, dict[str, np.ndarray]]:
    """The model in a file, and all of its tensors."""
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    model = json.loads(header.pop("__metadata__")["model"])
    tensors = {}
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        raw = data[8 + size + low : 8 + size + high]
        tensors[name] = np.frombuffer(raw, DTYPES[entry["dtype"]]).reshape(entry["shape"])

    def made(node: Any) -> Any:
        if isinstance(node, list):
            return [made(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "type" in node:
            return Node({name: made(value) for name, value in node["fields"].items()})
        if "tensor" in node:
            array = tensors[node["tensor"]]
            return array if array.dtype == np.float32 else array.astype(np.int64)
        if "indices" in node:
            bits = np.unpackbits(tensors[node["indices"]], bitorder="little")
            count = int(np.prod(node["shape"]))
            digits = bits[: count * node["bits"]].reshape(count, node["bits"]).astype(np.int64)
            indices = digits @ (1 << np.arange(node["bits"], dtype=np.int64))
            return tensors[node["table"]].astype(np.int64)[indices].reshape(node["shape"])
        return Node({name: made(value) for name, value in node.items()})

    return made(model), tensors


# ---------------------------------------------------------------- fixed point


def wrap(x):
    """To 32 bits, as an overflow would."""
    return ((x + 2**31) % 2**32) - 2**31


def away(x, e):
    """x / 2^e, halves away from zero."""
    rest = x & ((1 << e) - 1)
    return (x >> e) + (rest > ((((1 << e) - 1) >> 1) + (x < 0)))


def high_product(a, b):
    """(a b + 2^30) / 2^31, rounded down; the one product that does not fit is the largest number."""
    return np.minimum((a * b + 2**30) >> 31, 2**31 - 1)


def rescale(x, by, how):
    """x times a factor, in a named arithmetic."""
    m, s = by.multiplier, by.shift
    if how == "single":
        return wrap((x * m + (np.int64(1) << (30 - s))) >> (31 - s))
    h, e = high_product(wrap(x << np.maximum(s, 0)), m), np.maximum(-s, 0)
    if how == "double_gemmlowp":
        return away(h, e)
    if how == "double_half_up":
        return (h >> e) + np.where(e > 0, (h >> np.maximum(e - 1, 0)) & 1, 0)
    raise ValueError(f"arithmetic {how!r} is not known here")


def clamp(x, of):
    return np.clip(x, of.low, of.high)


# ---------------------------------------------------------------- sigmoid and tanh

SMALL = {16: 2**15 - 1, 32: 2**31 - 1}


def constant(raw, bits):
    """A Q0.31 constant in a narrower word, rounded to nearest."""
    return raw if bits == 32 else int(away(np.int64(raw), 16))


def times(a, b, bits):
    """The product of two fractions in words of so many bits."""
    shift = bits - 1
    return np.minimum((a * b + (1 << (shift - 1))) >> shift, SMALL[bits])


def narrow(x, bits):
    return ((x + 2 ** (bits - 1)) % 2**bits) - 2 ** (bits - 1)


def up(x, e, bits):
    """x 2^e, saturating."""
    return np.clip(x << e, -SMALL[bits] - 1, SMALL[bits])


def newton(a, bits):
    """2 / (1 + a) for a in [0, 1), in a word with two bits before the point."""
    half = (a >> 1) + (SMALL[bits] >> 1) + 1
    x = constant(1515870810, bits) + times(half, np.int64(constant(-1010580540, bits)), bits)
    for _ in range(3):
        x = narrow(x + up(times(x, (1 << (bits - 3)) - times(half, x, bits), bits), 2, bits), bits)
    return x


def exp_negative(a, n):
    """exp(a) for a <= 0, 16 bits with n before the point; the result has none."""
    bits, fraction = 16, 15 - n
    quarter = 1 << (fraction - 2)
    low = (a & (quarter - 1)) - quarter
    near = up(low, n, bits) if n else low
    x = near + (1 << (bits - 4))
    x2 = times(x, x, bits)
    x3, x4 = times(x2, x, bits), times(x2, x2, bits)
    tail = away(times(narrow(away(x4, 2) + x3, bits), np.int64(constant(715827883, bits)), bits) + x2, 1)
    base = constant(1895147668, bits)
    y = np.minimum(base + times(narrow(x + tail, bits), np.int64(base), bits), SMALL[bits])
    remainder = narrow(low - a, bits)
    steps = ((-2, 1672461947), (-1, 1302514674), (0, 790015084), (1, 290630308), (2, 39332535), (3, 720401), (4, 242))
    for exponent, raw in steps:
        if n > exponent:
            there = (remainder & (1 << (fraction + exponent))) != 0
            y = np.where(there, times(y, np.int64(constant(raw, bits)), bits), y)
    if n > 5:
        y = np.where(a < constant(-(1 << (36 - n)), bits), 0, y)
    return np.where(a == 0, SMALL[bits], y)


def gemmlowp_sigmoid(a, n):
    size = np.where(a > 0, a, narrow(-a, 16))
    positive = up(newton(exp_negative(narrow(-size, 16), n), 16), 1, 16)
    return np.where(a == 0, 2**14, np.where(a > 0, positive, 2**15 - 1 - positive))


def gemmlowp_tanh(a, n):
    size = up(narrow(newton(exp_negative(np.where(a < 0, a, -a), n + 1), 16) - 2**13, 16), 2, 16)
    return np.where(a == 0, 0, np.where(a < 0, -size, size))


def lut_table():
    """sigmoid(i / 24) in Q0.16, each raised by half of what a chord lies below the curve; the last is 1."""
    s = 1 / (1 + np.exp(-np.arange(256) / 24))
    table = np.floor(65536 * (s + s * (1 - s) * (2 * s - 1) / 24**2 / 16) + 0.5).astype(np.int64)
    table[255] = 65535
    return table


def lut(a, n, fraction, end):
    """The interpolated table at |a|, and the sign."""
    table, scaled = lut_table(), a * (3 << (n - 3))
    size = np.abs(scaled)
    at = size >> fraction
    inside = np.minimum(at, 254)
    between = (table[inside] << fraction) + (size & ((1 << fraction) - 1)) * (table[inside + 1] - table[inside])
    return np.where(at >= 255, end, between), scaled >= 0


def lut_sigmoid(a, n):
    y, positive = lut(a, n, 9, 0x7FFF << 10)
    return np.where(positive, y + 2**9, 2**25 - y + 2**9 - 1) >> 10


def lut_tanh(a, n):
    y, positive = lut(a, n, 8, 0xFFFF << 8)
    return np.where(positive, y - 2**23 + 2**7, -y + 2**23 + 2**7 - 1) >> 8


CURVES = {"gemmlowp": (gemmlowp_sigmoid, gemmlowp_tanh), "lut": (lut_sigmoid, lut_tanh)}


@functools.cache
def curve(how: str, which: int, n: int) -> np.ndarray:
    """sigmoid (0) or tanh (1) of every 16-bit code."""
    return CURVES[how][which](np.arange(-(2**15), 2**15, dtype=np.int64), n)


# ---------------------------------------------------------------- operators


def product(x, w, bias, device):
    """bias + x w, in the accumulator; below 32 bits it saturates behind each tile."""
    if device.accumulator_bits == 32:
        return wrap(x @ w + bias)
    top, tile = 2 ** (device.accumulator_bits - 1), device.accumulator_tile
    total = np.clip(np.broadcast_to(bias, (*x.shape[:-1], w.shape[1])), -top, top - 1)
    for at in range(0, len(w), tile):
        total = np.clip(total + x[..., at : at + tile] @ w[at : at + tile], -top, top - 1)
    return total


def fully_connected(x, p, device, how=None):
    to = p.plan.output
    y = rescale(product(x, p.weight, p.bias, device), p.plan.rescale, how or device.requantise) + to.zero
    y = clamp(y, to)
    return np.maximum(y, to.zero) if p.relu else y


def inverse_root(v):
    """1 / sqrt(v) of a whole number, as a multiplier and a shift, by five Newton steps."""
    if v <= 1:
        return Node(multiplier=np.int64(2**31 - 1), shift=np.int64(0))
    large = v >= 2**29
    a = v >> 2 if large else v
    pairs = (32 - a.bit_length() - 1) // 2 - 1
    shift = 11 + large - pairs
    a = np.int64((a << (2 * pairs)) >> 1)
    half, y = away(a, 1), np.int64(2**28)
    for _ in range(5):
        cube = up(high_product(high_product(y, y), y), 6, 32)
        y = up(high_product(np.int64(2**28 + 2**27), y) - high_product(half, cube), 3, 32)
    y = high_product(y, np.int64(1518500250)) << max(-shift, 0)
    return Node(multiplier=y, shift=np.int64(-max(shift, 0)))


def inverse(x):
    """1 / x of a whole number, as a multiplier and a shift."""
    room = 32 - x.bit_length()
    y = up(newton(np.int64((x << room) - 2**31), 32), 1, 32)
    return Node(multiplier=y, shift=np.int64(room - 31))


def inverse_deviation(variance, guard, how):
    """1 / deviation of codes, from 2^20 times their variance."""
    if how == "newton":
        whole = variance >> 20
        return inverse_root(int(guard) if whole < 1 else whole)
    if variance < 2**20:
        root, shift = root_of(int(guard)), 0
        by = inverse(max(root, 1))
        return Node(multiplier=by.multiplier, shift=by.shift + shift)
    if variance < 2**31:
        room = (32 - variance.bit_length() - 1) // 2
        root, shift = root_of(variance << (2 * room)), 10 + room
    else:
        high = variance >> 32
        down = (33 - (32 - high.bit_length())) // 2 + 1
        root, shift = root_of((variance >> max(2 * down, 1)) & 0x7FFFFFFF), 10 - down
    by = inverse(max(root, 1))
    return Node(multiplier=by.multiplier, shift=by.shift + shift)


def root_of(x: int) -> int:
    root = int(np.sqrt(float(x)))
    while root * root > x:
        root -= 1
    while (root + 1) ** 2 <= x:
        root += 1
    return root


def layer_norm(x, p, device):
    """One row of codes, normalised."""
    n, plan = len(x), p.plan
    total = int(x.sum())
    whole = int(np.fix(total / n))
    mean = whole * 1024 + int(np.fix((total - whole * n) * 1024 / n))
    variance = int((x * x).sum()) * (2**20 // n) - mean * mean
    by = inverse_deviation(variance, plan.guard, device.normaliser)
    normal = rescale(1024 * x - mean, by, device.recurrent)
    scaled = away(wrap(normal * p.gain + p.bias), 10)
    return clamp(rescale(scaled, plan.rescale, device.recurrent) + plan.output.zero, plan.output)


def lstm_step(x, state, p, device):
    """One frame of a layer: its output and (output, cell)."""
    plan, (output, cell) = p.plan, state
    how, n = device.recurrent, plan.cell_integer_bits
    gates = np.clip(rescale(product(x, p.input, p.input_bias, device), plan.input.rescale, how), -(2**15), 2**15 - 1)
    gates = gates + rescale(product(output, p.recurrent, p.recurrent_bias, device), plan.recurrent.rescale, how)
    i, f, g, o = np.split(np.clip(gates, -(2**15), 2**15 - 1) + 2**15, 4)
    sigmoid, tanh = curve(device.nonlinear, 0, 3), curve(device.nonlinear, 1, 3)
    entered = away(sigmoid[i] * tanh[g], 30 + 1 + n - device.cell_bits)
    cell = clamp(away(sigmoid[f] * cell, 15) + entered, plan.cell)
    squashed = curve(device.nonlinear, 1, n)[(cell << (16 - device.cell_bits)) + 2**15]
    hidden = rescale(sigmoid[o] * squashed, plan.hidden_rescale, how) + plan.hidden.zero
    hidden = clamp(hidden, plan.hidden)
    if p.projection is not None:
        hidden = fully_connected(hidden, p.projection, device, how)
    return hidden, (hidden, cell)


def rest(p):
    """A layer's state before the first frame: 0, whose code is the zero point."""
    cells = p.recurrent.shape[1] // 4
    zero = p.plan.recurrent.input.zero
    return np.full(len(p.recurrent), zero, np.int64), np.zeros(cells, np.int64)


class Transducer:
    """An exported transducer, one frame and one label at a time."""

    def __init__(self, model: Node):
        self.net, self.frames, self.device = model.network, model.frames, model.accelerator
        self.encoder = [rest(layer.lstm) for layer in self.net.encoder]
        self.waiting: list[np.ndarray] = []
        self.max_symbols = model.max_symbols
        self.words = [rest(layer.lstm) for layer in self.net.predictor] or [0] * self.net.context
        self.labels: list[int] = []
        self.symbol = self.say(0)

    def through(self, x, layers, states):
        for number, layer in enumerate(layers):
            x, states[number] = lstm_step(x, states[number], layer.lstm, self.device)
            x = layer_norm(x, layer.norm, self.device)
        return x

    def say(self, label: int):
        """The predictor's symbol after one more label."""
        table = self.net.table.table
        if self.net.linear is None:
            y = self.through(table[label], self.net.predictor, self.words)
        else:
            self.words = [*self.words[1:], label]
            y = fully_connected(np.concatenate([table[word] for word in self.words]), self.net.linear, self.device)
        return fully_connected(y, self.net.joiner.predictor, self.device)

    def hear(self, codes) -> np.ndarray | None:
        """Takes the feature codes of a frame; where a stack is full, searches it and returns the encoder's frame."""
        of = self.frames
        x = clamp(rescale(codes.astype(np.int64) + of.offset, of.factor, "single") + of.output.zero, of.output)
        self.waiting.append(x)
        if len(self.waiting) < self.net.stack:
            return None
        x, self.waiting = np.concatenate(self.waiting), []
        frame = fully_connected(self.through(x, self.net.encoder, self.encoder), self.net.joiner.encoder, self.device)
        for _ in range(self.max_symbols):
            label = int(np.argmax(self.logits(frame)))
            if label == 0:
                break
            self.labels.append(label)
            self.symbol = self.say(label)
        return frame

    def logits(self, frame) -> np.ndarray:
        total = np.clip(frame + self.symbol, -(2**15), 2**15 - 1)
        hidden = np.clip(away(curve(self.device.nonlinear, 1, 3)[total + 2**15], 8), -128, 127)
        return fully_connected(hidden, self.net.joiner.output, self.device)


def check(path: str | Path) -> dict[str, int]:
    """How many golden activations and labels of a file differ from what is computed here, by name."""
    model, tensors = load(path)
    transducer = Transducer(model)
    first = transducer.logits(tensors["golden/frames"][0].astype(np.int64))
    heard = [transducer.hear(codes) for codes in tensors["golden/features"]]
    frames = np.array([frame for frame in heard if frame is not None])
    labels = tensors["golden/labels"].tolist()
    return {
        "frames": int(np.sum(frames != tensors["golden/frames"])),
        "logits": int(np.sum(first != tensors["golden/logits"])),
        "labels": sum(a != b for a, b in zip(transducer.labels, labels, strict=False))
        + abs(len(labels) - len(transducer.labels)),
    }


def main(argv: list[str]) -> int:
    """Runs the program; returns its exit code."""
    if len(argv) != 2:
        print("interpreter: one FILE is needed", file=sys.stderr)
        return 2
    try:
        different = check(argv[1])
    except (OSError, KeyError, ValueError) as error:
        print(f"interpreter: {argv[1]}: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"file": argv[1], "different": different}))
    return int(any(different.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
