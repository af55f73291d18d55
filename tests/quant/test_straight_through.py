"""The first-order baseline: quantised forwards, straight-through gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zojax import ops
from zojax.quant import Activations, Rule, quantize, quantize_tree
from zojax.quant.straight_through import FakeQuant, straight_through
from zojax.trees import merge, split

RNG = np.random.default_rng(1308)


def array(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


# (grid of the weight, blocks of [16, 6], calibration, activations)
CASES = {
    "int8": ("int8_127", None, "absmax", None),
    "int4 groups": ("int4", (4, 6), "absmax", Activations(grid="int8_127")),
    "int8_128, per tensor": ("int8_128", (1, 1), "absmax", Activations(grid="int8_128", per="tensor")),
    "asymmetric": ("int8_asymmetric", None, "absmax", Activations(grid="int8_asymmetric")),
    "fp8": ("fp8_e4m3", None, "absmax", Activations(grid="fp8_e4m3")),
    "int2": ("int2", None, "mse", Activations(grid="int4")),
}


def leaf(value, case):
    grid, blocks, calibration, activations = CASES[case]
    quantized = quantize(
        jax.lax.stop_gradient(value), grid, blocks=blocks, calibration=calibration, activations=activations
    )
    return FakeQuant(value=value, quantized=quantized)


@pytest.mark.parametrize("case", CASES)
def test_the_forward_is_that_of_the_quantised_leaf(case):
    w, x = leaf(array(16, 6), case), array(2, 5, 16)
    # Differentiated, too: the value that a gradient's program computes is the same one.
    y, _ = jax.jit(lambda x, w: jax.vjp(lambda x, v: ops.dot(x, leaf(v, case)), x, w))(x, w.value)
    exact = ops.dot(x, w.quantized)
    # Relative to the largest output; the scales of two programs may differ in their last bit.
    for got in (y, ops.dot(x, w)):
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-6 * float(jnp.abs(exact).max()))
    np.testing.assert_array_equal(ops.value(w), w.quantized.materialize())
    ids = jnp.array([[3, 0, 3]])
    np.testing.assert_array_equal(ops.embed(w, ids), ops.embed(w.quantized, ids))
    assert (w.shape, w.ndim, w.size, w.dtype) == ((16, 6), 2, 96, jnp.float32)


def listed(values, levels, scale, zero=0.0):
    """(nearest value of the listed levels, whether it is within half of the last step beyond them), in float64."""
    at = values / scale + zero
    levels = np.asarray(levels, np.float64)
    nearest = levels[np.abs(at[..., None] - levels).argmin(-1)]
    low, high = levels[0] - (levels[1] - levels[0]) / 2, levels[-1] + (levels[-1] - levels[-2]) / 2
    return scale * (nearest - zero), (at >= low) & (at <= high)


def levels_of(grid):
    codes = jnp.arange(grid.low, grid.high + 1).astype(jnp.int8)
    return np.asarray(grid.levels(codes), np.float64)


def oracle(x, w, case):
    """(x', w', x inside, w inside): both operands on their grids, by listing all levels."""
    quantized, activations = w.quantized, CASES[case][3]

    def spread(a):
        return np.repeat(np.asarray(a, np.float64), 16 // a.shape[0], axis=0) * np.ones((16, 6))

    zero = 0.0 if quantized.zero_point is None else spread(quantized.zero_point)
    rounded, inside = listed(np.asarray(w.value, np.float64), levels_of(quantized.grid), spread(quantized.scale), zero)
    x64 = np.asarray(x, np.float64)
    if activations is None:
        return x64, rounded, np.ones(x.shape, bool), inside
    _, scale, zero = activations.quantize(x)
    grid = quantize(x, activations.grid).grid
    zero = 0.0 if zero is None else np.asarray(zero, np.float64)
    x_rounded, x_inside = listed(x64, levels_of(grid), np.asarray(scale, np.float64), zero)
    return x_rounded, rounded, x_inside, inside


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_straight_through(case):
    w, x, g = leaf(array(16, 6), case), array(5, 16).at[0, 0].set(5.0), array(5, 6)
    got_x, got_w = jax.jit(jax.grad(lambda x, v: jnp.sum(g * ops.dot(x, leaf(v, case))), argnums=(0, 1)))(x, w.value)
    x_rounded, w_rounded, x_inside, w_inside = oracle(x, w, case)
    g = np.asarray(g, np.float64)
    # Float32 sums of 5 to 16 terms of size 1 to 10. No value lies so near the middle of two that the oracle rounds it
    # to the other.
    np.testing.assert_allclose(got_x, (g @ w_rounded.T) * x_inside, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(got_w, (x_rounded.T @ g) * w_inside, rtol=1e-5, atol=2e-5)
    # Where the least squared error clips, and where the end of the grid is not the largest magnitude.
    if case == "int2":
        assert 0 < (~w_inside).sum() < w_inside.size / 2
    if case == "int8_128, per tensor":
        assert (~x_inside).sum() == 1


def test_a_scale_takes_no_gradient():
    # Scaling the weight scales the codes' worth. Were the scale differentiated, the largest entry of each column
    # would carry the gradient of all of them.
    value = array(16, 6)
    gradient = jax.grad(
        lambda v: jnp.sum(straight_through({"w": v}, (Rule(pattern="w", grid="int4"),))["w"].materialize())
    )
    np.testing.assert_array_equal(gradient(value), np.ones((16, 6)))


def test_tables_convolutions_and_contractions_pass_gradients():
    activations = Activations(grid="int8_127")
    x, ids = array(2, 9, 3), jnp.array([2, 0, 2])
    products = {
        "conv": (array(4, 3, 5), (1, 1, 5), lambda w, x: ops.conv(x, w)),
        "einsum": (array(3, 5), (1, 5), lambda w, x: ops.einsum("btd,dk->kbt", x, w)),
        "embed": (array(3, 5), (3, 1), lambda w, x: ops.embed(w, ids) * x[0, 0, 0]),
    }
    for value, blocks, product in products.values():
        quantized = quantize(value, "int8_127", blocks=blocks, activations=activations)

        def total(value, x, product=product, quantized=quantized):
            fake = FakeQuant(value=value, quantized=quantized)
            return jnp.sum(product(fake, x) ** 2), jnp.sum(product(value, x) ** 2)

        got, wanted = jax.jit(jax.jacrev(total, argnums=(0, 1)))(value, x)
        for a, b in zip(got, wanted, strict=True):
            # 8 bits: a step is 1/127 of the largest entry, and two rounded factors meet.
            np.testing.assert_allclose(a, b, atol=0.03 * float(jnp.abs(b).max()))
            assert bool((a != b).any())


def test_contractions_and_convolutions_round_activations_by_the_tensor():
    activations = Activations(grid="int4")  # by the token: what einsum and conv turn into one scale for all of x
    x, g = array(2, 9, 3) * jnp.arange(1, 10.0)[:, None], array(2, 6, 5)
    codes, scale, _ = Activations(grid="int4", per="tensor").quantize(x)
    rounded = codes.astype(jnp.float32) * scale
    value = array(4, 3, 5)
    w = quantize(value, "int8_127", blocks=(1, 1, 5), activations=activations)
    got, wanted = (
        jax.jit(jax.grad(lambda v, f=f: jnp.sum(g * f(v))))(value)
        for f in (lambda v: ops.conv(x, FakeQuant(value=v, quantized=w)), lambda v: ops.conv(rounded, v))
    )
    # Float32 sums of 12 terms of size 10.
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)
    flat, g = jax.tree.map(lambda a: a[0], (value, w)), array(2, 9, 5)
    got, wanted = (
        jax.jit(jax.grad(lambda v, f=f: jnp.sum(g * f(v))))(flat[0])
        for f in (
            lambda v: ops.einsum("btd,dk->btk", x, FakeQuant(value=v, quantized=flat[1])),
            lambda v: ops.einsum("btd,dk->btk", rounded, v),
        )
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)


RULES = (
    Rule(pattern="kernel$", grid="int4", activations=Activations(grid="int8_127")),
    Rule(pattern="table$", grid="int8_127", per="row"),
    Rule(pattern="bias$", grid=None),
)
IDS, TARGET = jnp.asarray(RNG.integers(0, 10, size=24)), array(24, 8)


def network():
    return {"table": array(10, 8), "layers": {"kernel": array(3, 8, 8) / 3, "bias": jnp.zeros((3, 8))}}


def loss(params):
    def layer(x, w):
        return x + jnp.tanh(ops.dot(x, w["kernel"]) + ops.value(w["bias"])), None

    x, _ = jax.lax.scan(layer, ops.embed(params["table"], IDS), params["layers"])
    return jnp.mean(jnp.square(x - TARGET))


def test_training_meets_the_quantised_model():
    params = network()
    trainable, frozen = split(params, ("layers/", "table"))
    value_fn = lambda t, f: loss(straight_through(merge(t, f), RULES))  # noqa: E731
    np.testing.assert_allclose(value_fn(trainable, frozen), loss(quantize_tree(params, RULES)), rtol=1e-6)
    tx = optax.adam(3e-2)

    @jax.jit
    def step(trainable, frozen, state):
        updates, state = tx.update(jax.grad(value_fn)(trainable, frozen), state)
        return optax.apply_updates(trainable, updates), state

    state = tx.init(trainable)
    for _ in range(60):
        trainable, state = step(trainable, frozen, state)
    trained = merge(trainable, frozen)
    assert all(bool((a != b).any()) for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(params), strict=True))
    # The loss that was trained is that of the exported codes.
    final = float(loss(quantize_tree(trained, RULES)))
    np.testing.assert_allclose(value_fn(trainable, frozen), final, rtol=1e-6)
    assert final < 0.5 * float(loss(quantize_tree(params, RULES)))


def test_rules_are_checked_as_for_quantize_tree():
    with pytest.raises(ValueError, match=r"rules: none matches 'table'"):
        straight_through(network(), RULES[:1] + RULES[2:])
    with pytest.raises(ValueError, match=r"rules: 'head' matches no leaf"):
        straight_through(network(), (*RULES, Rule(pattern="head", grid=None)))
