"""The pruned loss: equal to the exact one where the band is wide, the paths of the band where it is not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.losses.transducer import oracles
from tests.losses.transducer.test_joined import FRAMES, LABELS, T, U, V, assert_close, inputs, joiner
from zojax.losses.transducer import (
    TransducerSpec,
    band_starts,
    fused_transducer_loss,
    posteriors,
    pruned_scales,
    pruned_transducer_loss,
)

BLANK = V - 1
SPEC = TransducerSpec(delay_penalty=0.1)


def simple_inputs(params, encoded, predicted):
    """Each side through the output layer."""
    return encoded @ params["kernel"], predicted @ params["kernel"] + params["bias"]


@partial(jax.jit, static_argnames="band")
def pruned(params, encoded, predicted, labels, band):
    simple = simple_inputs(params, encoded, predicted)
    args = (joiner, params, encoded, predicted, *simple, labels, FRAMES, LABELS)
    return pruned_transducer_loss(*args, blank=BLANK, band=band, chunk=3, spec=SPEC)


def test_a_wide_band_is_the_exact_loss():
    args = inputs()
    exact = lambda *a: fused_transducer_loss(joiner, *a, FRAMES, LABELS, blank=BLANK, chunk=3, spec=SPEC).sum()  # noqa: E731
    found = jax.jit(jax.value_and_grad(lambda *a: pruned(*a, band=U + 5).pruned.sum(), argnums=(0, 1, 2)))(*args)
    assert_close(found, jax.jit(jax.value_and_grad(exact, argnums=(0, 1, 2)))(*args))


def test_a_narrow_band_is_the_loss_of_its_paths():
    args = inputs(2)
    loss = pruned(*args, band=2)
    params, encoded, predicted, labels = args
    full = np.asarray(joiner(params, encoded[:, :, None], predicted[:, None]))
    simple_encoded, simple_predicted = simple_inputs(params, encoded, predicted)
    simple = np.asarray(simple_encoded[:, :, None] + simple_predicted[:, None])
    lengths = list(zip(FRAMES.tolist(), LABELS.tolist(), strict=True))
    for row, (t, u) in enumerate(lengths):
        delay = SPEC.delay_penalty * ((t - 1) / 2 - np.arange(t))[:, None]
        values = []
        for logits in (simple, full):
            lp_blank, lp_label = oracles.log_probs(logits[row, :t, : u + 1], np.asarray(labels[row, :u]), BLANK)
            values.append((lp_blank, lp_label + delay))
        of_simple = oracles.Enumeration(values[0], t, u)
        np.testing.assert_allclose(loss.simple[row], of_simple.cost, rtol=3e-6)
        starts = np.asarray(loss.starts[row, :t])
        # Wherever neighbours allow it, the band holds the two symbols that the simple joiner passes most.
        through = of_simple.posteriors().sum(0)
        if u + 1 > 2:
            best = (through[:, :-1] + through[:, 1:]).argmax(1)
            assert (starts == best).mean() >= 0.5
        inside = (np.arange(u + 1) >= starts[:, None]) & (np.arange(u + 1) < starts[:, None] + 2)
        banded = [np.where(inside, w, -np.inf) for w in values[1]]
        np.testing.assert_allclose(loss.pruned[row], oracles.Enumeration(banded, t, u).cost, rtol=3e-6)
    # Row 2 has two frames and two labels: a band of 2 holds it. Row 0 lost paths.
    assert np.isfinite(loss.pruned).all()


def test_the_gradient_takes_the_bands_as_given():
    args = inputs(2)

    @jax.jit
    def both(scale, moves):
        params = jax.tree.map(lambda w, m: w + scale * m, args[0], moves)
        loss = pruned(params, *args[1:], band=2)
        return (loss.simple + loss.pruned).sum(), loss.starts

    moves = jax.tree.map(lambda w: jnp.asarray(np.random.default_rng(1).normal(size=w.shape), jnp.float32), args[0])
    slope = jax.jit(jax.grad(lambda s: both(s, moves)[0]))(0.0)
    (up, starts), (down, others) = both(1e-2, moves), both(-1e-2, moves)
    np.testing.assert_array_equal(starts, others)  # the same bands on both sides
    # float32 values near 50 over a step of 2e-2: 4e-4; the third derivative: 1e-3.
    np.testing.assert_allclose(slope, (up - down) / 2e-2, rtol=0, atol=1e-2)


def test_a_simple_joiner_of_distant_peaks_stays_finite():
    params, encoded, predicted, labels = inputs()
    simple_encoded = jnp.zeros((3, T, V)).at[..., 0].set(300.0)
    simple_predicted = jnp.zeros((3, U + 1, V)).at[..., 1].set(300.0)
    args = (joiner, params, encoded, predicted, simple_encoded, simple_predicted, labels, FRAMES, LABELS)
    loss = jax.jit(partial(pruned_transducer_loss, joiner, blank=BLANK, band=2, chunk=7))(*args[1:])
    assert np.isfinite(loss.simple).all()
    assert np.isfinite(loss.pruned).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2**16))
def test_bands_leave_a_way(band, seed):
    rng = np.random.default_rng(seed)
    frames, symbols, rows = 8, 9, 6
    lengths = rng.integers(1, frames + 1, rows)
    counts = np.minimum(rng.integers(0, symbols, rows), lengths * (band - 1))
    through = rng.dirichlet(np.ones(symbols) * 0.1, (rows, frames)).astype(np.float32)
    starts = np.asarray(STARTS[band](through, jnp.asarray(lengths, jnp.int32), jnp.asarray(counts, jnp.int32)))
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        s = starts[row, :length]
        assert s[0] == 0
        assert s[-1] == max(count + 1 - band, 0)
        assert (np.diff(s) >= 0).all()
        assert (np.diff(s) <= band - 1).all()


STARTS = {band: jax.jit(partial(band_starts, band=band)) for band in range(2, 6)}


def test_bands_that_need_no_mending_hold_the_most_probability():
    logits = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    weights = tuple(jnp.asarray(w) for w in (logits - 1, logits[::-1] - 1))
    lengths, counts = jnp.array([6, 6]), jnp.array([3, 3])
    through = jax.jit(lambda w: sum(posteriors(w, lengths, counts, SPEC.lattice)))(weights)
    starts = np.asarray(STARTS[3](through, lengths, counts))
    kept = np.asarray(through[:, :, :3].sum(-1)), np.asarray(through[:, :, 1:].sum(-1))
    best = (kept[1] > kept[0]).astype(int)
    best[:, -1] = 1
    monotone = (np.diff(best) >= 0).all(axis=1)
    assert monotone.any()
    np.testing.assert_array_equal(starts[monotone], best[monotone])


def test_scales_over_the_warm_up():
    for step, expected in [(0, (1.0, 0.1)), (500, (0.75, 0.55)), (1000, (0.5, 1.0)), (9999, (0.5, 1.0))]:
        np.testing.assert_allclose(pruned_scales(step, warmup=1000), expected, rtol=1e-6)


def test_wrong_arguments_are_refused():
    params, encoded, predicted, labels = inputs()
    args = (joiner, params, encoded, predicted, jnp.zeros((3, T, V)), jnp.zeros((3, U + 1, V)), labels, FRAMES, LABELS)
    with pytest.raises(ValueError, match="band: 1; 2 symbols a frame"):
        pruned_transducer_loss(*args, blank=0, band=1, chunk=3)
    with pytest.raises(ValueError, match="blank: 6; the index of one of the 6"):
        pruned_transducer_loss(*args, blank=6, band=2, chunk=3)
