"""The recursion: posteriors, best paths and emission times against enumeration, for several sets of arcs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.transducer import oracles
from zojax.losses.transducer import (
    MONOTONIC,
    STANDARD,
    Lattice,
    best_alignment,
    emission_frames,
    expected_emission,
    path_cost,
    posteriors,
)
from zojax.losses.transducer.lattice import skew, unskew

LATTICES = {
    "standard": STANDARD,
    "monotonic": MONOTONIC,
    "jumps": Lattice(arcs=((3, False), (1, False), (0, True), (2, True))),
    "jumps, no free label": Lattice(arcs=((2, False), (1, False), (2, True)), ends_in_blank=False),
}
LENGTHS = np.array([(4, 3), (4, 1), (1, 0), (2, 3), (3, 2)])


def weights_of(lattice, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(len(LENGTHS), 4, 4)) - 1 for _ in lattice.arcs)


def enumerated(lattice, weights):
    for row, (t, u) in enumerate(LENGTHS):
        yield row, oracles.Enumeration([w[row] for w in weights], t, u, lattice.arcs, lattice.ends_in_blank)


@pytest.mark.parametrize("name", LATTICES)
def test_posteriors_and_best_paths_by_enumeration(name):
    lattice, weights = LATTICES[name], weights_of(LATTICES[name])
    with jax.enable_x64(True):
        lengths = jnp.asarray(LENGTHS, jnp.int32).T

        @jax.jit
        def everything(w):
            cost, pull = jax.vjp(lambda w: path_cost(w, *lengths, lattice), w)
            return (
                cost,
                pull(jnp.ones_like(cost))[0],
                posteriors(w, *lengths, lattice),
                posteriors(w, *lengths, lattice, "best"),
            )

        cost, gradient, found, best = jax.tree.map(np.asarray, everything(tuple(map(jnp.asarray, weights))))
    for row, truth in enumerated(lattice, weights):
        np.testing.assert_allclose(cost[row], truth.cost, rtol=1e-12)
        if not truth.paths:
            assert cost[row] == np.inf
            assert not any(np.asarray(p[row]).any() for p in (*found, *best, *gradient))
            continue
        np.testing.assert_allclose([p[row] for p in found], truth.posteriors(), rtol=0, atol=1e-13)
        np.testing.assert_allclose([p[row] for p in gradient], -truth.posteriors(), rtol=0, atol=1e-13)
        on_path = np.zeros(truth.shape)
        for step in truth.paths[int(np.argmax(truth.log))]:
            on_path[step] = 1
        np.testing.assert_array_equal([p[row] for p in best], on_path)
    assert np.isfinite(cost).sum() >= 2


@pytest.mark.parametrize("name", ["standard", "monotonic"])
def test_emission_times_by_enumeration(name):
    lattice, weights = LATTICES[name], weights_of(LATTICES[name], 1)
    with jax.enable_x64(True):
        lengths = jnp.asarray(LENGTHS, jnp.int32).T
        w = tuple(map(jnp.asarray, weights))

        @jax.jit
        def everything(w):
            mean, pull = jax.vjp(lambda w: expected_emission(w, *lengths, lattice), w)
            return (
                best_alignment(w, *lengths, lattice),
                emission_frames(w, *lengths, lattice),
                mean,
                pull(jnp.ones_like(mean))[0],
            )

        alignment, frames, mean, gradient = jax.tree.map(np.asarray, everything(w))
        step = 1e-5
        direction = weights_of(lattice, 2)
        up, down = (
            np.asarray(everything(tuple(x + s * step * d for x, d in zip(w, direction, strict=True)))[2])
            for s in (1, -1)
        )
    along = sum((np.asarray(g) * d).sum((1, 2)) for g, d in zip(gradient, direction, strict=True))
    # h^2 f''' and 1e-16 / h
    np.testing.assert_allclose(along, (up - down) / (2 * step), rtol=0, atol=1e-8)
    assert np.abs(along).max() > 0.1
    for row, truth in enumerated(lattice, weights):
        count = LENGTHS[row, 1]
        if not truth.paths:
            assert alignment.log_prob[row] == -np.inf
            assert (alignment.frames[row] == -1).all()
            continue
        at, log_prob = truth.best()
        np.testing.assert_array_equal(alignment.frames[row, :count], at)
        assert (alignment.frames[row, count:] == -1).all()
        np.testing.assert_allclose(alignment.log_prob[row], log_prob, rtol=1e-12)
        if count:
            np.testing.assert_allclose(frames[row, :count], truth.expected_emissions(), rtol=1e-12)
            np.testing.assert_allclose(mean[row], truth.expected_emissions().mean(), rtol=1e-12)
        else:
            assert mean[row] == 0
    assert alignment.frames.dtype == np.int32


def test_of_equal_paths_one_is_taken():
    lattice, lengths = STANDARD, (jnp.array([3, 4]), jnp.array([2, 3]))
    equal = (jnp.zeros((2, 4, 4)),) * 2
    blank, label = jax.jit(lambda w: posteriors(w, *lengths, lattice, "best"))(equal)
    np.testing.assert_array_equal(blank.sum((1, 2)), lengths[0])
    np.testing.assert_array_equal(label.sum((1, 2)), lengths[1])
    # A blank before a label, read from the end: all labels first.
    np.testing.assert_array_equal(np.asarray(label[0]).nonzero(), [[0, 0], [0, 1]])


def test_alignments_of_long_utterances_are_whole_frames():
    # A frame number is a sum of exact zeros and one product.
    rng = np.random.default_rng(0)
    w = tuple(jnp.asarray(rng.normal(size=(1, 1500, 21)) - 3, jnp.float32) for _ in range(2))
    found = jax.jit(partial(best_alignment, lattice=STANDARD))(w, jnp.array([1500]), jnp.array([20]))
    frames = np.asarray(found.frames[0])
    assert (np.diff(frames) >= 0).all()
    blank, label = np.asarray(w[0][0], np.float64), np.asarray(w[1][0], np.float64)
    u, total = 0, 0.0
    for t in range(1500):
        while u < 20 and frames[u] == t:
            total += label[t, u]
            u += 1
        total += blank[t, u]
    assert u == 20
    # 1520 float32 terms near 3, added in blocks
    np.testing.assert_allclose(found.log_prob[0], total, rtol=1e-6)


def test_skewing_and_back():
    x = jnp.arange(24.0).reshape(2, 4, 3)
    rows = np.asarray(skew(x, -1.0))
    assert rows.shape == (6, 2, 3)
    for d in range(6):
        for u in range(3):
            expected = x[:, d - u, u] if 0 <= d - u < 4 else [-1, -1]
            np.testing.assert_array_equal(rows[d, :, u], expected)
    np.testing.assert_array_equal(unskew(skew(x, -1.0), 4), x)


def test_arcs_that_stand_still_are_refused():
    for arcs in (((0, False),), ((1, False), (-1, True))):
        with pytest.raises(ValueError, match=r"arcs: .*a blank takes 1 frame or more"):
            Lattice(arcs=arcs)
