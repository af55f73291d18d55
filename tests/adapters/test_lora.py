"""Low-rank adapters: products, merging and its undoing, and zeroth-order training of the factors alone."""

import dataclasses
import zlib

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

from zojax import estimators, ops
from zojax.adapters import Lora, add_lora, merge_lora, unmerge_lora
from zojax.directions import Rounded
from zojax.perturb import PerturbSpec
from zojax.quant import Activations, QArray, Rule, dequantize_tree, quantize, quantize_tree
from zojax.trees import merge, split

KEY = jax.random.key(16)
RNG = np.random.default_rng(16)


def array(*shape, scale=1.0):
    return jnp.asarray(RNG.normal(size=shape) * scale, jnp.float32)


def lora(base, rank=3, alpha=6.0):
    *lead, m, n = base.shape
    return Lora(base=base, a=array(*lead, m, rank), b=array(*lead, rank, n), alpha=alpha)


def dense(w):
    """base + (alpha / r) a b in float64."""
    base, a, b = (np.asarray(ops.value(part), np.float64) for part in (w.base, w.a, w.b))
    return base + w.alpha / a.shape[-1] * (a @ b)


BASES = {
    "float32": array(8, 4),
    "bfloat16": array(8, 4).astype(jnp.bfloat16),
    "int8": quantize(array(8, 4), "int8_127"),
    "int4 groups": quantize(array(8, 4), "int4", blocks=(2, 4)),
}


@pytest.mark.parametrize("name", BASES)
def test_products_are_those_of_the_dense_weight(name):
    w = lora(BASES[name])
    x = array(5, 8)
    if name == "bfloat16":
        x = x.astype(jnp.bfloat16).astype(jnp.float32)  # ops.dot rounds activations to the weight's dtype
    # Float32 sums of 8 + 3 terms of size 1 to 10.
    close = dict(rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(w.materialize(), dense(w), **close)
    np.testing.assert_allclose(ops.dot(x, w), np.asarray(x, np.float64) @ dense(w), **close)
    ids = jnp.array([[7, 0], [3, 3]])
    np.testing.assert_allclose(ops.embed(w, ids), dense(w)[np.asarray(ids)], **close)
    np.testing.assert_allclose(jnp.asarray(w), w.materialize(), rtol=0)
    assert (w.shape, w.ndim, w.size, w.dtype) == ((8, 4), 2, 32, jnp.float32)


def test_einsum_and_conv_take_the_adapter():
    w = lora(array(3, 8, 4))
    x = array(5, 8)
    np.testing.assert_allclose(
        ops.einsum("bd,hdk->bhk", x, w), np.einsum("bd,hdk->bhk", x, dense(w)), rtol=1e-5, atol=1e-5
    )
    signal = array(2, 6, 8)
    expected = sum(np.asarray(signal, np.float64)[:, i : i + 4] @ dense(w)[i] for i in range(3))
    np.testing.assert_allclose(ops.conv(signal, w), expected, rtol=1e-5, atol=2e-5)


def test_a_quantised_base_keeps_its_product_of_codes():
    base = quantize(array(8, 4), "int4", activations=Activations(grid="int4"))
    w = dataclasses.replace(lora(base), b=jnp.zeros((3, 4)))
    x = array(5, 8)
    # With b = 0 bit for bit that of the base, whose activations have 4 bits: a float product differs by far.
    assert bool((ops.dot(x, w) == ops.dot(x, base)).all())
    assert float(jnp.abs(ops.dot(x, w) - x @ base.materialize()).max()) > 1e-2
    assert bool((ops.einsum("bd,dk->bk", x, w) == ops.einsum("bd,dk->bk", x, base)).all())


TREE = {
    "layers": {"query": {"kernel": array(3, 64, 32)}, "bias": array(3, 32)},
    "head": {"kernel": array(64, 16)},
}


def test_adapters_start_as_nothing():
    adapted = add_lora(TREE, ("kernel$",), rank=8, alpha=16.0, key=KEY)
    query = adapted["layers"]["query"]["kernel"]
    assert query.a.shape == (3, 64, 8)
    assert query.b.shape == (3, 8, 32)
    assert query.factor == 2.0
    assert not query.b.any()
    assert adapted["layers"]["bias"] is TREE["layers"]["bias"]
    chex.assert_trees_all_equal(merge_lora(adapted), TREE)
    # a ~ N(0, 1/64): 1,536 draws; the standard deviation has a relative standard error of 1/sqrt(2 * 1536) = 1.8 %.
    assert abs(float(jnp.std(query.a)) * 8 - 1) < 4 * 0.018
    assert abs(float(jnp.mean(query.a)) * 8) < 4 / np.sqrt(query.a.size)


def test_factors_depend_on_the_path_alone():
    both = add_lora(TREE, ("kernel$",), rank=2, alpha=2.0, key=KEY)
    one = add_lora(TREE, ("^head/",), rank=2, alpha=2.0, key=KEY)
    chex.assert_trees_all_equal(both["head"], one["head"])
    other = add_lora({"foot": TREE["head"]}, ("kernel$",), rank=2, alpha=2.0, key=KEY)
    assert not bool((other["foot"]["kernel"].a == one["head"]["kernel"].a).any())


def test_refusals():
    def add(patterns, rank=2, alpha=2.0, params=TREE):
        return add_lora(params, patterns, rank=rank, alpha=alpha, key=KEY)

    with pytest.raises(ValueError, match=r"'decoder' matches no leaf; the leaves are head/kernel, layers/bias"):
        add(("head", "decoder"))
    with pytest.raises(ValueError, match=r"rank: 0"):
        add(("head",), rank=0)
    with pytest.raises(ValueError, match=r"alpha: -1"):
        add(("head",), alpha=-1)
    with pytest.raises(ValueError, match=r"'bias' is of shape \(3,\)"):
        add(("bias",), params={"bias": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"'head/kernel' has an adapter"):
        add(("head",), params=add(("head",)))


# Merging and back. Jitted and not: two programs, whose sums need not agree in the last bits.
MERGE = jax.jit(merge_lora)


def without_values(w):
    """The leaf with nothing of its base but what unmerging may read."""
    base = w.base
    if isinstance(base, QArray):
        return dataclasses.replace(w, base=dataclasses.replace(base, qvalue=jnp.zeros_like(base.qvalue)))
    return dataclasses.replace(w, base=jnp.zeros_like(base))


def with_delta(base, gap, rank, share, seed):
    """An adapter whose (r + 2) D reaches `share` of 2^21 gap."""
    rng = np.random.default_rng(seed)
    m, n = base.shape
    # Columns of a of very different sizes, so that sums over r round.
    a = rng.normal(size=(m, rank)) * 2.0 ** rng.integers(-6, 7, size=(1, rank))
    b = rng.normal(size=(rank, n))
    d = np.abs(a) @ np.abs(b) / rank
    alpha = share * 2.0**21 / (rank + 2) * float((gap / d).min())
    return Lora(base=base, a=jnp.asarray(a, jnp.float32), b=jnp.asarray(b, jnp.float32), alpha=alpha)


def quantized_base(grid, blocks, seed):
    w = np.random.default_rng(seed).normal(size=(8, 6)) * 2.0 ** np.arange(-3, 3)
    base = quantize(jnp.asarray(w, jnp.float32), grid, blocks=blocks)
    scale = np.repeat(np.asarray(base.scale), 8 // base.scale.shape[0], axis=0)
    # The distance to the nearest other level, by listing all levels in float64.
    codes = np.arange(base.grid.low, base.grid.high + 1)
    levels = np.asarray(base.grid.levels(jnp.asarray(codes, jnp.int8)), np.float64)
    steps = np.diff(levels)
    near = np.minimum(np.append(steps, np.inf), np.insert(steps, 0, np.inf))
    gap = near[np.asarray(base.qvalue).astype(int) - base.grid.low] * scale
    return base, gap


@pytest.mark.parametrize(
    ("grid", "blocks", "rank"),
    [
        ("int4", (4, 6), 8),
        ("int8_127", (1, 6), 1),
        ("int8_asymmetric", (8, 1), 8),
        ("fp8_e4m3", (2, 1), 8),
        ("fp8_e5m2", (1, 6), 1),
    ],
)
@settings(max_examples=10, deadline=None)
@given(share=st.sampled_from([1.0, 2.0**-5, 2.0**-16]), seed=st.integers(0, 2**32 - 1))
def test_codes_come_back_within_the_bound(grid, blocks, rank, share, seed):
    base, gap = quantized_base(grid, blocks, seed)
    w = with_delta(base, gap, rank, share, seed)
    back = unmerge_lora(MERGE({"w": w}), {"w": without_values(w)})["w"]
    chex.assert_trees_all_equal(back, w)


@pytest.mark.parametrize("grid", ["int4", "int8_asymmetric", "fp8_e5m2"])
def test_beyond_the_bound_codes_are_lost(grid):
    base, gap = quantized_base(grid, (1, 6), 0)
    w = with_delta(base, gap, 1, 2.0**8, 0)
    back = unmerge_lora(MERGE({"w": w}), {"w": without_values(w)})["w"]
    assert bool((back.base.qvalue != base.qvalue).any())


@settings(max_examples=20, deadline=None)
@given(
    dtype=st.sampled_from([jnp.bfloat16, jnp.float16]),
    rank=st.sampled_from([1, 8]),
    share=st.sampled_from([1.0, 2.0**-5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_half_precision_comes_back_within_the_bound(dtype, rank, share, seed):
    rng = np.random.default_rng(seed)
    # Magnitudes from 2^-10 to 8: normal values of both formats.
    values = rng.choice([-1, 1], size=(8, 6)) * 2.0 ** rng.uniform(-10, 3, size=(8, 6))
    base = jnp.asarray(values, dtype)
    digits = {jnp.bfloat16: 8, jnp.float16: 11}[dtype]
    # Of a power of two the neighbour below is half as far as the one above: at least 2^-digits |w|.
    w = with_delta(base, np.abs(np.asarray(base, np.float64)) * 2.0**-digits, rank, share, seed)
    back = unmerge_lora(MERGE({"w": w}), {"w": without_values(w)})["w"]
    chex.assert_trees_all_equal(back, w)


@settings(max_examples=20, deadline=None)
@given(rank=st.sampled_from([1, 8]), log_alpha=st.integers(-10, 10), seed=st.integers(0, 2**32 - 1))
def test_a_float_base_comes_back_to_rounding(rank, log_alpha, seed):
    rng = np.random.default_rng(seed)
    base, a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((8, 6), (8, rank), (rank, 6)))
    w = Lora(base=base, a=a, b=b, alpha=2.0**log_alpha)
    back = unmerge_lora(MERGE({"w": w}), {"w": without_values(w)})["w"].base
    d = w.factor * (np.abs(np.asarray(a, np.float64)) @ np.abs(np.asarray(b, np.float64)))
    bound = 2.0**-23 * (np.abs(np.asarray(base, np.float64)) + (rank + 2) * d)
    assert bool((np.abs(np.asarray(back, np.float64) - np.asarray(base, np.float64)) <= bound).all())


def test_other_leaves_pass_and_stacked_ones_too():
    quantized = quantize_tree(TREE, (Rule(pattern="kernel$", grid="int4"), Rule(pattern="bias$", grid=None)))
    adapted = add_lora(quantized, ("query/kernel$",), rank=2, alpha=2.0, key=KEY)
    adapted["layers"]["query"]["kernel"] = lora(quantized["layers"]["query"]["kernel"])
    merged = merge_lora(adapted)
    assert isinstance(merged["head"]["kernel"], QArray)
    assert isinstance(merged["layers"]["query"]["kernel"], jax.Array)
    np.testing.assert_allclose(
        merged["layers"]["query"]["kernel"], dense(adapted["layers"]["query"]["kernel"]), rtol=1e-5, atol=1e-5
    )
    chex.assert_trees_all_equal(unmerge_lora(merged, adapted), adapted)


# Zeroth-order training of the factors over a quantised model that scans over its layers.
LAYERS, WIDTH, RANK = 3, 16, 2
X, TARGET = array(32, WIDTH), array(32, WIDTH)
FACTORS = ("kernel/(a|b)$",)
SPEC = PerturbSpec(stacked=FACTORS)


def model(params, x):
    def layer(x, w):
        return x + jnp.tanh(ops.dot(x, w["kernel"]) + ops.value(w["bias"])), None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    return x


def loss(params):
    return jnp.mean(jnp.square(model(params, X) - TARGET))


def quantized_model(activations):
    params = {"layers": {"kernel": array(LAYERS, WIDTH, WIDTH, scale=0.2), "bias": jnp.zeros((LAYERS, WIDTH))}}
    rules = (Rule(pattern="kernel$", grid="int4", activations=activations), Rule(pattern="bias$", grid=None))
    return add_lora(quantize_tree(params, rules), ("kernel$",), rank=RANK, alpha=4.0, key=KEY)


@pytest.mark.parametrize("name", ["spsa", "quzo"])
def test_a_probe_moves_the_factors_alone(name):
    trainable, frozen = split(quantized_model(None), FACTORS)
    trainable = jax.tree.map(lambda x: x + 0.1, trainable)  # b = 0 would hide a
    estimator = {"spsa": estimators.spsa, "quzo": estimators.quzo}[name](1e-2, SPEC, key=KEY)
    state = estimator.init(trainable)
    scalars = jax.jit(lambda t, f, s: estimator.measure(t, s, lambda t: loss(merge(t, f))))(trainable, frozen, state)
    # The same difference of a float model, with the whole noise made and added outside it.
    direction = Rounded(bits=4) if name == "quzo" else SPEC.direction
    probe = jax.random.fold_in(jax.random.fold_in(KEY, 0), 0)
    keys = {f: jax.random.fold_in(probe, np.uint32(zlib.crc32(f"layers/kernel/{f}".encode()))) for f in "ab"}

    def value(side):
        moved = {
            f: w + side * 1e-2 * direction.sample(keys[f], w.shape) for f, w in trainable["layers"]["kernel"].items()
        }
        whole = merge({"layers": {"kernel": moved, "bias": None}}, frozen)
        return float(loss(dequantize_tree(merge_lora(whole))))

    # Losses of about 2 in float32 over 2 eps: 1e-7 * 2 / 2e-2 = 1e-5, some of them added up.
    np.testing.assert_allclose(scalars.projected[0], (value(1) - value(-1)) / 2e-2, atol=2e-4)
    assert abs(float(scalars.projected[0])) > 1e-2


@pytest.mark.parametrize("name", ["spsa", "quzo"])
def test_factors_learn_over_a_frozen_quantised_base(name):
    adapted = quantized_model(Activations(grid="int8_127"))
    trainable, frozen = split(adapted, FACTORS)
    codes = np.asarray(adapted["layers"]["kernel"].base.qvalue)
    head = {"spsa": estimators.spsa, "quzo": estimators.quzo}[name](1e-2, SPEC, num_samples=4, key=KEY)
    tx = estimators.chain(head, optax.adam(1e-2))

    @jax.jit
    def step(trainable, frozen, state):
        updates, state = tx.update(None, state, trainable, value_fn=lambda t: loss(merge(t, frozen)))
        return optax.apply_updates(trainable, updates), state

    # Gradient and state know the factors alone: 2 moments, and scalars.
    state = tx.init(trainable)
    factors = LAYERS * RANK * 2 * WIDTH
    gradient, _ = jax.eval_shape(
        lambda t, s: head.update(None, s, t, scalars=head.measure(t, s, lambda t: loss(merge(t, frozen)))),
        trainable,
        state[0],
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(gradient)) == factors
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) <= 2 * factors + 32
    assert jax.tree.structure(gradient) == jax.tree.structure(trainable)

    start = float(loss(adapted))
    for _ in range(60):
        trainable, state = step(trainable, frozen, state)
    final = merge(trainable, frozen)
    assert float(loss(final)) < 0.9 * start
    assert jax.tree.structure(final) == jax.tree.structure(adapted)
    kernel = final["layers"]["kernel"]
    assert kernel.base.qvalue.dtype == jnp.int4
    np.testing.assert_array_equal(kernel.base.qvalue, codes)
    chex.assert_trees_all_equal(kernel.base, adapted["layers"]["kernel"].base)
    assert bool((kernel.b != 0).any())
