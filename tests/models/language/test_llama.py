"""What LLaMA's decoder and OPT's have in common: configurations, leaf types, sharding (logits: test_families.py)."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.language import attention, decode, hub, llama, opt
from models.language.families import abstract, family_of
from models.language.llama import Llama, LlamaConfig
from models.language.llama_config import RopeScaling
from models.language.opt import OptConfig
from zojax import quant
from zojax.adapters import add_lora, merge_lora
from zojax.directions import Rademacher
from zojax.perturb import PerturbSpec
from zojax.trees import path_string

ROOT = Path(__file__).resolve().parents[3]
SIZES = dict(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
)
# The same sums in another order; logits are of order 1 to 10.
REORDERED = 5e-5
MODULES = {"qwen2": llama, "opt_post": opt}


def loaded(golden, name):
    config, params = hub.load(golden / "families" / name)
    return family_of(config).model(config), jax.tree.map(jnp.asarray, params)


def logits(model, params):
    tokens, mask = decode.pad([[5, 9, 23, 40, 7, 31], [44, 3, 17]], side="right")
    return np.asarray(jax.jit(lambda p: model.apply({"params": p}, tokens, mask))(params))


def wrapped(kind, module, params, key):
    """(the tree with leaf types, the plain tree that it stands for)."""
    if kind == "perturbed":
        spec = PerturbSpec(direction=Rademacher(), stacked=module.STACKED)
        scale = jnp.float32(0.05)
        plain = jax.jit(lambda p: jax.tree.map(lambda w, z: w + scale * z, p, spec.noise(p, key)))(params)
        return spec.perturb(params, key, scale), plain
    if kind == "quantised":
        # A scale a tensor: few distinct shapes to compile for.
        rules = (
            quant.Rule(pattern=module.KERNELS, grid="int8_127", per="tensor"),
            quant.Rule(pattern=module.TABLES, grid="int8_127", per="row"),
            quant.Rule(pattern="", grid=None),
        )
        tree = quant.quantize_tree(params, rules)
        return tree, quant.dequantize_tree(tree)
    tree = add_lora(params, (module.KERNELS,), rank=2, alpha=4.0, key=key)

    def fill(leaf):
        return dataclasses.replace(leaf, b=0.1 * jax.random.normal(key, leaf.b.shape)) if hasattr(leaf, "b") else leaf

    tree = jax.tree.map(fill, tree, is_leaf=lambda leaf: hasattr(leaf, "materialize"))
    return tree, merge_lora(tree)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("perturbed", "qwen2"), ("quantised", "opt_post"), ("lora", "qwen2")],
)
def test_leaf_types_pass_through_the_model(golden, name, kind):
    model, params = loaded(golden, name)
    tree, plain = wrapped(kind, MODULES[name], params, jax.random.key(3))
    out = logits(model, tree)
    np.testing.assert_allclose(out, logits(model, plain), atol=REORDERED, rtol=0)
    assert np.abs(out - logits(model, params)).max() > 1e-2


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "opt", "opt_post"])
def test_stacked_names_the_scanned_leaves_and_no_others(golden, name):
    config, _ = hub.load(golden / "families" / name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract(config)):
        path = path_string(path)
        stacked = any(re.search(p, path) for p in llama.STACKED)
        assert stacked == path.startswith("layers/")
        assert not stacked or leaf.shape[0] == 2


def test_parameter_tree():
    config = LlamaConfig(**SIZES, head_dim=10)
    shapes = {path_string(p): leaf.shape for p, leaf in jax.tree_util.tree_leaves_with_path(abstract(config))}
    linear = dict(query=(32, 40), key=(32, 20), value=(32, 20), output=(40, 32), gate=(32, 48), up=(32, 48))
    expected = {f"layers/{name}/kernel": (2, *shape) for name, shape in {**linear, "down": (48, 32)}.items()}
    expected |= {f"layers/{name}/scale": (2, 32) for name in ("attention_norm", "mlp_norm")}
    assert shapes == expected | {"embeddings/word": (64, 32), "norm/scale": (32,), "head/kernel": (32, 64)}


def count(**sizes):
    leaves = jax.tree.leaves(abstract(LlamaConfig(**sizes)))
    return sum(int(np.prod(leaf.shape)) for leaf in leaves)


@pytest.mark.parametrize(
    ("sizes", "published"),
    [
        # LLaMA 2 7B, LLaMA 3 8B, Qwen2.5 0.5B: their parameter counts as the hub's files have them.
        ((32000, 4096, 32, 32, 32, 128, 11008, "llama", False), 6_738_415_616),
        ((128256, 4096, 32, 32, 8, 128, 14336, "llama", False), 8_030_261_248),
        ((151936, 896, 24, 14, 2, 64, 4864, "qwen2", True), 494_032_768),
    ],
)
def test_published_parameter_counts(sizes, published):
    names = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"]
    names += ["intermediate_size", "model_type", "tie_word_embeddings"]
    assert count(**dict(zip(names, sizes, strict=True))) == published


def test_rotary_angles_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))
    frequency = LlamaConfig(**SIZES, head_dim=8).frequencies()

    def product(a, b):
        turned = [attention.rotate(x, jnp.array([[at]]), frequency) for x, at in ((q, a), (k, b))]
        return float(jnp.sum(turned[0] * turned[1]))

    # Angles up to 1000 radians in float32 are known to 1000 * 6e-8.
    assert product(1000, 993) == pytest.approx(product(7, 0), abs=5e-4)
    assert product(7, 0) != pytest.approx(product(8, 0), abs=1e-2)
    np.testing.assert_allclose(frequency, [1.0, 0.1, 0.01, 0.001], rtol=1e-6)


def test_llama3_scaling_by_hand():
    scaling = RopeScaling(factor=4.0, original_max_position_embeddings=1000, low_freq_factor=1.0, high_freq_factor=5.0)
    wavelengths = np.array([100.0, 199.0, 400.0, 1001.0])
    # 1000 / 400 = 2.5 turns: 1.5 / 4 of the way from low to high.
    mean = (0.375 + 0.625 / 4) / 400
    expected = 2 * np.pi * np.array([1 / 100, 1 / 199, mean, 1 / 4004])
    np.testing.assert_allclose(scaling(2 * np.pi / wavelengths), expected, rtol=1e-12)


def test_older_spellings_of_config_json():
    old = dict(**SIZES, rope_theta=500000.0, rope_scaling=dict(type="llama3", factor=8, low_freq_factor=1.0))
    config = LlamaConfig.from_dict(old)
    assert (config.rope_theta, config.rope_scaling) == (500000.0, RopeScaling(factor=8.0))
    # LLaMA 1 and 2 do not state heads of keys; null is as good as nothing.
    config = LlamaConfig.from_dict({**SIZES, "num_key_value_heads": None, "rope_scaling": None, "head_dim": None})
    assert (config.num_key_value_heads, config.head_dim, config.rope_theta) == (4, 8, 10000.0)
    assert LlamaConfig.from_dict({**SIZES, "model_type": "qwen3"}).head_dim == 128
    # Qwen2 ships a window that is not used; from max_window_layers on it is.
    qwen = {**SIZES, "model_type": "qwen2", "sliding_window": 16, "use_sliding_window": False, "max_window_layers": 1}
    assert LlamaConfig.from_dict(qwen).windows == ()
    assert LlamaConfig.from_dict({**qwen, "use_sliding_window": True}).windows == (0, 16)
    assert LlamaConfig.from_dict({**SIZES, "model_type": "mistral", "sliding_window": None}).windows == ()
    assert LlamaConfig.from_dict({**SIZES, "model_type": "mistral", "sliding_window": 9}).windows == (9, 9)


def test_configs_of_the_golden_files_come_back(golden):
    for folder in sorted((golden / "families").iterdir()):
        config, _ = hub.load(folder)
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config, folder.name
        assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_key_value_heads=3), "num_key_value_heads is 3; it must be a divisor of num_attention_heads = 4"),
        (dict(head_dim=7), "head_dim is 7; it must be even"),
        (dict(hidden_act="swish"), "hidden_act is 'swish'"),
        (dict(num_hidden_layers=0), "num_hidden_layers is 0; it must be positive"),
        (dict(hidden_size="32"), "hidden_size is '32'; it must be of type int"),
        (dict(tie_word_embeddings="no"), "tie_word_embeddings is 'no'; it must be of type bool"),
        (dict(mlp_bias=True), "mlp_bias is true"),
        (dict(rope_scaling=dict(rope_type="yarn", factor=4.0)), "the rope_type is 'yarn'; it must be"),
        (dict(rope_scaling=dict(rope_type="llama3")), "lacks factor"),
        (dict(rope_scaling=dict(rope_type="llama3", factor=8, low_freq_factor=4)), "0 < low_freq_factor < high"),
        (dict(rope_scaling="llama3"), "rope_scaling is 'llama3'; it must be an object"),
        (dict(model_type="mistral", sliding_window="4"), "sliding_window is '4'; it must be of type int"),
        (dict(model_type="mistral", num_key_value_heads=None), "lacks num_key_value_heads"),
        (dict(vocab_size=None), "lacks vocab_size"),
        (
            dict(model_type="qwen2", sliding_window=4, use_sliding_window=True, layer_types=["full_attention"]),
            r"windows is \(0,\); it must be empty or 2 numbers",
        ),
    ],
)
def test_a_bad_config_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig.from_dict({**SIZES, **change})


def test_windows_that_config_json_cannot_state():
    config = LlamaConfig(**SIZES, head_dim=8, windows=(0, 4))
    for kind, said in (("llama", "use mistral"), ("mistral", "cannot say so")):
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(config, model_type=kind).to_dict()
    with pytest.raises(ValueError, match=r"windows is \(3, 4\)"):
        dataclasses.replace(config, model_type="qwen2", windows=(3, 4)).to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_attention_heads=3), "num_attention_heads is 3; it must divide hidden_size, which is 8"),
        (dict(activation_function="swish"), "activation_function is 'swish'"),
        (dict(_remove_final_layer_norm=True), "_remove_final_layer_norm is True; it must be False"),
        (dict(model_type="gpt2"), "model_type is 'gpt2'; it must be 'opt'"),
        (dict(ffn_dim=0), "ffn_dim is 0"),
    ],
)
def test_a_bad_opt_config_is_refused(change, message):
    sizes = dict(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8)
    assert OptConfig.from_dict(sizes).word_embed_proj_dim == 8
    with pytest.raises(ValueError, match=message):
        OptConfig.from_dict({**sizes, **change})


SHARDED = """
import sys, pathlib, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from models.language import decode, hub
from models.language.families import family_of
from models.language.sharding import shardings
from safetensors.numpy import load_file
folder = pathlib.Path(sys.argv[1])
config, params = hub.load(folder)
model = family_of(config).model(config)
arrays = load_file(folder / "outputs.safetensors")
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
placed = jax.device_put(params, shardings(params, mesh))
rows = [0, 2, 0, 2]
tokens, mask = (jnp.asarray(arrays[name][rows]) for name in ("tokens", "mask"))
with jax.set_mesh(mesh):
    out = jax.jit(lambda p, t, m: model.apply({"params": p}, t, m))(placed, tokens, mask)
    drawn = decode.generate(model, placed, tokens, mask, max_new_tokens=6).tokens
there = arrays["mask"][rows]
np.testing.assert_allclose(np.asarray(out)[there], arrays["logits"][rows][there], atol=1e-4, rtol=0)
np.testing.assert_array_equal(np.asarray(drawn), arrays["continued"][[0, 1, 0, 1]])
up = placed["layers"]["up"]["kernel"]
print(up.shape, up.addressable_shards[0].data.shape, out.addressable_shards[0].data.shape)
"""


def test_on_a_mesh_the_answers_are_those_of_transformers(golden):
    # In a process of its own: the number of devices is fixed when JAX starts.
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARDED, str(golden / "families" / "qwen2")]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    # A quarter of the kernel (fsdp, tensor); a quarter of the rows (data, fsdp) and half of the vocabulary.
    assert run.stdout.split("\n")[0] == "(2, 32, 48) (2, 16, 24) (1, 14, 32)"


def test_an_axis_that_does_not_divide_stays_whole():
    from jax.sharding import AbstractMesh

    from models.language.sharding import shardings

    config = LlamaConfig(**{**SIZES, "vocab_size": 63}, head_dim=8)
    specs = shardings(abstract(config), AbstractMesh((4, 2), ("fsdp", "tensor")))
    assert tuple(specs["embeddings"]["word"].spec) == (None, "fsdp")
    assert tuple(specs["layers"]["down"]["kernel"].spec) == (None, "tensor", "fsdp")
    assert not any(specs["layers"]["mlp_norm"]["scale"].spec)


def test_initialisation_is_of_the_asked_width_and_differs_between_layers():
    config = LlamaConfig(**SIZES, head_dim=8, initializer_range=0.1)
    tokens, mask = decode.pad([[1, 2]], side="left")
    kernel = jax.jit(Llama(config).init)(jax.random.key(0), tokens, mask)["params"]["layers"]["up"]["kernel"]
    assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0
    # 3,072 entries: their standard deviation is known to 1.3 %; 8 % is six of its errors.
    assert float(kernel.std()) == pytest.approx(0.1, rel=0.08)
