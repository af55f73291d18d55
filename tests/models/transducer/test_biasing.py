"""Biasing: what an attention over phrases says, against a plain loop, and that nothing is said of no phrases."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.transducer import biased, biasing
from models.transducer.biasing import BiasingConfig
from models.transducer.biasing_attention import BiasingAttention
from models.transducer.decode import ModifiedBeam, decode
from models.transducer.guidance import missed_by_frames
from models.transducer.lstm import LstmConfig
from models.transducer.model import TransducerConfig, transducer
from models.transducer.phrases import HISTORY, furthest, recent, said
from models.transducer.predictor import StatelessConfig
from models.transducer.task import TransducerTask
from zojax.estimators import chain, spsa
from zojax.trees import merge, split

RNG = np.random.default_rng(0)
PHRASES = jnp.asarray(RNG.normal(size=(2, 5, 6)), jnp.float32)
MASK = jnp.asarray([[True] * 5, [True, False, True, False, False]])
X = jnp.asarray(RNG.normal(size=(2, 4, 8)), jnp.float32)
ATTENTION = BiasingAttention(8, 6, 4, 2)


@pytest.fixture(scope="module")
def attention():
    """Parameters all of which do something."""
    params = ATTENTION.init(jax.random.key(0), X, PHRASES, MASK)["params"]
    return jax.tree.map(lambda w: w + 0.3 * jnp.asarray(RNG.normal(size=w.shape), w.dtype), params)


def bias(params, x, phrases, mask):
    return ATTENTION.apply({"params": params}, x, phrases, mask)


def by_hand(params, x, phrases, mask):
    """The docstring's formula for one row and one frame, in float64."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    phrases = np.asarray(phrases, np.float64)[np.asarray(mask)]
    x = np.asarray(x, np.float64)
    query = x @ p["query"]["kernel"] + p["query"]["bias"]
    keys, values = (phrases @ p[name]["kernel"] + p[name]["bias"] for name in ("key", "value"))
    found = []
    for head, part in enumerate((slice(0, 2), slice(2, 4))):
        scores = np.array([query[part] @ k for k in (p["no_bias"][head], *keys[:, part])]) / np.sqrt(2)
        alpha = np.exp(scores) / np.exp(scores).sum()
        found.append(sum((a * v for a, v in zip(alpha[1:], values[:, part], strict=True)), np.zeros(2)))
    found = np.concatenate(found)
    gate = 1 / (1 + np.exp(-(np.concatenate([x, found]) @ p["gate"]["kernel"] + p["gate"]["bias"])))
    return gate * (found @ p["output"]["kernel"])


def test_the_bias_is_that_of_the_formula(attention):
    found = bias(attention, X, PHRASES, MASK)
    for row in range(2):
        for frame in range(4):
            wanted = by_hand(attention, X[row, frame], PHRASES[row], MASK[row])
            np.testing.assert_allclose(found[row, frame], wanted, rtol=1e-5, atol=1e-6)  # float32 against float64


def test_it_starts_from_nothing_and_says_nothing_of_no_phrases(attention):
    fresh = ATTENTION.init(jax.random.key(0), X, PHRASES, MASK)["params"]
    assert not np.any(bias(fresh, X, PHRASES, MASK))
    # Exactly nothing: of no phrase at all, and of phrases that are all masked.
    assert not np.any(bias(attention, X, PHRASES[:, :0], MASK[:, :0]))
    assert not np.any(bias(attention, X, PHRASES, jnp.zeros_like(MASK)))


def test_masked_phrases_may_hold_anything(attention):
    other = jnp.where(MASK[..., None], PHRASES, 1e3)
    np.testing.assert_array_equal(bias(attention, X, PHRASES, MASK), bias(attention, X, other, MASK))


def test_rows_share_catalogues_in_their_order(attention):
    """As hypotheses in a search: rows 0 and 1 have the first catalogue, rows 2 and 3 the second."""
    memory = ATTENTION.apply({"params": attention}, PHRASES, MASK, method="remember")
    flat = X[:, :2].reshape(4, 8)
    shared = ATTENTION.apply({"params": attention}, flat, memory, method="bias")
    np.testing.assert_allclose(shared.reshape(2, 2, 8), bias(attention, X[:, :2], PHRASES, MASK), rtol=1e-6)
    with pytest.raises(ValueError, match="2 catalogues for 3 rows"):
        ATTENTION.apply({"params": attention}, flat[:3], memory, method="bias")


WORDS = StatelessConfig(vocab_size=7, embedding=4)
CONFIG = TransducerConfig(encoder=LstmConfig(d_in=4, layers=1, hidden=6), predictor=WORDS, joint=8)
BATCH = {
    "features": jnp.asarray(RNG.normal(size=(2, 24, 4)), jnp.float32),
    "frame_lengths": jnp.array([24, 18]),
    "labels": jnp.array([[1, 2, 3], [4, 5, 0]]),
    "label_lengths": jnp.array([3, 2]),
    "weight": jnp.ones(2),
}
CATALOGUE = {
    "pieces": jnp.array([[1, 2, 3], [4, 6, 0], [5, 0, 0]]),
    "characters": jnp.array([[9, 8, 7, 6], [5, 4, 0, 0], [256, 1, 1, 0]]),
    "starts": jnp.array([[0, 1, 3], [0, 1, 0], [0, 0, 0]]),
    "meaning": jnp.asarray(RNG.normal(size=(3, 5)), jnp.float32),
    "unit_meaning": jnp.asarray(RNG.normal(size=(7, 5)), jnp.float32),
    "rows": jnp.array([[0, 1, 2], [2, -1, 0]]),
}
NOBODY = CATALOGUE | {"rows": jnp.full((2, 3), -1)}


class Run(NamedTuple):
    """A transducer with adapters that do something, and its programs, compiled once."""

    biasing: BiasingConfig
    task: TransducerTask
    params: Any
    fresh: Any
    loss: Any
    remember: Any


@pytest.fixture(scope="module", params=[False, True], ids=["phrases", "positions"])
def run(request):
    biasing = BiasingConfig(
        acoustic=True, semantic=True, positions=request.param, embedding=4, hidden=3, width=8, heads=2, meaning=5
    )
    task = TransducerTask(config=CONFIG, biasing=biasing)
    fresh = task.init(jax.random.key(0))
    moved = jax.tree.map(lambda w: w + 0.5 * RNG.normal(size=w.shape).astype(np.float32), fresh["biasing"])
    loss = jax.jit(lambda params, batch: task.loss(params, batch)[0])
    kept = jax.jit(lambda params, catalogue: biased.remember(CONFIG, biasing, params, catalogue))
    return Run(biasing, task, fresh | {"biasing": moved}, fresh, loss, kept)


def test_it_starts_as_the_base_model_and_is_it_where_no_phrase_is_listed(run):
    """To the last bit: with new adapters and any list, and with trained ones and none."""
    base = TransducerTask(config=CONFIG)
    own = {name: leaf for name, leaf in run.params.items() if name != "biasing"}
    wanted = jax.jit(lambda params, batch: base.loss(params, batch)[0])(own, BATCH)
    assert run.loss(run.fresh, BATCH | {"catalogue": CATALOGUE}) == wanted
    assert run.loss(run.params, BATCH | {"catalogue": NOBODY}) == wanted
    assert run.loss(run.params, BATCH | {"catalogue": CATALOGUE}) != wanted


def test_each_reading_of_a_phrase_counts_and_the_order_of_a_list_does_not(run):
    whole = run.loss(run.params, BATCH | {"catalogue": CATALOGUE})
    for name in ("pieces", "characters", "meaning", "unit_meaning"):
        other = CATALOGUE | {name: jnp.flip(CATALOGUE[name], axis=0)}
        assert run.loss(run.params, BATCH | {"catalogue": other}) != whole, name
    turned = CATALOGUE | {"rows": jnp.array([[2, 0, 1], [0, 2, -1]])}
    # Sums in another order.
    np.testing.assert_allclose(run.loss(run.params, BATCH | {"catalogue": turned}), whole, rtol=1e-5)


def test_what_fills_phrases_up_is_not_read(run):
    wider = {name: jnp.pad(CATALOGUE[name], ((0, 0), (0, 3))) for name in ("pieces", "characters", "starts")}
    memories, wanted = (run.remember(run.params, catalogue) for catalogue in (CATALOGUE | wider, CATALOGUE))
    frames = jnp.asarray(RNG.normal(size=(2, 6, 8)), jnp.float32)
    found = [biased.bias_frames(CONFIG, run.biasing, run.params, frames, kept) for kept in (memories, wanted)]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)  # sums in another order


def test_where_phrases_are_said():
    """Against a plain search, with two labels, so that phrases overlap, repeat themselves and hold one another."""
    rng = np.random.default_rng(3)
    labels = np.where(np.arange(12) < rng.integers(0, 13, (6, 1)), rng.integers(1, 3, (6, 12)), 0)
    pieces = np.where(np.arange(4) < rng.integers(0, 5, (5, 1)), rng.integers(1, 3, (5, 4)), 0)
    rows = rng.integers(-1, 5, (6, 7))
    found, wanted = np.asarray(said(*map(jnp.asarray, (labels, pieces, rows)))), np.zeros((6, 13, 7, 4), bool)
    for b, k in np.ndindex(rows.shape):
        phrase = [piece for piece in pieces[rows[b, k]] if piece] if rows[b, k] >= 0 else []
        for start in range(13 - len(phrase)):
            if phrase and list(labels[b, start : start + len(phrase)]) == phrase:
                wanted[b, np.arange(start, start + len(phrase)), k, np.arange(len(phrase))] = True
    np.testing.assert_array_equal(found, wanted)
    assert wanted.any()


def test_how_far_phrases_have_been_written():
    """Against the definition, with two labels, so that phrases overlap; a long one is known by its last labels."""
    rng = np.random.default_rng(4)
    listed = np.where(np.arange(12) < rng.integers(0, 13, (2, 9, 1)), rng.integers(1, 3, (2, 9, 12)), 0)
    labels = np.concatenate([listed[:, 0], rng.integers(1, 3, (2, 6))], axis=1)
    found = np.asarray(furthest(recent(jnp.asarray(labels)), jnp.asarray(listed)))
    for b, v, k in np.ndindex(found.shape):
        wanted = 0
        for i in range(1, np.sum(listed[b, k] > 0)):
            before, last = listed[b, k, max(i - HISTORY, 0) : i], labels[b, max(v - min(i, HISTORY), 0) : v]
            wanted = i if list(before) == list(last) else wanted
        assert found[b, v, k] == wanted


def test_of_many_phrases_that_were_begun_those_count_of_which_most_is_written(run, monkeypatch):
    """A bound that leaves none out changes nothing; one phrase alone is the furthest."""
    sides = (
        *(jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((1, 6, 8), (1, 4, 8))),
        jnp.array([[1, 2, 3]]),
    )

    def symbols(pieces, rows, bound):
        monkeypatch.setattr(biasing, "BEGUN", bound)
        catalogue = CATALOGUE | {"pieces": jnp.asarray(pieces), "rows": jnp.asarray([rows])}
        frames, plain, labels = sides
        mask, counts = jnp.ones((1, 6), bool), jnp.array([3])
        return biased.bias(CONFIG, run.biasing, run.params, catalogue, frames, mask, plain, labels, counts)[1]

    pieces = [[1, 2, 4], [2, 5, 0], [6, 1, 0]]
    whole = symbols(pieces, [0, 1, 2], 32)
    np.testing.assert_array_equal(whole, symbols(pieces, [0, 1, 2], 2))
    if run.biasing.positions:
        # After 1, 2 the first phrase and the second are begun, the first further.
        one = symbols(pieces, [0, 1, 2], 1)
        np.testing.assert_array_equal(one[0, [0, 1, 3]], whole[0, [0, 1, 3]])
        assert not np.allclose(one[0, 2], whole[0, 2], atol=1e-3)
        # As if the second were another phrase that begins like it.
        other = [[1, 2, 4], [2, 6, 0], [6, 1, 0]]
        assert not np.allclose(whole[0, 2], symbols(other, [0, 1, 2], 32)[0, 2], atol=1e-4)


def test_what_frames_miss_is_the_mass_of_all_other_paths():
    """Against all paths of four frames over two keys and none; the second row ends in padding."""
    log_alpha = jax.nn.log_softmax(jnp.asarray(RNG.normal(size=(2, 4, 3)), jnp.float32))
    mask, counts = jnp.array([[True] * 4, [True] * 3 + [False]]), jnp.array([3, 1])
    right = np.zeros((2, 5, 2), bool)
    right[0, 0, 1] = right[0, 2, 0] = right[1, 0, 0] = right[1, 3, 1] = True
    found = missed_by_frames(log_alpha, mask, jnp.asarray(right), counts)
    for row, (frames, wanted) in enumerate([(4, [2, 1]), (3, [1])]):
        mass = 0.0
        for path in itertools.product(range(3), repeat=frames):
            if [key for key, _ in itertools.groupby(path) if key] == wanted:
                mass += np.exp(sum(float(log_alpha[row, t, key]) for t, key in enumerate(path)))
        np.testing.assert_allclose(found[row], -np.log(mass), rtol=1e-5)
    # Two keys need two frames, and a key that comes twice in a row three.
    right[0, 2] = right[0, 0]
    short = [
        missed_by_frames(log_alpha, jnp.broadcast_to(jnp.arange(4) < n, (2, 4)), jnp.asarray(right), counts)[0]
        for n in (2, 3)
    ]
    assert short[0] == 0 < short[1] < 100


def test_the_predictor_is_guided_to_beginnings_and_to_what_goes_on(run, monkeypatch):
    """Of two phrases that are said, one within the other, by the keys that attention has."""
    kept = []
    monkeypatch.setattr(biasing, "missed_by_symbols", lambda _, right, counts: kept.append(right) or 0.0 * counts)
    catalogue = CATALOGUE | {"pieces": jnp.array([[1, 2, 3], [2, 3, 0], [5, 0, 0]]), "rows": jnp.array([[0, 1, 2]])}
    frames, symbols = jnp.zeros((1, 6, 8)), jnp.zeros((1, 4, 8))
    sides = frames, jnp.ones((1, 6), bool), symbols, jnp.array([[1, 2, 3]]), jnp.array([3])
    biased.bias(CONFIG, run.biasing, run.params, catalogue, *sides)
    found = [np.flatnonzero(now).tolist() for now in np.asarray(kept[0][0])]
    # Three first positions, then those that were reached, the furthest first; without positions, phrases as they last.
    assert found == ([[0], [1, 3], [3, 4], []] if run.biasing.positions else [[0], [0, 1], [0, 1], []])


def test_guidance_costs_what_attention_does_not_give_to_what_is_said(run):
    task = dataclasses.replace(run.task, guidance=0.5)
    loss = jax.jit(lambda params, batch: task.loss(params, batch)[0])
    encoded = transducer(CONFIG)
    frames, mask = encoded.apply(
        {"params": run.params}, *task.features({k: v for k, v in BATCH.items() if k != "weight"}), method="encode"
    )
    symbols = encoded.apply({"params": run.params}, BATCH["labels"], method="predict")
    said_here = CATALOGUE | {"pieces": jnp.array([[1, 2, 3], [2, 3, 0], [5, 0, 0]])}
    sides = frames, mask, symbols, BATCH["labels"], BATCH["label_lengths"]
    for catalogue in (said_here, CATALOGUE, NOBODY):
        nats = biased.bias(CONFIG, run.biasing, run.params, catalogue, *sides)[2]
        wanted = 0.5 * np.mean(nats / BATCH["label_lengths"])
        whole = BATCH | {"catalogue": catalogue}
        np.testing.assert_allclose(loss(run.params, whole) - run.loss(run.params, whole), wanted, rtol=1e-4, atol=3e-6)
        # With nothing to attend to, attention to nothing is right; with something, moved weights are never.
        assert (wanted > 0.01) != (catalogue is NOBODY)
    with pytest.raises(ValueError, match=r"guidance is 0\.5; 0, or more with biasing"):
        TransducerTask(config=CONFIG, guidance=0.5)


def test_a_search_meets_what_training_has(run):
    """Frames, and the outputs of two hypotheses an utterance, are those of the loss."""
    memories = run.remember(run.params, CATALOGUE)
    plain = jnp.asarray(RNG.normal(size=(2, 6, 8)), jnp.float32)
    symbols = transducer(CONFIG).apply({"params": run.params}, BATCH["labels"], method="predict")
    train = jax.jit(lambda *sides: biased.bias(CONFIG, run.biasing, run.params, CATALOGUE, *sides))
    wanted = train(plain, jnp.ones((2, 6), bool), symbols, BATCH["labels"], BATCH["label_lengths"])
    frames = biased.bias_frames(CONFIG, run.biasing, run.params, plain, memories)
    np.testing.assert_allclose(frames, wanted[0], rtol=1e-5, atol=1e-5)  # float32 in another order
    model = biased.biased_decodable(CONFIG, run.biasing, run.params, memories)
    state, step = model.initial_state(4), jax.jit(lambda labels, state: model.predict(labels, state))
    for u, labels in enumerate(np.pad(BATCH["labels"], ((0, 0), (1, 0))).T):
        symbols, state = step(jnp.repeat(jnp.asarray(labels), 2), state)
        real = u <= np.asarray(BATCH["label_lengths"])
        np.testing.assert_allclose(symbols[::2][real], wanted[1][real, u], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(symbols[::2], symbols[1::2])


def test_each_utterance_of_a_batch_is_led_by_its_own_list(run):
    frames, mask = jnp.asarray(RNG.normal(size=(2, 6, 8)), jnp.float32), jnp.ones((2, 6), bool)
    search = ModifiedBeam(max_labels=8, beam=3)

    def found(frames, rows):
        memories = run.remember(run.params, CATALOGUE | {"rows": rows})
        model = biased.biased_decodable(CONFIG, run.biasing, run.params, memories)
        return decode(search, model, biased.bias_frames(CONFIG, run.biasing, run.params, frames, memories), mask)

    rows = CATALOGUE["rows"]
    both = found(frames, rows)
    turned = found(frames[::-1], rows[::-1])
    np.testing.assert_array_equal(both.tokens, turned.tokens[::-1])
    np.testing.assert_allclose(both.log_probs, turned.log_probs[::-1], rtol=1e-5)
    others = found(frames, rows[::-1])
    assert not np.allclose(others.log_probs[:, 0], both.log_probs[:, 0], rtol=1e-4)


def test_adapters_move_by_probes_while_the_base_stays(run):
    trainable, frozen = split(run.params, ("^biasing/heard/output/",))
    batch = BATCH | {"catalogue": CATALOGUE}

    def value(params):
        return run.task.loss(merge(params, frozen), batch)[0]

    probes = chain(spsa(1e-3, key=jax.random.key(0)), optax.sgd(1e-3))

    @jax.jit
    def steps(params):
        def step(carry, _):
            params, state = carry
            updates, state = probes.update(None, state, params, value_fn=value)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, probes.init(params)), length=60)[0][0]

    moved = merge(steps(trainable), frozen)
    assert run.loss(moved, batch) < run.loss(run.params, batch)
    assert {k for k in moved if not jax.tree.all(jax.tree.map(jnp.array_equal, moved[k], run.params[k]))} == {"biasing"}
