"""Addressed noise equals jax.random, element by element, wherever and in whatever order it is made."""

import functools
import math

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu_triton
from jax.sharding import AbstractDevice, AbstractMesh

from zojax import random

KEY = jax.random.key(2026)
DRAWS = ("bits", "uniform", "normal", "rademacher")
FUNCTIONS = {name: getattr(random, name) for name in (*DRAWS, "bits_at", "normal_at", "signs", "signs_at")} | {
    "halves": functools.partial(random.halves, word=1),
    "halves_at": functools.partial(random.halves_at, word=1),
}
EXAMPLES = settings(max_examples=6, deadline=None)  # every new shape is a program to compile


def equal(a, b) -> bool:
    """Same dtype, shape and bits (array_equal would take -0.0 for 0.0)."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def threefry_in_numpy(key_words, high, low):
    """Threefry-2x32-20 from its specification, in 64-bit integers with explicit masks."""
    mask = (1 << 32) - 1
    k = [int(w) for w in key_words]
    k.append(k[0] ^ k[1] ^ 0x1BD11BDA)
    x0, x1 = (high + k[0]) & mask, (low + k[1]) & mask
    for round_number in range(20):
        rotation = (13, 15, 26, 6, 17, 29, 16, 24)[round_number % 8]
        x0 = (x0 + x1) & mask
        x1 = (((x1 << rotation) | (x1 >> (32 - rotation))) & mask) ^ x0
        if round_number % 4 == 3:
            step = round_number // 4 + 1
            x0, x1 = (x0 + k[step % 3]) & mask, (x1 + k[(step + 1) % 3] + step) & mask
    return x0, x1


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [  # the known-answer vectors of Random123
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(key, counter, expected):
    words = random.threefry2x32(*(jnp.uint32(w) for w in (*key, *counter)))
    assert tuple(int(w) for w in words) == expected
    assert threefry_in_numpy(key, *counter) == expected


shapes = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)


@EXAMPLES
@given(shape=shapes, seed=st.integers(0, 2**32 - 1))
def test_equals_jax_random(shape, seed):
    key = jax.random.key(seed)
    drawn = jax.jit(lambda key: [getattr(random, draw)(key, shape) for draw in DRAWS])(key)
    for draw, mine in zip(DRAWS, drawn, strict=True):
        assert equal(mine, getattr(jax.random, draw)(key, shape).astype(_dtype(draw))), draw


@pytest.mark.parametrize("draw", DRAWS)
def test_equals_jax_random_outside_of_jit(draw):
    assert equal(getattr(random, draw)(KEY, (5, 7)), getattr(jax.random, draw)(KEY, (5, 7)).astype(_dtype(draw)))


def _dtype(draw):
    return jnp.uint32 if draw == "bits" else jnp.float32  # jax.random.rademacher returns integers


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.1, 0.3), (-7.7, 1e3), (5.0, 5.000001)])
def test_uniform_equals_jax_random_for_any_bounds(low, high):
    mine = jax.jit(lambda k: random.uniform(k, (33,), minval=low, maxval=high))(KEY)
    theirs = jax.jit(lambda k: jax.random.uniform(k, (33,), minval=low, maxval=high))(KEY)
    assert equal(mine, theirs)


@st.composite
def tiles(draw):
    shape = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple))
    size = tuple(draw(st.integers(1, n)) for n in shape)
    start = tuple(draw(st.integers(0, n - m)) for n, m in zip(shape, size, strict=True))
    return shape, start, size


@EXAMPLES
@given(tile=tiles())
def test_a_tile_is_a_slice(tile):
    shape, start, size = tile
    window = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))

    # The key is an argument: of a constant key XLA folds the draw, with a log1p that differs in its last bit.
    @jax.jit
    def draw(key, at):
        functions = [FUNCTIONS[name] for name in (*DRAWS, "signs", "halves")]
        return [
            (f(key, shape), f(key, shape, start=start, size=size), f(key, shape, start=at, size=size))
            for f in functions
        ]

    for whole, static, traced in draw(KEY, jnp.array(start, jnp.uint32)):
        expected = np.asarray(whole)[window]
        assert equal(static, expected)
        assert equal(traced, expected)


@pytest.mark.parametrize("draw", [*DRAWS, "signs", "halves"])
def test_jit_vmap_over_keys_and_scan_over_start(draw):
    f, shape = FUNCTIONS[draw], (12, 40, 5)
    whole = np.asarray(f(KEY, shape))
    assert equal(jax.jit(lambda key: f(key, shape))(KEY), whole)

    keys = jax.random.split(KEY, 3)
    assert equal(jax.vmap(lambda key: f(key, shape))(keys), np.stack([f(key, shape) for key in keys]))

    def body(key, layer):
        return key, f(key, shape, start=(layer, 0, 0), size=(1, 40, 5))[0]

    assert equal(jax.jit(lambda key: lax.scan(body, key, jnp.arange(12, dtype=jnp.uint32))[1])(KEY), whole)
    rows = jnp.arange(0, 40, 8)
    block = jax.vmap(lambda key, row: f(key, shape, start=(0, row, 0), size=(12, 8, 5)), in_axes=(None, 0))
    blocks = jax.jit(block)(KEY, rows)
    assert equal(np.concatenate(blocks, axis=1), whole)


@pytest.mark.parametrize(
    ("at", "whole"), [("bits_at", "bits"), ("normal_at", "normal"), ("signs_at", "signs"), ("halves_at", "halves")]
)
@pytest.mark.parametrize("shape", [(37,), (70, 9), (3, 70, 9)])
def test_coordinates(at, whole, shape):
    rng = np.random.default_rng(0)
    coordinates = [rng.integers(0, n, size=(4, 1) if axis == 0 else (6,)) for axis, n in enumerate(shape)]
    drawn = jax.jit(lambda key, c: FUNCTIONS[at](key, shape, c))(KEY, [jnp.asarray(c, jnp.uint32) for c in coordinates])
    assert equal(drawn, np.asarray(FUNCTIONS[whole](KEY, shape))[tuple(coordinates)])


# ---------------------------------------------------------------- more than 2^32 elements


@pytest.mark.parametrize("shape", [(2**20, 2**13), (2**10, 3, 2**23), (3 * 2**16, 2**16 + 1), (2**31, 5), (5, 2**31)])
def test_elements_beyond_32_bits(shape):
    """At the seam of 2^32, at the ends, and at random, against 64-bit arithmetic in Python integers."""
    total = math.prod(shape)
    rng = np.random.default_rng(1)
    seam = [2**32 + offset for offset in (-2, -1, 0, 1, 2)]
    flat = np.array([0, total - 1, *seam, *rng.integers(0, total, size=40)])
    coordinates = np.unravel_index(flat, shape)
    key_words = jax.random.key_data(KEY)
    expected = [np.bitwise_xor(*threefry_in_numpy(key_words, int(i) >> 32, int(i) & 0xFFFFFFFF)) for i in flat]
    draw = jax.jit(lambda c: random.bits_at(KEY, shape, c))
    drawn = draw([jnp.asarray(c.astype(np.uint32)) for c in coordinates])
    assert drawn.tolist() == expected


def test_a_tile_across_the_seam():
    shape = (2**20, 2**13)
    row = 2**32 // 2**13 - 1
    tile = random.bits(KEY, shape, start=(row, 2**13 - 3), size=(2, 3))
    indices = [[(row + i) * 2**13 + 2**13 - 3 + j for j in range(3)] for i in range(2)]
    words = jax.random.key_data(KEY)
    assert tile.tolist() == [
        [np.bitwise_xor(*threefry_in_numpy(words, i >> 32, i & 0xFFFFFFFF)) for i in line] for line in indices
    ]


def test_counters_agree_with_jax_beyond_32_bits():
    """jax's own block function on a 64-bit counter, so that the test does not rest on our numpy alone."""
    shape, index = (2**20, 2**13), 2**32 + 12345
    counter = jnp.array([index >> 32, index & 0xFFFFFFFF], jnp.uint32)
    high, low = jax.extend.random.threefry_2x32(jax.random.key_data(KEY), counter)
    drawn = random.bits(KEY, shape, start=(index // 2**13, index % 2**13), size=(1, 1))
    assert int(drawn[0, 0]) == int(high ^ low)


@pytest.mark.parametrize("shape", [(1, 2**16, 2**16), (1, 1, 2**16, 2**16)])
def test_an_axis_of_length_one_before_four_billion_elements(shape):
    # Its stride is 2^32, which no 32-bit word holds.
    start, size = (0,) * (len(shape) - 2) + (1, 2), (1,) * (len(shape) - 1) + (4,)
    words = jax.random.key_data(KEY)
    expected = [np.bitwise_xor(*threefry_in_numpy(words, 0, 2**16 + 2 + j)) for j in range(4)]
    assert random.bits(KEY, shape, start=start, size=size).ravel().tolist() == expected


def test_a_start_beyond_31_bits():
    shape, row = (2**32 - 1, 2), 2**31 + 5
    words = jax.random.key_data(KEY)
    index = 2 * row
    expected = [np.bitwise_xor(*threefry_in_numpy(words, (index + j) >> 32, (index + j) & 0xFFFFFFFF)) for j in (0, 1)]
    assert random.bits(KEY, shape, start=(row, 0), size=(1, 2))[0].tolist() == expected


# ---------------------------------------------------------------- signs


def unpack_signs(key, shape):
    """The docstring's definition of `signs`, element by element in numpy over jax.random's words."""
    view = (1,) * (2 - len(shape)) + tuple(shape)
    words = np.asarray(jax.random.bits(key, (*view[:-2], -(-view[-2] // 32), view[-1])))
    out = np.empty(view, np.float32)
    for index in np.ndindex(view):
        *lead, row, column = index
        bit = (int(words[(*lead, row // 32, column)]) >> (row % 32)) & 1
        out[index] = -1.0 if bit else 1.0
    return out.reshape(shape)


@pytest.mark.parametrize("shape", [(), (5,), (32, 3), (33, 2), (31, 4), (70, 1), (2, 3, 40, 3)])
def test_signs_are_the_bits_of_the_words(shape):
    assert equal(jax.jit(lambda key: random.signs(key, shape))(KEY), unpack_signs(KEY, shape))


def both_words(key, shape):
    words = [threefry_in_numpy(jax.random.key_data(key), 0, index) for index in range(math.prod(shape))]
    return np.array(words, np.uint32).T.reshape(2, *shape)


@pytest.mark.parametrize("shape", [(), (5,), (32, 3), (33, 2), (2, 3, 41, 3)])
@pytest.mark.parametrize("word", [0, 1])
def test_halves_are_those_of_the_words(shape, word):
    view = (1,) * (2 - len(shape)) + tuple(shape)
    words = both_words(KEY, (*view[:-2], -(-view[-2] // 2), view[-1]))[word]
    expected = np.stack([words & 0xFFFF, words >> 16], axis=-2).reshape(*view[:-2], -1, view[-1])
    drawn = jax.jit(lambda key: random.halves(key, shape, word=word))(KEY)
    assert equal(drawn, expected[..., : view[-2], :].reshape(shape))


def test_every_bit_of_the_words_is_used_once():
    z = np.asarray(random.signs(KEY, (64, 8)))
    words = np.asarray(jax.random.bits(KEY, (2, 8)))
    assert (z < 0).sum() == sum(int(word).bit_count() for word in words.ravel())


# ---------------------------------------------------------------- statistics under fixed keys

SAMPLES = (512, 256)
# Kolmogorov-Smirnov: P(D sqrt(n) > 1.95) = 1e-3. The key is fixed, so this passes always or never.
KS = 1.95 / math.sqrt(math.prod(SAMPLES))


def ks_distance(x, cdf):
    x = np.sort(np.asarray(x, np.float64).ravel())
    n, expected = x.size, cdf(x)
    return max(np.max(np.arange(1, n + 1) / n - expected), np.max(expected - np.arange(n) / n))


def test_uniform_is_uniform():
    assert ks_distance(random.uniform(KEY, SAMPLES), lambda x: x) < KS


def test_normal_is_normal():
    cdf = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))
    assert ks_distance(random.normal(KEY, SAMPLES), cdf) < KS


@pytest.mark.parametrize("draw", ["rademacher", "signs"])
def test_signs_are_fair_and_independent_of_their_neighbours(draw):
    z = np.asarray(getattr(random, draw)(KEY, SAMPLES), np.float64)
    assert set(np.unique(z)) == {-1.0, 1.0}
    bound = 4 / math.sqrt(z.size)  # 4 standard errors of a mean of +-1
    products = [z, z[1:] * z[:-1], z[:, 1:] * z[:, :-1], z[32:] * z[:-32]]
    for product in products:
        assert abs(product.mean()) < bound


@pytest.mark.parametrize("draw", ["normal", "signs"])
def test_keys_of_leaves_probes_and_steps_draw_independently(draw):
    keys = [functools.reduce(jax.random.fold_in, path, KEY) for path in np.ndindex(2, 2, 2)]
    z = np.stack([np.asarray(getattr(random, draw)(key, (64, 64)), np.float64).ravel() for key in keys])
    covariance = z @ z.T / z.shape[1] - np.eye(len(keys))
    # Off the diagonal a correlation has standard error 1/64, on it a second moment at most sqrt(2)/64.
    assert np.abs(covariance).max() < 4 * math.sqrt(2) / 64


# ---------------------------------------------------------------- refusals


def test_refusals():
    with pytest.raises(ValueError, match="does not fit"):
        random.bits(KEY, (4, 4), size=(5, 4))
    with pytest.raises(ValueError, match="does not fit"):
        random.bits(KEY, (4, 4), start=(2, 0), size=(3, 4))
    with pytest.raises(ValueError, match="does not fit"):
        random.normal(KEY, (4,), start=(-1,), size=(2,))
    with pytest.raises(ValueError, match="start: 1 coordinates"):
        random.bits(KEY, (4, 4), start=(0,), size=(1, 4))
    with pytest.raises(ValueError, match="threefry2x32"):
        random.bits(jax.random.key(0, impl="rbg"), (3,))
    with pytest.raises(ValueError, match="word: 2; 0 or 1 is needed"):
        random.halves(KEY, (3,), word=2)


# ---------------------------------------------------------------- keys as two words


def test_two_words_do_for_a_key():
    shape, start, size = (70, 9), (33, 2), (35, 7)
    tile = {"start": start, "size": size}
    coordinates = (jnp.uint32(69), jnp.arange(9, dtype=jnp.uint32))

    @jax.jit
    def draw(key):
        full = [FUNCTIONS[name](key, shape) for name in (*DRAWS, "signs", "halves")]
        part = [FUNCTIONS[name](key, shape, **tile) for name in (*DRAWS, "signs", "halves")]
        at = [FUNCTIONS[name](key, shape, coordinates) for name in ("bits_at", "normal_at", "signs_at", "halves_at")]
        return full + part + at + [random.stored(key, lambda: random.bits(key, shape))]

    words = random.key_words(KEY)
    assert [int(word) for word in words] == jax.random.key_data(KEY).tolist()
    for by_words, by_key in zip(draw(words), draw(KEY), strict=True):
        assert equal(by_words, by_key)


def test_words_that_are_no_key():
    word = jnp.uint32(1)
    for words in [(word, jnp.int32(1)), (word, 1), (jnp.zeros((2,), jnp.uint32), word)]:
        with pytest.raises(ValueError, match="pair of uint32 scalars"):
            random.bits(words, (3,))


# ---------------------------------------------------------------- inside kernels

FULL, TILE = (16, 128), (8, 128)


def in_kernel(draw, *, interpret=False, **options):
    """A kernel over row tiles that makes its noise itself, from the two words of the key."""

    def kernel(words, out):
        key = jax.random.wrap_key_data(jnp.stack([words[0], words[1]]))
        out[...] = getattr(random, draw)(key, FULL, start=(pl.program_id(0) * TILE[0], 0), size=TILE)

    return pl.pallas_call(
        kernel,
        grid=(FULL[0] // TILE[0],),
        out_specs=pl.BlockSpec(TILE, lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct(FULL, _dtype(draw)),
        interpret=interpret,
        **options,
    )


@pytest.mark.parametrize("draw", DRAWS)
def test_interpreted_kernel(draw):
    drawn = in_kernel(draw, interpret=True)(jax.random.key_data(KEY))
    assert equal(drawn, getattr(jax.random, draw)(KEY, FULL).astype(_dtype(draw)))


@pytest.mark.parametrize("draw", DRAWS)
def test_kernel_lowers_for_tpu(draw):
    device = AbstractDevice("TPU v5 lite", 1, "tpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
        call = in_kernel(draw, in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM)])
        lowered = jax.jit(call).trace(jax.random.key_data(KEY)).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in lowered.as_text()


def cuda_sign_kernel(iota, tile, **options):
    """Triton and Mosaic GPU have no key types: their kernels call the block function on words and indices."""

    def kernel(words, out):
        row = iota(tile, 0) + pl.program_id(0).astype(jnp.uint32) * np.uint32(tile[0])
        index = row * np.uint32(tile[1]) + iota(tile, 1)
        high, low = random.threefry2x32(words[0], words[1], jnp.uint32(0), index)
        out[...] = jnp.where((high ^ low) >> np.uint32(31) == 0, 1.0, -1.0)

    return pl.pallas_call(
        kernel,
        grid=(2,),
        out_specs=pl.BlockSpec(tile, lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((2 * tile[0], tile[1]), jnp.float32),
        **options,
    )


def plain_iota(tile, axis):
    return lax.broadcasted_iota(jnp.uint32, tile, axis)


def mosaic_iota(tile, axis):
    return plgpu.layout_cast(plain_iota(tile, axis), plgpu.Layout.WGMMA)


@pytest.mark.parametrize("backend", ["mosaic", "triton"])
def test_kernel_lowers_for_cuda(backend):
    if backend == "mosaic":
        specs = [pl.BlockSpec(memory_space=plgpu.GMEM)]
        call = cuda_sign_kernel(mosaic_iota, (128, 128), in_specs=specs, compiler_params=plgpu.CompilerParams())
    else:
        call = cuda_sign_kernel(plain_iota, (8, 128), compiler_params=plgpu_triton.CompilerParams())
    lowered = jax.jit(call).trace(jax.random.key_data(KEY)).lower(lowering_platforms=("cuda",))
    assert "custom_call" in lowered.as_text()


def test_the_kernels_arithmetic_is_the_stream():
    drawn = cuda_sign_kernel(plain_iota, (8, 128), interpret=True)(jax.random.key_data(KEY))
    assert equal(drawn, random.rademacher(KEY, (16, 128)))
