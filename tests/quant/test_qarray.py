"""Quantised leaves: their uses, their moves, their derivatives, and a forward that is of low precision throughout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.lowering import lower_for_cuda, lower_for_tpu
from zojax import ops, random
from zojax.directions import Rademacher, Rounded
from zojax.perturb import PerturbSpec
from zojax.quant import PROFILES, Activations, get_grid, quantize, quantize_tree
from zojax.quant.rules import Rule


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def dense(w):
    return np.asarray(w.materialize(), np.float64)


# ---------------------------------------------------------------- uses


@pytest.mark.parametrize("blocks", [(12, 1), (1, 6), (1, 1), (4, 6), (12, 2)])
@pytest.mark.parametrize("grid", ["int8_127", "int4_asymmetric", "fp8_e4m3"])
def test_embed_takes_rows(grid, blocks):
    w, ids = quantize(normal(12, 6), grid, blocks=blocks), jnp.array([[0, 11], [2, 5]])
    np.testing.assert_array_equal(jax.jit(ops.embed)(w, ids), w.materialize()[ids])
    rows = w.rows(ids)
    assert rows.shape == (2, 2, 6)
    np.testing.assert_array_equal(rows.qvalue, w.qvalue[ids])


@pytest.mark.parametrize("activations", [None, Activations(grid="int8_127"), Activations(grid="int4", per="static")])
def test_scan_and_vmap_over_stacked_leaves(activations):
    w = quantize(normal(3, 8, 8), "int4", blocks=(3, 2, 8), activations=activations)
    if activations is not None and activations.per == "static":
        w = dataclasses.replace(w, activation_scale=jnp.array([0.3, 0.4, 0.5]))
    x = normal(4, 8, seed=1)
    slices = [jax.tree.map(lambda a, i=i: a[i], w) for i in range(3)]

    @jax.jit
    def scanned(w, x):
        return jax.lax.scan(lambda x, w: (ops.dot(x, w),) * 2, x, w)[1]

    expected = [x]
    for one in slices:
        expected.append(jax.jit(ops.dot)(expected[-1], one))
    # XLA may add and multiply in one rounding in one program and not in the other
    np.testing.assert_allclose(scanned(w, x), np.stack(expected[1:]), rtol=1e-5, atol=1e-5)
    together = jax.jit(jax.vmap(ops.dot, in_axes=(None, 0)))(x, w)
    np.testing.assert_allclose(together, np.stack([ops.dot(x, one) for one in slices]), rtol=1e-5, atol=1e-5)
    xs = normal(5, 4, 8, seed=2)
    apart = np.stack([ops.dot(x, slices[0]) for x in xs])
    np.testing.assert_allclose(jax.vmap(ops.dot, in_axes=(0, None))(xs, slices[0]), apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activations", [None, Activations(grid="int8_127")])
@pytest.mark.parametrize("blocks", [(1, 6), (4, 6)])
def test_gradients_with_respect_to_scales(activations, blocks):
    """The product is linear in them: y = sum_g s_g (x w_q)_g, so dy/ds_g = (x w_q)_g."""
    w, x = quantize(normal(8, 6), "int4", blocks=blocks, activations=activations), normal(3, 8, seed=1)
    c = normal(3, 6, seed=2)
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(c * ops.dot(x, dataclasses.replace(w, scale=s)))))(w.scale)
    x_hat = np.asarray(x, np.float64)
    if activations is not None:
        codes, scale, _ = activations.quantize(x)
        x_hat = np.asarray(codes, np.float64) * np.asarray(scale, np.float64)
    parts = np.einsum("bgk,gkn->bgn", x_hat.reshape(3, blocks[0], -1), np.float64(w.qvalue).reshape(blocks[0], -1, 6))
    np.testing.assert_allclose(gradient, np.einsum("bn,bgn->gn", np.float64(c), parts), rtol=1e-5, atol=1e-5)


def test_gradients_with_respect_to_float_activations():
    w, x = quantize(normal(8, 6), "int8_asymmetric"), normal(3, 8, seed=1)
    gradient = jax.grad(lambda x: jnp.sum(ops.dot(x, w)))(x)
    np.testing.assert_allclose(gradient, np.broadcast_to(dense(w).sum(1), (3, 8)), rtol=1e-5)


# ---------------------------------------------------------------- moves


@pytest.mark.parametrize("grid", ["int8_127", "int4_asymmetric", "fp8_e4m3"])
def test_moves_are_right_on_average_in_units_of_the_weight(grid):
    n = 1 << 15
    w = quantize(jnp.tile(normal(1, 4) * jnp.array([0.1, 1.0, 3.0, 9.0]), (n, 1)) * 0.5, grid)
    w = dataclasses.replace(w, scale=2 * w.scale)  # no code at the end of the grid
    by = jnp.array([1e-3, -2e-2, 0.3, -0.1]) + jnp.zeros((n, 4))
    w = dataclasses.replace(w, qvalue=w.qvalue // 2)
    words = random.bits(jax.random.key(0), (n, 4))
    moved = jax.jit(type(w).moved)(w, by, words)
    change = dense(moved) - dense(w)
    error = 4 * change.std(0) / np.sqrt(n)  # 4 standard errors
    assert np.all(np.abs(change.mean(0) - by[0]) < error + 1e-6 * np.abs(by[0]))
    np.testing.assert_array_equal(moved.qvalue - w.qvalue, w.steps(by, words).astype(w.qvalue.dtype))
    np.testing.assert_array_equal(moved.scale, w.scale)


@pytest.mark.parametrize("bits", range(2, 9))
def test_beside_is_step_times_codes(bits):
    w = quantize(normal(8, 6), "int4_asymmetric", blocks=(4, 6), activations=Activations(grid="int8_127"))
    top = 2 ** (bits - 1) - 1
    codes = jnp.asarray(np.random.default_rng(0).integers(-top, top + 1, (8, 6)), jnp.int8)
    second = w.beside(codes, 0.25, bits)
    np.testing.assert_array_equal(dense(second), 0.25 * np.float64(codes))
    assert second.activations == w.activations


def test_stochastic_quantisation_is_right_on_average():
    w = jnp.tile(normal(1, 6), (4096, 1)).at[0].set(4.0)
    q = quantize(w, "int4", words=random.bits(jax.random.key(3), w.shape))
    values = dense(q)[1:]
    assert np.all(np.abs(values.mean(0) - w[1]) < 4 * values.std(0) / np.sqrt(4095))  # 4 standard errors


# ---------------------------------------------------------------- the forward is of low precision


M, K, N = 24, 40, 56
PROBES = {
    "clean": None,
    "beside-signs": PerturbSpec(direction=Rademacher()),
    "beside-4bit": PerturbSpec(direction=Rounded(bits=4)),
    "codes-signs": PerturbSpec(direction=Rademacher(), probe="codes"),
    "codes-4bit": PerturbSpec(direction=Rounded(bits=4), probe="codes"),
}


@functools.cache
def two_layers(profile):
    rule = Rule(pattern="", grid=profile.weights, activations=profile.activations)
    return quantize_tree({"in": normal(K, N), "out": normal(N, K, seed=1)}, [rule])


def forward(params, x):
    return jnp.mean(jnp.square(ops.dot(jax.nn.relu(ops.dot(x, params["in"])), params["out"])))


def loss_of(spec, vectorised=False):
    if spec is None:
        return forward

    def loss(params, x):
        def at(scale):
            return forward(spec.perturb(params, jax.random.key(0), scale), x)

        return jax.vmap(at)(jnp.array([1e-2, -1e-2])) if vectorised else at(jnp.float32(1e-2))

    return loss


def equations(jaxpr):
    """All equations, of inner programs too, but for the insides of kernels."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name == "pallas_call":
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def operand_types(profile):
    float_type = get_grid(profile.activations.grid).float_type
    return ({float_type}, "float32") if float_type else ({"int8", "int4"}, "int32")


@pytest.mark.parametrize(
    ("name", "probe", "vectorised"),
    [
        *((name, probe, False) for name in PROFILES for probe in PROBES),
        *((name, probe, True) for name in ("w8a8_int", "w4a8_fp8") for probe in ("beside-4bit", "codes-4bit")),
    ],
)
def test_every_product_with_a_weight_is_one_of_codes(name, probe, vectorised):
    profile = PROFILES[name]
    allowed, accumulator = operand_types(profile)
    jaxpr = jax.make_jaxpr(loss_of(PROBES[probe], vectorised))(two_layers(profile), normal(M, K)).jaxpr
    products = 4 if probe.startswith("beside") else 2
    dots, kernels = [], []
    for equation in equations(jaxpr):
        if equation.primitive.name == "dot_general":
            dots.append(({str(v.aval.dtype) for v in equation.invars}, str(equation.outvars[0].aval.dtype)))
        elif equation.primitive.name == "pallas_call":
            kernels.append({str(v.aval.dtype) for v in equation.invars[:2]})
    assert len(dots) == products  # the definition's; there is no other dot
    assert all(types <= allowed and out == accumulator for types, out in dots), dots
    assert len(kernels) == 2 * products  # one a product for each kind of accelerator
    assert all(types <= allowed for types in kernels), kernels


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("name", PROFILES)
def test_the_programs_for_accelerators_are_of_low_precision(name, probe):
    profile = PROFILES[name]
    args = loss_of(PROBES[probe]), two_layers(profile), normal(M, K)
    products = 4 if probe.startswith("beside") else 2
    for lower, mark in ((lower_for_tpu, "tpu_custom_call"), (lower_for_cuda, "__gpu$xla.gpu.triton")):
        lines = lower(*args).splitlines()
        kernels = [line.rsplit(" : (")[-1].split(", ") for line in lines if f"@{mark}" in line]
        # Products of equal shapes may share a function; the two layers differ.
        assert 2 <= len(kernels) <= products
        assert not any("f32" in operand for operands in kernels for operand in operands[:2]), kernels
        assert not any("stablehlo.dot_general" in line for line in lines)
    lines = jax.jit(args[0]).lower(*args[1:]).as_text().splitlines()
    on_cpu = [line.split(" : ")[-1] for line in lines if "dot_general" in line]
    assert on_cpu
    assert not any("xf32>, tensor" in line for line in on_cpu), on_cpu


@pytest.mark.parametrize("name", ["w8a8_int", "w4a8_fp8"])
def test_the_probe_is_seen(name):
    """Low-bit probes differ from the clean forward and oppose each other to first order."""
    params, x = two_layers(PROFILES[name]), normal(M, K)
    for probe in ("beside-4bit", "codes-4bit"):
        up, down = jax.jit(loss_of(PROBES[probe], vectorised=True))(params, x)
        assert up != forward(params, x) != down
        assert up != down
