"""The programs of a step, apart from the loop."""

import chex
import jax
import numpy as np
import optax
import pytest

from tests.train import toy
from zojax import estimators, train
from zojax.trees import split


def setup():
    task = toy.Toy()
    params = task.init(jax.random.key(0))
    return task, params, jax.tree.map(lambda _: None, params), toy.make_batch(1)


@pytest.mark.parametrize("parts", [2, 4])
def test_microbatches_average_to_the_whole(parts):
    task, params, frozen, batch = setup()
    tx = estimators.spsa(1e-2, key=toy.KEY, num_samples=2)
    state = tx.init(params)
    whole = train.make_measure(task, tx)(params, frozen, state, batch, toy.KEY)
    cut = train.make_measure(task, tx, microbatches=parts)(params, frozen, state, batch, toy.KEY)
    # A loss near 0.7 is rounded to 6e-8; divided by 2 eps = 0.02 that is 3e-6, times a few roundings.
    chex.assert_trees_all_close(whole, cut, atol=3e-5)


def test_microbatches_accumulate_gradients():
    task, params, frozen, batch = setup()
    results = []
    for parts in (1, 4):
        method = train.first_order(task, optax.sgd(1.0), description="", microbatches=parts)
        copy = jax.tree.map(np.array, params)
        results.append(method.step(copy, frozen, method.init(copy), batch, toy.KEY, 1))
    # Sums of 16 float32 terms of order 1 in another order: a few times 6e-8.
    chex.assert_trees_all_close(results[0][0], results[1][0], atol=1e-6)
    chex.assert_trees_all_close(results[0][2], results[1][2], atol=1e-6)


def test_microbatches_must_divide_the_batch():
    task, params, frozen, batch = setup()
    tx = estimators.spsa(1e-2, key=toy.KEY)
    with pytest.raises(ValueError, match="microbatches: 16 rows cannot be cut into 3"):
        train.make_measure(task, tx, microbatches=3)(params, frozen, tx.init(params), batch, toy.KEY)


def test_frozen_weights_have_no_state_and_do_not_move():
    task, params, _, batch = setup()
    trainable, frozen = split(params, ("w2",))
    method = toy.make_method(task, "adam")
    state = method.init(trainable)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim == 2}
    assert shapes == {params["w2"].shape}
    before = jax.tree.map(np.array, frozen)
    moved, _, _ = method.step(jax.tree.map(np.array, trainable), frozen, state, batch, toy.KEY, 1)
    assert moved["w1"] is None
    assert not np.array_equal(moved["w2"], params["w2"])
    chex.assert_trees_all_equal(frozen, before)


def test_measure_keeps_its_inputs_and_apply_does_not_recompile():
    task, params, frozen, _ = setup()
    tx = estimators.chain(estimators.spsa(1e-2, key=toy.KEY), optax.adam(1e-2))
    chex.clear_trace_counter()
    measure, apply = train.make_measure(task, tx), train.make_apply(tx)
    state = jax.jit(tx.init)(params)
    for place in range(4):
        scalars = measure(params, frozen, state, toy.make_batch(place), toy.KEY)
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))
        params, state = apply(params, state, scalars)
    assert (measure._cache_size(), apply._cache_size()) == (1, 1)


def test_evaluation_adds_up_over_uneven_batches():
    task, params, frozen, batch = setup()
    program = train.make_evaluate(task)
    whole = train.evaluate(program, params, frozen, [batch])
    cut = train.evaluate(
        program, params, frozen, [jax.tree.map(lambda x: x[:5], batch), jax.tree.map(lambda x: x[5:], batch)]
    )
    assert whole["accuracy"] == cut["accuracy"]
    np.testing.assert_allclose(whole["loss"], cut["loss"], rtol=1e-6)  # one sum of 16 terms in two parts
