"""The benchmarks at sizes that are built from a config: random encoders and decoders in place of checkpoints."""

import jax
import jax.numpy as jnp
import pytest

from launch.bench import __main__ as program
from launch.bench import _harness, mezo_torch, quzo_step
from models.language.bert import BertConfig
from models.language.llama import LlamaConfig
from tests.launch.test_bench import check_lines, without_torch

ENCODER = BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
DECODER = LlamaConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    intermediate_size=32,
)


PRODUCT = (((16, 64), jnp.int8), ((64, 16), jnp.int8), ((16, 1), jnp.float32), ((1, 16), jnp.float32))


def test_quzo_on_a_decoder():
    cases = (("w8a8_int", "signs, beside"),)
    lines = quzo_step.run(1, source=DECODER, shapes=((2, 6),), cases=cases)
    values = check_lines(list(lines), "quzo_step")
    case = "w8a8_int, signs, beside, 2x6"
    # codes of a byte and scales beside bfloat16, of matrices this small
    ratio = values[case, "weights_and_state"] / values["bfloat16, signs, 2x6", "weights_and_state"]
    assert 0.5 < ratio < 1
    assert values[f"step, {case}", "time_median"] > 0
    assert {("forward, bfloat16, 2x6", "time_min"), ("forward, w8a8_int, 2x6", "time_min")} < set(values)


def test_kernels_can_be_switched_off():
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in PRODUCT]
    assert quzo_step.gpu.supported(*shapes, config=quzo_step.gpu.Config()) is None
    with quzo_step._without_kernels():
        assert quzo_step.gpu.supported(*shapes, config=quzo_step.gpu.Config()) == "switched off"
    assert quzo_step.gpu.supported(*shapes, config=quzo_step.gpu.Config()) is None


def test_mezo_on_a_random_encoder(monkeypatch):
    without_torch(monkeypatch, mezo_torch)
    lines = list(mezo_torch.run(1, source=ENCODER, shapes=((2, 8),)))
    assert lines[0] == _harness.no_torch("mezo_torch")
    assert ("step, zojax, Gaussian, 2x8", "rate") in check_lines(lines, "mezo_torch")


def test_mezo_with_torch_on_a_random_encoder():
    pytest.importorskip("torch", reason="torch is not installed (make parity-env)")
    values = check_lines(list(mezo_torch.run(1, source=ENCODER, shapes=((2, 8),))), "mezo_torch")
    assert ("step, torch, MeZO, 2x8", "time_median") in values


def test_an_unknown_scale_is_one_line(capsys):
    assert program.main(["quzo_step", "--scale", "huge"]) == 1
    assert "scale is 'huge'; it must be one of minilm, large, billion" in capsys.readouterr().err
