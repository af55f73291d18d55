"""Quantisation with stochastic rounding: right on average, the same codes for any tile, kernels equal to it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.lowering import interpreted, lower_for_cuda, lower_for_tpu
from zojax import random
from zojax.kernels.stochastic_round import gpu, reference, stochastic_round, tpu

KEY = jax.random.key(7)
MODULES = {"tpu": tpu, "gpu": gpu}
LOWER = {"tpu": lower_for_tpu, "gpu": lower_for_cuda}
MARK = {"tpu": "tpu_custom_call", "gpu": "xla.gpu.triton"}
CONFIGS = [
    tpu.Config(),
    tpu.Config(block_rows=32, block_columns=128),
    gpu.Config(),
    gpu.Config(block_rows=16, block_columns=64),
]


def values(shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape) * 30


@pytest.mark.parametrize("fraction", [0.0, 0.125, 0.5, 0.9])
def test_right_on_average(fraction):
    n, step = 40_000, 0.25
    for base in (-3, 4):
        codes = stochastic_round(jnp.full(n, (base + fraction) * step), jnp.float32(step), KEY, low=-128, high=127)
        assert set(np.unique(codes)) <= {base, base + 1}
        # 4 standard errors of a Bernoulli mean; without a fraction nothing moves
        assert abs(float(codes.mean()) - base - fraction) <= 4 * math.sqrt(fraction * (1 - fraction) / n) + 1e-9


def test_formula():
    x, scale = values((50, 60)), jnp.float32(0.37)
    u = (np.asarray(jax.random.bits(KEY, (50, 60))) >> 8).astype(np.float32) * np.float32(2.0**-24)
    # NumPy's float32 division and sum are the ones that the definition names
    expected = np.clip(np.floor(np.asarray(x) / np.float32(0.37) + u), -100, 90)
    assert (expected == -100).any()
    assert (expected == 90).any()
    codes = stochastic_round(x, scale, KEY, low=-100, high=90)
    assert codes.dtype == jnp.int8
    np.testing.assert_array_equal(codes, expected)
    pair = tuple(jax.random.key_data(KEY))
    np.testing.assert_array_equal(stochastic_round(x, scale, pair, low=-100, high=90), expected)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_tile_is_the_tile_of_the_whole(data):
    shape = data.draw(st.sampled_from([(11,), (6, 9), (3, 4, 5), (2, 3, 4, 5)]))
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    size = tuple(data.draw(st.integers(1, n - at)) for n, at in zip(shape, start, strict=True))
    x = values(shape)
    cut = tuple(slice(at, at + n) for at, n in zip(start, size, strict=True))
    whole = stochastic_round(x, jnp.float32(1), KEY, low=-128, high=127)
    tile = stochastic_round(x[cut], jnp.float32(1), KEY, low=-128, high=127, shape=shape, start=start)
    np.testing.assert_array_equal(tile, whole[cut])


@pytest.mark.parametrize("scale_shape", [(), (60,), (50, 1), (1, 60), (50, 60)])
def test_scales_broadcast(scale_shape):
    x, scale = values((50, 60)), jnp.asarray(np.random.default_rng(0).uniform(0.5, 2, scale_shape), jnp.float32)
    codes = stochastic_round(x, scale, KEY, low=-128, high=127)
    np.testing.assert_array_equal(codes, stochastic_round(x, jnp.broadcast_to(scale, x.shape), KEY, low=-128, high=127))


# A tile inside a whole with more elements than a 32-bit counter has values, too.
PLACES = [((70, 300), (0, 0)), ((100, 400), (30, 100)), ((100_000, 100_000), (99_000, 5))]


@pytest.mark.parametrize("scale_shape", [(1, 1), (70, 1), (1, 300), (70, 300)])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_kernels_equal_the_definition(config, scale_shape):
    module = tpu if isinstance(config, tpu.Config) else gpu
    x, words = values((70, 300)), random.key_words(KEY)
    scale = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2, scale_shape), jnp.float32)
    for shape, start in PLACES:
        args = (x, scale, words, jnp.asarray(start, jnp.uint32))
        options = dict(low=-100, high=100, shape=shape)
        assert module.supported(*args, **options, config=config) is None
        codes = module.run(*args, **options, config=config, interpret=interpreted(module))
        # noise: the same words for every tiling, and so the same bits
        np.testing.assert_array_equal(codes, reference.stochastic_round(*args, **options))


@pytest.mark.parametrize("name", MODULES)
def test_kernels_lower(name):
    words = random.key_words(KEY)
    for shape, start in PLACES:
        for scale_shape in [(1, 1), (70, 1), (1, 300), (70, 300)]:
            for x in (values((70, 300)), values((70, 300)).astype(jnp.bfloat16)):
                args = (x, jnp.ones(scale_shape), words, jnp.asarray(start, jnp.uint32))
                config = MODULES[name].default_config(*args)
                run = functools.partial(MODULES[name].run, low=-7, high=7, shape=shape, config=config)
                assert MARK[name] in LOWER[name](run, *args)


@pytest.mark.parametrize("name", MODULES)
def test_the_operator_gives_its_kernels_the_right_matrix(name, monkeypatch):
    # the public function with each kernel on arrays of all ranks, tiles and scales
    module = MODULES[name]
    kernel = functools.partial(module.run, interpret=interpreted(module))
    called = []
    monkeypatch.setattr(module, "run", lambda *a, **options: called.append(1) or kernel(*a, **options))
    for shape, start, size, scale_shape in [
        ((), (), (), ()),
        ((11,), (3,), (5,), (5,)),
        ((6, 9), (2, 4), (3, 5), (3, 1)),
        ((3, 4, 5), (1, 0, 2), (2, 4, 3), (4, 1)),
        ((3, 4, 5), (1, 0, 2), (2, 4, 3), (1, 1, 3)),
        ((3, 2, 2, 5), (1, 0, 0, 0), (2, 2, 2, 5), (2, 1, 2, 1)),
    ]:
        x = values(size)
        scale = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2, scale_shape), jnp.float32)
        f = functools.partial(stochastic_round, low=-50, high=50, shape=shape, start=start)
        count = len(called)
        codes = f(x, scale, KEY, implementation=name)
        assert len(called) == count + 1
        np.testing.assert_array_equal(codes, f(x, scale, KEY, implementation="reference"))


@pytest.mark.parametrize("name", MODULES)
def test_one_program_holds_the_kernel_of_each_platform(name):
    f = functools.partial(stochastic_round, low=-7, high=7)
    x, scale = values((3, 8, 64)), jnp.float32(0.1)
    text = LOWER[name](f, x, scale, KEY)
    assert MARK[name] in text
    assert not any(MARK[other] in text for other in MARK if other != name)
    keys = jax.random.split(KEY, 2)
    assert MARK[name] in LOWER[name](jax.vmap(f, in_axes=(None, None, 0)), x, scale, keys)
    # a tile that is cut in an inner axis is no matrix: the definition takes it, and a named kernel says no
    cut = functools.partial(f, shape=(3, 9, 64))
    assert "custom_call" not in LOWER[name](cut, x, scale, KEY)
    with pytest.raises(ValueError, match=rf"'{name}' makes no tile \(3, 8, 64\) of \(3, 9, 64\)"):
        cut(x, scale, KEY, implementation=name)


def test_vmap_equals_a_loop():
    x, keys = values((2, 5, 6)), jax.random.split(KEY, 2)
    f = functools.partial(stochastic_round, low=-128, high=127)
    for axes in [(0, None, 0), (None, None, 0), (0, None, None)]:
        args = [a if axis == 0 else a[0] for a, axis in zip((x, jnp.ones(1), keys), axes, strict=True)]
        codes = jax.vmap(f, in_axes=axes)(*args)
        for i in range(2):
            np.testing.assert_array_equal(
                codes[i], f(*(a[i] if axis == 0 else a for a, axis in zip(args, axes, strict=True)))
            )


@pytest.mark.parametrize("name", MODULES)
def test_kernels_under_vmap(name):
    module, words = MODULES[name], random.key_words(KEY)
    x = values((2, 20, 30))
    options = dict(low=-9, high=9, shape=(20, 30))
    f = functools.partial(module.run, config=module.Config(), interpret=interpreted(module), **options)
    define = functools.partial(reference.stochastic_round, **options)
    origin, one = jnp.zeros(2, jnp.uint32), jnp.ones((1, 1))
    two = (jnp.stack([words[0], words[1]]), jnp.stack([words[1], words[0]]))
    codes = jax.vmap(lambda x, a, b: f(x, one, (a, b), origin))(x, *two)
    for i in range(2):
        np.testing.assert_array_equal(codes[i], define(x[i], one, (two[0][i], two[1][i]), origin))


def test_wrong_arguments_are_refused():
    x, one = values((4, 6)), jnp.float32(1)
    with pytest.raises(ValueError, match=r"low, high: -129 and 7"):
        stochastic_round(x, one, KEY, low=-129, high=7)
    with pytest.raises(ValueError, match=r"low, high: 7 and 7"):
        stochastic_round(x, one, KEY, low=7, high=7)
    with pytest.raises(ValueError, match=r"shape: \(4, 5\) holds no tile of shape \(4, 6\)"):
        stochastic_round(x, one, KEY, low=-7, high=7, shape=(4, 5))
    with pytest.raises(ValueError, match=r"start: 1 coordinates in an array of shape \(4, 6\)"):
        stochastic_round(x, one, KEY, low=-7, high=7, start=(0,))
    with pytest.raises(ValueError, match=r"scale: shape \(4,\) does not broadcast to \(4, 6\)"):
        stochastic_round(x, jnp.ones(4), KEY, low=-7, high=7)
    with pytest.raises(ValueError, match=r"has none named 'triton'"):
        stochastic_round(x, one, KEY, low=-7, high=7, implementation="triton")
    with pytest.raises(ValueError, match=r"config: .*gpu.Config with implementation=None"):
        stochastic_round(x, one, KEY, low=-7, high=7, config=gpu.Config())
    with pytest.raises(ValueError, match=r"cannot run as 'gpu': .*powers of two"):
        stochastic_round(x, one, KEY, low=-7, high=7, implementation="gpu", config=gpu.Config(block_rows=3))
    with pytest.raises(ValueError, match=r"cannot run as 'tpu': .*multiple of 32"):
        stochastic_round(x, one, KEY, low=-7, high=7, implementation="tpu", config=tpu.Config(block_rows=8))
