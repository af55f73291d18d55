"""The scaled integer product: its definition against float64 and its kernels against its definition."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.lowering import interpreted, lower_for_cuda, lower_for_tpu
from zojax.kernels.quantized_matmul import gpu, integer_dot, quantized_matmul, reference, tpu

E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2
PAIRS = [(jnp.int8, jnp.int8), (jnp.int8, jnp.int4), (jnp.int4, jnp.int4), (E4M3, E4M3), (E5M2, E4M3)]
MARK = {"tpu": "tpu_custom_call", "gpu": "xla.gpu.triton"}
LOWER = {"tpu": lower_for_tpu, "gpu": lower_for_cuda}
MODULES = {"tpu": tpu, "gpu": gpu}

# Sums of m * n products of 8-bit floats in float32: each product is exact, a sum of k terms carries k - 1 roundings of
# 2^-24 relative to the sum of magnitudes, whatever its order.
EPS = 2.0**-24


def codes(rng, shape, dtype):
    if not jnp.issubdtype(dtype, jnp.integer):
        return jnp.asarray(rng.normal(size=shape), dtype)
    info = jnp.iinfo(dtype)
    return jnp.asarray(rng.integers(int(info.min), int(info.max) + 1, shape), jnp.int8).astype(dtype)


def arguments(m, k, n, *, groups=1, dtypes=(jnp.int8, jnp.int8), seed=0):
    rng = np.random.default_rng(seed)
    scales = (jnp.asarray(rng.uniform(0.5, 2.0, shape), jnp.float32) for shape in ((m, 1), (groups, n)))
    return codes(rng, (m, k), dtypes[0]), codes(rng, (k, n), dtypes[1]), *scales


def oracle(x, w, x_scale, w_scale):
    """(the result, the sum of magnitudes) in float64."""
    x, w, x_scale, w_scale = (np.asarray(a.astype(jnp.float32), np.float64) for a in (x, w, x_scale, w_scale))
    spread = np.repeat(w_scale, w.shape[0] // w_scale.shape[0], axis=0)
    return x @ (w * spread) * x_scale, np.abs(x) @ np.abs(w * spread) * x_scale


@jax.jit
def float_pieces(x, w):
    """The product through float32, in pieces of k so short that every partial sum is an integer up to 2^24."""
    depth = 2**24 // (int(jnp.iinfo(x.dtype).min) * int(jnp.iinfo(w.dtype).min))
    total = jnp.zeros((x.shape[0], w.shape[1]), jnp.int32)
    for start in range(0, x.shape[1], depth):
        a, b = x[:, start : start + depth].astype(jnp.float32), w[start : start + depth].astype(jnp.float32)
        total += jnp.dot(a, b, precision="highest").astype(jnp.int32)
    return total


@pytest.mark.parametrize("dtypes", PAIRS[:3], ids=str)
@pytest.mark.parametrize("k", [1, 1025, 5000])
def test_integer_dot_is_exact(k, dtypes):
    x, w, *_ = arguments(3, k, 5, dtypes=dtypes)
    x, w = (a.at[:2].set(jnp.iinfo(a.dtype).min) for a in (x, w.T))  # whole rows and columns of the extreme
    w = w.T
    y = integer_dot(x, w)
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(y, np.asarray(x.astype(jnp.int32), np.int64) @ np.asarray(w.astype(jnp.int32)))
    np.testing.assert_array_equal(y, float_pieces(x, w))


@pytest.mark.parametrize("lower", [lower_for_tpu, lower_for_cuda])
def test_integer_dot_is_an_integer_dot_on_accelerators(lower):
    x, w, *_ = arguments(8, 64, 16, dtypes=(jnp.int8, jnp.int4))
    dots = [line for line in lower(integer_dot, x, w).splitlines() if "dot_general" in line]
    assert len(dots) == 1
    assert "tensor<8x64xi8>, tensor<64x16xi8>) -> tensor<8x16xi32>" in dots[0]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_definition_is_right(dtypes, groups):
    args = arguments(7, 96, 11, groups=groups, dtypes=dtypes)
    exact, magnitude = oracle(*args)
    y = reference.scaled_product(*args)
    assert y.dtype == jnp.float32
    # integers: one rounding of the sum of a group, one of each scale, one of each addition of groups
    roundings = 3 + groups + (0 if reference.is_integer(dtypes[0]) else args[0].shape[1])
    assert (np.abs(y - exact) <= roundings * EPS * magnitude).all()


def test_groups_are_added_in_order():
    # 2^24 + 1 is no float32: forwards the ones are lost one by one, backwards they count.
    x, w = jnp.ones((1, 6), jnp.int8), jnp.array([[1], [0], [1], [0], [1], [0]], jnp.int8)
    scale = jnp.array([[2.0**24], [1.0], [1.0]])
    for implementation, run in (
        ("reference", functools.partial(quantized_matmul, implementation="reference")),
        ("default", quantized_matmul),
    ):
        assert run(x, w, x_scale=jnp.float32(1), w_scale=scale) == 2.0**24, implementation
        assert run(x, w, x_scale=jnp.float32(1), w_scale=scale[::-1]) == 2.0**24 + 2, implementation


CONFIGS = {
    "tpu": [
        tpu.Config(),
        tpu.Config(block_m=32, block_n=128, block_k=128),
        tpu.Config(block_m=64, block_n=256, block_k=256),
    ],
    "gpu": [
        gpu.Config(),
        gpu.Config(block_m=16, block_n=32, block_k=32),
        gpu.Config(block_m=16, block_n=32, block_k=32, turned=True),
    ],
}
SHAPES = [(64, 512, 256), (5, 70, 100), (33, 129, 257)]


@pytest.mark.parametrize("config", [c for cs in CONFIGS.values() for c in cs], ids=str)
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_kernels_equal_the_definition(config, m, k, n):
    module = tpu if isinstance(config, tpu.Config) else gpu
    args = arguments(m, k, n, dtypes=(jnp.int8, jnp.int8))
    assert module.supported(*args, config=config) is None
    y = module.run(*args, config=config, interpret=interpreted(module))
    # int32 sums are exact and the scales are applied in the same order: the same bits over all tilings
    np.testing.assert_array_equal(y, reference.scaled_product(*args))


@pytest.mark.parametrize("config", [tpu.Config(), gpu.Config()], ids=["tpu", "gpu"])
def test_kernels_accumulate_in_integers(config):
    module = tpu if isinstance(config, tpu.Config) else gpu
    _, _, x_scale, w_scale = arguments(4, 1, 6)
    # sums of 4.6e7, beyond the 2^24 up to which float32 holds all integers
    x, w = jnp.asarray(np.random.default_rng(0).integers(120, 128, (2, 6, 3000)), jnp.int8)
    args = (x[:4], w.T, x_scale, w_scale)
    exact = (np.asarray(x[:4], np.int64) @ np.asarray(w.T)).astype(np.float32)
    y = module.run(*args, config=config, interpret=interpreted(module))
    np.testing.assert_array_equal(y, exact * np.asarray(w_scale) * np.asarray(x_scale))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize(
    "config",
    [tpu.Config(block_k=512), tpu.Config(block_k=128), gpu.Config(), gpu.Config(turned=True)],
    ids=["several groups a step", "several steps a group", "gpu", "gpu turned"],
)
def test_kernels_do_all_types_and_groups(config, dtypes, groups):
    module = tpu if isinstance(config, tpu.Config) else gpu
    args = arguments(20, 1024, 30, groups=groups, dtypes=dtypes)
    if module is gpu and config.turned and not reference.is_integer(dtypes[1]):
        assert "integers alone are turned" in (gpu.supported(*args, config=config) or "")
        return
    assert module.supported(*args, config=config) is None
    y = module.run(*args, config=config, interpret=interpreted(module))
    if groups == 1 and reference.is_integer(dtypes[0]):
        np.testing.assert_array_equal(y, reference.scaled_product(*args))
    exact, magnitude = oracle(*args)
    # as for the definition; the multiply-add of a group's scale may be fused or not
    roundings = 3 + groups + (0 if reference.is_integer(dtypes[0]) else args[0].shape[1])
    assert (np.abs(y - exact) <= roundings * EPS * magnitude).all()


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_kernels_lower(name, dtypes, groups):
    args = arguments(20, 1024, 130, groups=groups, dtypes=dtypes)
    run = functools.partial(MODULES[name].run, config=MODULES[name].default_config(*args))
    assert MARK[name] in LOWER[name](run, *args)


@pytest.mark.parametrize("name", MODULES)
def test_one_program_holds_the_kernel_of_each_platform(name):
    x, w, x_scale, w_scale = arguments(20, 256, 128)

    def f(x, w):
        return quantized_matmul(x, w, x_scale=x_scale, w_scale=w_scale)

    text = LOWER[name](f, x, w)
    assert MARK[name] in text
    assert not any(MARK[other] in text for other in MARK if other != name)
    assert "dot_general" not in text.split("custom_call")[0]
    # over the signs of a probe: one kernel with all rows, so that the weight is read once
    text = LOWER[name](jax.vmap(f, in_axes=(0, None)), jnp.stack([x, x]), w)
    assert text.count(f"custom_call @{'__gpu$' if name == 'gpu' else ''}{MARK[name]}") == 1
    assert "40x256xi8" in text
    assert MARK[name] in LOWER[name](jax.vmap(f), jnp.stack([x, x]), jnp.stack([w, w]))


def test_vmap_equals_a_loop():
    x, w, x_scale, w_scale = arguments(4, 32, 6, groups=2)
    many = [jnp.stack([a, jnp.flip(a)]) for a in (x, w, x_scale, w_scale)]

    @jax.jit
    def f(x, w, x_scale, w_scale):
        return quantized_matmul(x, w, x_scale=x_scale, w_scale=w_scale)

    for batched in [(1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 1, 1)]:
        args = [all_ if b else one for b, one, all_ in zip(batched, (x, w, x_scale, w_scale), many, strict=True)]
        y = jax.vmap(f, in_axes=tuple(0 if b else None for b in batched))(*args)
        for i in range(2):
            np.testing.assert_array_equal(y[i], f(*(a[i] if b else a for b, a in zip(batched, args, strict=True))))


@pytest.mark.parametrize("name", MODULES)
def test_rows_together_is_the_same_product(name, monkeypatch):
    # the kernel itself under the operator's vmap rule, in interpret mode
    from zojax.kernels.quantized_matmul import _rows_together

    module = MODULES[name]
    x, w, x_scale, w_scale = arguments(4, 128, 6)
    run = _rows_together(functools.partial(module.run, config=module.Config(), interpret=interpreted(module)))
    x2, s2 = jnp.stack([x, -x]), jnp.stack([x_scale, 2 * x_scale])
    y = jax.vmap(run, in_axes=(0, None, None, None))(x2, w, x_scale, w_scale)
    np.testing.assert_array_equal(y, [reference.scaled_product(a, w, x_scale, w_scale) for a in x2])
    y = jax.vmap(run, in_axes=(None, None, 0, None))(x, w, s2, w_scale)
    np.testing.assert_array_equal(y, [reference.scaled_product(x, w, s, w_scale) for s in s2])


def test_derivatives_are_those_of_the_scales():
    x, w, x_scale, w_scale = arguments(4, 32, 6, groups=2)
    f = functools.partial(quantized_matmul, x, w)
    # the operator is linear in each scale: its derivative along ds is its value there
    _, along = jax.jvp(lambda s: f(x_scale=s, w_scale=w_scale), (x_scale,), (x_scale[::-1],))
    np.testing.assert_array_equal(along, f(x_scale=x_scale[::-1], w_scale=w_scale))
    g = jax.grad(lambda s: f(x_scale=x_scale, w_scale=s).sum())(w_scale)
    sums = np.einsum("mgk,gkn->gmn", np.float64(x).reshape(4, 2, 16), np.float64(w).reshape(2, 16, 6))
    # float32 sums of 4 products of a rounded integer and a scale
    np.testing.assert_allclose(g, (sums * np.float64(x_scale)).sum(1), rtol=1e-5, atol=1e-3)


@settings(max_examples=10, deadline=None)
@given(
    lead=st.sampled_from([(), (1,), (3,), (2, 3), (0,)]),
    x_kind=st.sampled_from(["scalar", "rows"]),
    w_kind=st.sampled_from(["scalar", "one", "columns", "groups"]),
)
def test_scales_of_all_shapes(lead, x_kind, w_kind):
    x, w, x_scale, w_scale = arguments(int(np.prod(lead)), 8, 5, groups=2)
    x_scale = {"scalar": jnp.float32(0.7), "rows": x_scale.reshape(*lead, 1)}[x_kind]
    w_scale = {"scalar": jnp.float32(0.3), "one": w_scale[:1, :1], "columns": w_scale[0], "groups": w_scale}[w_kind]
    y = quantized_matmul(x.reshape(*lead, 8), w, x_scale=x_scale, w_scale=w_scale)
    assert y.shape == (*lead, 5)
    spread = np.repeat(np.atleast_2d(np.float64(w_scale)), 4 if w_kind == "groups" else 8, axis=0)
    exact = np.float64(x) @ (np.float64(w) * spread)
    exact = exact.reshape(*lead, 5) * np.float64(x_scale)
    # up to 6 roundings of values that cancel at most to 1/100 here
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-3)


def test_wrong_arguments_are_refused():
    x, w, x_scale, w_scale = arguments(4, 32, 6)
    with pytest.raises(ValueError, match=r"x, w: int8 by float8_e4m3fn"):
        quantized_matmul(x, w.astype(E4M3), x_scale=x_scale, w_scale=w_scale)
    with pytest.raises(ValueError, match=r"x, w: float8_e4m3fn by float8_e4m3fn; integer_dot"):
        integer_dot(x.astype(E4M3), w.astype(E4M3))
    with pytest.raises(ValueError, match=r"x, w: shapes \(4, 32\) and \(6, 32\)"):
        quantized_matmul(x, w.T, x_scale=x_scale, w_scale=w_scale)
    with pytest.raises(ValueError, match=r"x_scale: shape \(32,\)"):
        quantized_matmul(x, w, x_scale=jnp.ones(32), w_scale=w_scale)
    with pytest.raises(ValueError, match=r"w_scale: shape \(5, 6\)"):
        quantized_matmul(x, w, x_scale=x_scale, w_scale=jnp.ones((5, 6)))
    with pytest.raises(ValueError, match=r"implementation: quantized_matmul has none named 'cuda'; it has 'reference'"):
        quantized_matmul(x, w, x_scale=x_scale, w_scale=w_scale, implementation="cuda")
    for implementation in (None, "tpu", "reference"):
        with pytest.raises(ValueError, match="config"):
            quantized_matmul(x, w, x_scale=x_scale, w_scale=w_scale, implementation=implementation, config=gpu.Config())


def test_a_named_implementation_never_falls_back():
    x, w, x_scale, w_scale = arguments(4, 96, 6, groups=4)  # groups of 24 rows
    for name, reason in (("tpu", "multiple of 128"), ("gpu", "multiple of block_k=32")):
        with pytest.raises(ValueError, match=rf"cannot run as '{name}': w_scale: a group of 24 rows .*{reason}"):
            quantized_matmul(x, w, x_scale=x_scale, w_scale=w_scale, implementation=name)
        f = functools.partial(quantized_matmul, x_scale=x_scale, w_scale=w_scale)
        assert "custom_call" not in LOWER[name](f, x, w)  # None does fall back
    x, w, x_scale, w_scale = arguments(4, 64, 6)
    if jax.default_backend() == "cpu":
        with pytest.raises(ValueError, match=r"[Ii]nterpret"):  # of Pallas: no kernel runs on a CPU
            quantized_matmul(x, w, x_scale=x_scale, w_scale=w_scale, implementation="tpu")


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_parts_of_the_depth_are_added(dtypes, turned):
    args, integer = arguments(5, 500, 40, dtypes=dtypes), reference.is_integer(dtypes[0])
    config = gpu.Config(block_m=16, block_n=32, block_k=64, splits=4, turned=turned)
    if turned and not integer:
        assert "integers alone are turned" in (gpu.supported(*args, config=config) or "")
        return
    assert gpu.supported(*args, config=config) is None
    y = gpu.run(*args, config=config, interpret=interpreted(gpu))
    if integer:
        np.testing.assert_array_equal(y, reference.scaled_product(*args))
    exact, magnitude = oracle(*args)
    assert (np.abs(y - exact) <= (4 + (0 if integer else 500)) * EPS * magnitude).all()


def test_impossible_blocks_are_refused():
    args = arguments(64, 512, 256)
    assert "splits must divide 8 steps" in (gpu.supported(*args, config=gpu.Config(splits=3)) or "")
    grouped = arguments(64, 512, 256, groups=2)
    assert "1 beside group scales" in (gpu.supported(*grouped, config=gpu.Config(splits=2)) or "")
    for config in (tpu.Config(block_m=40), tpu.Config(block_k=64), tpu.Config(block_m=4096, block_n=4096)):
        assert tpu.supported(*(arguments(4096, 512, 4096) if config.block_m == 4096 else args), config=config)
    for config in (gpu.Config(block_m=48), gpu.Config(block_n=8), gpu.Config(block_k=16)):
        assert "powers of two" in (gpu.supported(*args, config=config) or "")


@pytest.mark.parametrize(("capability", "refused"), [("8.0", True), ("8.9", False), ("9.0", False)])
def test_an_old_gpu_has_no_e4m3(capability, refused, monkeypatch):
    monkeypatch.setattr(gpu.jax, "devices", lambda: [SimpleNamespace(compute_capability=capability)])
    assert bool(gpu.supported(*arguments(16, 64, 32, dtypes=(E4M3, E4M3)), config=gpu.Config())) == refused
    assert gpu.supported(*arguments(16, 64, 32, dtypes=(E5M2, E5M2)), config=gpu.Config()) is None
    assert gpu.supported(*arguments(16, 64, 32), config=gpu.Config()) is None


@pytest.mark.parametrize("group", [32, 64, 96, 128])
def test_the_default_blocks_fit_the_group(group):
    for rows in (4, 100):
        args = arguments(rows, 4 * group, 16, groups=4)
        assert gpu.supported(*args, config=gpu.default_config(*args)) is None
