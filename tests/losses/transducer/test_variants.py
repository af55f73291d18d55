"""Monotonic, HAT, TDT, delay penalty, expected latency, FastEmit: every path enumerated, central differences."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.transducer import oracles
from zojax.losses.transducer import TransducerSpec, tdt_loss, transducer_loss

CASES = json.loads((Path(__file__).resolve().parents[2] / "golden" / "rnnt_cases.json").read_text())
LENGTHS = np.array([(4, 3), (3, 0), (1, 2), (2, 3), (3, 3)])
CLASSES = 5
STEP = 1e-5
# A central difference of step h along a direction of length 9 errs by h^2 f''' / 6, some 1e-8, and by rounding,
# 1e-15 / h = 1e-10.
DIFFERENCE = 1e-7

SPECS = {
    "monotonic": TransducerSpec(monotonic=True),
    "hat": TransducerSpec(hat=True),
    "delay": TransducerSpec(delay_penalty=0.3),
    "latency": TransducerSpec(expected_latency=0.7),
    "all": TransducerSpec(monotonic=True, hat=True, delay_penalty=0.2, expected_latency=0.4),
}


def batch(seed=0, classes=CLASSES):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(len(LENGTHS), 4, 4, classes)), rng.integers(1, CLASSES, (len(LENGTHS), 3)).astype(np.int32)


def enumerated(logits, labels, spec, blank=0):
    """The loss of one utterance by enumeration."""
    frames, symbols, _ = logits.shape
    lp_blank, lp_label = oracles.log_probs(logits, labels, blank, spec.hat)
    lp_label = lp_label + spec.delay_penalty * ((frames - 1) / 2 - np.arange(frames))[:, None]
    arcs = oracles.MONOTONIC if spec.monotonic else oracles.STANDARD
    found = oracles.Enumeration((lp_blank, lp_label), frames, symbols - 1, arcs, not spec.monotonic)
    latency = np.mean(found.expected_emissions()) if symbols > 1 and found.paths else 0.0
    return found.cost + spec.expected_latency * latency


def check_gradient(value_and_grad, x):
    """The gradient of every utterance against central differences along three directions; returns losses, gradient."""
    with jax.enable_x64(True):
        loss, gradient = map(np.asarray, value_and_grad(jnp.asarray(x)))
        for seed in range(3):
            v = np.random.default_rng(seed).normal(size=x.shape)
            up, down = (np.asarray(value_and_grad(jnp.asarray(x + sign * STEP * v))[0]) for sign in (1, -1))
            finite = np.isfinite(loss)
            expected = (up[finite] - down[finite]) / (2 * STEP)
            along = np.sum(gradient * v, axis=(1, 2, 3))
            np.testing.assert_allclose(along[finite], expected, rtol=0, atol=DIFFERENCE)
            assert np.abs(expected).max() > 0.1
    return loss, gradient


def with_gradient(value):
    """The losses and, for each utterance, the gradient of its own; 0 where a loss is inf, which pulls back no NaN."""

    def both(x):
        loss, pull = jax.vjp(value, x)
        return loss, pull(jnp.ones_like(loss))[0]

    return jax.jit(both)


def ours(logits, labels, spec):
    frames, counts = jnp.asarray(LENGTHS, jnp.int32).T
    return transducer_loss(logits, jnp.asarray(labels), frames, counts, blank=0, spec=spec)


@pytest.mark.parametrize("name", SPECS)
def test_values_by_enumeration_and_gradients_by_differences(name):
    spec, (logits, labels) = SPECS[name], batch()
    loss, gradient = check_gradient(with_gradient(partial(ours, labels=labels, spec=spec)), logits)
    for row, (t, u) in enumerate(LENGTHS):
        expected = enumerated(logits[row, :t, : u + 1], labels[row, :u], spec)
        np.testing.assert_allclose(loss[row], expected, rtol=1e-12)
    impossible = [spec.monotonic and u > t for t, u in LENGTHS]
    assert np.isinf(loss).tolist() == impossible
    assert not gradient[impossible].any()


def test_monotonic_as_k2_prints_it():
    case, known = CASES["k2_basic_add_joiner"], CASES["k2_basic_modified"]["cost"]
    logits = jnp.asarray([case["logits"]], jnp.float32)
    lengths = (jnp.array([logits.shape[1]]), jnp.array([logits.shape[2] - 1]))
    spec = TransducerSpec(monotonic=True)
    loss = jax.jit(partial(transducer_loss, blank=case["blank"], spec=spec))(
        logits, jnp.asarray([case["labels"]]), *lengths
    )
    np.testing.assert_allclose(loss, [known], rtol=0, atol=1e-6)


def test_fast_emit_changes_the_gradient_and_not_the_value():
    logits, labels = batch(1)
    factor = 0.25
    spec = TransducerSpec(fast_emit=factor)
    with jax.enable_x64(True):
        plain = jax.jit(lambda x: ours(x, labels, TransducerSpec()))(jnp.asarray(logits))
        loss, gradient = with_gradient(lambda x: ours(x, labels, spec))(jnp.asarray(logits))
    np.testing.assert_array_equal(loss, plain)
    for row, (t, u) in enumerate(LENGTHS):
        x, y = logits[row, :t, : u + 1], labels[row, :u]
        at_blank, at_label = oracles.Enumeration(oracles.log_probs(x, y, 0), t, u).posteriors()
        at_label *= 1 + factor
        expected = (at_blank + at_label)[..., None] * np.exp(oracles.log_softmax(x))
        expected[..., 0] -= at_blank
        for position, label in enumerate(y):
            expected[:, position, label] -= at_label[:, position]
        np.testing.assert_allclose(gradient[row, :t, : u + 1], expected, rtol=0, atol=1e-12)


def test_fast_emit_is_the_gradient_of_no_function():
    # The Jacobian of a gradient is symmetric; this one is not, and that of a true loss is.
    logits, labels = batch(1)
    lengths = (jnp.array([4]), jnp.array([3]))

    def jacobian(spec):
        def gradient(x):
            loss = lambda x: transducer_loss(x[None], jnp.asarray(labels[:1]), *lengths, blank=0, spec=spec)[0]  # noqa: E731
            return jax.grad(loss)(x).ravel()

        x = logits[0].reshape(-1)
        moves = STEP * np.eye(len(x))
        with jax.enable_x64(True):
            apply = jax.jit(jax.vmap(lambda x: gradient(x.reshape(logits[0].shape))))
            return (np.asarray(apply(x + moves)) - np.asarray(apply(x - moves))) / (2 * STEP)

    for spec, is_symmetric in [(TransducerSpec(fast_emit=0.25), False), (TransducerSpec(delay_penalty=0.25), True)]:
        j = jacobian(spec)
        assert (np.abs(j - j.T).max() < 1e-6) == is_symmetric
        assert spec.is_true_loss == is_symmetric


def tdt_weights(logits, duration_logits, labels, durations, sigma):
    lp_blank, lp_label = oracles.log_probs(logits, labels, 0)
    log_duration = oracles.log_softmax(duration_logits)
    arcs, weights = [], []
    for index, n in enumerate(durations):
        for is_label, lp in ((False, lp_blank), (True, lp_label)):
            if n > 0 or is_label:
                arcs.append((n, is_label))
                weights.append(lp - sigma + log_duration[..., index])
    return arcs, weights


@pytest.mark.parametrize("durations", [(1, 2), (2, 0, 4)])
def test_tdt_by_enumeration_and_differences(durations):
    logits, labels = batch(2)
    both = np.concatenate([logits, np.random.default_rng(3).normal(size=(*logits.shape[:3], len(durations)))], axis=-1)
    frames, counts = jnp.asarray(LENGTHS, jnp.int32).T

    def value(x):
        parts = (x[..., :CLASSES], x[..., CLASSES:])
        return tdt_loss(*parts, jnp.asarray(labels), frames, counts, blank=0, durations=durations, sigma=0.05)

    loss, gradient = check_gradient(with_gradient(value), both)
    for row, (t, u) in enumerate(LENGTHS):
        x = both[row, :t, : u + 1]
        arcs, weights = tdt_weights(x[..., :CLASSES], x[..., CLASSES:], labels[row, :u], durations, 0.05)
        expected = oracles.Enumeration(weights, t, u, arcs).cost
        np.testing.assert_allclose(loss[row], expected, rtol=1e-12)
    assert not gradient[~np.isfinite(loss)].any()


def test_tdt_as_nemo_prints_it():
    case = CASES["nemo_tdt_zeros"]
    shape = (1, case["T"], case["U"] + 1)
    durations = tuple(case["durations"])
    loss = jax.jit(partial(tdt_loss, blank=case["blank"], durations=durations, sigma=case["sigma"]))(
        jnp.zeros((*shape, case["V"] + 1)),
        jnp.zeros((*shape, len(durations))),
        jnp.asarray([case["labels"]]),
        jnp.array([case["T"]]),
        jnp.array([case["U"]]),
    )
    np.testing.assert_allclose(loss, [case["cost"]], rtol=0, atol=1e-6)


def test_wrong_variants_are_refused():
    for field in ("delay_penalty", "expected_latency", "fast_emit"):
        with pytest.raises(ValueError, match=rf"{field}: -0.1; 0 or more"):
            TransducerSpec(**{field: -0.1})
    x, labels, lengths = jnp.zeros((1, 2, 2, 3)), jnp.array([[1]]), (jnp.array([2]), jnp.array([1]))
    for durations in ((), (0,), (1, 1), (-1, 1)):
        d = jnp.zeros((1, 2, 2, len(durations)))
        with pytest.raises(ValueError, match=r"durations: .*different numbers from 0 on"):
            tdt_loss(x, d, labels, *lengths, blank=0, durations=durations)
    with pytest.raises(ValueError, match="duration_logits: 1 for 2 durations"):
        tdt_loss(x, jnp.zeros((1, 2, 2, 1)), labels, *lengths, blank=0, durations=(0, 1))
    with pytest.raises(ValueError, match="logits: 2 symbols with 0 labels"):
        tdt_loss(x, jnp.zeros((1, 2, 2, 2)), labels[:, :0], *lengths, blank=0, durations=(0, 1))
