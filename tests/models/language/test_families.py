"""Every family against outputs of transformers, kept as golden files (see launch/language/parity_models.py)."""

import dataclasses
import json
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launch.language.parity_models import CASES, TOLERANCE, ours
from models.language import bert, decode, hub, llama, opt, tensors
from models.language.families import FAMILIES, abstract, family_of, names
from zojax import quant
from zojax.adapters import add_lora

MASKED = ("roberta", "bert")
MODULES = {"roberta": bert, "bert": bert, "opt": opt, "opt_post": opt}  # the others are llama's


@pytest.fixture
def families(golden):
    return golden / "families"


def load(families, name, **options):
    config, params = hub.load(families / name, masked_head=name in MASKED, **options)
    return config, params, load_file(families / name / "outputs.safetensors")


def difference(config, params, arrays):
    logits = ours(config, params, arrays["tokens"], arrays["mask"])
    return np.abs(logits - arrays["logits"])[arrays["mask"]].max()


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", CASES)
def test_logits_agree_with_transformers(families, name):
    assert difference(*load(families, name)) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama3", dict(rope_scaling=None)),
        ("mistral", dict(windows=(5, 5))),
        ("qwen2", dict(windows=(5, 0))),
        ("roberta", dict(position_offset=0)),
        ("bert", dict(hidden_act="gelu")),
    ],
)
def test_the_tolerance_sees_a_wrong_constant(families, name, change):
    config, params, arrays = load(families, name)
    assert difference(dataclasses.replace(config, **change), params, arrays) > TOLERANCE


@pytest.mark.parametrize("name", ["llama3", "mistral", "opt"])
def test_greedy_continuations_are_those_of_transformers(families, name):
    config, params, arrays = load(families, name)
    tokens, mask = (jnp.asarray(arrays[n][[0, 2]]) for n in ("tokens", "mask"))
    expected = arrays["continued"]
    out = decode.generate(family_of(config).model(config), params, tokens, mask, max_new_tokens=expected.shape[1])
    np.testing.assert_array_equal(out.tokens, expected)


def test_positions_predicted_alone_are_those_among_all(families):
    config, params, arrays = load(families, "roberta")
    model = family_of(config).model(config)
    tokens, mask, at = jnp.asarray(arrays["tokens"]), jnp.asarray(arrays["mask"]), jnp.array([[3, 0], [8, 8], [1, 2]])
    some = jax.jit(lambda p: model.apply({"params": p}, tokens, mask, at=at, method="masked_logits"))(params)
    expected = np.take_along_axis(arrays["logits"], np.asarray(at)[..., None], axis=1)
    np.testing.assert_allclose(some, expected, atol=TOLERANCE, rtol=0)


def test_roberta_counts_tokens_and_not_columns(families):
    config, params, arrays = load(families, "roberta")
    tokens, mask = arrays["tokens"][1:2], arrays["mask"][1:2]
    moved = np.roll(tokens, 4, axis=1), np.roll(mask, 4, axis=1)  # 9 tokens of 14: 5 columns of padding behind
    out = ours(config, params, *moved)
    np.testing.assert_allclose(out[:, 4:13], arrays["logits"][1:2, :9], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_an_export_has_the_tensors_of_transformers_and_comes_back(families, name, tmp_path):
    config, params, _ = load(families, name)
    hub.save(tmp_path / "out", config, params)
    mine = {t.name: t.shape for t in tensors.open_folder(tmp_path / "out")}
    assert mine == {t.name: t.shape for t in tensors.open_folder(families / name)}
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    reference = json.loads((families / name / "config.json").read_text())
    assert values["architectures"] == reference["architectures"]
    again_config, again = hub.load(tmp_path / "out", masked_head=name in MASKED)
    assert again_config == config
    assert_same(again, params)


def test_an_export_in_shards_is_that_in_one_file(families, tmp_path):
    config, params, _ = load(families, "llama2")
    hub.save(tmp_path / "one", config, params, dtype="bfloat16")
    hub.save(tmp_path / "many", config, params, dtype="bfloat16", shard_bytes=5000)
    # Written by transformers in the same type: the bytes of every tensor are those of the file we read.
    assert_same(load_file(tmp_path / "one" / tensors.WEIGHTS), load_file(families / "llama2" / tensors.WEIGHTS))
    index = json.loads((tmp_path / "many" / tensors.INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    sizes = [sum(a.nbytes for a in load_file(tmp_path / "many" / file).values()) for file in files]
    # A shard of one tensor may be larger than was asked for: it cannot be divided. None is, here.
    assert max(sizes) <= 5000
    assert sum(sizes) == index["metadata"]["total_size"]
    assert_same(hub.load(tmp_path / "many")[1], params)


def test_an_export_writes_what_leaf_types_stand_for(families, tmp_path):
    config, params, _ = load(families, "qwen3")
    key = jax.random.key(0)
    lora = add_lora(params, (r"query/kernel$",), rank=2, alpha=4.0, key=key)
    leaf = lora["layers"]["query"]["kernel"]
    lora["layers"]["query"]["kernel"] = dataclasses.replace(leaf, b=jax.random.normal(key, leaf.b.shape))
    rules = (quant.Rule(pattern="up/kernel$", grid="int8_127"), quant.Rule(pattern="", grid=None))
    mixed = quant.quantize_tree({"layers": {"up": lora["layers"]["up"]}}, (rules[0],))
    lora["layers"]["up"] = mixed["layers"]["up"]
    hub.save(tmp_path, config, lora)
    again = hub.load(tmp_path)[1]["layers"]
    expected = params["layers"]["query"]["kernel"] + np.asarray(lora["layers"]["query"]["kernel"].delta())
    # One float32 addition, whichever program makes it.
    np.testing.assert_allclose(again["query"]["kernel"], expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(again["up"]["kernel"], lora["layers"]["up"]["kernel"].materialize())


@pytest.mark.parametrize(
    ("name", "per", "grid"),
    [
        ("opt_post", 16, "int4_asymmetric"),
        ("bert", "channel", "int8_127"),  # one scale for all layers: the leaf is quantised as a whole
    ],
)
def test_a_load_into_quantised_leaves_is_the_quantised_load(families, name, per, grid):
    # Few leaves: every shape compiles the quantiser anew.
    rules = (
        quant.Rule(pattern=r"layers/(query|key)/kernel$", grid=grid, per=per),
        quant.Rule(pattern=r"embeddings/word$", grid=grid, per="row"),
        quant.Rule(pattern="", grid=None),
    )
    direct = load(families, name, rules=rules)[1]
    expected = quant.quantize_tree(load(families, name)[1], rules)
    assert jax.tree.structure(direct) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(direct), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        # A scale is a quotient that XLA rounds in one of two ways, by the array's shape; a weight halfway between two
        # codes (absmax / 2 is) then goes to one or the other.
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        if a.size > 100:
            assert np.abs(a - b).max() <= 1
            assert np.mean(a != b) < 0.01
        else:
            np.testing.assert_allclose(a, b, rtol=2.4e-7, atol=0)


def test_a_rule_that_matches_nothing_is_refused_before_a_tensor_is_read(families, monkeypatch):
    monkeypatch.setattr(tensors.Stored, "read", lambda self: pytest.fail("a tensor was read"))
    with pytest.raises(ValueError, match=r"rules: 'no_such' matches no leaf"):
        hub.load(families / "llama2", rules=(quant.Rule(pattern="no_such", grid="int4"),))


@pytest.mark.parametrize("name", CASES)
def test_patterns_name_every_matrix_and_no_vector(families, name):
    config = FAMILIES[json.loads((families / name / "config.json").read_text())["model_type"]].config
    config = config.from_file(families / name / "config.json")
    tree = abstract(config, masked_head=name in MASKED)
    module = MODULES.get(name, llama)
    rules = quant.profile_rules(quant.PROFILES["w8a8_int"], kernels=module.KERNELS, tables=module.TABLES, rest="")
    tree = jax.eval_shape(lambda params: quant.quantize_tree(params, rules), tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, quant.QArray)):
        vector = path[-1].key in ("bias", "scale")
        assert isinstance(leaf, quant.QArray) != vector, path


@pytest.mark.parametrize("name", ["mistral", "opt"])
def test_half_precision_is_for_matrices(families, name):
    stored, floats = (load(families, name, dtype=dtype)[1] for dtype in ("bfloat16", "float32"))
    for path, leaf in jax.tree_util.tree_leaves_with_path(stored):
        assert leaf.dtype == (np.float32 if path[-1].key in ("bias", "scale") else jnp.bfloat16), path
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), stored, floats)


@pytest.mark.parametrize("name", ["llama3", "roberta"])
def test_matrices_as_codes_come_back_to_half_a_step_and_codes_to_the_bit(families, tmp_path, name):
    config, floats, _ = load(families, name)
    hub.save(tmp_path / "one", config, floats, dtype="int8")
    stored = load_file(tmp_path / "one" / tensors.WEIGHTS)
    assert {str(array.dtype) for array in stored.values()} == {"int8", "float32"}
    codes = {name: array for name, array in stored.items() if array.dtype == np.int8}
    # absmax over 127: in every row that is not zero one code is +-127.
    assert all((np.abs(array).max(axis=1)[array.any(axis=1)] == 127).all() for array in codes.values())
    again = hub.load(tmp_path / "one", masked_head=name in MASKED)[1]
    for stored_leaf, leaf in zip(jax.tree.leaves(again), jax.tree.leaves(floats), strict=True):
        half_step = np.abs(leaf).max() / 127 / 2 * (1 + 1e-5)  # float32 rounding of the scale
        assert np.abs(stored_leaf - leaf).max() <= half_step
    hub.save(tmp_path / "two", config, again, dtype="int8")
    twice = load_file(tmp_path / "two" / tensors.WEIGHTS)
    for name, array in codes.items():
        np.testing.assert_array_equal(array, twice[name])


def test_codes_without_their_scales_are_refused(families, tmp_path):
    config, floats, _ = load(families, "llama3")
    hub.save(tmp_path / "x", config, floats, dtype="int8")
    arrays = load_file(tmp_path / "x" / tensors.WEIGHTS)
    arrays.pop("model.embed_tokens.weight_scale")
    save_file(arrays, tmp_path / "x" / tensors.WEIGHTS)
    with pytest.raises(ValueError, match=r"int8 tensor 'embed_tokens\.weight' needs 'embed_tokens\.weight_scale'"):
        hub.load(tmp_path / "x")


def test_an_untied_head_must_be_there_and_a_tied_one_is_passed_over(families, tmp_path):
    for name in ("llama2", "llama3"):
        shutil.copytree(families / name, tmp_path / name)
    arrays = load_file(families / "llama2" / tensors.WEIGHTS)
    head = arrays.pop("lm_head.weight")
    tensors.write_folder(
        tmp_path / "llama2", {n: a.shape for n, a in arrays.items()}, arrays.values(), dtype=head.dtype
    )
    with pytest.raises(ValueError, match=r"'lm_head\.weight' of shape \(64, 32\) is missing"):
        hub.load(tmp_path / "llama2")
    arrays = load_file(families / "llama3" / tensors.WEIGHTS) | {
        "lm_head.weight": head,
        "model.layers.0.self_attn.rotary_emb.inv_freq": head[0],
    }
    tensors.write_folder(
        tmp_path / "llama3", {n: a.shape for n, a in arrays.items()}, arrays.values(), dtype=head.dtype
    )
    assert_same(hub.load(tmp_path / "llama3")[1], hub.load(families / "llama3")[1])


def test_a_base_model_without_the_prefix_is_read(families, tmp_path):
    for name in ("qwen3", "opt"):
        prefix = FAMILIES[name].prefixes[0]
        arrays = {n.removeprefix(prefix): a for n, a in load_file(families / name / tensors.WEIGHTS).items()}
        shutil.copytree(families / name, tmp_path / name)
        dtype = next(iter(arrays.values())).dtype
        tensors.write_folder(tmp_path / name, {n: a.shape for n, a in arrays.items()}, arrays.values(), dtype=dtype)
        assert_same(hub.load(tmp_path / name)[1], hub.load(families / name)[1])


def test_a_tensor_of_another_family_is_unexpected(families, tmp_path):
    # Qwen3's norms of queries and keys in a file that calls itself LLaMA.
    shutil.copytree(families / "qwen3", tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(ValueError, match=r"4 unexpected .*'layers\.0\.self_attn\.k_norm\.weight' of shape \(12,\)"):
        hub.load(tmp_path / "x")


def test_a_file_that_ends_early_is_refused(families, tmp_path):
    shutil.copytree(families / "llama2", tmp_path / "x")
    path = tmp_path / "x" / tensors.WEIGHTS
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        hub.load(tmp_path / "x")


def test_our_header_is_as_the_format_says(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors.write_folder(tmp_path, {"w": (2, 3), "b": (1,)}, [array, np.ones(1)], dtype=np.float32)
    data = (tmp_path / tensors.WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert header["w"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    assert header["b"]["data_offsets"] == [24, 28]
    assert data[8 + length :] == array.tobytes() + np.ones(1, np.float32).tobytes()


def test_an_export_refuses_before_it_writes(families, tmp_path):
    config, params, _ = load(families, "llama2")
    with pytest.raises(ValueError, match="dtype is 'int4'"):
        hub.save(tmp_path / "out", config, params, dtype="int4")
    with pytest.raises(ValueError, match="the leaf 'head/kernel' is missing"):
        hub.save(tmp_path / "out", config, {n: leaf for n, leaf in params.items() if n != "head"})
    with pytest.raises(ValueError, match="the leaf 'norm/scale' is missing, unexpected or of another shape"):
        hub.save(tmp_path / "out", config, {**params, "norm": {"scale": np.ones(31)}})
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError, match="full is not empty"):
        hub.save(tmp_path / "full", config, params)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["file"]


def test_what_a_family_lacks_is_refused(families, tmp_path):
    with pytest.raises(ValueError, match="a llama model has neither a pooler nor a head for masked words"):
        hub.load(families / "llama2", masked_head=True)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="model_type is 'gpt2'; it must be one of bert, roberta, llama"):
        hub.load(tmp_path)
    with pytest.raises(ValueError, match="'rotary/kernel' has no name"):
        names(FAMILIES["llama"], "rotary/kernel", None)
