"""ANCAT: its attention against float64, its streams against the whole, frames that come out when they may, its task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.transducer.ancat import Ancat, AncatConfig, LookAhead, ancat_encoder
from models.transducer.combine import STACKED
from models.transducer.fusion import FusionConfig
from models.transducer.lookahead import LookAheadLoss, waits_for
from models.transducer.lstm import LstmConfig
from models.transducer.model import TransducerConfig, transducer
from models.transducer.predictor import StatelessConfig
from models.transducer.task import TransducerTask
from tests.models.transducer import oracles
from tests.models.transducer.streams import Run, lengths_mask, random_chunks, variables
from zojax.perturb import Perturbed, PerturbSpec

# float32 against float32 or float64: sums in another order, of numbers near 1.
TOLERANCE = 1e-5

CONFIG = AncatConfig(d_in=4, channels=2, width=8, layers=3, heads=2, kernel=3, left=3, reach=4, expansion=2)
FRAMES, ROWS = 80, 3
LENGTHS = [80, 53, 24]


def span_of(encoder):
    return encoder["blocks"]["stacked"]["attention"]["span"]


def with_span(encoder, span):
    stacked = encoder["blocks"]["stacked"]
    return encoder | {"blocks": {"stacked": stacked | {"attention": stacked["attention"] | {"span": span}}}}


def lively(encoder):
    """Spans that differ from frame to frame: those of random weights are all near R / 2."""
    span = span_of(encoder)
    return with_span(encoder, span | {"kernel": 8 * span["kernel"]})


@pytest.fixture(scope="module")
def run():
    run = Run(ancat_encoder(CONFIG), FRAMES, rows=ROWS, seed=2)
    run.x = 4 * run.x
    run.variables = {"params": lively(run.variables["params"])}
    return run


@pytest.fixture(scope="module")
def looked(run):
    """(frames, spans, the frame that each waits for), of each row's own frames."""
    mask = jnp.asarray(lengths_mask(FRAMES, LENGTHS))
    look = jax.jit(lambda v, x: run.layer.apply(v, x, mask, method="look"))
    y, valid, spans = map(np.asarray, look(run.variables, run.x))
    counts = valid.sum(1)
    assert counts.tolist() == [length // 4 for length in LENGTHS]
    waits = np.asarray(waits_for(jnp.asarray(spans), jnp.asarray(counts)))
    return [(y[row, :n], spans[row, :, :n], waits[row, :n]) for row, n in enumerate(counts)]


def test_spans_differ(looked):
    """Or the tests below would show little."""
    assert all(len(np.unique(layer)) >= 3 for layer in np.floor(looked[0][1]))
    late = looked[0][2] - np.arange(20)
    assert len(np.unique(late)) >= 8
    assert late.max() < CONFIG.layers * CONFIG.reach


def test_a_stream_is_the_call(run, looked):
    """Over random chunks, ragged rows, with the state saved and restored midway."""
    rng = np.random.default_rng(1)
    mask = lengths_mask(FRAMES, LENGTHS)
    whole = run.whole(run.x, mask)
    for (y, _, _), one in zip(looked, whole, strict=True):
        np.testing.assert_allclose(y, one, atol=TOLERANCE, rtol=TOLERANCE)
    for _ in range(4):
        chunks = random_chunks(FRAMES, rng)
        got = run.stream(run.x, mask, chunks, save_at=len(chunks) // 2)
        for one, other in zip(got, whole, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_frame_comes_out_when_its_look_ahead_has_come_and_not_later(run, looked):
    state, there = run.layer.initial_state(ROWS), [[] for _ in range(ROWS)]
    mask = lengths_mask(FRAMES + 4, LENGTHS)
    x = np.pad(run.x, ((0, 0), (0, 4), (0, 0)))
    for step in range(FRAMES // 4 + 1):
        at = slice(4 * step, 4 * step + 4)
        _, valid, state = run._step(run.variables, x[:, at], mask[:, at], state)
        for row, count in enumerate(np.asarray(valid).sum(1)):
            there[row] += [step] * int(count)
    for (_, _, waits), times in zip(looked, there, strict=True):
        last = len(times) - 1
        assert len(times) == len(waits)
        # A frame that sees the last may see further: it cannot know that this is the end before the frame behind it.
        for time, wait in zip(times, waits, strict=True):
            assert time == wait or (wait == last and time == last + 1)
        assert times[0] < last


def test_no_frame_sees_more_than_it_waits_for(run, looked):
    """Input frames behind it change nothing; the last that it waits for changes most of the frames that wait for it."""
    mask, waits = lengths_mask(FRAMES, [FRAMES] * ROWS), looked[0][2]
    before, moved = run.whole(run.x, mask)[0], set()
    for n in range(1, 20):
        x = run.x.copy()
        x[0, 4 * n + 3] += np.linspace(-1, 2, 4)
        changed = set(np.flatnonzero(np.abs(run.whole(x, mask)[0] - before).max(axis=-1) > 0).tolist())
        assert all(waits[j] >= n for j in changed)
        moved |= {j for j in changed if waits[j] == n}
    assert len(moved) > 10


def layer_of(seed=0):
    layer = LookAhead(8, 2, 2, 3, 0.0)
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(1, 9, 8)), jnp.float32)
    made = variables(layer, x, jnp.ones((1, 9), bool), None, method="look")["params"]
    return layer, x, made | {"span": made["span"] | {"kernel": 4 * made["span"]["kernel"]}}


def normed(x, params):
    return np.array([oracles.layer_norm(row, params["norm"]["scale"], params["norm"]["bias"]) for row in x])


def test_attention_sees_what_its_spans_say():
    layer, x, params = layer_of()
    y, spans = layer.apply({"params": params}, x, jnp.ones((1, 9), bool), None, method="look")
    h = normed(np.asarray(x[0], np.float64), oracles.float64(params))
    wide = oracles.float64(params)
    r = 3 * oracles.sigmoid(h @ wide["span"]["kernel"][:, 0] + wide["span"]["bias"])
    np.testing.assert_allclose(spans[0], r, rtol=TOLERANCE)
    assert len(np.unique(np.floor(r))) > 1
    want = oracles.attention(h, wide["attention"], 2, lambda i, j: i - 2 <= j <= i + np.floor(r[i]))
    np.testing.assert_allclose(y[0], x[0] + want, atol=TOLERANCE, rtol=TOLERANCE)


def test_the_gradient_is_that_of_soft_masks():
    """Straight through: the value is the hard one, the slope in the spans' bias that of weights times the soft mask."""
    layer, x, params = layer_of()
    weights = np.random.default_rng(1).normal(size=(9, 8))
    heat, mask = 0.5, jnp.ones((1, 9), bool)

    def value(bias, temperature):
        own = params | {"span": params["span"] | {"bias": bias}}
        return jnp.sum(layer.apply({"params": own}, x, mask, temperature, method="look")[0][0] * weights)

    bias = params["span"]["bias"]
    got, slope = jax.jit(jax.value_and_grad(lambda b: value(b, heat)))(bias)
    # A sum of 72 products near 1 that cancel; the soft path adds and takes away what the other does not have.
    np.testing.assert_allclose(got, value(bias, None), atol=1e-5)
    assert not np.any(jax.grad(lambda b: value(b, None))(bias))

    wide = oracles.float64(params)
    h, a = normed(np.asarray(x[0], np.float64), wide), wide["attention"]

    def soft(bias):
        r = 3 * oracles.sigmoid(h @ wide["span"]["kernel"][:, 0] + bias)
        query, key, value = ((h @ a[n]["kernel"] + a[n]["bias"]).reshape(9, 2, 4) for n in ("query", "key", "value"))
        rates, out = 10000.0 ** (-np.arange(4) / 4), np.zeros((9, 2, 4))
        for head in range(2):
            for i in range(9):
                seen = np.arange(max(i - 2, 0), min(i + 3, 8) + 1)
                table = np.concatenate([np.sin(np.outer(i - seen, rates)), np.cos(np.outer(i - seen, rates))], axis=1)
                scores = key[seen, head] @ (query[i, head] + a["key_bias"][head])
                scores += table @ a["position"][:, head] @ (query[i, head] + a["position_bias"][head])
                open_ = np.where(seen > i, oracles.sigmoid((r[i] - (seen - i)) / heat), 1)
                share = np.exp(scores / 2) * open_
                out[i, head] = share / share.sum() @ value[seen, head]
        return np.sum((out.reshape(9, 8) @ a["output"]["kernel"] + a["output"]["bias"]) * weights)

    want = (soft(wide["span"]["bias"] + 1e-5) - soft(wide["span"]["bias"] - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope[0], want, rtol=1e-3)  # float32, a sum of terms of both signs


def test_latency_is_stated_at_most():
    encoder = ancat_encoder(CONFIG)
    assert (encoder.stride, encoder.block, encoder.delay, encoder.latency) == (4, 4, 12, 4 * 12 + 3)
    with pytest.raises(ValueError, match=r"AncatConfig\.reach is 0; it must be positive"):
        AncatConfig(reach=0)
    with pytest.raises(ValueError, match=r"width is 10"):
        AncatConfig(width=10, heads=4)


def test_several_signals_may_come_before_it():
    config = TransducerConfig(encoder=CONFIG, predictor=WORDS, joint=5, fusion=FusionConfig(kind="cnn", bins=4))
    encoder = transducer(config).encoder
    assert isinstance(encoder, Ancat)  # which can be asked for its spans
    assert encoder.latency == ancat_encoder(CONFIG).latency


WORDS = StatelessConfig(vocab_size=4, embedding=3)
MODEL = TransducerConfig(encoder=CONFIG, predictor=WORDS, joint=5)
BATCH = {
    "features": jnp.asarray(np.random.default_rng(0).normal(size=(3, 32, 4)), jnp.float32),
    "frame_lengths": jnp.array([32, 21, 32], jnp.int32),
    "labels": jnp.array([[1, 2], [3, 0], [2, 2]], jnp.int32),
    "label_lengths": jnp.array([2, 1, 2], jnp.int32),
    "weight": jnp.array([1.0, 1.0, 0.0], jnp.float32),
}


def task_of(**terms):
    return TransducerTask(config=MODEL, chunk=8, look_ahead=LookAheadLoss(**terms))


@pytest.fixture(scope="module")
def params():
    x, mask = BATCH["features"], jnp.ones((3, 32), bool)
    made = variables(transducer(MODEL), x, mask, BATCH["labels"])["params"]
    return made | {"encoder": lively(made["encoder"])}


@jax.jit
def look(params):
    return transducer(MODEL).apply({"params": params}, *task_of().features(BATCH), method="look")


def test_looking_ahead_has_a_price(params):
    task = task_of(kind="additive", latency=0.5, warmup=30)
    loss = jax.jit(lambda p, step: task.loss(p, BATCH | {"step": step})[0])
    free, dear = (float(loss(params, jnp.int32(step))) for step in (0, 30))
    frames, mask, spans = look(params)
    own = [np.asarray(spans)[row, :, : int(mask[row].sum())].sum(0).mean() for row in range(2)]
    np.testing.assert_allclose(dear - free, 0.5 * np.mean(own), rtol=1e-4)
    metrics = jax.jit(task.evaluate)(params, BATCH)
    # What is evaluated is the hard attention, which training sees, too.
    np.testing.assert_allclose(metrics["loss"][0] / 2, free, rtol=1e-5)
    waits = np.asarray(waits_for(spans, mask.sum(1)))
    late = [waits[row, :n] - np.arange(n) for row, n in ((0, 8), (1, 5))]
    assert [float(v) for v in metrics["latency"]] == [sum(map(np.sum, late)), 13]
    assert frames.shape == (3, 8, 5)


def test_probes_of_the_weights_are_moved_weights(params):
    """Zeroth-order training reads its loss off perturbed leaves; here, for speed, those of the spans alone."""
    spec, key, scale = PerturbSpec(stacked=STACKED), jax.random.key(3), jnp.float32(0.3)
    encoder = params["encoder"]
    own = {"blocks": {"stacked": {"attention": {"span": span_of(encoder)}}}}
    noise = spec.noise({"encoder": own}, key)["encoder"]
    moved = jax.tree.map(lambda w, z: w + scale * z, span_of(encoder), span_of(noise))
    perturbed = span_of(spec.perturb({"encoder": own}, key, scale)["encoder"])
    assert isinstance(perturbed["kernel"], Perturbed)
    got, want = (look(params | {"encoder": with_span(encoder, span)}) for span in (perturbed, moved))
    np.testing.assert_allclose(got[0], want[0], atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(got[2], want[2], atol=TOLERANCE, rtol=TOLERANCE)
    assert np.abs(want[2] - look(params)[2]).max() > 1e-2


def test_a_task_has_a_price_where_there_is_look_ahead():
    with pytest.raises(ValueError, match=r"look_ahead is None with an encoder of AncatConfig"):
        TransducerTask(config=MODEL)
    other = TransducerConfig(encoder=LstmConfig(d_in=4, layers=1, hidden=4), predictor=WORDS)
    with pytest.raises(ValueError, match=r"with an encoder of LstmConfig; one is needed with AncatConfig"):
        TransducerTask(config=other, look_ahead=LookAheadLoss())
