"""Searches against plain Python, against the exact loss of every label sequence, in batches and in chunks."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.transducer.decode import ExpansionBeam, Greedy, ModifiedBeam, decode, decode_step, hypotheses, start
from tests.models.transducer import decode_oracles as oracles
from zojax.losses.transducer import TransducerSpec, transducer_loss

# float32 against float64: sums of some ten log-probabilities near 2, each right to some 1e-7.
TOLERANCE = 2e-5

SEARCHES = {
    "greedy": Greedy(max_labels=7, max_symbols=2),
    "greedy, monotonic": Greedy(max_labels=7, max_symbols=1, monotonic=True),
    "modified": ModifiedBeam(max_labels=7, beam=3),
    "expansion": ExpansionBeam(max_labels=7, beam=3, max_symbols=2, gamma=4.0),
}


def found_by(search, model, frames=None, fuse=False):
    encoded = jnp.asarray(model.encoded)
    frames = np.full(len(encoded), encoded.shape[1]) if frames is None else np.asarray(frames)
    mask = jnp.asarray(np.arange(encoded.shape[1]) < frames[:, None])
    return jax.tree.map(
        np.asarray, decode(search, model.decodable, encoded, mask, fusion=model.fusion if fuse else None)
    )


def n_best(found, row=0):
    """[(labels, log_prob, times)] of those that exist."""
    out = []
    for n, log_prob in enumerate(found.log_probs[row]):
        if log_prob > -np.inf:
            length = found.lengths[row, n]
            assert not found.tokens[row, n, length:].any()
            out.append(
                (
                    tuple(found.tokens[row, n, :length].tolist()),
                    log_prob,
                    tuple(found.frames[row, n, :length].tolist()),
                )
            )
    return out


def sequences(classes, most):
    return [y for n in range(most + 1) for y in itertools.product(range(1, classes), repeat=n)]


def exact(model, all_labels, spec):
    """log P of each label sequence, by the loss."""
    frames, most = model.encoded.shape[1], max(map(len, all_labels))
    logits = np.zeros((len(all_labels), frames, most + 1, model.classes), np.float32)
    labels = np.zeros((len(all_labels), most), np.int32)
    for row, y in enumerate(all_labels):
        logits[row, :, : len(y) + 1], labels[row, : len(y)] = model.logits(y), y
    counts = jnp.array([len(y) for y in all_labels])
    loss = jax.jit(transducer_loss, static_argnames=("blank", "spec"))(
        jnp.asarray(logits), jnp.asarray(labels), jnp.full(len(all_labels), frames), counts, blank=0, spec=spec
    )
    return dict(zip(all_labels, -np.asarray(loss), strict=True))


@pytest.mark.parametrize("name", ["modified", "expansion"])
def test_a_beam_that_drops_nothing_has_the_exact_log_probabilities(name):
    most = 3
    model = oracles.Model(seed=0, classes=3, frames=3)
    everything = sequences(3, most)
    search, spec = {
        "modified": (ModifiedBeam(max_labels=most, beam=16), TransducerSpec(monotonic=True)),
        "expansion": (
            ExpansionBeam(max_labels=most, beam=16, max_symbols=most, gamma=float("inf")),
            TransducerSpec(),
        ),
    }[name]
    expected = exact(model, everything, spec)
    found = n_best(found_by(search, model))
    assert sorted(y for y, _, _ in found) == sorted(everything)
    for y, log_prob, _ in found:
        np.testing.assert_allclose(log_prob, expected[y], rtol=0, atol=TOLERANCE)
    assert [p for _, p, _ in found] == sorted((p for _, p, _ in found), reverse=True)
    if name == "modified":  # these are all that can be said in three frames
        np.testing.assert_allclose(sum(np.exp(p) for _, p, _ in found), 1, rtol=TOLERANCE)


@pytest.mark.parametrize("name", ["modified", "expansion"])
def test_a_wide_beam_finds_the_best_sequence(name):
    frames, most = 4, 4
    search = {
        "modified": ModifiedBeam(max_labels=most, beam=10),
        "expansion": ExpansionBeam(max_labels=most, beam=10, max_symbols=4, gamma=float("inf")),
    }[name]
    # A sequence of more labels than any here is far less likely: the blank has a bonus.
    models = [oracles.Model(seed, classes=3, frames=frames, bias=1.0) for seed in range(8)]
    best_is_greedy = 0
    for model in models:
        expected = exact(model, sequences(3, most), TransducerSpec(monotonic=name == "modified"))
        best = max(expected, key=expected.__getitem__)
        labels, log_prob, _ = n_best(found_by(search, model))[0]
        assert labels == best
        # What the beam has dropped is missing: .041 at most, by the plain search of this width in float64.
        assert expected[best] - 5e-2 < log_prob < expected[best] + TOLERANCE
        best_is_greedy += oracles.greedy(model, frames, 4, most, monotonic=name == "modified")[0] == best
    assert best_is_greedy < len(models)  # the search was needed


@pytest.mark.parametrize("max_symbols", [1, 3])
@pytest.mark.parametrize("monotonic", [False, True])
def test_greedy_is_a_plain_loop(max_symbols, monotonic):
    if monotonic and max_symbols > 1:
        pytest.skip("one symbol a frame")
    lengths = (20, 13, 0)
    cut = 0
    for seed in range(2):
        model = oracles.Model(seed, classes=5, frames=20, batch=3)
        for most in (6, 40):
            search = Greedy(max_labels=most, max_symbols=max_symbols, monotonic=monotonic)
            found = found_by(search, model, lengths)
            for row, frames in enumerate(lengths):
                labels, times, total = oracles.greedy(model, frames, max_symbols, most, row, monotonic)
                assert n_best(found, row)[0][::2] == (labels, tuple(times))
                np.testing.assert_allclose(found.log_probs[row, 0], total, rtol=1e-5, atol=TOLERANCE)
                cut += len(labels) == most
    assert cut


def assert_same(found, expected):
    assert [(y, times) for y, _, times in found] == [(y, times) for y, (_, times) in expected.items()]
    np.testing.assert_allclose([p for _, p, _ in found], [p for p, _ in expected.values()], rtol=1e-5, atol=TOLERANCE)


@pytest.mark.parametrize("fuse", [False, True])
def test_the_modified_beam_is_the_one_in_python(fuse):
    lengths, most = (12, 9), 6
    search = ModifiedBeam(max_labels=most, beam=4)
    for seed in range(3):
        model = oracles.Model(seed, classes=5, frames=12, batch=2, bias=1.0)
        found = found_by(search, model, lengths, fuse)
        for row, frames in enumerate(lengths):
            expected = oracles.modified_beam(model, frames, 4, most, row, fuse)
            assert_same(n_best(found, row), expected)
            external = [model.external(y) if fuse else 0.0 for y in expected]
            np.testing.assert_allclose(found.scores[row] - found.log_probs[row], external, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("gamma", [1.5, float("inf")])
def test_the_expansion_beam_is_the_one_in_python(gamma, fuse):
    lengths, most = (10, 7), 8
    search = ExpansionBeam(max_labels=most, beam=4, max_symbols=2, gamma=gamma)
    for seed in range(2):
        model = oracles.Model(seed, classes=5, frames=10, batch=2, bias=1.0)
        found = found_by(search, model, lengths, fuse)
        for row, frames in enumerate(lengths):
            assert_same(n_best(found, row), oracles.expansion_beam(model, frames, 4, most, 2, gamma, row, fuse))


@pytest.mark.parametrize("name", SEARCHES)
def test_batch_and_padding_change_nothing(name):
    search, lengths = SEARCHES[name], (9, 5, 0, 7)
    model = oracles.Model(seed=3, classes=5, frames=11, batch=4)
    clean = model.encoded
    frames = np.arange(clean.shape[1])
    for fuse in (False, True):
        model.encoded = np.where((frames < np.array(lengths)[:, None])[..., None], clean, np.nan)
        together = found_by(search, model, lengths, fuse)
        for row, length in enumerate(lengths):
            if length == 0:
                assert n_best(together, row) == [((), 0.0, ())]
                continue
            model.encoded = clean[row : row + 1, :length]
            alone = found_by(search, model, fuse=fuse)
            for a, b in zip(n_best(together, row), n_best(alone), strict=True):
                assert a[::2] == b[::2]
                # Products of other shapes round otherwise: some four roundings (2^-23) in each of up to ten logarithms,
                # of logits up to 4.
                np.testing.assert_allclose(a[1], b[1], rtol=0, atol=10 * 4 * 4 * 2**-23)
    model.encoded = clean


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", SEARCHES)
def test_chunks_give_what_the_whole_gives(name, fuse):
    search = SEARCHES[name]
    model = oracles.Model(seed=4, classes=5, frames=12, batch=3)
    fusion = model.fusion if fuse else None
    encoded, lengths = jnp.asarray(model.encoded), np.array([12, 8, 3])
    mask = jnp.asarray(np.arange(12) < lengths[:, None])
    whole = decode(search, model.decodable, encoded, mask, fusion=fusion)
    for cuts in ((4, 8), (1, 2, 7)):
        state = start(search, model.decodable, 3, fusion=fusion)
        seen = 0
        for a, b in itertools.pairwise((0, *cuts, 12)):
            chunk, real = encoded[:, a:b], mask[:, a:b]
            # An encoder with a look-ahead begins with frames that are none.
            chunk, real = jnp.pad(chunk, ((0, 0), (2, 0), (0, 0))), jnp.pad(real, ((0, 0), (2, 0)))
            state = decode_step(search, model.decodable, chunk, real, state, fusion=fusion)
            labels = n_best(hypotheses(state))[0][0]
            if name.startswith("greedy"):  # what has been said stays
                assert len(labels) >= seen
                seen = len(labels)
        np.testing.assert_array_equal(state.clock, lengths)
        jax.tree.map(np.testing.assert_array_equal, hypotheses(state), whole)


def test_a_fusion_without_opinions_changes_nothing():
    model = oracles.Model(seed=5, classes=5, frames=10)
    zero = dataclasses.replace(model.fusion, step=_no_opinion)
    for search in SEARCHES.values():
        args = (search, model.decodable, jnp.asarray(model.encoded), jnp.ones((1, 10), bool))
        with_it, without = decode(*args, fusion=zero), decode(*args)
        jax.tree.map(np.testing.assert_array_equal, with_it, without)
        with_opinions = decode(*args, fusion=model.fusion)
        assert not np.array_equal(with_opinions.scores, without.scores)


def _no_opinion(params, labels, state):
    return jnp.zeros((len(labels), len(params))), state


def test_greedy_listens_to_fusion():
    model = oracles.Model(seed=6, classes=5, frames=6)
    never = dataclasses.replace(model.fusion, step=_never)
    args = (Greedy(max_labels=9, max_symbols=2), model.decodable, jnp.asarray(model.encoded), jnp.ones((1, 6), bool))
    assert int(decode(*args).lengths[0, 0]) > 0
    # The blank's own column is not read.
    assert int(decode(*args, fusion=never).lengths[0, 0]) == 0


def _never(params, labels, state):
    return jnp.full((len(labels), len(params)), -jnp.inf), state


@pytest.mark.parametrize("name", ["modified", "expansion"])
def test_another_blank(name):
    # Classes turned by one: the blank is the last of them. The model reads it as its start.
    model = oracles.Model(seed=7, classes=4, frames=6)
    turned = {
        **model.params,
        "table": np.roll(model.params["table"], -1, axis=0),
        "out": np.roll(model.params["out"], -1, axis=1),
        "bias": np.roll(model.params["bias"], -1),
    }
    other = dataclasses.replace(SEARCHES[name], blank=3)
    args = (jnp.asarray(model.encoded), jnp.ones((1, 6), bool))
    expected = decode(SEARCHES[name], model.decodable, *args)
    found = decode(other, dataclasses.replace(model.decodable, params=turned), *args)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    inside = np.arange(7) < np.asarray(expected.lengths)[..., None]
    np.testing.assert_array_equal(np.asarray(found.tokens)[inside], np.asarray(expected.tokens)[inside] - 1)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=1e-6)


def test_new_weights_compile_nothing():
    search = ModifiedBeam(max_labels=4, beam=2)
    before = None
    for seed in range(3):
        model = oracles.Model(seed, classes=4, frames=5)
        found_by(search, model)
        count = decode_step._cache_size()
        assert before in (None, count)
        before = count


def test_wrong_arguments_are_refused():
    for wrong, message in [
        (lambda: Greedy(max_labels=0, max_symbols=1), "max_labels: 0; at least 1"),
        (lambda: Greedy(max_labels=1, max_symbols=0), "max_symbols: 0; at least 1"),
        (lambda: Greedy(max_labels=1, max_symbols=2, monotonic=True), "max_symbols: 2; 1 is needed with monotonic"),
        (lambda: ModifiedBeam(max_labels=1, beam=0), "beam: 0; at least 1"),
        (lambda: ModifiedBeam(max_labels=1, beam=1, blank=-1), "blank: -1; an index from 0 on"),
        (lambda: ExpansionBeam(max_labels=1, beam=1, max_symbols=0), "max_symbols: 0; at least 1"),
        (lambda: ExpansionBeam(max_labels=1, beam=1, max_symbols=1, gamma=-1.0), "gamma: -1.0; 0 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
    model = oracles.Model(0, classes=4, frames=2)
    with pytest.raises(ValueError, match="blank: 4; the index of one of the 4 classes"):
        found_by(Greedy(max_labels=1, max_symbols=1, blank=4), model)
