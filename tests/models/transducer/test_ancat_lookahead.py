"""Latency and its surrogates: against reachability by brute force, against their limits, against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.transducer.lookahead import LATENCIES, LookAheadLoss, compute, waits_for

REACH = 3
LENGTHS = np.array([9, 6, 1, 0])


@pytest.fixture(scope="module")
def spans():
    """[4, 3, 9], none within a tenth of a whole number."""
    rng = np.random.default_rng(0)
    return rng.integers(0, REACH, (4, 3, 9)) + rng.uniform(0.1, 0.9, (4, 3, 9))


def reachable(spans, length, left, taps):
    """For each output frame the last input frame that a path leads to: through attention, then a causal convolution."""

    def below(layer, i):
        seen = set()
        for k in range(max(i - taps + 1, 0), i + 1):  # the frames of the attention that the convolution reads
            end = min(k + int(np.floor(spans[layer, k])), length - 1)
            seen |= set(range(max(k - left, 0), end + 1))
        return seen

    last = []
    for i in range(length):
        frames = {i}
        for layer in reversed(range(len(spans))):
            frames = set().union(*(below(layer, k) for k in frames))
        last.append(max(frames))
    return np.array(last)


@pytest.mark.parametrize(("left", "taps"), [(0, 1), (2, 3), (9, 1)])
def test_the_exact_latency_is_what_can_be_reached(spans, left, taps):
    """In order: a frame leaves with or behind those before it, whatever the context on the left is."""
    got = np.asarray(waits_for(jnp.asarray(spans, jnp.float32), jnp.asarray(LENGTHS)))
    for row, length in enumerate(LENGTHS):
        want = np.maximum.accumulate(reachable(spans[row], length, left, taps))
        np.testing.assert_array_equal(got[row, :length], want)
    assert (got[0, :9] > np.arange(9)).any()


def test_a_smooth_maximum_becomes_the_exact_latency(spans):
    sharp = LATENCIES["smooth"](jnp.asarray(spans), jnp.asarray(LENGTHS), REACH, 1e-5)
    want = waits_for(jnp.asarray(spans), jnp.asarray(LENGTHS)) - np.arange(9)
    for row, length in enumerate(LENGTHS):
        # Sums of up to a thousand equal terms, ln of which is divided by beta = 316.
        np.testing.assert_allclose(sharp[row, :length], want[row, :length], atol=2.5e-2)


def test_the_expected_reach_becomes_that_of_each_frame_by_itself(spans):
    sharp = np.asarray(LATENCIES["path"](jnp.asarray(spans), jnp.asarray(LENGTHS), REACH, 1e-3))
    whole = np.floor(spans[0]).astype(int)
    for i in range(9):
        at = i
        for layer in reversed(range(3)):  # of a monotone value below, the last frame that is seen has the greatest
            at = min(at + whole[layer, at], 8)
        np.testing.assert_allclose(sharp[0, i], at - i, atol=1e-3)


def test_equal_spans_add_up():
    spans, lengths = jnp.full((1, 3, 20), 2.0), jnp.array([20])
    exact = np.asarray(waits_for(spans, lengths) - np.arange(20))[0, :10]
    np.testing.assert_array_equal(exact, 6)
    np.testing.assert_array_equal(LATENCIES["additive"](spans, lengths, REACH, 1.0)[0, :10], 6)


def test_compute_counts_pairs(spans):
    got = np.asarray(compute(jnp.asarray(spans), jnp.asarray(LENGTHS), REACH, 1e-3))
    for row, length in enumerate(LENGTHS):
        for i in range(length):
            want = sum(min(i + int(np.floor(r)), length - 1) - i for r in spans[row, :, i])
            np.testing.assert_allclose(got[row, i], want, atol=1e-3)


@pytest.mark.parametrize("kind", [*LATENCIES])
def test_gradients_are_central_differences(spans, kind):
    """In float64, of both terms, at a temperature within the warm-up."""
    loss = LookAheadLoss(kind=kind, latency=0.7, compute=0.3, warmup=10)
    with jax.enable_x64(True):
        lengths = jnp.asarray(LENGTHS)
        value = jax.jit(lambda s: jnp.sum(loss(s, lengths, REACH, 6) * jnp.arange(1.0, 5.0)))
        x = jnp.asarray(spans, jnp.float64)
        gradient = np.asarray(jax.jit(jax.grad(value))(x))
        rng = np.random.default_rng(1)
        for _ in range(4):
            z = jnp.asarray(rng.normal(size=x.shape))
            slope = (value(x + 1e-5 * z) - value(x - 1e-5 * z)) / 2e-5
            # eps^2 times the third derivative, and 1e-16 / eps of rounding.
            np.testing.assert_allclose(np.vdot(gradient, z), slope, rtol=1e-7, atol=1e-9)
    assert np.all(gradient[0, :, :6] > 0)  # more look-ahead costs more, in every layer
    assert np.isfinite(gradient).all()
    assert not gradient[1, :, 6:].any()  # what is behind the end costs nothing
    assert not gradient[3].any()


def test_the_price_begins_late_and_the_masks_soft():
    loss = LookAheadLoss(kind="additive", latency=2.0, warmup=300)
    spans, lengths = jnp.ones((1, 2, 3)), jnp.array([3])
    prices = [float(loss(spans, lengths, REACH, jnp.int32(step))[0]) for step in (0, 100, 150, 200, 300, 999)]
    np.testing.assert_allclose(prices, [0, 0, 2, 4, 4, 4], atol=1e-5)
    np.testing.assert_allclose([float(loss.temperature(step)) for step in (0, 150, 300)], [2, 0.4**0.5, 0.2], rtol=1e-6)
    assert loss.temperature(None) == pytest.approx(0.2)
    for options, message in (({"kind": "max"}, "kind is 'max'"), ({"latency": -1.0}, r"latency is -1\.0")):
        with pytest.raises(ValueError, match=message):
            LookAheadLoss(**options)
