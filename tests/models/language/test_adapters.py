"""Adapters and prefixes in the models: where they stand, how many weights they are, and what they compute."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.language import attention, bert, decode, llama, opt
from models.language.adapters import adapted, add_adapters, add_prefix
from models.language.families import abstract, family_of
from models.language.layers import MASKED
from zojax import quant
from zojax.adapters import Bottleneck, bottleneck
from zojax.directions import Rademacher
from zojax.perturb import PerturbSpec
from zojax.trees import leaf_paths, merge, split

KEY = jax.random.key(0)
BERT = bert.BertConfig(
    vocab_size=13,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    initializer_range=0.5,
)
LLAMA = llama.LlamaConfig(
    vocab_size=13,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    intermediate_size=12,
    initializer_range=0.5,
)
OPT = opt.OptConfig(
    vocab_size=13,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    ffn_dim=12,
    word_embed_proj_dim=8,
    init_std=0.5,
)
CASES = {"bert": (BERT, bert), "llama": (LLAMA, llama), "opt": (OPT, opt)}
TOKENS, MASK = decode.pad([[5, 9, 3, 4, 7], [2, 8, 11]], side="right")
SMALL = Bottleneck(width=4, rank=2, identity=False)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return cases(request.param)


@functools.cache
def cases(name):
    """(config, its module, forward of a tree, a random tree)."""
    config, module = CASES[name]
    model = family_of(config).model(config)
    params = jax.jit(model.init)(KEY, TOKENS, MASK)["params"]
    return config, module, jax.jit(lambda p: model.apply({"params": p}, TOKENS, MASK)), params


def moved(tree, seed):
    """Random weights of a size at which every part of a model counts."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: jnp.asarray(0.5 * rng.normal(size=w.shape), jnp.float32), tree)


@pytest.mark.parametrize(
    ("config", "module", "adapters", "weights"),
    [
        # The papers' counts: arXiv 2406.18060, LLaMA2-7B and RoBERTa-large.
        (
            llama.LlamaConfig(
                vocab_size=32000,
                hidden_size=4096,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=32,
                head_dim=128,
                intermediate_size=11008,
            ),
            llama,
            96,
            610_560,
        ),
        (
            bert.BertConfig(
                vocab_size=50265,
                hidden_size=1024,
                num_hidden_layers=24,
                num_attention_heads=16,
                intermediate_size=4096,
                max_position_embeddings=514,
                position_offset=2,
            ),
            bert,
            48,
            136_704,
        ),
        # MiniLM's by hand: 12 adapters of two trains of 670 and biases of 64 and 384.
        (
            bert.BertConfig(
                vocab_size=30522,
                hidden_size=384,
                num_hidden_layers=6,
                num_attention_heads=12,
                intermediate_size=1536,
            ),
            bert,
            12,
            12 * (2 * 670 + 64 + 384),
        ),
    ],
    ids=["llama2_7b", "roberta_large", "minilm"],
)
def test_counts_at_the_papers_sizes(config, module, adapters, weights):
    shapes = jax.eval_shape(lambda p, k: add_adapters(p, module.ADAPTERS, Bottleneck(), key=k), abstract(config), KEY)
    trainable, _ = split(shapes, (r"layers/\w+_adapter/",))
    leaves = jax.tree.leaves(trainable)
    assert sum(leaf.size for leaf in leaves) == weights
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    assert len(module.ADAPTERS) * config.num_hidden_layers == adapters


def test_the_start_changes_nothing(case):
    _, module, forward, params = case
    start = add_adapters(params, module.ADAPTERS, dataclasses.replace(SMALL, identity=True), key=KEY)
    np.testing.assert_array_equal(forward(start), forward(params))


def test_each_place_by_hand(case, monkeypatch):
    """An adapter y = x + b, whose trains are 0, shifts what it adapts: a bias there does the same."""
    config, module, forward, params = case
    params = params | {"layers": moved(params["layers"], 1)}
    rng = np.random.default_rng(2)
    for name in module.ADAPTERS:
        own = jax.tree.map(jnp.zeros_like, SMALL.init(KEY, config.hidden_size, lead=(config.num_hidden_layers,)))
        shift = jnp.asarray(rng.normal(size=own["up"]["bias"].shape), jnp.float32)
        own["up"]["bias"] = shift
        layers = params["layers"]
        # Where the shift goes: behind a projection it joins that one's bias (LLaMA's has none: a wider place is
        # checked below), before a projection it goes through its kernel.
        behind = {"attention_adapter": "output", "mlp_adapter": "down", "down_adapter": "down"}.get(name)
        before = {"gate_adapter": "gate", "up_adapter": "up"}.get(name)
        target = behind or before
        assert target is not None
        by = shift if behind else jnp.einsum("ld,ldf->lf", shift, layers[target]["kernel"])
        if "bias" not in layers[target]:
            monkeypatch.setattr(llama, "Linear", _biased(llama.Linear, target))
        bias = layers[target].get("bias", jnp.zeros_like(by)) + by
        biased = params | {"layers": layers | {target: layers[target] | {"bias": bias}}}
        model = family_of(config).model(config)
        wanted = jax.jit(lambda p, model=model: model.apply({"params": p}, TOKENS, MASK))(biased)
        monkeypatch.undo()
        found = forward(params | {"layers": layers | {name: own}})
        assert np.abs(np.asarray(found - forward(params))).max() > 0.05
        # Sums in another order, through two layers of large weights.
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-4)


def _biased(linear, target):
    """A linear layer that has a bias in one more place."""

    def make(features, stddev, use_bias=True, *, name=None):
        return linear(features, stddev, use_bias or name == target, name=name)

    return make


@pytest.mark.parametrize("name", ["bert"])  # one: compiling takes the time, and the probe knows no model
def test_all_adapters_at_once_are_probed_alone(name):
    """A probe of the trained part is the forward at adapters that have moved; the frozen weights stay."""
    _, module, forward, params = cases(name)
    params = add_adapters(params, module.ADAPTERS, SMALL, key=KEY)
    trainable, frozen = split(params, (r"layers/\w+_adapter/",))
    assert all("_adapter/" in path for path in jax.tree.leaves(leaf_paths(trainable)))
    spec = PerturbSpec(direction=Rademacher(), stacked=module.STACKED)
    key, scale = jax.random.key(1), jnp.float32(0.1)
    noise = jax.jit(lambda t: jax.tree.map(lambda w, z: w + scale * z, t, spec.noise(t, key)))(trainable)
    found = forward(merge(spec.perturb(trainable, key, scale), frozen))
    np.testing.assert_allclose(found, forward(merge(noise, frozen)), rtol=1e-4, atol=1e-4)
    assert np.abs(np.asarray(found - forward(params))).max() > 1e-2


@pytest.mark.parametrize("name", ["bert"])
def test_adapters_stand_beside_quantised_weights(name):
    _, module, forward, params = cases(name)
    rules = (quant.Rule(pattern=module.KERNELS, grid="int8_127", per="tensor"), quant.Rule(pattern="", grid=None))
    base = quant.quantize_tree(params, rules)
    adapted = add_adapters(base, module.ADAPTERS, SMALL, key=KEY)
    own = [leaf for name in module.ADAPTERS for leaf in jax.tree.leaves(adapted["layers"][name])]
    assert {leaf.dtype for leaf in own} == {jnp.dtype(jnp.float32)}
    wanted = forward(add_adapters(quant.dequantize_tree(base), module.ADAPTERS, SMALL, key=KEY))
    np.testing.assert_allclose(forward(adapted), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["opt"])  # LLaMA's is the next test but one
def test_adapters_and_a_prefix_in_a_cached_decoding(name):
    config, module, _, params = cases(name)
    params = add_adapters(params, module.ADAPTERS, SMALL, key=KEY)
    params = _with_random_prefix(params, config, 3)
    model = family_of(config).model(config)
    whole = jax.jit(lambda p: model.apply({"params": p}, TOKENS[:1], MASK[:1]))(params)

    @jax.jit
    def in_two(p):
        cache = model.apply({}, 1, 5, method="empty_cache")
        parts = []
        for part in (slice(0, 3), slice(3, 5)):
            hidden, cache = model.apply({"params": p}, TOKENS[:1, part], MASK[:1, part], cache, method="hidden")
            parts.append(model.apply({"params": p}, hidden, method="logits"))
        return jnp.concatenate(parts, axis=1)

    np.testing.assert_allclose(in_two(params), whole, rtol=1e-4, atol=1e-4)


def test_two_additions_are_refused(case):
    _, module, _, params = case
    params = add_adapters(params, module.ADAPTERS, SMALL, key=KEY)
    with pytest.raises(ValueError, match=f"adapters already: {module.ADAPTERS[0]}"):
        add_adapters(params, module.ADAPTERS, SMALL, key=KEY)


def _with_random_prefix(params, config, length):
    groups = getattr(config, "num_key_value_heads", config.num_attention_heads)
    shape = (config.num_hidden_layers, length, groups, config.hidden_size // config.num_attention_heads)
    prefix = moved({"key": jnp.zeros(shape), "value": jnp.zeros(shape)}, 3)
    return add_prefix(params, prefix["key"], prefix["value"])


def test_a_prefix_of_the_tokens_before_is_the_cache():
    """The keys and values of earlier tokens, as a prefix, say what the cache says (where positions are relative)."""
    config, _, _, params = cases("llama")
    params = params | {"layers": moved(params["layers"], 4)}
    model = family_of(config).model(config)

    def hidden(params, part, cache=None):
        return model.apply({"params": params}, TOKENS[:1, part], MASK[:1, part], cache, method="hidden")

    @jax.jit
    def run(params):
        cache = model.apply({}, 1, 5, method="empty_cache")
        _, cache = hidden(params, slice(0, 2), cache)
        # Rotations are relative: keys at positions 0 and 1, seen from 2, are those at -2 and -1 seen from 0.
        key = attention.rotate(cache.key[:, 0, :2], jnp.full((2, 2), -2), config.frequencies())
        prefixed = add_prefix(params, key, cache.value[:, 0, :2])
        later = slice(2, 5)
        return hidden(prefixed, later)[0], hidden(params, later, cache)[0], hidden(params, later)[0]

    found, wanted, bare = run(params)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(np.asarray(bare - wanted)).max() > 0.05


def test_a_prefix_in_a_layer_by_hand():
    """BERT's attention over prefix and tokens, in float64."""
    config = dataclasses.replace(BERT, num_hidden_layers=1)
    rng = np.random.default_rng(6)
    x = rng.normal(size=(2, 5, 8))
    shapes = abstract(config)["layers"]
    layer = jax.tree.map(lambda s: rng.normal(size=s.shape[1:]), shapes)
    prefix = {name: rng.normal(size=(3, 2, 4)) for name in ("key", "value")}
    bias = np.where(MASK, 0.0, MASKED)[:, None, None, :]

    def linear(name, x):
        return x @ layer[name]["kernel"] + layer[name]["bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.layer_norm_eps)
        return x * layer[name]["scale"] + layer[name]["bias"]

    query, key, value = (linear(name, x).reshape(2, 5, 2, 4) for name in ("query", "key", "value"))
    key, value = (
        np.concatenate([np.broadcast_to(prefix[name], (2, 3, 2, 4)), own], axis=1)
        for name, own in (("key", key), ("value", value))
    )
    scores = np.einsum("bshd,bthd->bhst", query, key) / 2
    scores[..., 3:] += bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhst,bthd->bshd", weights / weights.sum(-1, keepdims=True), value).reshape(2, 5, 8)
    x1 = norm("attention_norm", x + linear("output", mixed))
    gelu = 0.5 * (u := linear("up", x1)) * (1 + np.vectorize(math.erf)(u / np.sqrt(2)))
    wanted = norm("mlp_norm", x1 + linear("down", gelu))
    single = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), layer | {"prefix": prefix})
    apply = jax.jit(lambda p, x, bias: bert.Layer(config).apply({"params": p}, x, bias)[0])
    found = apply(single, jnp.asarray(x, jnp.float32), jnp.asarray(bias, jnp.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)  # float32 against float64, through one layer


def test_a_prefix_is_refused():
    params = {"layers": {"query": {"kernel": jnp.ones((2, 8, 8))}}}
    with pytest.raises(ValueError, match=r"both must be \[2, p, heads, head_dim\]"):
        add_prefix(params, jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3, 2, 4)))
    once = add_prefix(params, jnp.ones((2, 3, 2, 4)), jnp.ones((2, 3, 2, 4)))
    with pytest.raises(ValueError, match="a prefix already"):
        add_prefix(once, jnp.ones((2, 3, 2, 4)), jnp.ones((2, 3, 2, 4)))


def test_bottleneck_is_what_a_layer_applies():
    own = moved(SMALL.init(KEY, 8), 7)
    layer = bert.Layer(BERT).bind({"params": {"mlp_adapter": own}})
    x = jnp.ones((1, 2, 8))
    np.testing.assert_array_equal(adapted(layer, "mlp_adapter", x), bottleneck(x, own))
    np.testing.assert_array_equal(adapted(layer, "attention_adapter", x), x)
