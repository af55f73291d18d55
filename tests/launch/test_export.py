"""The exported file: what it holds is what was written, and an interpreter of its own computes the same."""

import ast
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from launch import export, export_tflite, interpreter
from launch.speech import exported, recogniser, tflite_layers
from launch.speech.recognition import search
from models.transducer.decode import decode
from tests.models.transducer.test_integer import RULES, Case, case  # noqa: F401 (a fixture)
from zojax import quant
from zojax.data.audio.features import FilterBank
from zojax.data.audio.units import CharacterUnits, PieceUnits
from zojax.quant.general import general, initial_centroids
from zojax.quant.tables import Depth


@pytest.fixture(scope="module")
def file(case: Case, tmp_path_factory) -> Path:  # noqa: F811
    """A transducer whose joiner has 2 bits a weight."""
    path = tmp_path_factory.mktemp("export") / "model.safetensors"
    z = initial_centroids(case.params, RULES, (Depth(pattern="joiner", bits=2), Depth(pattern="", bits=8)))
    params = jax.jit(lambda params: general(params, z, RULES))(case.params)
    units = CharacterUnits(characters="abcd")
    export.write(path, case.on("integer"), params, case.batch, bank=FilterBank(bins=4), units=units)
    return path


@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_are_packed_and_unpacked(bits):
    x = np.random.default_rng(bits).integers(0, 2**bits, (7, 3))
    packed = exported.pack(x, bits)
    assert packed.nbytes == -(-21 * bits // 8)
    np.testing.assert_array_equal(exported.unpack(packed, bits, (7, 3)), x)
    # Bit by bit, the lowest first.
    stream = "".join(format(v, f"0{bits}b")[::-1] for v in x.ravel())
    assert packed[0] == int(stream[:8][::-1], 2)


def test_the_interpreter_finds_nothing_different(file, capsys):
    assert interpreter.check(file) == {"frames": 0, "logits": 0, "labels": 0}
    assert interpreter.main(["interpreter", str(file)]) == 0
    assert '"labels": 0' in capsys.readouterr().out
    golden = load_file(file)
    assert len(golden["golden/labels"]) > 0
    assert len(np.unique(golden["golden/frames"])) > 10


def test_one_weight_is_seen(file, tmp_path):
    data = bytearray(file.read_bytes())
    model, tensors = interpreter.load(file)
    del model
    name = "network/joiner/encoder/weight/table"
    assert len(tensors[name]) <= 4
    at = data.find(tensors[name].tobytes(), 8 + int.from_bytes(data[:8], "little"))
    data[at + 1] = (data[at + 1] + 5) % 256
    (tmp_path / "other.safetensors").write_bytes(bytes(data))
    assert interpreter.check(tmp_path / "other.safetensors")["frames"] > 0


def test_layers_in_the_runtime_are_ours(case, capsys, tmp_path):  # noqa: F811
    """Of a transducer whose LSTMs have a scale a gate."""
    pytest.importorskip("ai_edge_litert", reason="the package ai-edge-litert is not installed; see `make parity`")
    if case.accelerator.cell_bits < 16:
        pytest.skip("the runtime's cells have 16 bits, and this preset's fewer: the refusal has a test of its own")
    rules = (quant.Rule(pattern="(input|recurrent)$", grid="int8_127", per="gate"), *RULES)
    params, path, out = quant.quantize_tree(case.params, rules), tmp_path / "gates.safetensors", tmp_path / "tflite"
    units = CharacterUnits(characters="abcd")
    export.write(path, case.on("integer"), params, case.batch, bank=FilterBank(bins=4), units=units)
    assert export_tflite.main(["export_tflite", f"--export={path}", f"--out={out}"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["layer"] for line in lines] == ["encoder_lstm_0", "predictor_lstm_0"]
    assert {line["different"] for line in lines} == {0}
    assert sorted(p.stem for p in out.iterdir()) == [line["layer"] for line in lines]


def test_layers_that_the_runtime_has_not_are_refused(file, case):  # noqa: F811
    layer = exported.read(file).network.encoder[0].lstm
    wide = case.accelerator.cell_bits == 16
    with pytest.raises(ValueError, match="a scale a column; one a gate is needed" if wide else "cells up to 127"):
        tflite_layers.lstm_file(layer, 5, 1)
    cells = dataclasses.replace(layer.plan.cell, high=127, low=-128)
    narrow = dataclasses.replace(layer, plan=dataclasses.replace(layer.plan, cell=cells))
    with pytest.raises(ValueError, match="cells up to 127; the runtime's have 16 bits"):
        tflite_layers.lstm_file(narrow, 5, 1)


def test_what_is_read_is_what_was_written(file, case):  # noqa: F811
    model = exported.read(file)
    assert model.accelerator == case.accelerator
    assert model.about["labels"] == ["", "a", "b", "c", "d"]
    assert model.units == CharacterUnits(characters="abcd")
    assert model.network.encoder[0].norm.plan.output.scale.shape == ()  # a scalar stays one
    golden, found = model.tensors, recogniser.of_export(model)
    batch = {"features": golden["features"][None] / 512.0, "frame_lengths": np.array([12])}
    frames, mask = jax.jit(found.task.encode)(found.params, batch)
    np.testing.assert_array_equal(frames[0] * 4096, golden["frames"])
    best = decode(search(len(golden["frames"]), 0), found.task.decodable(found.params), frames, mask)
    assert best.tokens[0, 0, : int(best.lengths[0, 0])].tolist() == golden["labels"].tolist()
    whole = quant.straight_through(case.params, RULES)["encoder"]["lstm"]["lstm_0"]["input"].quantized
    np.testing.assert_array_equal(model.network.encoder[0].lstm.input, whole.qvalue)


def test_word_pieces_are_in_the_file(file, tmp_path):
    model, path = exported.read(file), tmp_path / "pieces.safetensors"
    pieces = PieceUnits.train(["turn the light on", "turn the light off"] * 9, size=16)
    rest = model.network, model.frames, model.accelerator, model.bank, pieces
    exported.write(path, *rest, about={"max_symbols": 5}, golden={})
    again = exported.read(path)
    assert again.units == pieces
    assert again.about == {
        "format": exported.FORMAT,
        "labels": ["", *(pieces.decode([n]) for n in range(1, 17))],
        "max_symbols": 5,
    }


def test_the_interpreter_stands_alone():
    tree = ast.parse(Path(interpreter.__file__).read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names == {"functools", "json", "sys", "pathlib", "typing", "numpy"}


def test_refusals(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no file"):
        exported.read(tmp_path / "none")
    (tmp_path / "text").write_text("hello, this is no file of tensors")
    with pytest.raises(ValueError, match="holds no exported transducer"):
        exported.read(tmp_path / "text")
    assert interpreter.main(["interpreter", str(tmp_path / "none")]) == 2
    assert export.main(["export", f"--workdir={tmp_path}"]) == 2
    assert "--out=FILE" in capsys.readouterr().err
