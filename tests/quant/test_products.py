"""Products of codes against integers of numpy and against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.lowering import lower_for_cuda, lower_for_tpu
from zojax import ops
from zojax.quant import Activations, Grid, QArray, get_grid
from zojax.quant import quantize as eager_quantize

STATIC = Activations(grid="int8_127", per="static")
EPS = 2.0**-24

# Jitted, since many small programs cost more than one.
dot, einsum = jax.jit(ops.dot), jax.jit(ops.einsum, static_argnums=0)
quantize = jax.jit(eager_quantize, static_argnums=1, static_argnames=("blocks", "activations"))
activations_of, levels_of = jax.jit(Activations.quantize, static_argnums=0), jax.jit(Grid.levels, static_argnums=0)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def integers(shape, grid, seed=0):
    """Codes of a grid, the first half of them at its ends."""
    grid, rng = get_grid(grid), np.random.default_rng(seed)
    codes = rng.integers(grid.low, grid.high + 1, shape).reshape(-1)
    codes[: len(codes) // 2] = rng.choice([grid.low, grid.high], len(codes) // 2)
    return codes.reshape(shape)


def leaf_of(codes, grid, **options):
    """A leaf with scales of 1, whose activations' scale is 1: its products are those of integers."""
    grid, one = get_grid(grid), jnp.ones((1,) * codes.ndim, jnp.float32)
    return QArray(
        qvalue=jnp.asarray(codes, jnp.int8).astype(grid.dtype),
        scale=one,
        grid=grid,
        activations=STATIC,
        activation_scale=jnp.float32(1),
        **options,
    )


def as_float32(exact):
    """What float32 makes of an integer: one rounding."""
    return np.asarray(exact, np.int64).astype(np.float32)


def dequantised(x, w):
    """(x, |x|, w, |w|) as the product takes them, in float64, magnitudes with zero points."""
    codes, scale, zero = activations_of(w.activations, x)
    levels = np.asarray(levels_of(get_grid(w.activations.grid), codes), np.float64)
    scale, zero = np.asarray(scale, np.float64), 0.0 if zero is None else np.asarray(zero, np.float64)
    repeats = [n // b for n, b in zip(w.shape, w.scale.shape, strict=True)]

    def spread(per_block):
        return functools.reduce(
            lambda a, i: np.repeat(a, repeats[i], i), range(w.ndim), np.asarray(per_block, np.float64)
        )

    w_levels = np.asarray(levels_of(w.grid, w.qvalue), np.float64)
    w_zero = 0.0 if w.zero_point is None else spread(w.zero_point)
    s = spread(w.scale)
    return (
        (levels - zero) * scale,
        (np.abs(levels) + np.abs(zero)) * scale,
        (w_levels - w_zero) * s,
        (np.abs(w_levels) + np.abs(w_zero)) * s,
    )


# ---------------------------------------------------------------- codes by codes, exactly


@pytest.mark.parametrize("grid", ["int8_127", "int8_128", "int4", "int2"])
@pytest.mark.parametrize("k", [1, 1041, 3000])
def test_dot_is_the_integer_product(grid, k):
    codes, x, rng = integers((k, 5), grid), integers((4, k), "int8_127", seed=1), np.random.default_rng(2)
    # a row and a column of one sign: sums beyond 2^24, without a common factor
    codes[:, 0] = np.minimum(rng.integers(120, 128, k), get_grid(grid).high)
    x[0] = rng.integers(120, 128, k)
    y = dot(jnp.asarray(x, jnp.float32), leaf_of(codes, grid))
    np.testing.assert_array_equal(y, as_float32(x @ codes))


EINSUMS = [
    ("bd,dhk->bhk", (3, 2000), (2000, 2, 5)),
    ("bshk,hkd->bsd", (2, 3, 4, 300), (4, 300, 5)),
    ("bd,vd->bv", (3, 1500), (7, 1500)),
    ("bhd,hde->ebh", (2, 3, 40), (3, 40, 5)),
    ("...d,dk->...k", (2, 3, 40), (40, 5)),
]


@pytest.mark.parametrize(("spec", "x_shape", "w_shape"), EINSUMS)
@pytest.mark.parametrize("grid", ["int8_128", "int4"])
def test_einsum_is_the_integer_contraction(spec, x_shape, w_shape, grid):
    codes, x = integers(w_shape, grid), integers(x_shape, "int8_127", seed=1)
    if grid == "int8_128":  # sums beyond 2^24, without a common factor
        codes, x = np.maximum(codes, 107), np.maximum(x, 101)
    y = einsum(spec, jnp.asarray(x, jnp.float32), leaf_of(codes, grid))
    np.testing.assert_array_equal(y, as_float32(np.einsum(spec, x, codes)))


def convolved(x, w, *, strides=1, dilation=1, groups=1, pad=0):
    """Convolution over one or two spatial axes by its sum, in the operands' own arithmetic."""
    rank = x.ndim - 2
    x = np.pad(x, [(0, 0), *[(pad, pad)] * rank, (0, 0)])
    window, per_group, out = w.shape[:-2], w.shape[-2], w.shape[-1] // groups
    sizes = [(n - (k - 1) * dilation - 1) // strides + 1 for n, k in zip(x.shape[1:-1], window, strict=True)]
    y = np.zeros((x.shape[0], *sizes, w.shape[-1]), x.dtype)
    for tap in np.ndindex(*window):
        at = tuple(
            slice(t * dilation, t * dilation + (n - 1) * strides + 1, strides) for t, n in zip(tap, sizes, strict=True)
        )
        for g in range(groups):
            columns = slice(g * out, (g + 1) * out)
            part = x[(slice(None), *at, slice(g * per_group, (g + 1) * per_group))]
            y[..., columns] += part @ w[(*tap, slice(None), columns)]
    return y


CONVS = [
    ((2, 12, 6), (5, 6, 4), {}),
    ((2, 13, 6), (3, 6, 4), {"strides": 2, "pad": 1}),
    ((2, 12, 6), (3, 6, 4), {"dilation": 2}),
    ((2, 12, 6), (3, 2, 9), {"groups": 3}),
    ((2, 12, 6), (4, 1, 6), {"groups": 6, "strides": 2}),
    ((1, 9, 8, 3), (3, 2, 3, 4), {"strides": 2, "pad": 1}),
    ((1, 9, 8, 4), (3, 2, 2, 4), {"groups": 2, "dilation": 2}),
    ((1, 8, 700), (5, 700, 3), {}),  # 3,500 terms: in pieces on CPU
    ((1, 4, 1400), (2, 700, 2), {"groups": 2}),  # 1,400 terms in groups: integers on CPU too
    ((1, 1100, 1), (1030, 1, 2), {}),  # a window too long for an exact float
]


def options_of(options):
    pad = options.get("pad", 0)
    return {"padding": [(pad, pad)] * 2 if pad else "VALID"} | {k: v for k, v in options.items() if k != "pad"}


def conv(x, w, options):
    options = options_of(options)
    if not isinstance(options["padding"], str):
        options["padding"] = options["padding"][: x.ndim - 2]
    return jax.jit(functools.partial(ops.conv, **options))(x, w)


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), CONVS)
def test_conv_is_the_integer_convolution(x_shape, w_shape, options):
    codes, x = integers(w_shape, "int8_128"), integers(x_shape, "int8_127", seed=1)
    # beyond 2^24, by products without a common factor
    large = np.random.default_rng(2)
    codes[..., 0] = large.integers(120, 128, w_shape[:-1])
    x[:, : max(w_shape[0], x_shape[1] // 2)] = large.integers(120, 128, x_shape[2:])
    y = conv(jnp.asarray(x, jnp.float32), leaf_of(codes, "int8_128"), options)
    np.testing.assert_array_equal(y, as_float32(convolved(x, codes, **options)))


@pytest.mark.parametrize("lower", [lower_for_tpu, lower_for_cuda])
@pytest.mark.parametrize(
    ("grid", "activations", "types"),
    [("int4", "int8_127", ("i8", "i32")), ("fp8_e4m3", "fp8_e4m3", ("f8E4M3FN", "f32"))],
)
def test_einsum_and_conv_are_of_low_precision_on_accelerators(lower, grid, activations, types):
    def both(x, w):
        return ops.einsum("bsd,dk->bsk", x, w), ops.conv(x, jax.tree.map(lambda a: a[None], w))

    w = quantize(normal(8, 4), grid, activations=Activations(grid=activations))
    lines = [
        line for line in lower(both, normal(2, 9, 8), w).splitlines() if "dot_general" in line or "convolution" in line
    ]
    assert len(lines) == 2
    for line in lines:
        operands, result = line.rsplit(" : ", 1)[1].split("->")
        assert operands.count(f"x{types[0]}>") == 2, line
        assert f"x{types[1]}>" in result, line


# ---------------------------------------------------------------- scales, groups, zero points, against float64


GRIDS_AND_ACTIVATIONS = [
    ("int8_127", Activations(grid="int8_127")),
    ("int4", Activations(grid="int8_127", per="tensor")),
    ("int4", Activations(grid="int4")),
    ("int8_asymmetric", Activations(grid="int8_127")),
    ("int4_asymmetric", Activations(grid="int8_asymmetric")),
    ("int8_127", Activations(grid="int8_asymmetric", per="tensor")),
    ("fp8_e4m3", Activations(grid="fp8_e4m3")),
    ("fp8_e4m3", Activations(grid="fp8_e5m2", per="tensor")),
    ("int4", Activations(grid="fp8_e4m3")),
]


@pytest.mark.parametrize(
    ("grid", "activations", "blocks"),
    [
        *((*pair, blocks) for pair in GRIDS_AND_ACTIVATIONS for blocks in [(1, 12), (4, 3)]),
        *((*GRIDS_AND_ACTIVATIONS[4], blocks) for blocks in [(1, 1), (4, 12), (4, 1), (64, 1)]),
    ],
    ids=str,
)
def test_dot_against_float64(grid, activations, blocks):
    w = quantize(normal(64, 12) + 0.3, grid, blocks=blocks, activations=activations)
    x = normal(2, 3, 64, seed=1) * 5 + 1
    x_exact, x_size, w_exact, w_size = dequantised(x, w)
    # 64 terms at most are added in float32, each with the roundings of its scales and of its zero points
    bound = (64 + 8) * EPS * (x_size @ w_size)
    assert np.all(np.abs(dot(x, w) - x_exact @ w_exact) <= bound)


@pytest.mark.parametrize("grid", ["int8_127", "int8_asymmetric", "fp8_e4m3", "int4"])
@pytest.mark.parametrize("blocks", [(1, 12), (4, 3)])
def test_float_activations_against_float64(grid, blocks):
    w, x = quantize(normal(64, 12), grid, blocks=blocks), normal(3, 64, seed=1)
    exact = np.asarray(w.materialize(), np.float64)
    bound = (64 + 4) * EPS * (np.abs(np.float64(x)) @ np.abs(exact))
    assert np.all(np.abs(dot(x, w) - np.float64(x) @ exact) <= bound)
    np.testing.assert_allclose(einsum("bd,dk->bk", x, w), np.float64(x) @ exact, atol=float(bound.max()))


@pytest.mark.parametrize(
    ("spec", "x_shape", "w_shape", "blocks"),
    [
        ("bd,dhk->bhk", (3, 40), (40, 2, 6), (1, 2, 6)),
        ("bd,dhk->khb", (3, 40), (40, 2, 6), (1, 2, 3)),
        ("bd,vd->bv", (3, 40), (6, 40), (6, 1)),
        ("...d,vd->v...", (2, 3, 40), (6, 40), (3, 1)),
        ("bhd,hde->bhe", (3, 2, 40), (2, 40, 5), (2, 1, 1)),
    ],
)
@pytest.mark.parametrize("grid", ["int8_127", "fp8_e4m3"])
def test_einsum_against_float64(spec, x_shape, w_shape, blocks, grid):
    activations = Activations(grid="fp8_e4m3" if grid == "fp8_e4m3" else "int8_127", per="tensor")
    w, x = quantize(normal(*w_shape), grid, blocks=blocks, activations=activations), normal(*x_shape, seed=1)
    x_exact, x_size, w_exact, w_size = dequantised(x, w)
    bound = (40 + 4) * EPS * np.einsum(spec, x_size, w_size)
    assert np.all(np.abs(einsum(spec, x, w) - np.einsum(spec, x_exact, w_exact)) <= bound)


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), [CONVS[i] for i in (1, 3, 5)])
@pytest.mark.parametrize("grid", ["int4", "fp8_e4m3"])
def test_conv_against_float64(x_shape, w_shape, options, grid):
    activations = Activations(grid="fp8_e4m3" if grid == "fp8_e4m3" else "int8_127", per="tensor")
    w, x = quantize(normal(*w_shape), grid, activations=activations), normal(*x_shape, seed=1)
    x_exact, x_size, w_exact, w_size = dequantised(x, w)
    bound = (30 + 4) * EPS * convolved(x_size, w_size, **options)
    assert np.all(np.abs(conv(x, w, options) - convolved(x_exact, w_exact, **options)) <= bound)


def test_token_scales_of_dot_are_one_scale_in_einsum():
    """An outlier of one token costs the others nothing in dot."""
    w = quantize(normal(64, 8), "int8_127", activations=Activations(grid="int8_127"))
    x = normal(2, 64, seed=1).at[0, 0].set(1000.0)
    clean = np.float64(x[1]) @ np.float64(w.materialize())
    assert np.abs(dot(x, w)[1] - clean).max() < 0.3 < np.abs(einsum("bd,dk->bk", x, w)[1] - clean).max()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("use", "grid", "activations", "blocks", "message"),
    [
        (lambda x, w: ops.dot(x, w), "fp8_e4m3", "int8_127", (1, 4), "int8_127 codes do not multiply fp8_e4m3"),
        (lambda x, w: ops.dot(x, w), "int8_127", "fp8_e4m3", (1, 4), "float8 holds integers of at most 4 bits"),
        (lambda x, w: ops.einsum("bd,dk->bk", x, w), "int4", "int8_127", (2, 4), "contracts an axis along which"),
        (lambda x, w: ops.einsum("bd,...k->b...", x, w), "int4", "int8_127", (1, 4), "an ellipsis in the quantised"),
        (lambda x, w: ops.einsum("bd,dk->bk", x, w), "int4_asymmetric", "int8_127", (1, 4), "zero_point: einsum"),
        (lambda x, w: ops.einsum("bd,dk->bk", x, w), "int4", "int8_asymmetric", (1, 4), "zero_point: einsum"),
    ],
)
def test_refusals(use, grid, activations, blocks, message):
    w = quantize(normal(8, 4), grid, blocks=blocks, activations=Activations(grid=activations))
    with pytest.raises(ValueError, match=message):
        use(normal(3, 8), w)


def test_refusals_of_shape():
    cube = quantize(normal(3, 8, 4), "int4", blocks=(3, 1, 4), activations=Activations(grid="int8_127"))
    with pytest.raises(ValueError, match=r"dot: a weight of shape \(3, 8, 4\)"):
        ops.dot(normal(3, 8), cube)
    with pytest.raises(ValueError, match="varies inside an output channel"):
        ops.conv(normal(1, 9, 8), cube)
