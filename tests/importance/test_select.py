"""Masks by rows against numpy, their bytes, and the weights that they leave where they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zojax import estimators, ops
from zojax.directions import LowRank, Rademacher, Rounded, Sparse
from zojax.importance import magnitude_masks, random_masks, row_top_k, score_masks
from zojax.masks import keep_mask, mask_rows, pack_mask, unpack_mask
from zojax.perturb import PerturbSpec


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def bits(words, shape):
    """The booleans of a packed mask by Python's own arithmetic."""
    words, out = np.asarray(words), np.zeros(shape, bool)
    last = words.shape == (*shape[:-1], -(-shape[-1] // 32))
    for at in np.ndindex(*shape):
        *lead, row, column = at
        word = words[(*lead, row, column // 32)] if last else words[(*lead, row // 32, column)]
        out[at] = (int(word) >> ((column if last else row) % 32)) & 1
    return out


@settings(max_examples=10, deadline=None)
@given(
    m=st.integers(1, 9),
    n=st.integers(1, 5),
    lead=st.sampled_from([(), (2,), (2, 3)]),
    keep=st.floats(0.01, 1.0),
    levels=st.sampled_from([2, 1000]),
    seed=st.integers(0, 2**16),
)
def test_top_k_of_each_row_is_numpys(m, n, lead, keep, levels, seed):
    """With two levels nearly all scores are equal: of equal ones the first are taken."""
    scores = np.random.default_rng(seed).integers(0, levels, (*lead, m, n)).astype(np.float32)
    k = max(1, int(np.floor(keep * m + 0.5)))
    order = np.argsort(-scores, axis=-2, kind="stable")
    expected = np.zeros(scores.shape, bool)
    np.put_along_axis(expected, order[..., :k, :], True, axis=-2)
    found = row_top_k(jnp.asarray(scores), keep)
    np.testing.assert_array_equal(found, expected)
    assert (np.asarray(found).sum(axis=-2) == k).all()


@pytest.mark.parametrize("keep", [0.0, 1.5, -0.1])
def test_a_share_out_of_range_is_refused(keep):
    with pytest.raises(ValueError, match="keep: "):
        row_top_k(jnp.ones((2, 2)), keep)


@pytest.mark.parametrize("shape", [(40, 8), (384, 4), (3, 70, 5), (5, 40), (33, 31), (1, 1), (64, 1)])
def test_packed_masks_come_back(shape):
    mask = np.random.default_rng(1).random(shape) < 0.4
    words = keep_mask(jnp.ones(shape), jnp.asarray(mask))
    np.testing.assert_array_equal(bits(words, shape), mask)
    axis = -1 if words.shape[-2:] == (shape[-2], -(-shape[-1] // 32)) else -2
    np.testing.assert_array_equal(unpack_mask(words, shape[axis], axis=axis), mask)
    if len(shape) == 2:
        ids = jnp.array([[shape[0] - 1, 0], [shape[0] // 2, 0]])
        np.testing.assert_array_equal(mask_rows(words, ids, shape), mask[np.asarray(ids)])


@pytest.mark.parametrize(
    ("shape", "stacked"),
    [((384, 384), ()), ((6, 384, 1536), (".",)), ((6, 384, 8), (".",)), ((6, 8, 384), (".",)), ((384, 4), ())],
)
def test_a_mask_costs_one_bit_a_weight(shape, stacked):
    words = magnitude_masks({"w": normal(*shape)}, ("w",), keep=0.5, stacked=stacked)["w"]
    assert words.nbytes * 8 == np.prod(shape)


def test_ragged_masks_cost_at_most_a_word_a_row_more():
    words = magnitude_masks({"w": normal(100, 5)}, ("w",), keep=0.5)["w"]
    assert words.nbytes == 4 * 5 * 4  # five columns of 100 bits


def test_a_stacked_leaf_is_not_packed_along_its_stack():
    mask = jnp.asarray(np.random.default_rng(2).random((40, 3)) < 0.5)
    assert keep_mask(jnp.ones((40, 3)), mask, stacked=True).shape == (40, 1)
    assert keep_mask(jnp.ones((40, 3)), mask).shape == (2, 3)
    with pytest.raises(ValueError, match="dtype uint32"):
        keep_mask(jnp.ones((40, 3)), pack_mask(mask, axis=-2), stacked=True)


def test_magnitude_masks_take_the_largest_weights_of_each_row():
    w = normal(3, 40, 6)
    words = magnitude_masks({"w": w, "b": jnp.ones(4)}, ("^w$",), keep=0.3, stacked=("^w$",))
    rank = np.argsort(np.argsort(-np.abs(np.asarray(w)), axis=1, kind="stable"), axis=1, kind="stable")
    np.testing.assert_array_equal(bits(words["w"], w.shape), rank < 12)
    assert words["b"] is None


def test_random_masks_have_as_many_a_row_and_depend_on_key_and_path():
    params = {"a": jnp.ones((64, 8)), "b": jnp.ones((64, 8))}
    first = random_masks(params, (".",), keep=0.25, key=jax.random.key(0))
    again = random_masks(params, (".",), keep=0.25, key=jax.random.key(0))
    other = random_masks(params, (".",), keep=0.25, key=jax.random.key(1))
    for name in params:
        assert (bits(first[name], (64, 8)).sum(axis=0) == 16).all()
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()
    assert (first["a"] != first["b"]).any()


def test_rows_without_scores_go_by_magnitude():
    w = normal(10, 3)
    scores = jnp.zeros((10, 3)).at[:, 1].set(jnp.arange(10.0))
    found = bits(score_masks({"w": scores}, {"w": w}, keep=0.5)["w"], (10, 3))
    by_size = np.argsort(np.argsort(-np.abs(np.asarray(w)), axis=0), axis=0) < 5
    np.testing.assert_array_equal(found[:, [0, 2]], by_size[:, [0, 2]])
    np.testing.assert_array_equal(found[:, 1], np.arange(10) >= 5)


def test_scores_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="those of 'a/w' are not finite"):
        score_masks({"a": {"w": jnp.full((2, 2), jnp.nan)}}, {"a": {"w": jnp.ones((2, 2))}}, keep=0.5)


def test_patterns_are_checked():
    with pytest.raises(ValueError, match=r"the pattern 'kernel' matches no leaf; the leaves are b, w"):
        magnitude_masks({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, ("kernel",), keep=0.5)
    with pytest.raises(ValueError, match=r"the leaf 'b' is of shape \(2,\)"):
        magnitude_masks({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, (".",), keep=0.5)


@pytest.mark.parametrize(
    ("inner", "optimizer"), [(Rademacher(), "sgd"), (Rounded(bits=2), "sgd"), (LowRank(rank=1), "adam")], ids=repr
)
def test_masked_weights_never_move(inner, optimizer):
    """Nor does a probe move them: with a loss that looks at them alone every difference is zero."""
    params = {"w": normal(40, 6), "stack": normal(2, 40, 4, seed=1)}
    words = magnitude_masks(params, (".",), keep=0.25, stacked=("stack",))
    masks = {name: bits(words[name], w.shape) for name, w in params.items()}
    spec = PerturbSpec(direction=Sparse(inner=inner), stacked=("stack",), masks=lambda _: words)
    rest = {"sgd": optax.sgd(0.1), "adam": optax.adam(0.1)}[optimizer]
    tx = estimators.chain(estimators.spsa(1e-2, spec, key=jax.random.key(3)), rest)
    x = normal(5, 40, seed=2)

    def loss(p):
        stack = jax.lax.scan(lambda c, w: (c, ops.dot(x, w)), 0, p["stack"])[1]
        return jnp.sum(ops.dot(x, p["w"]) ** 2) + jnp.sum(stack**2)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    moved, state = params, tx.init(params)
    for _ in range(3):
        moved, state = step(moved, state)
    for name, mask in masks.items():
        np.testing.assert_array_equal(moved[name][~mask], params[name][~mask])
        # A direction of 2 bits has zeros of its own, about three in five: of three steps one in five has nothing else.
        assert np.mean(np.asarray(moved[name] != params[name])[mask]) > 0.6
    frozen = {name: jnp.asarray(~mask, jnp.float32) for name, mask in masks.items()}
    alone = lambda p: sum(jnp.sum(p[name].materialize() * frozen[name]) for name in p)  # noqa: E731
    scalars = jax.jit(lambda p, s: tx.measure(p, s, alone))(params, tx.init(params))
    assert float(scalars.projected[0]) == 0.0


def test_packed_words_serve_lookups():
    table = normal(70, 3)
    words = magnitude_masks({"t": table}, ("t",), keep=0.5)
    assert words["t"].shape == (3, 3)  # along the rows
    spec = PerturbSpec(direction=Sparse(), masks=lambda _: words)
    kept = spec.prepare({"t": table})
    leaf = spec.perturb({"t": table}, jax.random.key(0), jnp.float32(1), kept)["t"]
    ids = jnp.array([69, 0, 33, 32])
    np.testing.assert_array_equal(ops.embed(leaf, ids), leaf.materialize()[ids])
