import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.language import bert
from models.language.bert import STACKED, Bert, BertConfig
from models.language.layers import ACTIVATIONS, LayerNorm, cast_matrices

SIZES = dict(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)

# Hidden states are of order 1; the same sums in another order (other shapes, other fusions) differ by a few
# float32 epsilons a layer, 1.2e-7 each.
REORDERED = 1e-5


def batch(length=10, rows=3, seed=0):
    rng = np.random.default_rng(seed)
    tokens = jnp.asarray(rng.integers(0, SIZES["vocab_size"], (rows, length)), jnp.int32)
    return tokens, jnp.arange(length) < jnp.array([[length], [length - 4], [1]][:rows])


def paths(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


@jax.tree_util.register_pytree_node_class
class Scaled:
    """A leaf type that knows only how to materialise itself: base * factor, the factor [L] where stacked."""

    def __init__(self, base, factor):
        self.base, self.factor = base, factor

    shape = property(lambda self: self.base.shape)
    dtype = property(lambda self: self.base.dtype)

    def materialize(self):
        return self.base * self.factor

    def tree_flatten(self):
        return (self.base, self.factor), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_parameter_tree():
    config = BertConfig(**SIZES)
    shapes = {path: leaf.shape for path, leaf in paths(_shapes(config)).items()}
    d, m = 32, 48
    linear = {"query": (d, d), "key": (d, d), "value": (d, d), "output": (d, d), "up": (d, m), "down": (m, d)}
    expected = {
        "embeddings/word": (40, d),
        "embeddings/position": (512, d),
        "embeddings/type": (2, d),
        "embeddings/norm/scale": (d,),
        "embeddings/norm/bias": (d,),
    }
    for name, (d_in, d_out) in linear.items():
        expected |= {f"layers/{name}/kernel": (2, d_in, d_out), f"layers/{name}/bias": (2, d_out)}
    for name in ("attention_norm", "mlp_norm"):
        expected |= {f"layers/{name}/scale": (2, d), f"layers/{name}/bias": (2, d)}
    assert shapes == expected


def _shapes(config, method="__call__"):
    return jax.eval_shape(lambda key: Bert(config).init(key, *batch(), method=method)["params"], jax.random.key(0))


def test_the_pooler_is_there_when_used():
    assert _shapes(BertConfig(**SIZES), method="pooled")["pooler"]["kernel"].shape == (32, 32)


def test_stacked_names_the_scanned_leaves_and_no_others():
    # As they stand in a task's tree, under "encoder", and alone.
    for prefix in ("", "encoder/"):
        for path in paths(_shapes(BertConfig(**SIZES), method="pooled")):
            assert any(re.search(p, prefix + path) for p in STACKED) == path.startswith("layers/")


def test_initialisation_differs_between_layers():
    config = BertConfig(**SIZES)
    kernel = jax.jit(Bert(config).init)(jax.random.key(0), *batch())["params"]["layers"]["query"]["kernel"]
    assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0
    # 2,048 entries of sigma .02: their standard deviation is known to 1.6 %; 10 % is six of its errors.
    assert float(kernel.std()) == pytest.approx(0.02, rel=0.1)


def test_scan_equals_a_loop_over_layers(tiny):
    config, params = tiny
    tokens, mask = batch()
    x = bert.Embeddings(config).apply({"params": params["embeddings"]}, tokens, mask)
    bias = jnp.where(mask, 0.0, -1e9)[:, None, None, :]
    for i in range(config.num_hidden_layers):
        layer = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), params["layers"])
        x, _ = bert.Layer(config).apply({"params": layer}, x, bias)
    scanned = Bert(config).apply({"params": params}, tokens, mask)
    np.testing.assert_allclose(scanned, x, atol=REORDERED, rtol=0)


def test_a_leaf_type_passes_through_the_model(tiny):
    config, params = tiny
    tokens, mask = batch()
    factors = jnp.array([0.5, 2.0])

    def wrap(path, leaf):
        return Scaled(jnp.asarray(leaf), factors if path[0].key == "layers" else jnp.float32(0.75))

    def multiply(path, leaf):
        factor = factors if path[0].key == "layers" else jnp.float32(0.75)
        return leaf * jnp.reshape(factor, factor.shape + (1,) * (leaf.ndim - factor.ndim))

    wrapped = jax.tree_util.tree_map_with_path(wrap, params)
    plain = jax.tree_util.tree_map_with_path(multiply, params)
    out = jax.jit(Bert(config).apply)({"params": wrapped}, tokens, mask)
    np.testing.assert_allclose(out, Bert(config).apply({"params": plain}, tokens, mask), atol=REORDERED, rtol=0)


def test_padding_does_not_change_outputs(tiny):
    config, params = tiny
    tokens, mask = batch()
    short = Bert(config).apply({"params": params}, tokens, mask)
    padded = jnp.pad(tokens, ((0, 0), (0, 5)), constant_values=7), jnp.pad(mask, ((0, 0), (0, 5)))
    long = Bert(config).apply({"params": params}, *padded)
    np.testing.assert_allclose(long[:, :10], short, atol=REORDERED, rtol=0)


def test_tokens_behind_the_mask_do_not_matter(tiny):
    config, params = tiny
    tokens, mask = batch()
    a = Bert(config).apply({"params": params}, tokens, mask)
    b = Bert(config).apply({"params": params}, jnp.where(mask, tokens, 3), mask)
    # Masked scores become exactly 0 after the softmax: the same program gives the same bits.
    np.testing.assert_array_equal(np.asarray(a)[np.asarray(mask)], np.asarray(b)[np.asarray(mask)])
    assert np.abs(np.asarray(a - b)[~np.asarray(mask)]).max() > 0.1


def test_a_row_without_tokens_is_finite_in_value_and_gradient(tiny):
    config, params = tiny
    tokens, _ = batch()
    mask = jnp.zeros(tokens.shape, bool)

    def total(params):
        return jnp.sum(Bert(config).apply({"params": params}, tokens, mask) ** 2)

    params = jax.tree.map(jnp.asarray, {k: v for k, v in params.items() if k != "pooler"})
    value, gradient = jax.jit(jax.value_and_grad(total))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_half_precision_keeps_float32_activations_and_vectors(tiny):
    config, params = tiny
    tokens, mask = batch()
    half = cast_matrices(params, "bfloat16")
    for path, leaf in paths(half).items():
        vector = path.rsplit("/", 1)[-1] in ("bias", "scale")
        assert leaf.dtype == (jnp.float32 if vector else jnp.bfloat16), path
    out = Bert(config).apply({"params": half}, tokens, mask)
    full = Bert(config).apply({"params": params}, tokens, mask)
    assert out.dtype == jnp.float32
    # These weights are bfloat16 numbers already: what is left is the rounding of activations, 2^-9 of values of
    # order 1, through two layers whose products add 32 to 48 of them. Measured: 0.04.
    assert 0 < float(jnp.abs(out - full).max()) < 0.15


def test_an_unknown_dtype_is_refused(tiny):
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        cast_matrices(tiny[1], "int8")


def test_layer_norm_survives_a_large_mean():
    # A one-pass variance E x^2 - (E x)^2 would lose everything at mean 1e3 and spread 1e-1 in float32.
    x = 1e3 + 0.1 * np.random.default_rng(0).standard_normal((4, 64))
    out = LayerNorm(1e-12).apply({"params": {"scale": jnp.ones(64), "bias": jnp.zeros(64)}}, jnp.asarray(x))
    expected = np.asarray(x, np.float32).astype(np.float64)
    expected = (expected - expected.mean(-1, keepdims=True)) / expected.std(-1, keepdims=True)
    # The float32 mean is off by a unit in its last place, 6e-5 at 1e3: 6e-4 of the spread.
    np.testing.assert_allclose(out, expected, atol=2e-3)


def test_gelu_is_exact():
    x = np.linspace(-6, 6, 241)
    expected = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]
    # 1 + erf(x) in float32 is off by 1e-7, times |x| / 2.
    np.testing.assert_allclose(ACTIVATIONS["gelu"](jnp.asarray(x, jnp.float32)), expected, atol=1e-6)


def test_a_sequence_beyond_the_position_table_is_refused(tiny):
    config, params = tiny
    tokens, mask = batch(length=17)
    with pytest.raises(ValueError, match="length 17; it must be at most max_position_embeddings = 16"):
        Bert(config).apply({"params": params}, tokens, mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(hidden_act="swish"), "hidden_act is 'swish'; it must be one of gelu"),
        (dict(num_attention_heads=5), "num_attention_heads is 5; it must divide hidden_size"),
        (dict(num_hidden_layers=0), "num_hidden_layers is 0"),
        (dict(vocab_size="40"), "vocab_size is '40'; it must be of type int"),
        (dict(hidden_size=True), "hidden_size is True"),
        (dict(layer_norm_eps="1e-12"), "layer_norm_eps is '1e-12'; it must be of type float"),
    ],
)
def test_a_bad_config_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        BertConfig.from_dict({**SIZES, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model_type="gpt2"), "model_type is 'gpt2'; it must be 'bert' or 'roberta'"),
        (dict(position_embedding_type="relative_key"), "position_embedding_type"),
        (dict(is_decoder=True), "is_decoder is True"),
    ],
)
def test_another_architecture_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        BertConfig.from_dict({**SIZES, **change})


def test_config_from_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**SIZES, "layer_norm_eps": 1e-5, "use_cache": True}))
    assert BertConfig.from_file(path) == BertConfig(**SIZES, layer_norm_eps=1e-5)
    path.write_text(json.dumps({k: v for k, v in SIZES.items() if k != "hidden_size"}))
    with pytest.raises(ValueError, match="lacks hidden_size"):
        BertConfig.from_file(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        BertConfig.from_file(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="must hold an object"):
        BertConfig.from_file(path)


def test_config_is_a_value():
    config = BertConfig(**SIZES)
    assert hash(config) == hash(BertConfig(**SIZES))
    assert dataclasses.replace(config, hidden_act="relu") != config
