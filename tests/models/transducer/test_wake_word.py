"""Dual attention: each frame gets its own branch's bias, whatever the others chose, and the other does not run."""

import collections
import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.transducer.wake_word import (
    WakeWordConfig,
    bias,
    bias_step,
    branches,
    init,
    jittered,
    remember,
    spot,
    spot_state,
    spot_step,
)

RNG = np.random.default_rng(0)
CONFIG = WakeWordConfig(width=8, classes=6, embedding=4, hidden=3, small=2, large=6, spotter=3, block=4)
WAKE = jnp.asarray([[1, 2, 0], [3, 0, 0]])
CATALOGUE = jnp.asarray(RNG.integers(1, 6, (7, 5)))
X = jnp.asarray(RNG.normal(size=(2, 10, 8)), jnp.float32)
# 20 frames in blocks of 4: all alike, mixed, frames that are none, and one that asks for a sixth block.
CHOICES = {
    "mixed": RNG.integers(0, 3, (2, 10)),
    "all small": np.ones((2, 10), int),
    "all large": np.zeros((2, 10), int),
    "none": np.full((2, 10), 2),
    "one small": np.eye(1, 20, 5, dtype=int).reshape(2, 10),
}


kept = jax.jit(remember, static_argnums=0)
spotted = jax.jit(spot, static_argnums=0)
blocked = jax.jit(lambda p, m, x, choice: bias(branches(CONFIG, p, m), x, choice, CONFIG.block))


@pytest.fixture(scope="module")
def params():
    """Parameters all of which do something."""
    fresh = jax.jit(functools.partial(init, CONFIG))(jax.random.key(0))
    return jax.tree.map(lambda w: np.asarray(w + 0.3 * RNG.normal(size=w.shape), np.float32), jax.device_get(fresh))


@pytest.fixture(scope="module")
def memories(params):
    return kept(CONFIG, params, WAKE, CATALOGUE)


def dense(chosen, x, choice):
    """Both branches at every frame."""
    flat = x.reshape(-1, x.shape[-1])
    made = jnp.zeros_like(flat)
    for number, branch in enumerate(chosen):
        made = jnp.where((choice == number).reshape(-1, 1), branch(flat), made)
    return made.reshape(x.shape)


@jax.jit
def both_ways(params, memories, x, choice, weights):
    """(biases, their gradients in the parameters and the frames), in blocks and by `dense`."""

    def summed(way, params, x):
        made = way(branches(CONFIG, params, memories), x)
        return jnp.sum(made * weights), made

    ways = lambda chosen, x: bias(chosen, x, choice, CONFIG.block), lambda chosen, x: dense(chosen, x, choice)
    found = [jax.grad(functools.partial(summed, way), argnums=(0, 1), has_aux=True)(params, x) for way in ways]
    return [made for _, made in found], [gradient for gradient, _ in found]


@pytest.mark.parametrize("name", CHOICES)
def test_blocks_are_the_dense_reference(params, memories, name):
    weights = jnp.asarray(RNG.normal(size=X.shape), jnp.float32)
    made, gradients = both_ways(params, memories, X, jnp.asarray(CHOICES[name]), weights)
    # float32: the same sums of 8 terms, in products of other shapes
    np.testing.assert_allclose(made[0], made[1], rtol=1e-5, atol=1e-6)
    for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)  # sums of 20 frames
    assert np.array_equal(np.any(np.asarray(made[0]) != 0, axis=-1), CHOICES[name] < 2)


def counting(log):
    """Two branches that count the frames which they are given: exactly, in whole numbers."""

    def branch(number, factor):
        def run(x):
            jax.debug.callback(lambda rows: log.update({number: rows}), len(x))
            return factor * x

        return run

    return branch("large", 2.0), branch("small", 3.0)


@pytest.mark.parametrize("name", CHOICES)
def test_only_the_blocks_that_are_needed_run(name):
    log, choice = collections.Counter(), CHOICES[name]
    made = jax.jit(lambda x, choice: bias(counting(log), x, choice, 4))(X, jnp.asarray(choice))
    jax.effects_barrier()
    np.testing.assert_array_equal(made, X * np.array([2, 3, 0])[choice][..., None])
    for number, of in enumerate(("large", "small")):
        assert log[of] == -(-int(np.sum(choice == number)) // 4) * 4


def test_a_stream_runs_the_branch_of_its_frame_alone():
    log, choice = collections.Counter(), np.array([[0, 0, 1, 2, 1, 1, 0, 2, 2, 0]])
    made = jax.jit(lambda x, choice: bias_step(counting(log), x, choice))(X[:1], jnp.asarray(choice))
    jax.effects_barrier()
    assert (log["large"], log["small"]) == (4, 3)
    np.testing.assert_array_equal(made[choice < 2], (X[:1] * np.array([2, 3, 0])[choice][..., None])[choice < 2])


@jax.jit
def streamed(params, memories, x, choice):
    return bias_step(branches(CONFIG, params, memories), x, choice)


@jax.jit
def reference(params, memories, x, choice):
    return dense(branches(CONFIG, params, memories), x, choice)


@pytest.mark.parametrize("name", CHOICES)
def test_rows_of_a_stream_may_choose_differently(params, memories, name):
    choice = CHOICES[name]
    found, wanted = (way(params, memories, X, jnp.asarray(choice)) for way in (streamed, reference))
    np.testing.assert_allclose(found[choice < 2], wanted[choice < 2], rtol=1e-5, atol=1e-6)  # float32, other shapes


def test_the_compiled_program_branches(params, memories):
    """A conditional, and each attention's keys in its own branches, and no product before it."""
    choice = jnp.asarray([[0, 1, 1, 2, 0, 0, 1, 0, 2, 1]])
    program = streamed.lower(params, memories, X[:1], choice).compile()
    real = np.asarray(choice) < 2
    wanted = reference(params, memories, X, jnp.tile(choice, (2, 1)))[:1]
    np.testing.assert_allclose(program(params, memories, X[:1], choice)[real], wanted[real], rtol=1e-5, atol=1e-6)
    text = str(program.as_text())
    assert text.count(" conditional(") == 1
    (names,) = re.findall(r"branch_computations=\{([^}]*)\}", text)
    computations = {block.split(" ", 1)[0].lstrip("%"): block for block in text.split("\n\n")}
    none, large, small, both = (computations[name.strip().lstrip("%")] for name in names.split(","))
    # The shapes of the keys, [1, k, 1, width], tell the attentions apart.
    of_large, of_small = "f32[1,7,1,6]", "f32[1,2,1,2]"
    assert [(of_large in block, of_small in block) for block in (none, large, small, both)] == [
        *((False, False), (True, False), (False, True), (True, True))
    ]


def test_operations_are_those_of_the_formula():
    """2 d (d_q + d_out) + 4 K d and the gate's 2 (d_q + d), by the compiled programs at the sizes of the method."""
    config = WakeWordConfig(width=640, classes=30)
    params = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    lists = jnp.ones((5, 4), int), jnp.ones((300, 4), int)
    memories = jax.eval_shape(functools.partial(remember, config), params, *lists)
    for number, (d, k) in enumerate(((640, 300), (64, 5))):
        program = jax.jit(lambda p, m, x: branches(config, p, m)[number](x))  # noqa: B023
        cost: Any = program.lower(params, memories, jnp.ones((1, 640))).compile().cost_analysis()
        formula = 2 * d * 1280 + 4 * k * d + 2 * (640 + d)
        assert formula <= cost["flops"] <= 1.01 * formula  # the no-bias key, the biases and the softmax are the rest


def test_an_empty_catalogue_says_exactly_nothing(params):
    none = jnp.zeros((0, 1), int)
    memories = kept(CONFIG, params, none, none)
    np.testing.assert_array_equal(blocked(params, memories, X, jnp.asarray(CHOICES["mixed"])), 0)


def test_a_single_attention_has_all_phrases(params, memories):
    config = dataclasses.replace(CONFIG, single=True)
    own = {name: params[name] for name in ("phrases", "large")}
    assert jax.eval_shape(lambda: init(config, jax.random.key(0))).keys() == own.keys()
    single = kept(config, own, WAKE, CATALOGUE)
    assert single.small is None
    assert single.large.keys.shape[1] == 9
    np.testing.assert_allclose(single.large.keys[:, 2:], memories.large.keys, rtol=1e-5, atol=1e-6)

    @jax.jit
    def ways(params, memories, x, choice):
        chosen = branches(config, params, memories)
        return bias(chosen, x, choice, 4), bias_step(chosen, x, choice), dense(chosen, x, choice)

    choice = np.array([[0, 0, 0, 1, 1, 1, 1, 0, 0, 0]])
    whole, stream, wanted = ways(own, single, X[:1], jnp.asarray(choice))
    np.testing.assert_allclose(whole, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stream, wanted, rtol=1e-5, atol=1e-6)


def test_a_spotter_streams_and_does_not_see_the_future(params):
    mask = jnp.asarray(np.arange(10) < np.array([10, 6])[:, None])
    whole = spotted(CONFIG, params, X, mask)
    state, parts, step = spot_state(CONFIG, 2), [], jax.jit(spot_step, static_argnums=0)
    for start in range(0, 10, 2):
        logits, state = step(CONFIG, params, X[:, start : start + 2], mask[:, start : start + 2], state)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1)[mask], whole[mask], rtol=1e-5, atol=1e-6)
    changed = spotted(CONFIG, params, X.at[:, 5:].add(1.0), mask)
    np.testing.assert_array_equal(changed[:, :5], whole[:, :5])
    assert np.any(changed[0, 5:] != whole[0, 5:])


def test_jitter_moves_each_end_and_makes_no_wake_word():
    spans = jnp.tile(jnp.array([[20.0, 30.0]]), (400, 1))
    exact = np.zeros((400, 60), bool)
    exact[:, 20:30] = True
    np.testing.assert_array_equal(jittered(spans, 60), exact)
    np.testing.assert_array_equal(jittered(spans, 60, jax.random.key(0)), exact)
    moved = np.asarray(jittered(spans, 60, jax.random.key(0), jitter=3))
    starts, ends = moved.argmax(1), 60 - moved[:, ::-1].argmax(1)
    assert np.array_equal(moved.sum(1), ends - starts)
    for at, middle in ((starts, 20), (ends, 30)):
        assert set(at) == set(range(middle - 3, middle + 4))
        assert np.bincount(at - middle + 3).min() > 400 / 7 - 4 * 7  # 57 each, a standard deviation of 7
    assert abs(np.corrcoef(starts, ends)[0, 1]) < 0.2  # 400 draws: 0.05
    assert not np.any(jittered(jnp.array([[0.0, 0.0], [5.0, 5.0]]), 60, jax.random.key(0), jitter=9))


@pytest.mark.parametrize(("field", "value"), [("small", 0), ("block", 0), ("threshold", 0.0), ("threshold", 1.0)])
def test_sizes_are_checked(field, value):
    with pytest.raises(ValueError, match=f"WakeWordConfig.{field} is {value}"):
        WakeWordConfig(width=8, classes=6, **{field: value})
