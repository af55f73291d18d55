"""A transducer with dual attention as a task: what it pays, what chooses, and that its streams are its wholes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.transducer.lstm import LstmConfig
from models.transducer.model import TransducerConfig
from models.transducer.predictor import StatelessConfig
from models.transducer.task import TransducerTask
from models.transducer.wake_word import WakeWordConfig, jittered
from models.transducer.wake_word_task import WakeWordTask
from zojax.metrics import runs

RNG = np.random.default_rng(0)
WORDS = StatelessConfig(vocab_size=5, embedding=3)
CONFIG = TransducerConfig(encoder=LstmConfig(d_in=2, stack=2, layers=1, hidden=4), predictor=WORDS, joint=6)
WAKE = WakeWordConfig(width=6, classes=5, embedding=3, hidden=2, small=2, large=4, spotter=3, least=1, block=4)
TASK = WakeWordTask(config=CONFIG, wake=WAKE, chunk=3, jitter=2, spotting=0.5)
PHRASES = {"wake": jnp.array([[1, 2]]), "catalogue": jnp.array([[3, 1, 2], [4, 0, 0]])}
BATCH = {
    "features": jnp.asarray(RNG.normal(size=(3, 12, 2)), jnp.float32),
    "frame_lengths": jnp.array([12, 9, 12], jnp.int32),
    "labels": jnp.array([[1, 2], [3, 0], [2, 2]], jnp.int32),
    "label_lengths": jnp.array([2, 1, 2], jnp.int32),
    "weight": jnp.array([1.0, 1.0, 0.0], jnp.float32),
    "phrases": PHRASES,
}
SPANS = jnp.array([[4, 8], [0, 0], [0, 12]], jnp.int32)
INSIDE = np.array([[0, 0, 1, 1, 0, 0], [0] * 6, [1] * 6], bool)

evaluate = jax.jit(TASK.evaluate)
encode = jax.jit(TASK.encode)


@pytest.fixture(scope="module")
def fresh():
    return jax.jit(TASK.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def params(fresh):
    """Parameters all of which do something, and a spotter that is of two minds."""
    noisy = jax.tree.map(lambda w: np.asarray(w + 0.3 * RNG.normal(size=w.shape), np.float32), jax.device_get(fresh))
    noisy["wake"]["spotter"]["out"]["linear"]["kernel"] *= 20
    logits = np.asarray(jax.jit(lambda p: TASK._sides(p, BATCH, None, None)[4][0])(noisy))
    noisy["wake"]["spotter"]["out"]["linear"]["bias"] -= np.median(logits[:2, :4])
    return noisy


def test_it_starts_as_the_transducer_that_it_was(fresh):
    base = TransducerTask(config=CONFIG, chunk=3)
    own = {name: fresh[name] for name in ("encoder", "predictor", "joiner")}
    wanted = jax.jit(base.evaluate)(own, BATCH)
    found = evaluate(fresh, BATCH)
    assert {name: float(found[name][0]) for name in wanted} == {name: float(wanted[name][0]) for name in wanted}
    for one, other in zip(
        *(jax.tree.leaves(tree) for tree in (jax.jit(base.init)(jax.random.key(0)), own)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_an_utterance_pays_for_its_spotter(params):
    """Without jitter (no key): half the mean cross-entropy of the frames, on top of the nats a label."""
    batch = BATCH | {"spans": SPANS}
    free = dataclasses.replace(TASK, spotting=0.0)
    both = jax.jit(lambda p: (TASK.loss(p, batch)[0], free.loss(p, batch)[0], TASK._sides(p, batch, None, None)[4][0]))
    paid, unpaid, logits = (np.asarray(x, np.float64) for x in both(params))
    nats = np.where(INSIDE, np.logaddexp(0, -logits), np.logaddexp(0, logits))
    per_row = [nats[0].mean(), nats[1, :4].mean()]  # 9 frames are 4 of the encoder's, and a rest
    np.testing.assert_allclose(paid - unpaid, 0.5 * np.mean(per_row), rtol=1e-4)  # a difference of float32 losses
    metrics = evaluate(params, batch)
    np.testing.assert_allclose(metrics["spotter"][0], nats[0].sum() + nats[1, :4].sum(), rtol=1e-5)
    assert float(metrics["spotter"][1]) == float(metrics["inside"][1]) == 10
    heard = np.concatenate([logits[0] > 0, logits[1, :4] > 0])
    assert float(metrics["inside"][0]) == heard.sum()
    assert 0 < heard.sum() < 10


def test_spans_choose_in_training_and_not_elsewhere(params):
    """The branch of a frame tells whose output weights have a gradient."""

    @jax.jit
    def gradients(params, spans):
        made = jax.grad(lambda wake: TASK.loss(params | {"wake": wake}, BATCH | {"spans": spans})[0])(params["wake"])
        return {name: jnp.abs(made[name]["output"]["kernel"]).sum() for name in ("small", "large")}

    none, all_of_them = jnp.zeros((3, 2), jnp.int32), jnp.array([[0, 12]] * 3)
    for spans, small, large in ((none, False, True), (all_of_them, True, False), (SPANS, True, True)):
        found = gradients(params, spans)
        assert (float(found["small"]) > 0, float(found["large"]) > 0) == (small, large)
    # Of an evaluation they change what the spotter is judged by alone.
    one, other = (evaluate(params, BATCH | {"spans": spans}) for spans in (all_of_them, SPANS))
    assert float(one["loss"][0]) == float(other["loss"][0])
    assert float(one["spotter"][0]) != float(other["spotter"][0])


def test_jitter_moves_what_chooses_and_what_is_learnt_alike(params):
    sides = jax.jit(lambda p, key: TASK._sides(p, BATCH | {"spans": SPANS}, key, None)[4][1])
    drawn = [np.asarray(sides(params, jax.random.key(n))) for n in range(8)]
    assert len({x.tobytes() for x in drawn}) > 3
    assert not any(x[1].any() for x in drawn)
    wanted = jittered(SPANS / 2, 6, jax.random.fold_in(jax.random.key(3), 2), jitter=2)
    np.testing.assert_array_equal(drawn[3], wanted)


def test_streams_are_the_wholes(params):
    known = jax.jit(TASK.with_catalogue)(params, PHRASES)
    frames, mask = encode(params, BATCH)
    np.testing.assert_allclose(encode(known, BATCH | {"phrases": None})[0], frames, rtol=1e-5, atol=1e-6)
    hears = np.asarray(jax.jit(TASK.hears)(params, BATCH))
    assert 0 < hears[mask].mean() < 1
    assert not np.any(hears[~np.asarray(mask)])
    x, real = TASK.features(BATCH)
    state, parts = TASK.stream_state(known, 3), []
    step = jax.jit(TASK.encode_step)
    for start in range(0, 12, 4):
        y, _, state = step(known, x[:, start : start + 4], real[:, start : start + 4], state)
        parts.append(y)
    streamed = np.concatenate(parts, axis=1)
    said = [
        len(runs(row[real_row].tolist(), WAKE.least)) for row, real_row in zip(hears, np.asarray(mask), strict=True)
    ]
    assert state[1].said.tolist() == said
    assert max(said) > 0
    # Row 2 has no weight: `features` silences it, and its mask is True.
    np.testing.assert_allclose(streamed[mask], frames[mask], rtol=1e-5, atol=1e-6)  # float32, products of other shapes
    assert TASK.encode_flush(known, state)[0].shape == (3, 0, 6)
    bare = jax.jit(functools.partial(TransducerTask.encode, TASK))(params, BATCH)[0]
    assert np.abs(frames - bare)[mask].max() > 0.01  # it does bias


def test_without_phrases_it_is_the_transducer(params):
    bare = jax.jit(functools.partial(TransducerTask.encode, TASK))(params, BATCH)[0]
    none = {name: value for name, value in BATCH.items() if name != "phrases"}
    np.testing.assert_array_equal(encode(params, none)[0], bare)
    empty = jax.jit(TASK.with_catalogue)(params, {"wake": jnp.zeros((0, 1), int), "catalogue": jnp.zeros((0, 3), int)})
    np.testing.assert_array_equal(encode(empty, none)[0], bare)


def test_a_single_attention_has_no_spotter(params):
    task = dataclasses.replace(TASK, wake=dataclasses.replace(WAKE, single=True))
    own = params | {"wake": {name: params["wake"][name] for name in ("large", "phrases")}}
    both = jax.jit(lambda p: (task.loss(p, BATCH | {"spans": SPANS}), task.loss(p, BATCH)))(own)
    assert float(both[0][0]) == float(both[1][0])
    assert "spotter" not in jax.eval_shape(task.evaluate, own, BATCH | {"spans": SPANS})
    assert not np.any(jax.jit(task.hears)(own, BATCH))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jitter": -1}, "jitter is -1; it must be 0 or more"),
        ({"wake": dataclasses.replace(WAKE, width=7)}, "wake.width is 7; it must be 6"),
        ({"wake": dataclasses.replace(WAKE, classes=9)}, "wake.classes is 9; it must be 5"),
    ],
)
def test_fields_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TASK, **change)
