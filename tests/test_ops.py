"""The functions through which a model touches a weight: precision, shapes, and leaf types that they never import."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import ops

RNG = np.random.default_rng(0)


def draw(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Doubled:
    """A leaf type that can do nothing but materialise."""

    base: jax.Array

    @property
    def shape(self):
        return self.base.shape

    @property
    def dtype(self):
        return self.base.dtype

    def materialize(self):
        return 2 * self.base


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Answers(Doubled):
    """A leaf type with paths of its own."""

    def dot(self, x):
        return "dot", x.shape

    def einsum(self, spec, x):
        return "einsum", spec

    def embed(self, ids):
        return jnp.full((*ids.shape, 1), 7.0)

    def conv(self, x, **options):
        return "conv", options


def reference_conv(x, w, stride, dilation, groups):
    """A one-dimensional convolution from its sum, float64."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    taps, c_in, c_out = w.shape
    length = (x.shape[1] - dilation * (taps - 1) - 1) // stride + 1
    out = np.zeros((x.shape[0], length, c_out))
    for t in range(length):
        for o in range(c_out):
            group = o // (c_out // groups)
            window = x[:, t * stride : t * stride + dilation * taps : dilation, group * c_in : (group + 1) * c_in]
            out[:, t, o] = np.sum(window * w[:, :, o], axis=(1, 2))
    return out


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_products_accumulate_and_end_in_float32(dtype):
    x, w = draw(3, 512), draw(512, 4, dtype=dtype)
    rounded = np.asarray(x.astype(dtype), np.float64)
    expected = rounded @ np.asarray(w, np.float64)
    y = ops.dot(x, w)
    assert y.dtype == jnp.float32
    # 512 exact products summed in float32: 2^-24 * |x| |w| ~ 512, with room for the order. In bfloat16 the error of an
    # accumulator, or of the result, would be 2^-9 * 22 = 4e-2.
    np.testing.assert_allclose(y, expected, atol=5e-5)
    np.testing.assert_allclose(ops.einsum("bd,de->eb", x, w), expected.T, atol=5e-5)


def test_half_precision_products_see_differences_that_a_half_result_would_lose():
    w, x = jnp.ones((64, 1), jnp.bfloat16), jnp.ones((1, 64))
    difference = ops.dot(x, w) - ops.dot(x.at[0, 0].set(1 - 2.0**-7), w)
    assert float(difference[0, 0]) == 2.0**-7


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_value_and_embed_are_float32_and_exact(dtype):
    w = draw(6, 3, dtype=dtype)
    np.testing.assert_array_equal(ops.value(w), w.astype(jnp.float32))
    rows = ops.embed(w, jnp.array([[5, 0], [2, 2]]))
    assert ops.value(w).dtype == rows.dtype == jnp.float32
    np.testing.assert_array_equal(rows, w.astype(jnp.float32)[jnp.array([[5, 0], [2, 2]])])


@pytest.mark.parametrize(
    ("stride", "dilation", "groups", "channels"), [(1, 1, 1, 3), (2, 1, 1, 3), (1, 3, 1, 3), (2, 2, 3, 1)]
)
def test_conv_is_its_sum(stride, dilation, groups, channels):
    x, w = draw(2, 17, 3), draw(4, channels, 6)
    y = ops.conv(x, w, strides=stride, dilation=dilation, groups=groups)
    np.testing.assert_allclose(y, reference_conv(x, w, stride, dilation, groups), atol=1e-5)  # sums of 12 in float32


def test_causal_depthwise_and_two_dimensional_convolutions():
    x, w = draw(2, 9, 4), draw(3, 1, 4)
    causal = ops.conv(x, w, padding=[(2, 0)], groups=4)
    assert causal.shape == x.shape
    changed = ops.conv(x.at[:, 5:].set(0), w, padding=[(2, 0)], groups=4)
    np.testing.assert_array_equal(causal[:, :5], changed[:, :5])
    assert ops.conv(draw(2, 8, 6, 3), draw(3, 3, 3, 5), padding="SAME", strides=(2, 1)).shape == (2, 4, 6, 5)
    half = ops.conv(x, w.astype(jnp.bfloat16), groups=4)
    assert half.dtype == jnp.float32


def test_conv_refuses_other_ranks():
    with pytest.raises(ValueError, match=r"conv: x of shape \(2, 9, 4\) takes a kernel of 3 axes"):
        ops.conv(draw(2, 9, 4), draw(3, 3, 4, 5))


def test_a_leaf_without_paths_of_its_own_is_materialised():
    base, x = draw(4, 3), draw(2, 4)
    leaf = Doubled(base)
    np.testing.assert_array_equal(ops.dot(x, leaf), ops.dot(x, 2 * base))
    np.testing.assert_array_equal(ops.einsum("bd,de->be", x, leaf), ops.einsum("bd,de->be", x, 2 * base))
    np.testing.assert_array_equal(ops.embed(leaf, jnp.array([1])), 2 * base[1:2])
    np.testing.assert_array_equal(ops.value(leaf), 2 * base)
    kernel = draw(2, 4, 3)
    np.testing.assert_array_equal(
        ops.conv(draw(1, 4, 4) * 0 + 1, Doubled(kernel)), ops.conv(jnp.ones((1, 4, 4)), 2 * kernel)
    )


def test_a_leafs_own_paths_are_taken():
    leaf, x = Answers(draw(4, 3)), draw(2, 4)
    assert ops.dot.__wrapped__(x, leaf) == ("dot", (2, 4))
    assert ops.einsum.__wrapped__("bd,de->be", x, leaf) == ("einsum", "bd,de->be")
    options = dict(strides=2, padding="SAME", dilation=3, groups=1)
    assert ops.conv.__wrapped__(x, leaf, **options) == ("conv", options)
    assert ops.embed(leaf, jnp.arange(2)).tolist() == [[7.0], [7.0]]


def test_numpy_weights_are_arrays():
    w = np.ones((4, 3), np.float32)  # numpy arrays have a method `dot` of their own
    np.testing.assert_array_equal(ops.dot(jnp.ones((2, 4)), w), np.full((2, 3), 4.0))


def test_products_differentiate():
    x, w = draw(3, 4), draw(4, 2)
    gradient = jax.grad(lambda w: jnp.sum(ops.dot(x, w) ** 2))(w)
    np.testing.assert_allclose(gradient, 2 * x.T @ (x @ w), rtol=1e-5)
