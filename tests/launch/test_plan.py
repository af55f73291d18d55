"""Plans: shares of weights and what is sent, against counts by hand; the program itself on one device."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from launch import plan
from launch.common import cli, collectives, problems

ROOT = Path(__file__).resolve().parents[2]
D, MLP, VOCAB, LAYERS, ROWS, LENGTH = 16, 32, 64, 3, 8, 12

# On a machine of eight CPU devices, in a process of its own: JAX fixes their number when it starts.
PROGRAM = """
import importlib, json, sys
from launch import plan
from launch.common import problems, schema
from models.language.llama_config import LlamaConfig
plan._have(8)
problems.NAMED["tiny"] = LlamaConfig(vocab_size={VOCAB}, hidden_size={D}, num_hidden_layers={LAYERS}, head_dim=4,
    num_attention_heads=4, num_key_value_heads=2, intermediate_size={MLP})
config = importlib.import_module("configs.lm_llama").get_config()
config.model.source, config.data.batch_size, config.data.max_length = "tiny", {ROWS}, {LENGTH}
config.model.dtype, config.optimizer.rounding = sys.argv[1], "none"
schema.check(config)
problem, out = problems.describe(config), {{}}
for given in sys.argv[2:]:
    sizes = plan.parse_mesh(given)
    needs = (need(config, problem, sizes, sizes, "tpu") for need in (plan.zeroth_order, plan.first_order))
    out[given] = [need._asdict() for need in needs]
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def needs():
    """Of a tiny LLaMA on some meshes: (zeroth order, first order) by mesh, in float32."""
    names = {"VOCAB": VOCAB, "D": D, "LAYERS": LAYERS, "MLP": MLP, "ROWS": ROWS, "LENGTH": LENGTH}
    words = [sys.executable, "-c", PROGRAM.format(**names), "float32", "data:8", "fsdp:4", "fsdp:4,tensor:2"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def kernels():
    """Weights of a layer's kernels: query, key, value, output, gate, up, down."""
    return D * 16 + 2 * D * 8 + 16 * D + 3 * D * MLP


def total():
    return LAYERS * (kernels() + 2 * D) + D + 2 * VOCAB * D


def test_weights_and_state_are_divided_as_the_axes_say(needs):
    zeroth, first = needs["data:8"]
    assert zeroth["weights"] == first["weights"] == 4 * total()
    assert first["state"] == 2 * 4 * total() + 4  # Adam's two moments and its count
    assert zeroth["state"] < 100  # a key, a count and the last scalars
    zeroth, first = needs["fsdp:4,tensor:2"]
    vectors = LAYERS * 2 * D + D
    assert zeroth["weights"] == 4 * ((total() - vectors) // 8 + vectors)
    assert first["state"] == 2 * zeroth["weights"] + 4
    assert zeroth["batch"] == needs["fsdp:4"][0]["batch"]


def test_data_parallel_steps_send_scalars_and_back_propagation_the_gradient(needs):
    zeroth, first = needs["data:8"]
    # Two losses and what is summed for metrics.
    assert sum(zeroth["moved"].values()) < 200
    assert sum(first["moved"].values()) == pytest.approx(2 * 4 * total() * 7 / 8, rel=0.02)


def test_sharded_weights_are_gathered_once_a_forward(needs):
    zeroth, _ = needs["fsdp:4"]
    # Two forwards gather all kernels and the head; the table is looked up where it lies.
    matrices = LAYERS * kernels() + VOCAB * D
    assert zeroth["moved"]["all-gather"] == pytest.approx(2 * 4 * matrices * 3 / 4, rel=0.05)


def test_back_propagation_needs_more(needs):
    for zeroth, first in needs.values():
        assert first["temporaries"] + first["gradient"] > 2 * zeroth["temporaries"]
        assert sum(first["moved"].values()) > sum(zeroth["moved"].values())
        assert zeroth["lowered"] > 100 < first["lowered"]


def test_loops_and_groups_are_counted():
    text = """
%cond (p: (s32[], f32[8])) -> pred[] {
  %c = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = bf16[8]{0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %r = f32[2,2]{1,0} reduce-scatter(%y), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]{0}) while(%t), condition=%cond, body=%body
  %s = (f32[3]{0}, u8[4]{0}) all-reduce(%a, %b), replica_groups={{0,1},{2,3}}, to_apply=%add
  %p = f32[2]{0} collective-permute(%a), source_target_pairs={{0,1},{1,0}}
  %one = f32[100]{0} all-reduce(%a), replica_groups={{0},{1}}, to_apply=%add
}
"""
    assert collectives.sent(text) == {
        "all-gather": 5 * 16 * 3 / 4,
        "reduce-scatter": 5 * 16 * 3,
        "all-reduce": 2 * 16 * 1 / 2,
        "collective-permute": 8,
    }


def test_meshes():
    assert plan.parse_mesh("data:8,fsdp:64,tensor:8") == {"data": 8, "fsdp": 64, "tensor": 8}
    assert plan.shrunk({"data": 8, "fsdp": 64, "tensor": 8}) == {"data": 4, "fsdp": 64, "tensor": 8}
    with pytest.raises(ValueError, match="data must be the factor; it is 1"):
        plan.shrunk({"fsdp": 4096})
    for given in (None, "", "model:8", "fsdp:0", "fsdp:4,fsdp:2", "fsdp"):
        with pytest.raises(ValueError, match="axes of data, fsdp, tensor"):
            plan.parse_mesh(given)


def test_the_plan_of_a_small_run(tiny, tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text(f"import ml_collections\ndef get_config(a=''):\n    return ml_collections.ConfigDict({tiny!r})\n")
    assert plan.main(["plan", f"--config={path}", "--mesh=data:1", "--platform=cuda"]) == 0
    out = capsys.readouterr().out
    assert "weights (exact)" in out
    assert "back-propagation, Adam" in out
    assert plan.main(["plan", f"--config={path}", "--mesh=data:4096"]) == cli.WRONG
    assert "JAX has started with" in capsys.readouterr().err


def test_shapes_need_neither_weights_nor_data():
    speech = importlib.import_module("configs.librispeech_rnnt").get_config()
    problem = problems.describe(speech)
    assert problem.batch["pcm"].shape[1] == 16 * 16000
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(problem.trainable))
    config = importlib.import_module("configs.lm_llama").get_config("70b")
    config.adapter.rank, config.trainable = 4, (r"kernel/(a|b)$",)
    problem = problems.describe(config)
    # Rank 4 on query (8192 to 8192) and value (8192 to 1024) of 80 layers.
    assert sum(leaf.size for leaf in jax.tree.leaves(problem.trainable)) == 80 * 4 * (2 * 8192 + 8192 + 1024)
    # 68,976,648,192 is LLaMA 2 70B's published count.
    assert sum(leaf.size for leaf in jax.tree.leaves(problem.frozen)) == 68_976_648_192
    config.adapter.kind = "prompt"
    with pytest.raises(ValueError, match=r"adapter\.kind is 'prompt'"):
        problems.describe(config)
