"""Both sides of a probe: every implementation against float64, its noise against zojax.random, and its lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from tests.kernels.lowering import interpreted, lower_for_cuda, lower_for_tpu
from zojax import random
from zojax.directions import Gaussian, Rademacher
from zojax.kernels.perturbed_matmul import gpu, perturbed_matmul, reference, tpu
from zojax.perturb import Perturbed

KEY = jax.random.key(2026)
BACKENDS = {"tpu": tpu, "gpu": gpu}
CONFIGS = {
    "tpu": tpu.Config(block_m=16, block_n=128, block_k=128),
    "tpu deep": tpu.Config(block_m=32, block_n=256, block_k=256),
    "gpu": gpu.Config(block_m=16, block_n=16, block_k=32),
    "gpu deep": gpu.Config(block_m=32, block_n=64, block_k=128),
    "gpu parts": gpu.Config(block_m=256, block_n=32, block_k=32, splits=5),  # one block of rows, which draws for itself
}
LEAF, START = (3, 500, 400), (2, 37, 11)  # the tile starts at bit 5 of a word of signs


def run(name, x, w, scale, *, direction="signs", w_scale=None, full_shape=None, start=None, key=KEY):
    """A kernel, interpreted but on its hardware; the key is an argument, since XLA folds normals of a constant key."""
    options = dict(direction=direction, full_shape=tuple(full_shape or w.shape))
    if name == "reference":
        call = functools.partial(reference.perturbed_matmul, **options)
    else:
        module = BACKENDS[name.split()[0]]
        call = functools.partial(module.run, **options, config=CONFIGS[name], interpret=interpreted(module))
    start = None if start is None else jnp.asarray(start, jnp.uint32)
    return jax.jit(call)(x, w, random.key_words(key), jnp.float32(scale), w_scale, start)


@functools.lru_cache
def sample(direction, shape, start, size):
    z = jax.jit(lambda key: reference.DRAWS[direction](key, shape, start=start, size=size))(KEY)
    return np.asarray(z).reshape(size[-2:])


def operands(rng, sides, m, k, n, x_dtype, w_dtype):
    """x, w, w_scale. Activations and weights have means, as real ones do, so that a lost probe would show."""
    x = jnp.asarray(rng.normal(0.3, 1, size=(sides, m, k)), x_dtype)
    if jnp.issubdtype(w_dtype, jnp.integer):
        info = jnp.iinfo(w_dtype)
        w = jnp.asarray(rng.integers(int(info.min), int(info.max) + 1, size=(k, n)), w_dtype)
        return x, w, jnp.asarray(rng.uniform(0.01, 0.1, size=(1, n)), jnp.float32)
    return x, jnp.asarray(rng.normal(1, 1, size=(k, n)), w_dtype), None


def in_float64(x, w, z, scale, w_scale):
    """y and a bound of the error of any float32 evaluation of it, of the operands that the operator rounds to."""
    if w.dtype != jnp.float32:
        x, z = x.astype(jnp.bfloat16), jnp.asarray(z).astype(jnp.bfloat16)
    x, z, w = (np.asarray(a, np.float64) for a in (x, z, w.astype(jnp.float32)))
    w, scale = w * (1 if w_scale is None else np.asarray(w_scale, np.float64)), float(np.float32(scale))
    signs = np.array([1, -1])[: x.shape[0], None, None]
    y = x @ w + signs * scale * (x @ z)
    # k products added in some order, and a few roundings of operands and parts: gamma_{k+8} of Higham, section 3.1.
    units = (w.shape[0] + 8) * 2.0**-24
    return y, units / (1 - units) * (np.abs(x) @ (np.abs(w) + scale * np.abs(z)))


CASES = [  # sides, m, k, n, x, w, direction, (leaf, start)
    (2, 40, 200, 300, jnp.float32, jnp.float32, "signs", (None, None)),
    (1, 7, 256, 128, jnp.float32, jnp.float32, "normal", (None, None)),
    (2, 33, 70, 30, jnp.bfloat16, jnp.float32, "rademacher", (LEAF, START)),
    (1, 16, 300, 130, jnp.bfloat16, jnp.bfloat16, "normal", (LEAF, START)),
    (2, 40, 200, 129, jnp.float32, jnp.int8, "signs", (None, None)),
]
DEEP = [(2, 70, 300, 290, jnp.float32, jnp.bfloat16, "signs", (LEAF, START))]  # several blocks, also of the larger
INT4 = (2, 20, 200, 150, jnp.bfloat16, jnp.int4, "signs", (LEAF, START))


def named(case):
    return case if isinstance(case, str) else "-".join(map(str, case[:4])) + f"-{case[5].__name__}-{case[6]}"


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *((name, case) for name in ("reference", "tpu", "gpu") for case in CASES),
        *((name, case) for name in CONFIGS for case in DEEP),
        ("reference", INT4),
        ("tpu", INT4),
        ("gpu deep", CASES[0]),
        ("tpu deep", CASES[0]),
    ],
    ids=named,
)
def test_against_float64(name, case):
    sides, m, k, n, x_dtype, w_dtype, direction, (leaf, start) = case
    x, w, w_scale = operands(np.random.default_rng(0), sides, m, k, n, x_dtype, w_dtype)
    leaf = leaf or (k, n)
    z = sample(direction, leaf, start, (1,) * (len(leaf) - 2) + (k, n))
    y = run(name, x, w, 0.003, direction=direction, w_scale=w_scale, full_shape=leaf, start=start)
    expected, bound = in_float64(x, w, z, 0.003, w_scale)
    assert y.shape == (sides, m, n)
    assert y.dtype == jnp.float32
    assert (np.abs(np.asarray(y, np.float64) - expected) <= bound).all()


@pytest.mark.parametrize("name", ["reference", "tpu", "gpu"])
def test_a_scale_of_float32_weights(name):
    x, w, _ = operands(np.random.default_rng(1), 2, 9, 150, 140, jnp.float32, jnp.float32)
    w_scale = jnp.linspace(0.5, 2, 140)[None]
    y = run(name, x, w, 0.01, w_scale=w_scale)
    expected, bound = in_float64(x, w, sample("signs", (150, 140), None, (150, 140)), 0.01, w_scale)
    assert (np.abs(y - expected) <= bound).all()


# ---------------------------------------------------------------- noise, seen through the identity


def seen(name, size, dtype=jnp.float32, **options):
    """(Z, -Z): what the sides add to zero weights, each element a sum with one term that is not 0."""
    eye = jnp.eye(size[-2], dtype=dtype)
    return run(name, jnp.stack([eye, eye]), jnp.zeros(size[-2:], dtype), 1.0, **options)


SEEN = [  # direction, dtype, leaf, start
    ("signs", jnp.float32, (200, 150), None),
    ("signs", jnp.float32, LEAF, START),
    ("signs", jnp.bfloat16, (3, 200, 150), (1, 0, 0)),
    ("rademacher", jnp.float32, LEAF, START),
    ("normal", jnp.float32, LEAF, START),
    ("normal", jnp.bfloat16, (200, 150), None),
]


@pytest.mark.parametrize(("direction", "dtype", "leaf", "start"), SEEN)
@pytest.mark.parametrize("name", ["reference", "tpu", "gpu"])
def test_noise_is_that_of_random(name, direction, dtype, leaf, start):
    size = (1,) * (len(leaf) - 2) + (200, 150)
    z = jnp.asarray(sample(direction, leaf, start, size)).astype(dtype).astype(jnp.float32)
    up, down = seen(name, size, dtype, direction=direction, full_shape=leaf, start=start)
    np.testing.assert_array_equal(down, -up)
    if direction != "normal" or name == "reference" or interpreted(BACKENDS[name]):
        np.testing.assert_array_equal(up, z)
    else:
        # A kernel's logarithm is another than XLA's on the same hardware: 4 units in the last place each, or the other
        # neighbour in bfloat16.
        np.testing.assert_allclose(up, z, rtol=1e-6 if dtype == jnp.float32 else 2.0**-7)


@pytest.mark.parametrize("direction", ["signs", "rademacher"])
@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_noise_of_a_leaf_of_more_than_four_billion_weights(name, direction):
    leaf, start = (40, 2**16 + 3, 2**17 + 1), (39, 2**16 - 70, 2**17 - 40)
    up, _ = seen(name, (1, 70, 40), direction=direction, full_shape=leaf, start=start)
    np.testing.assert_array_equal(up, sample(direction, leaf, start, (1, 70, 40)))


@settings(max_examples=4, deadline=None)
@given(data=st.data(), name=st.sampled_from(["tpu", "gpu"]))
def test_signs_of_any_tile(data, name):
    k, n = data.draw(st.integers(1, 140)), data.draw(st.integers(1, 140))
    start = data.draw(st.tuples(st.integers(0, 70), st.integers(0, 5)))
    leaf = (start[0] + k + data.draw(st.integers(0, 40)), start[1] + n)
    up, _ = seen(name, (k, n), full_shape=leaf, start=start)
    np.testing.assert_array_equal(up, sample("signs", leaf, start, (k, n)))


# ---------------------------------------------------------------- the public function


def test_the_layers_of_a_scanned_leaf():
    leaf = jnp.asarray(np.random.default_rng(2).normal(size=(3, 40, 20)), jnp.float32)
    x = jnp.ones((2, 5, 40))

    @jax.jit
    def scanned(key, leaf):
        def layer(number, w):
            start = jnp.array([0, 0, 0], jnp.uint32).at[0].set(number)
            return number + 1, perturbed_matmul(x, w, key, 0.5, full_shape=leaf.shape, start=start)

        return lax.scan(layer, jnp.uint32(0), leaf)[1]

    z = np.asarray(random.signs(KEY, leaf.shape), np.float64)
    expected = np.stack([np.sum(leaf + side * 0.5 * z, axis=1) for side in (1, -1)], axis=1)[:, :, None]
    np.testing.assert_allclose(scanned(KEY, leaf), np.broadcast_to(expected, (3, 2, 5, 20)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("direction", ["signs", "normal"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_reference_is_the_product_with_a_perturbed_leaf(direction, dtype):
    rng = np.random.default_rng(3)
    x, w = jnp.asarray(rng.normal(size=(11, 64)), jnp.float32), jnp.asarray(rng.normal(size=(64, 48)), dtype)
    kind = Rademacher() if direction == "signs" else Gaussian()

    def leaf(key, x, w):
        node = Perturbed(base=w, key=key, scale=jnp.float32(0.01), direction=kind, full_shape=w.shape)
        return node.dot(x)

    def operator(key, x, w):
        return perturbed_matmul(x[None], w, key, 0.01, direction=direction, implementation="reference")[0]

    with jax.default_matmul_precision("highest"):  # which a leaf leaves to its user
        np.testing.assert_array_equal(jax.jit(operator)(KEY, x, w), jax.jit(leaf)(KEY, x, w))


def test_words_do_for_a_key_and_a_scalar_for_a_row_of_scales():
    x, w, _ = operands(np.random.default_rng(4), 2, 4, 40, 24, jnp.float32, jnp.int8)
    by_key = perturbed_matmul(x, w, KEY, 0.1, w_scale=0.5)
    by_words = perturbed_matmul(x, w, random.key_words(KEY), jnp.float32(0.1), w_scale=jnp.full((1, 24), 0.5))
    np.testing.assert_array_equal(by_key, by_words)


def public(w_dtype, direction, **options):
    """The public function of arrays, and arrays for it: a tile of a leaf, no multiple of any block."""
    x, w, w_scale = operands(np.random.default_rng(5), 2, 40, 200, 300, jnp.float32, w_dtype)

    def call(x, w, key, scale, start):
        more = dict(direction=direction, w_scale=w_scale, full_shape=LEAF, start=start)
        return perturbed_matmul(x, w, key, scale, **more, **options)

    return call, (x, w, KEY, jnp.float32(0.1), jnp.array(START, jnp.uint32))


LOWERED = [
    (jnp.float32, "signs"),
    (jnp.float32, "normal"),
    (jnp.bfloat16, "rademacher"),
    (jnp.bfloat16, "normal"),
    (jnp.int8, "signs"),
    (jnp.int4, "signs"),
]


@pytest.mark.parametrize(("w_dtype", "direction"), LOWERED)
def test_lowers_for_tpu(w_dtype, direction):
    call, args = public(w_dtype, direction)
    assert "tpu_custom_call" in lower_for_tpu(call, *args)


@pytest.mark.parametrize(("w_dtype", "direction"), LOWERED)
def test_lowers_for_cuda(w_dtype, direction):
    call, args = public(w_dtype, direction)
    # What Triton cannot load goes to XLA.
    assert ("__gpu$xla.gpu.triton" in lower_for_cuda(call, *args)) == (w_dtype != jnp.int4)


@pytest.mark.parametrize("lower", [lower_for_tpu, lower_for_cuda])
def test_whole_weights_lower(lower):
    call = functools.partial(perturbed_matmul, direction="signs")
    text = lower(call, jnp.ones((2, 64, 256)), jnp.ones((256, 512)), KEY, jnp.float32(0.1))
    assert "perturbed_matmul" in text


@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_probes_in_one_batch(name):
    x, w, _ = operands(np.random.default_rng(6), 2, 5, 40, 24, jnp.float32, jnp.float32)
    keys, scales = jax.random.split(KEY, 3), jnp.array([0.1, 0.2, 0.3])
    batch = jax.vmap(lambda key, scale: run(name, x, w, scale, key=key))(keys, scales)
    for key, scale, y in zip(keys, scales, batch, strict=True):
        # The same sums in one program and in three: a unit or two in the last place of sums of about 100.
        np.testing.assert_allclose(y, run(name, x, w, scale, key=key), rtol=0, atol=1e-4)


@pytest.mark.parametrize("lower", [lower_for_tpu, lower_for_cuda])
def test_a_batch_of_probes_lowers(lower):
    call = jax.vmap(perturbed_matmul, in_axes=(None, None, 0, 0))
    text = lower(call, jnp.ones((2, 64, 256)), jnp.ones((256, 512)), jax.random.split(KEY, 3), jnp.ones(3))
    assert "perturbed_matmul" in text


def test_refusals():
    x, w = jnp.ones((2, 4, 8)), jnp.ones((8, 6))
    call = functools.partial(perturbed_matmul, key=KEY, scale=0.1)
    refused = [
        ("x: shape", dict(x=jnp.ones((3, 4, 8)), w=w)),
        ("x: float16", dict(x=x.astype(jnp.float16), w=w)),
        ("w: int16", dict(x=x, w=w.astype(jnp.int16))),
        ("full_shape: ", dict(x=x, w=w, full_shape=(8, 5))),
        ("full_shape: ", dict(x=x, w=w, full_shape=(48,))),
        ("start: 2 coordinates", dict(x=x, w=w, full_shape=(2, 8, 6), start=(0, 0))),
        ("loads no int4", dict(x=x, w=w.astype(jnp.int4), implementation="gpu")),
        ("splits must divide the 1 steps", dict(x=x, w=w, implementation="gpu", config=gpu.Config(splits=2))),
        ("powers of two", dict(x=x, w=w, implementation="gpu", config=gpu.Config(block_n=48))),
        ("block_k of 128", dict(x=x, w=w, implementation="tpu", config=tpu.Config(block_k=64))),
        ("none named 'cpu'", dict(x=x, w=w, implementation="cpu")),
    ]
    for message, arguments in refused:
        with pytest.raises(ValueError, match=message):
            call(**arguments)
    big = tpu.Config(block_m=1024, block_n=1024, block_k=1024)
    with pytest.raises(ValueError, match="bytes of VMEM"):
        call(x=jnp.ones((2, 1024, 1024)), w=jnp.ones((1024, 1024)), implementation="tpu", config=big)
    like = jax.ShapeDtypeStruct
    arrays = (like((2, 16, 2**15), jnp.float32), like((2**15, 2**16), jnp.float32), None, None, None, None)
    reason = gpu.supported(*arrays, direction="signs", full_shape=(2**15, 2**16), config=gpu.Config())
    assert reason is not None
    assert "31 bits" in reason
