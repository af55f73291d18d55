"""The task: its loss against brute force, first-order and zeroth-order training, rows that must not count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.transducer.lstm import LstmConfig
from models.transducer.model import TransducerConfig, transducer
from models.transducer.predictor import StatelessConfig
from models.transducer.task import Pruning, TransducerTask
from tests.models.transducer.streams import variables
from zojax import estimators
from zojax.losses.transducer import TransducerSpec
from zojax.perturb import PerturbSpec

WORDS = StatelessConfig(vocab_size=4, embedding=3)
CONFIG = TransducerConfig(encoder=LstmConfig(d_in=2, stack=2, layers=1, hidden=4), predictor=WORDS, joint=5)
BATCH = {
    "features": jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 2)), jnp.float32),
    "frame_lengths": jnp.array([8, 6, 8], jnp.int32),
    "labels": jnp.array([[1, 2], [3, 0], [2, 2]], jnp.int32),
    "label_lengths": jnp.array([2, 1, 2], jnp.int32),
    "weight": jnp.array([1.0, 1.0, 0.0], jnp.float32),
}


def task_of(**options):
    names = {"acoustic": "acoustic", "pruning": "simple"}
    needs = {of_config: True for name, of_config in names.items() if options.get(name)}
    config = TransducerConfig(encoder=CONFIG.encoder, predictor=WORDS, joint=5, **needs)
    return TransducerTask(config=config, chunk=3, **options)


def weights_of(task):
    model = transducer(task.config)
    x, mask = BATCH["features"], jnp.ones((3, 8), bool)
    return variables(model, x, mask, BATCH["labels"])["params"]


@pytest.fixture(scope="module")
def params():
    return weights_of(task_of())


def paths(log_p, labels, *, monotonic):
    """log of the summed probability of every path through log_p(t, u), one after the other."""
    frames = log_p.shape[0]

    def walk(t, u):
        if t == frames:
            return [0.0] if u == len(labels) else []
        found = [log_p[t, u, 0] + rest for rest in walk(t + 1, u)]
        if u < len(labels):
            found += [log_p[t, u, labels[u]] + rest for rest in walk(t + monotonic, u + 1)]
        return found

    return np.logaddexp.reduce(walk(0, 0))


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def test_the_loss_is_that_of_every_path(params):
    task = task_of()
    loss, metrics = jax.jit(task.loss)(params, BATCH)
    model, nats = transducer(CONFIG), []
    for row in range(2):
        frames, count = int(BATCH["frame_lengths"][row]), int(BATCH["label_lengths"][row])
        one = BATCH["features"][row : row + 1, :frames], jnp.ones((1, frames), bool)
        logits = model.apply({"params": params}, *one, BATCH["labels"][row : row + 1, :count])
        nats.append(-paths(log_softmax(logits[0]), np.asarray(BATCH["labels"])[row, :count], monotonic=False))
    want = np.mean([nats[0] / 2, nats[1] / 1])
    np.testing.assert_allclose(loss, want, rtol=1e-5)  # float32 against float64
    np.testing.assert_allclose(metrics["nats_per_label"][0], sum(nats), rtol=1e-5)
    assert [float(metrics[name][1]) for name in ("loss", "nats_per_label", "impossible")] == [2, 3, 2]
    np.testing.assert_allclose(task.evaluate(params, BATCH)["loss"], metrics["loss"], rtol=1e-6)


def test_the_acoustic_loss_is_that_of_every_path_of_the_frames_alone():
    task = task_of(acoustic=0.25)
    params = weights_of(task)
    with_it = jax.jit(lambda p: task.loss(p, BATCH)[1]["nats_per_label"][0])(params)
    without = task.evaluate(params, BATCH)["nats_per_label"][0]
    model, extra = transducer(task.config), 0.0
    frames, mask = model.apply({"params": params}, *task.features(BATCH), method="encode")
    log_p = log_softmax(model.apply({"params": params}, frames, method="acoustic_logits"))
    for row in range(2):
        count = int(BATCH["label_lengths"][row])
        own = np.repeat(log_p[row, np.asarray(mask[row])][:, None], count + 1, axis=1)
        extra -= paths(own, np.asarray(BATCH["labels"])[row, :count], monotonic=True)
    np.testing.assert_allclose(with_it - without, 0.25 * extra, rtol=1e-4)  # a difference of float32


def test_frames_may_stand_alone_at_first(params):
    task = task_of(alone=10)
    loss = jax.jit(lambda p, step: task.loss(p, BATCH | {"step": step})[0])
    np.testing.assert_allclose(loss(params, jnp.int32(10)), task_of().loss(params, BATCH)[0], rtol=1e-6)
    np.testing.assert_allclose(task.loss(params, BATCH)[0], task_of().loss(params, BATCH)[0], rtol=1e-6)  # no step
    joiner = params["joiner"] | {"predicted": jax.tree.map(jnp.zeros_like, params["joiner"]["predicted"])}
    want = task_of().loss(params | {"joiner": joiner}, BATCH)[0]
    np.testing.assert_allclose(loss(params, jnp.int32(9)), want, rtol=1e-6)
    assert abs(want - task_of().loss(params, BATCH)[0]) > 1e-3


def test_rows_without_weight_and_padding_change_nothing(params):
    task = task_of()
    value = jax.jit(jax.value_and_grad(lambda p, b: task.loss(p, b)[0]))
    other = dict(BATCH)
    other["features"] = BATCH["features"].at[2].set(jnp.nan).at[1, 6:].set(jnp.inf)
    other["labels"] = BATCH["labels"].at[1, 1].set(3)
    jax.tree.map(np.testing.assert_array_equal, value(params, other), value(params, BATCH))


def test_an_utterance_without_a_path_is_left_out_and_counted(params):
    task = task_of(spec=TransducerSpec(monotonic=True))
    batch = BATCH | {"frame_lengths": jnp.array([2, 6, 8], jnp.int32)}  # one frame, two labels
    loss, metrics = jax.jit(task.loss)(params, batch)
    assert float(metrics["impossible"][0]) == 1.0
    assert float(metrics["loss"][1]) == 1.0
    gradient = jax.grad(lambda p: task.loss(p, batch)[0])(params)
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_gradient_points_where_differences_do():
    """One task for both: the difference along a direction is the gradient's product with it."""
    task = task_of(acoustic=0.5)
    params = weights_of(task)
    spec, key, eps = PerturbSpec(), jax.random.key(3), 1e-2
    value = jax.jit(lambda p: task.loss(p, BATCH)[0])
    gradient = jax.jit(jax.grad(lambda p: task.loss(p, BATCH)[0]))(params)
    up, down = (value(spec.perturb(params, key, jnp.float32(scale))) for scale in (eps, -eps))
    slope = sum(jnp.vdot(g, z) for g, z in zip(*map(jax.tree.leaves, (gradient, spec.noise(params, key))), strict=True))
    # Central: the error is of order eps^2 times the third derivative, and 1e-7 / eps of rounding.
    np.testing.assert_allclose((up - down) / (2 * eps), slope, rtol=2e-2)


@pytest.mark.parametrize("kind", ["adam", "spsa"])
def test_both_kinds_of_training_lower_the_loss(kind, params):
    task = task_of()
    loss = jax.jit(lambda p: task.loss(p, BATCH)[0])
    before = float(loss(params))
    if kind == "adam":
        tx = optax.adam(0.03)
        state = tx.init(params)

        @jax.jit
        def step(params, state):
            updates, state = tx.update(jax.grad(lambda p: task.loss(p, BATCH)[0])(params), state)
            return optax.apply_updates(params, updates), state

        steps = 30
    else:
        tx = estimators.chain(estimators.spsa(1e-2, num_samples=4, key=jax.random.key(0)), optax.sgd(2e-3))
        state = tx.init(params)

        @jax.jit
        def step(params, state):
            scalars = tx.measure(params, state, lambda p: task.loss(p, BATCH)[0])
            updates, state = tx.update(params, state, params, scalars=scalars)
            return optax.apply_updates(params, updates), state

        steps = 100
    for _ in range(steps):
        params, state = step(params, state)
    assert float(loss(params)) < 0.9 * before


def test_augmentation_and_dropout_need_a_key(params):
    task = task_of(augment=lambda x, frames, key: x + jax.random.normal(key, x.shape))
    loss = jax.jit(lambda p, key: task.loss(p, BATCH, key=key)[0])
    plain = float(jax.jit(lambda p: task.loss(p, BATCH)[0])(params))
    np.testing.assert_allclose(plain, task_of().loss(params, BATCH)[0], rtol=1e-6)
    one, other = (float(loss(params, jax.random.key(n))) for n in range(2))
    assert one == float(loss(params, jax.random.key(0)))
    assert len({plain, one, other}) == 3


def test_pcm_goes_through_the_front_end(params):
    task = task_of(front_end=lambda pcm: pcm.reshape(3, 8, 2) / 2)
    batch = {name: value for name, value in BATCH.items() if name != "features"}
    loss = task.loss(params, batch | {"pcm": 2 * BATCH["features"].reshape(3, 16)})[0]
    np.testing.assert_allclose(loss, task_of().loss(params, BATCH)[0], rtol=1e-6)
    with pytest.raises(ValueError, match="it must have features, or pcm"):
        task_of().features(batch)


def test_pruning_by_a_full_band_is_the_exact_loss_and_a_warm_up_starts_at_the_simple_one():
    task = task_of(pruning=Pruning(band=3, warmup=10))
    params = weights_of(task)
    loss = jax.jit(lambda p, step: task.loss(p, BATCH | {"step": step})[1]["nats_per_label"][0])
    exact = float(task.evaluate(params, BATCH)["nats_per_label"][0])
    first, last = (float(loss(params, jnp.int32(step))) for step in (0, 10))
    # Weights of (simple, pruned): (1, 0.1) and (0.5, 1), as arXiv 2206.13236 has them.
    simple = (last - exact) / 0.5
    np.testing.assert_allclose(first, simple + 0.1 * exact, rtol=1e-4)


def test_statistics_are_the_first_affine_map():
    mean, deviation = np.array([1.0, -2.0], np.float32), np.array([0.5, 0.0], np.float32)
    start = task_of(statistics=(mean, deviation)).init(jax.random.key(0))["encoder"]["input"]
    np.testing.assert_array_equal(start["scale"], [2.0, 1.0])
    np.testing.assert_array_equal(start["bias"], [-2.0, 2.0])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"TransducerConfig\.simple is False; it must be True"):
        TransducerTask(config=CONFIG, pruning=Pruning(band=2))
    with pytest.raises(ValueError, match=r"TransducerTask\.acoustic is 0.5 and TransducerConfig\.acoustic False"):
        TransducerTask(config=CONFIG, acoustic=0.5)
    with pytest.raises(ValueError, match=r"TransducerTask\.alone is -1; it must be 0 or more"):
        TransducerTask(config=CONFIG, alone=-1)
    with pytest.raises(ValueError, match=r"statistics: mean of shape \(3,\); \(2,\) is needed"):
        TransducerTask(config=CONFIG, statistics=(np.zeros(3), np.ones(2)))
    with pytest.raises(ValueError, match=r"Pruning\.band is 1"):
        Pruning(band=1)
