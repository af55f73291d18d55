"""The encoder against outputs of transformers' BertModel, kept as golden files (see launch/parity.py)."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from models.language import hub
from models.language.bert import Bert
from models.language.classifier import TextClassifier

# Two float32 implementations of six layers differ by 1e-6 to 1e-5; a wrong epsilon, GELU or mask by 1e-3.
TOLERANCE = 1e-4


def apply(config, params, arrays, method="__call__"):
    types = arrays.get("types", np.zeros_like(arrays["tokens"]))
    args = map(jnp.asarray, (arrays["tokens"], arrays["mask"], types))
    return np.asarray(Bert(config).apply({"params": params}, *args, method=method))


def test_minilm_agrees_with_transformers(minilm, golden):
    config, params = minilm
    arrays = load_file(golden / "minilm_outputs.safetensors")
    hidden = apply(config, params, arrays)
    last = arrays["mask"].sum(1) - 1
    rows = np.stack([hidden[:, 0], hidden[np.arange(len(last)), last]], axis=1)
    np.testing.assert_allclose(rows, arrays["rows"], atol=TOLERANCE, rtol=0)


def test_minilm_pooling_agrees_with_transformers(minilm, golden):
    config, params = minilm
    arrays = load_file(golden / "minilm_outputs.safetensors")
    pooled = TextClassifier(config=config, num_classes=2).features({"encoder": params}, arrays)
    np.testing.assert_allclose(pooled, arrays["pooled"], atol=TOLERANCE, rtol=0)


def test_the_golden_tokens_are_those_of_the_sentences(minilm, golden):
    text = json.loads((golden / "minilm_sentences.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(hub.resolve("minilm") / "tokenizer.json"))
    tokenizer.enable_truncation(text["max_length"])
    tokenizer.enable_padding()
    arrays = load_file(golden / "minilm_outputs.safetensors")
    encoded = tokenizer.encode_batch(text["sentences"])
    np.testing.assert_array_equal([e.ids for e in encoded], arrays["tokens"])
    np.testing.assert_array_equal([e.attention_mask for e in encoded], arrays["mask"])


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize(("output", "method"), [("hidden", "__call__"), ("pooler", "pooled")])
def test_tiny_agrees_with_transformers(tiny, golden, act, output, method):
    config, params = tiny
    arrays = load_file(golden / "bert_tiny_outputs.safetensors")
    out = apply(dataclasses.replace(config, hidden_act=act), params, arrays, method)
    np.testing.assert_allclose(out, arrays[f"{output}_{act}"], atol=TOLERANCE, rtol=0)


def test_the_tolerance_sees_a_wrong_activation(tiny, golden):
    config, params = tiny
    arrays = load_file(golden / "bert_tiny_outputs.safetensors")
    out = apply(dataclasses.replace(config, hidden_act="gelu_new"), params, arrays)
    assert np.abs(out - arrays["hidden_gelu"]).max() > TOLERANCE
