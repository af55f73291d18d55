"""The loss straight from the joiner: equal to that of the logits, lean, and open to leaf types."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.transducer import oracles
from zojax import ops
from zojax.directions import Gaussian
from zojax.losses.transducer import TransducerSpec, fused_transducer_loss, joined_log_probs, transducer_loss
from zojax.losses.transducer.loss import PLAIN
from zojax.perturb import PerturbSpec

B, T, U, D, V = 3, 7, 3, 4, 6
FRAMES, LABELS = jnp.array([7, 4, 2], jnp.int32), jnp.array([3, 0, 2], jnp.int32)


def joiner(params, encoded, predicted):
    return ops.dot(jnp.tanh(encoded + predicted), params["kernel"]) + ops.value(params["bias"])


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = {"kernel": draw(D, V), "bias": draw(V)}
    return params, draw(B, T, D), draw(B, U + 1, D), jnp.asarray(rng.integers(0, V - 1, (B, U)), jnp.int32)


@partial(jax.jit, static_argnames="spec")
def whole(params, encoded, predicted, labels, spec=PLAIN):
    logits = joiner(params, encoded[:, :, None], predicted[:, None])
    return transducer_loss(logits, labels, FRAMES, LABELS, blank=V - 1, spec=spec)


def fused(params, encoded, predicted, labels, chunk, spec=PLAIN):
    options = dict(blank=V - 1, chunk=chunk, spec=spec)
    return fused_transducer_loss(joiner, params, encoded, predicted, labels, FRAMES, LABELS, **options)


@partial(jax.jit, static_argnums=0)
def gradients(loss, *args):
    return jax.value_and_grad(lambda *a: loss(*a).sum(), argnums=(0, 1, 2))(*args)


def assert_close(found, expected):
    # Sums over some hundred nodes of float32 numbers near 1, in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6), found, expected)


@pytest.mark.parametrize("chunk", [3, 20])
def test_equal_to_the_loss_of_the_logits(chunk):
    args = inputs()
    assert_close(gradients(partial(fused, chunk=chunk), *args), gradients(whole, *args))


def test_equal_for_a_hat_with_expected_latency():
    args, spec = inputs(1), TransducerSpec(hat=True, expected_latency=0.5)
    assert_close(gradients(partial(fused, chunk=2, spec=spec), *args), gradients(partial(whole, spec=spec), *args))


def test_padding_may_hold_anything():
    params, encoded, predicted, labels = inputs()
    expected = gradients(partial(fused, chunk=3), params, encoded, predicted, labels)
    frame_is_padding = (jnp.arange(T) >= FRAMES[:, None])[..., None]
    label_is_padding = (jnp.arange(U + 1) > LABELS[:, None])[..., None]
    spoiled = (
        params,
        jnp.where(frame_is_padding, jnp.nan, encoded),
        jnp.where(label_is_padding, jnp.nan, predicted),
        jnp.where(label_is_padding[:, 1:, 0], -7, labels),
    )
    found = gradients(partial(fused, chunk=3), *spoiled)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_forward_of_perturbed_leaves():
    params, encoded, predicted, labels = inputs()
    spec, key = PerturbSpec(direction=Gaussian()), jax.random.key(3)

    @jax.jit
    def at(scale):
        return fused(spec.perturb(params, key, scale), encoded, predicted, labels, chunk=3)

    z = jax.jit(lambda key: spec.noise(params, key))(key)
    scales = jnp.array([0.1, -0.1], jnp.float32)
    both_sides = jax.jit(jax.vmap(at))(scales)
    for scale, of_both in zip(scales, both_sides, strict=True):
        moved = jax.tree.map(lambda w, z, scale=scale: w + scale * z, params, z)
        expected = whole(moved, encoded, predicted, labels)
        np.testing.assert_allclose(at(scale), expected, rtol=2e-6)
        np.testing.assert_allclose(of_both, expected, rtol=2e-6)


def test_parameters_that_are_no_floats_have_no_gradient():
    params, encoded, predicted, labels = inputs()
    extra = {**params, "keep": jnp.array([1, 1, 0, 1]), "key": jax.random.key(0)}

    def masked(p, a, b):
        noise = jax.random.normal(p["key"], (V,))
        return jnp.tanh(a + b) * p["keep"] @ p["kernel"] + p["bias"] + noise

    def loss(p):
        args = (encoded, predicted, labels, FRAMES, LABELS)
        return fused_transducer_loss(masked, p, *args, blank=0, chunk=2).sum()

    found = jax.grad(loss, allow_int=True)(extra)
    assert found["keep"].dtype == jax.dtypes.float0
    assert found["key"].dtype == jax.dtypes.float0
    assert not np.asarray(found["kernel"][2]).any()
    assert np.asarray(found["kernel"][1]).any()


def test_half_precision_parameters_are_summed_in_float32():
    # 400 chunks of one frame with gradients alike: a bfloat16 sum would stand still at 256 of them.
    frames = 400
    params = {"kernel": jnp.zeros((D, V), jnp.bfloat16), "bias": jnp.zeros(V, jnp.bfloat16)}
    args = (jnp.ones((1, frames, D)), jnp.ones((1, 2, D)), jnp.array([[1]]), jnp.array([frames]), jnp.array([1]))

    def loss(params):
        return fused_transducer_loss(joiner, params, *args, blank=0, chunk=1).sum()

    found = jax.jit(jax.grad(loss))(params)["bias"]
    assert found.dtype == jnp.bfloat16
    # frames + 1 arcs, each with a softmax of 1/V; one of them a label
    expected = (frames + 1) / V - np.array([frames, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=2**-8)


def test_temporaries_under_gradient_stay_below_a_twentieth_of_the_logits():
    batch, frames, labels, classes, width = 4, 200, 50, 1024, 512
    shaped = jax.ShapeDtypeStruct
    params = {"kernel": shaped((width, classes), jnp.float32), "bias": shaped((classes,), jnp.float32)}
    encoded, predicted = shaped((batch, frames, width), jnp.float32), shaped((batch, labels + 1, width), jnp.float32)
    integers = (shaped((batch, labels), jnp.int32), *(shaped((batch,), jnp.int32),) * 2)

    def loss(params, encoded, predicted, *integers):
        return fused_transducer_loss(joiner, params, encoded, predicted, *integers, blank=0, chunk=1).sum()

    program = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(params, encoded, predicted, *integers).compile()
    )
    logits = batch * frames * (labels + 1) * classes * 4
    assert program.memory_analysis().temp_size_in_bytes <= 0.05 * logits


def test_log_probs_of_a_band():
    params, encoded, predicted, labels = inputs()
    starts = jnp.array([[0, 0, 1, 1, 2, 2, 2]] * B, jnp.int32)
    args = (joiner, params, encoded, predicted, labels, FRAMES, LABELS)
    found = jax.jit(lambda starts: joined_log_probs(*args, blank=V - 1, chunk=2, starts=starts, band=2))(starts)
    for row, t in [(0, 0), (0, 3), (0, 6), (2, 1)]:
        u = int(starts[row, t])
        real = u + 2 <= int(LABELS[row]) + 1
        x = np.asarray(joiner(params, encoded[row, t], predicted[row]))[None]
        expected = oracles.log_probs(x, np.asarray(labels[row]), V - 1)
        if real:
            for a, b in zip(found, expected, strict=True):
                columns = slice(u, min(u + 2, U))
                width = columns.stop - columns.start
                np.testing.assert_allclose(a[row, t, :width], b[0, columns], rtol=1e-5, atol=1e-6)


def test_wrong_arguments_are_refused():
    params, encoded, predicted, labels = inputs()
    args = (joiner, params, encoded, predicted, labels, FRAMES, LABELS)
    with pytest.raises(ValueError, match="chunk: 0 frames; at least 1"):
        joined_log_probs(*args, blank=0, chunk=0)
    with pytest.raises(ValueError, match="blank: 6; the index of one of the 6 classes"):
        joined_log_probs(*args, blank=6, chunk=2)
    with pytest.raises(ValueError, match="predicted: 4 symbols with 2 labels"):
        joined_log_probs(*args[:4], labels[:, :2], FRAMES, LABELS, blank=0, chunk=2)
    with pytest.raises(ValueError, match="band is 2 and starts None"):
        joined_log_probs(*args, blank=0, chunk=2, band=2)
    with pytest.raises(ValueError, match="band: 5; 1 to 4"):
        joined_log_probs(*args, blank=0, chunk=2, band=5, starts=jnp.zeros((B, T), jnp.int32))
