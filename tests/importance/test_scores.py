"""Scores against float64 oracles and against their definitions: freeze a weight, solve again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax.importance import Importance, damped, global_score, greedy_score, task_score


def problem(m, n, seed=0, rows=None):
    """g of n rows, and X X' of m inputs that are correlated and of unlike size, in float64."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows or 3 * m, m)) @ rng.normal(size=(m, m)) * rng.uniform(0.5, 2, m)
    return rng.normal(size=(m, n)), x.T @ x / len(x)


def least(g, h, frozen=None):
    """min_d g.d + d'H d / 2, without the entry that is frozen."""
    left = [i for i in range(len(g)) if i != frozen]
    g, h = g[left], h[np.ix_(left, left)]
    d = -np.linalg.solve(h, g)
    return g @ d + d @ h @ d / 2


def test_global_score_is_what_freezing_a_weight_costs():
    g, h = problem(6, 3)
    h = h + 0.01 * np.trace(h) / 6 * np.eye(6)
    rise = np.array([[least(g[:, j], h, m) - least(g[:, j], h) for j in range(3)] for m in range(6)])
    found = jax.jit(global_score)(jnp.float32(g), jnp.float32(h))
    # float32's 6e-8 times the condition number, some 600 here, twice over for the square
    np.testing.assert_allclose(found, rise, rtol=2e-4)


@pytest.mark.parametrize("m", [1, 64, 256])
def test_global_score_against_float64(m):
    g, h = problem(m, 5, seed=m)
    h = h + 0.01 * np.trace(h) / m * np.eye(m)
    inverse = np.linalg.inv(h)
    expected = (inverse @ g) ** 2 / (2 * np.diag(inverse)[:, None])
    found = np.asarray(jax.jit(global_score)(jnp.float32(g), jnp.float32(h)))
    # Damping bounds the condition number by 100 m, 2.6e4: an error of 1.5e-3 of a row's largest entries at worst.
    np.testing.assert_allclose(found, expected, atol=1.5e-3 * expected.max(axis=0).min(), rtol=5e-3)


@pytest.mark.parametrize("rate", [1e-3, 0.3, 2.0])
def test_greedy_score_is_what_a_step_loses(rate):
    g, h = problem(6, 3, seed=1)

    def change(g, d):
        return g @ d + d @ h @ d / 2

    def loses(g, m):
        step = -rate * g
        return change(g, np.where(np.arange(6) == m, 0.0, step)) - change(g, step)

    expected = np.array([[loses(g[:, j], m) for j in range(3)] for m in range(6)])
    found = jax.jit(greedy_score, static_argnums=2)(jnp.float32(g), jnp.float32(h), rate)
    # differences of terms as large as the largest entry, in float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def oracle(g, gram, w, options):
    """The task's score in float64, blocks of inputs apart."""
    m = len(g)
    count, size = -(-m // options.block), -(-m // -(-m // options.block))
    total = np.zeros_like(g)
    shift = options.damping * np.trace(gram) / m
    for b in range(count):
        own = slice(b * size, min((b + 1) * size, m))
        h = gram[own, own] + shift * np.eye(len(gram[own, own]))
        inverse, part = np.linalg.inv(h), g[own]
        lr = options.learning_rate
        greedy = lr * part**2 - lr**2 * part * (h @ part) + lr**2 / 2 * np.diag(h)[:, None] * part**2
        total[own] = (inverse @ part) ** 2 / (2 * np.diag(inverse)[:, None]) + options.alpha * greedy
    total += options.beta * np.abs(w)
    return total / np.abs(total).sum(axis=0)


def blocks(gram, block):
    m = len(gram)
    count = -(-m // block)
    size = -(-m // count)
    padded = np.zeros((count * size, count * size))
    padded[:m, :m] = gram
    return np.stack([padded[b * size : (b + 1) * size, b * size : (b + 1) * size] for b in range(count)])


@pytest.mark.parametrize(
    "options",
    [
        Importance(),
        Importance(alpha=0.0),
        Importance(alpha=2.0, beta=0.1, learning_rate=0.5, damping=0.1),
        Importance(block=4),  # 10 inputs: blocks of 4, 4 and 2
        Importance(block=5, learning_rate=0.2),
    ],
    ids=repr,
)
def test_task_score_against_float64(options):
    g, gram = problem(10, 4, seed=2)
    w = np.random.default_rng(3).normal(size=g.shape)
    score = jax.jit(task_score, static_argnums=3)
    found = score(jnp.float32(g), jnp.float32(blocks(gram, options.block)), jnp.float32(w), options)
    np.testing.assert_allclose(found, oracle(g, gram, w, options), rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(jnp.abs(found).sum(axis=0), 1.0, rtol=1e-5)


def test_rows_without_a_gradient_stay_zero():
    _, gram = problem(4, 2)
    found = task_score(jnp.zeros((4, 2)), jnp.float32(gram[None]), jnp.ones((4, 2)), Importance())
    assert not found.any()


def test_inputs_that_are_never_there_are_finite():
    g = jnp.ones((3, 2))
    found = task_score(g, jnp.zeros((1, 3, 3)), g, Importance())
    np.testing.assert_allclose(found, 1 / 3, rtol=1e-5)


def test_damping_is_a_share_of_the_mean_over_the_inputs():
    gram = jnp.diag(jnp.array([4.0, 2.0, 0.0, 0.0])).reshape(2, 2, 2, 2)[jnp.arange(2), :, jnp.arange(2)]
    # three inputs, and one that only fills up the second block: a mean of 2
    np.testing.assert_allclose(jnp.diagonal(damped(gram, 3, 0.5), axis1=1, axis2=2).ravel(), [5, 3, 1, 1])


@pytest.mark.parametrize(
    ("field", "value"),
    [("alpha", -1.0), ("beta", float("nan")), ("learning_rate", 0.0), ("damping", 0.0), ("block", 0)],
)
def test_refusals(field, value):
    with pytest.raises(ValueError, match=f"^{field}: "):
        Importance(**{field: value})
