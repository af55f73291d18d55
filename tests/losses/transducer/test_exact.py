"""The exact loss: published cases, every path enumerated, long utterances, padding, infinities, memory."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.transducer import oracles
from zojax.losses.transducer import TransducerSpec, transducer_loss
from zojax.losses.transducer.loss import PLAIN

CASES = json.loads((Path(__file__).resolve().parents[2] / "golden" / "rnnt_cases.json").read_text())
STANDARD = [case for case in CASES.values() if "grad_logits" in case]

# The cases are given in float64 and computed in float32: costs up to 8 are rounded to 5e-7, gradients to 6e-8.
TOLERANCE = 1e-6

# Utterances with T > U, without labels, with one frame, with U > T, with one of each, and a row of padding.
LENGTHS = np.array([(4, 3), (3, 0), (1, 2), (2, 3), (1, 1), (0, 0)])
FRAMES, LABELS = jnp.asarray(LENGTHS, jnp.int32).T


@partial(jax.jit, static_argnames=("blank", "spec"))
def value_and_grad(logits, labels, frames, counts, *, blank, spec=PLAIN):
    def total(logits):
        loss = transducer_loss(logits, labels, frames, counts, blank=blank, spec=spec)
        return jnp.where(jnp.isfinite(loss), loss, 0).sum(), loss

    (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(logits)
    return loss, gradient


def batch(seed, classes=5, dtype=np.float32):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(LENGTHS), 4, 4, classes)).astype(dtype) * 2
    labels = rng.integers(1, classes, (len(LENGTHS), 3)).astype(np.int32)
    return jnp.asarray(logits), jnp.asarray(labels)


@pytest.mark.parametrize("blank", sorted({case["blank"] for case in STANDARD}))
def test_published_cases(blank):
    # One batch, as ragged as the cases are: classes that a case does not have get logits of -inf.
    cases = [case for case in STANDARD if case["blank"] == blank]
    shapes = [np.shape(case["logits"]) for case in cases]
    size = np.max(shapes, axis=0)
    logits = np.full((len(cases), *size), -np.inf, np.float32)
    labels = np.zeros((len(cases), size[1] - 1), np.int32)
    for row, (case, (t, u, v)) in enumerate(zip(cases, shapes, strict=True)):
        logits[row, :t, :u, :v] = case["logits"]
        labels[row, : u - 1] = case["labels"]
    frames, counts = (jnp.asarray(n, jnp.int32) for n in np.array([(t, u - 1) for t, u, _ in shapes]).T)
    loss, gradient = value_and_grad(jnp.asarray(logits), jnp.asarray(labels), frames, counts, blank=blank)
    np.testing.assert_allclose(loss, [case["cost"] for case in cases], rtol=0, atol=TOLERANCE)
    for row, (case, (t, u, v)) in enumerate(zip(cases, shapes, strict=True)):
        np.testing.assert_allclose(gradient[row, :t, :u, :v], case["grad_logits"], rtol=0, atol=TOLERANCE)
        assert np.count_nonzero(gradient[row]) == np.count_nonzero(gradient[row, :t, :u, :v])


def test_all_eight_cases_are_there():
    assert len(STANDARD) == 8


def test_a_case_alone_is_what_it_is_in_a_batch():
    case = CASES["k2_basic_add_joiner"]
    logits = jnp.asarray([case["logits"]], jnp.float32)
    lengths = (jnp.array([logits.shape[1]]), jnp.array([logits.shape[2] - 1]))
    loss, gradient = value_and_grad(logits, jnp.asarray([case["labels"]]), *lengths, blank=case["blank"])
    np.testing.assert_allclose(loss, [case["cost"]], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(gradient[0], case["grad_logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("blank", [0, 4])
def test_every_path_enumerated(blank):
    with jax.enable_x64(True):
        logits, labels = batch(0, dtype=np.float64)
        labels -= int(blank == 4)
        logits, labels, *found = map(
            np.asarray, (logits, labels, *value_and_grad(logits, labels, FRAMES, LABELS, blank=blank))
        )
    loss, gradient = found
    assert loss.dtype == np.float64
    for row, (t, u) in enumerate(LENGTHS[:-1]):
        x, y = logits[row, :t, : u + 1], labels[row, :u]
        found = oracles.Enumeration(oracles.log_probs(x, y, blank), t, u)
        # float64 against float64: 1e-15 a term, some ten terms
        np.testing.assert_allclose(loss[row], found.cost, rtol=1e-13)
        at_blank, at_label = found.posteriors()
        expected = (at_blank + at_label)[..., None] * np.exp(oracles.log_softmax(x))
        expected[..., blank] -= at_blank
        for position, label in enumerate(y):
            expected[:, position, label] -= at_label[:, position]
        np.testing.assert_allclose(gradient[row, :t, : u + 1], expected, rtol=0, atol=1e-13)
    assert loss[-1] == 0
    assert not np.asarray(gradient[-1]).any()


def test_a_long_utterance_keeps_its_digits():
    frames, labels, classes = 800, 150, 32
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(frames, labels + 1, classes)).astype(np.float32)
    y = rng.integers(1, classes, labels)
    cost, expected = oracles.recursion(logits, y, 0)
    lengths = (jnp.array([frames]), jnp.array([labels]))
    loss, gradient = value_and_grad(jnp.asarray(logits)[None], jnp.asarray(y)[None], *lengths, blank=0)
    # Measured 6e-6. A float32 alpha without offsets, near -3000, is rounded to 2.4e-4 and errs by 1e-3 here.
    assert np.abs(np.asarray(gradient[0], np.float64) - expected).max() < 2e-5
    # The cost near 3000 is rounded to 2.4e-4 once, not once a step.
    assert abs(float(loss[0]) - cost) < 2.5e-4


def test_the_recursion_of_the_tests_is_right():
    logits, labels = batch(3)
    x, y = np.asarray(logits[0]), np.asarray(labels[0])
    cost, gradient = oracles.recursion(x, y, 0)
    np.testing.assert_allclose(cost, oracles.Enumeration(oracles.log_probs(x, y, 0), 4, 3).cost, rtol=1e-13)
    _, found = value_and_grad(logits, labels, FRAMES, LABELS, blank=0)
    np.testing.assert_allclose(found[0], gradient, rtol=0, atol=TOLERANCE)


def test_padding_may_hold_anything():
    logits, labels = batch(1)
    t, u = np.arange(4)[:, None], np.arange(4)
    padding = (t >= np.asarray(FRAMES)[:, None, None]) | (u > np.asarray(LABELS)[:, None, None])
    loss, gradient = value_and_grad(logits, labels, FRAMES, LABELS, blank=0)
    for junk in (np.nan, np.inf, -np.inf):
        spoiled = jnp.where(padding[..., None], junk, logits)
        wrong = jnp.where(jnp.arange(3) >= LABELS[:, None], -1, labels)
        other, other_gradient = value_and_grad(spoiled, wrong, FRAMES, LABELS, blank=0)
        np.testing.assert_array_equal(other, loss)
        np.testing.assert_array_equal(other_gradient, gradient)
    assert not np.asarray(gradient)[padding].any()


def test_a_nan_in_an_utterance_shows():
    logits, labels = batch(1)
    loss, _ = value_and_grad(logits.at[0, 1, 1, 2].set(np.nan), labels, FRAMES, LABELS, blank=0)
    assert np.isnan(loss[0])
    assert np.isfinite(loss[1:]).all()


def test_infinite_logits_are_limits():
    logits, labels = batch(2)
    labels = labels.at[0].set(jnp.array([1, 2, 3]))
    # 60 below or above all others, the rest of the mass is 1e-26: below what float32 can tell from the limit.
    cases = [
        (logits.at[0, :, :, 4].set(-np.inf), logits.at[0, :, :, 4].set(-60.0)),
        (logits.at[0, 1, 0, 0].set(-np.inf), logits.at[0, 1, 0, 0].set(-60.0)),
        (logits.at[0, 1, 0, 0].set(np.inf), logits.at[0, 1, 0, 0].set(60.0)),
        (
            logits.at[0, 2, 1, 0].set(np.inf).at[0, 2, 1, 2].set(np.inf),
            logits.at[0, 2, 1, 0].set(60.0).at[0, 2, 1, 2].set(60.0),
        ),
    ]
    for infinite, limit in cases:
        loss, gradient = value_and_grad(infinite, labels, FRAMES, LABELS, blank=0)
        expected, expected_gradient = value_and_grad(limit, labels, FRAMES, LABELS, blank=0)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=2e-6)
        assert np.isfinite(gradient).all()


def test_an_utterance_without_a_path():
    logits, labels = batch(2)
    # The last blank is impossible, and a node where nothing is possible.
    for spoiled in (logits.at[0, 3, 3, 0].set(-np.inf), logits.at[0, 3, 3].set(-np.inf)):
        loss, gradient = value_and_grad(spoiled, labels, FRAMES, LABELS, blank=0)
        assert loss[0] == np.inf
        assert not np.asarray(gradient[0]).any()
        assert np.isfinite(loss[1:]).all()


def test_a_node_where_nothing_is_possible_is_gone_round():
    logits, labels = batch(2)
    loss, gradient = value_and_grad(logits.at[0, 1, 1].set(-np.inf), labels, FRAMES, LABELS, blank=0)
    weights = oracles.log_probs(np.asarray(logits[0]), np.asarray(labels[0]), 0)
    for w in weights:
        w[1, 1] = -np.inf
    np.testing.assert_allclose(loss[0], oracles.Enumeration(weights, 4, 3).cost, rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient[0, 1, 1]).any()


def test_large_logits_do_not_round_the_norm_away():
    logits, labels = batch(4)
    expected, _ = value_and_grad(logits, labels, FRAMES, LABELS, blank=0)
    with jax.enable_x64(True):
        raised = np.asarray(logits, np.float64) + 2.0**20
        exact = value_and_grad(
            jnp.asarray(np.asarray(raised, np.float32), jnp.float64), labels, FRAMES, LABELS, blank=0
        )
    loss, gradient = value_and_grad(jnp.asarray(raised, jnp.float32), labels, FRAMES, LABELS, blank=0)
    # The logits are rounded to 1/16; what is made of them is not.
    np.testing.assert_allclose(loss, exact[0], rtol=2e-6)
    np.testing.assert_allclose(gradient, exact[1], rtol=0, atol=2e-6)
    assert np.abs(loss - expected).max() < 1


def test_half_precision_logits():
    logits, labels = batch(5)
    half = logits.astype(jnp.bfloat16)
    loss, gradient = value_and_grad(half, labels, FRAMES, LABELS, blank=0)
    expected, expected_gradient = value_and_grad(half.astype(jnp.float32), labels, FRAMES, LABELS, blank=0)
    assert loss.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(loss, expected)
    # The cast of the gradient: 8 bits.
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected_gradient, rtol=2**-8, atol=1e-7)


@pytest.mark.parametrize("hat", [False, True])
def test_no_array_of_the_size_of_the_logits_is_made(hat):
    # In float32: XLA's CPU back end casts bfloat16 arrays as a whole before it reduces them.
    logits = jax.ShapeDtypeStruct((4, 50, 20, 512), jnp.float32)
    labels, lengths = jax.ShapeDtypeStruct((4, 19), jnp.int32), jax.ShapeDtypeStruct((4,), jnp.int32)
    program = value_and_grad.lower(logits, labels, lengths, lengths, blank=0, spec=TransducerSpec(hat=hat)).compile()
    # The lattice has 1/512 of the numbers of the logits, some dozen of times; a softmax would be a whole.
    assert program.memory_analysis().temp_size_in_bytes < 0.1 * np.prod(logits.shape) * logits.dtype.itemsize


def test_wrong_arguments_are_refused():
    logits, labels = batch(0)
    for blank in (-1, 5):
        with pytest.raises(ValueError, match=rf"blank: {blank}; the index of one of the 5 classes"):
            transducer_loss(logits, labels, FRAMES, LABELS, blank=blank)
    with pytest.raises(ValueError, match="logits: 4 symbols with 2 labels"):
        transducer_loss(logits, labels[:, :2], FRAMES, LABELS, blank=0)
    with pytest.raises(TypeError, match="blank"):
        transducer_loss(logits, labels, FRAMES, LABELS)  # pyright: ignore[reportCallIssue]
