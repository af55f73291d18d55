"""Layers of single frames, and the layers around layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.transducer.combine import STACKED, repeat, residual
from models.transducer.layers import Activation, Affine, BinsLast, Dense, Dropout, Norm, Stack
from models.transducer.streaming import serial
from tests.models.transducer import oracles
from tests.models.transducer.streams import Run, lengths_mask, variables
from zojax.perturb import PerturbSpec

MASK = jnp.ones((2, 4), bool)


def rows(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_values():
    x = rows(2, 4, 6)
    sigmoid = 1 / (1 + np.exp(-np.asarray(x, np.float64)))
    for layer, want in (
        (Activation(6, "silu"), x * sigmoid),
        (Activation(6, "relu"), np.maximum(x, 0)),
        (Activation(6, "glu"), x[..., :3] * sigmoid[..., 3:]),
        (BinsLast(6, 2), x.reshape(2, 4, 3, 2).transpose(0, 1, 3, 2).reshape(x.shape)),
        (Stack(6, 2), x.reshape(2, 2, 12)),
    ):
        y, mask = layer.apply({}, x, MASK)
        # float32 against float64: one product of numbers near 1
        np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6)
        assert mask.shape == y.shape[:2]
        assert y.shape[2] == layer.d_out


def test_a_stack_counts_a_whole_one_alone():
    mask = lengths_mask(7, [7, 5, 3, 2])
    _, out = Stack(1, 3).apply({}, rows(4, 7, 1), jnp.asarray(mask))
    assert out.sum(axis=1).tolist() == [2, 1, 1, 0]


def test_norm_and_affine():
    x = np.asarray(rows(2, 4, 6), np.float64)
    for layer in (Norm(6), Affine(6)):
        run = Run(layer, 4)
        weights = run.variables["params"]
        weights = oracles.float64(weights.get("norm", weights))
        if isinstance(layer, Norm):
            want = np.array([[oracles.layer_norm(frame, **weights) for frame in row] for row in x])
        else:
            want = x * weights["scale"] + weights["bias"]
        np.testing.assert_allclose(
            run.whole(x.astype(np.float32), np.asarray(MASK)), want, rtol=2e-6, atol=2e-6
        )  # float32


def test_dropout_needs_its_key():
    layer, x = Dropout(600, 0.25), jnp.ones((2, 4, 600))
    np.testing.assert_array_equal(layer.apply({}, x, MASK)[0], x)
    y = layer.apply({}, x, MASK, rngs={"dropout": jax.random.key(0)})[0]
    assert set(np.unique(y).tolist()) == {0.0, np.float32(1 / 0.75).item()}
    assert abs(float((y == 0).mean()) - 0.25) < 4 * (0.25 * 0.75 / y.size) ** 0.5  # four standard errors
    with pytest.raises(ValueError, match=r"Dropout\.rate is 1"):
        Dropout(6, 1.0)
    with pytest.raises(ValueError, match=r"Activation\.function is 'tanh'"):
        Activation(6, "tanh")


def test_a_residual_adds_and_a_repetition_is_a_loop():
    layer = residual(serial(Dense(4, 4), Activation(4, "silu")), scale=0.5)
    many = repeat(layer, 3)
    x = rows(2, 4, 4)
    weights = variables(many, x, MASK)
    got = many.apply(weights, x, MASK)[0]
    want = x
    for n in range(3):
        one = jax.tree.map(lambda leaf, n=n: leaf[n], weights["params"]["stacked"])
        kernel, bias = one["inner"]["layers_0"]["linear"]["kernel"], one["inner"]["layers_0"]["linear"]["bias"]
        z = want @ kernel + bias
        want = want + 0.5 * z * jax.nn.sigmoid(z)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)  # float32 in another order


def test_a_repetition_takes_perturbed_leaves():
    """Each repetition gets its own part of the noise of the stacked leaf."""
    many = repeat(Dense(4, 4), 2)
    x = rows(2, 4, 4)
    weights = variables(many, x, MASK)
    spec = PerturbSpec(stacked=STACKED)
    noisy = spec.perturb(weights["params"], jax.random.key(1), jnp.float32(0.1))
    plain = jax.tree.map(lambda leaf: leaf.materialize(), noisy, is_leaf=lambda node: hasattr(node, "materialize"))
    got = jax.jit(lambda p: many.apply({"params": p}, x, MASK)[0])(noisy)
    # The product of x with noise is summed apart from that with the weight.
    np.testing.assert_allclose(got, many.apply({"params": plain}, x, MASK)[0], rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(got - many.apply(weights, x, MASK)[0]).max()) > 1e-2
