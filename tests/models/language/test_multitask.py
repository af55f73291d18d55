"""Several tasks on one encoder: equal to each task alone, from the same probes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.language.bert import STACKED
from models.language.classifier import TextClassifier
from models.language.multitask import MultiTask, TaskHead
from zojax import estimators
from zojax.directions import Sparse
from zojax.importance import importance_scores, random_masks, score_masks
from zojax.perturb import PerturbSpec
from zojax.train.step import make_measure
from zojax.train.task import Task
from zojax.trees import merge, split

HEADS = (
    TaskHead(name="one", num_classes=2, is_pair=False),
    TaskHead(name="two", num_classes=3, is_pair=True),
    TaskHead(name="three", num_classes=3, is_pair=False),
)
WEIGHTS = (0.5, 0.3, 0.2)
KEY = jax.random.key(4)


def make_batch(tasks=(0, 0, 1, 1, 1, 2), length=7, seed=0):
    rng = np.random.default_rng(seed)
    second = np.arange(len(tasks))
    pairs = [row for row, task in enumerate(tasks) if HEADS[task].is_pair]
    second[pairs] = len(tasks) + np.arange(len(pairs))
    sequences = len(tasks) + len(pairs)
    return {
        "tokens": rng.integers(0, 40, (sequences, length)).astype(np.int32),
        "mask": np.arange(length) < rng.integers(1, length + 1, (sequences, 1)),
        "second": second.astype(np.int32),
        "task": np.array(tasks, np.int32),
        "label": np.array([rng.integers(HEADS[task].num_classes) for task in tasks], np.int32),
        "weight": np.ones(len(tasks), np.float32),
        "id": np.arange(len(tasks), dtype=np.int32),
    }


def rows_of(batch, task):
    """The rows of one task as a batch of their own."""
    rows = np.flatnonzero(batch["task"] == task)
    second = batch["second"][rows]
    pairs = second != rows
    order = np.concatenate([rows, second[pairs]])
    own = {name: batch[name][rows] for name in ("task", "label", "weight", "id")}
    place = np.arange(len(rows))
    place[pairs] = len(rows) + np.arange(pairs.sum())
    return {**own, "tokens": batch["tokens"][order], "mask": batch["mask"][order], "second": place.astype(np.int32)}


@pytest.fixture(scope="module")
def task(tiny):
    config, params = tiny
    encoder = {name: tree for name, tree in params.items() if name != "pooler"}
    return MultiTask(config=config, heads=HEADS, weights=WEIGHTS, pretrained=encoder)


@pytest.fixture(scope="module")
def params(task):
    """Parameters with heads that are not zero."""
    params = task.init(KEY)
    leaves, treedef = jax.tree.flatten(params["head"])
    noise = [jax.random.normal(jax.random.fold_in(KEY, i), leaf.shape) / 3 for i, leaf in enumerate(leaves)]
    return {**params, "head": treedef.unflatten(noise)}


def test_new_heads_know_nothing(task):
    losses = task.losses(task.init(KEY), make_batch())
    np.testing.assert_allclose(losses, np.log([2, 3, 3]), rtol=1e-6)
    assert isinstance(task, Task)


def test_losses_by_hand(task, params):
    batch = make_batch()
    batch["weight"] = np.array([1, 2, 1, 0, 0.5, 1], np.float32)
    encoder = TextClassifier(config=task.config, num_classes=2, pretrained=task.pretrained)
    pooled = np.asarray(jax.jit(encoder.features)(params, batch), np.float64)
    expected, right = [[], [], []], [0.0, 0.0, 0.0]
    for row, number in enumerate(batch["task"]):
        u, v = pooled[row], pooled[batch["second"][row]]
        x = np.concatenate([u, v, abs(u - v), u * v]) if HEADS[number].is_pair else u
        head = params["head"][HEADS[number].name]
        logits = x @ np.asarray(head["kernel"], np.float64) + np.asarray(head["bias"])
        weight, label = batch["weight"][row], batch["label"][row]
        if weight:
            expected[number].append(weight * (np.log(np.exp(logits).sum()) - logits[label]))
        right[number] += weight * (logits.argmax() == label)
    # float32 sums of some hundred products
    np.testing.assert_allclose(task.losses(params, batch), [np.mean(e) for e in expected], rtol=1e-5)
    np.testing.assert_allclose(task.loss(params, batch)[0], np.dot([np.mean(e) for e in expected], WEIGHTS), rtol=1e-5)
    metrics = task.evaluate(params, batch)
    for number, head in enumerate(HEADS):
        weight = batch["weight"][batch["task"] == number].sum()
        np.testing.assert_allclose(metrics[f"loss/{head.name}"], [np.sum(expected[number]), weight], rtol=1e-5)
        np.testing.assert_allclose(metrics[f"accuracy/{head.name}"], [right[number], weight], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], [sum(map(np.sum, expected)), 5.5], rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], [sum(right), 5.5], rtol=1e-6)


def test_a_task_without_rows_has_loss_zero(task, params):
    losses = task.losses(params, make_batch((0, 1)))
    assert losses[2] == 0.0
    assert losses[0] > 0


def test_a_label_of_another_task_does_no_harm_to_gradients(task, params):
    batch = make_batch((0, 1))
    batch["label"] = np.array([0, 2], np.int32)  # 2 is no class of the first task
    grads = jax.jit(jax.grad(lambda p: task.loss(p, batch)[0]))(params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_losses_of_a_mixture_are_those_of_each_task_alone_on_the_same_probes(task, params):
    """One pair of forwards for all tasks, or one for each: the same differences."""
    trainable, frozen = split(params, (r"layers/\w+/kernel$",))
    batch = make_batch()
    spec = PerturbSpec(direction=Sparse(), stacked=STACKED, masks=lambda p: random_masks(p, (".",), keep=0.5, key=KEY))
    tx = estimators.multi_task(1e-2, spec, weights=WEIGHTS, num_samples=2, key=KEY)

    class Losses(Task):
        def loss(self, params, batch, *, key=None):
            return task.losses(params, batch), {}

    state = tx.init(trainable)
    found = make_measure(Losses(), tx)(trainable, frozen, state, batch, KEY)
    single = estimators.spsa(1e-2, spec, num_samples=2, key=KEY)
    for number in range(2):

        class Alone(Task):
            def loss(self, params, batch, *, key=None, number=number):
                return task.losses(params, batch)[number], {}

        alone = make_measure(Alone(), single)(trainable, frozen, single.init(trainable), rows_of(batch, number), KEY)
        # Forwards of other shapes take their sums in other orders: some units in the last place of losses of a few
        # nats, 2e-7 each, over 2 eps.
        np.testing.assert_allclose(found.by_task[number], alone.projected, atol=1e-3)
        np.testing.assert_allclose(jnp.mean(found.losses[number]), alone.value, rtol=1e-5)
        assert abs(float(alone.projected[0])) > 1e-3
    projected = sum(weight * own for weight, own in zip(WEIGHTS, found.by_task, strict=True))
    np.testing.assert_allclose(found.projected, projected, atol=1e-5)
    np.testing.assert_allclose(
        found.value, sum(w * jnp.mean(x) for w, x in zip(WEIGHTS, found.losses, strict=True)), rtol=1e-5
    )


@pytest.mark.parametrize("gradient", ["outputs", "backward"])
def test_importance_of_a_scanned_encoder(task, params, gradient):
    """Calibration runs through the scan over layers and gives masks of the asked size."""
    trainable, frozen = split(params, (r"layers/(up|down)/kernel$",))

    found = importance_scores(
        [lambda p, f, b: task.losses(merge(p, f), b)[1]],
        trainable,
        frozen,
        [[make_batch((1, 1, 1))]],
        (".",),
        key=KEY,
        gradient=gradient,
        num_probes=1,
        tokens=lambda b: b["mask"],
    )
    masks = score_masks(found, trainable, keep=0.25, stacked=STACKED)
    for words, w in zip(jax.tree.leaves(masks), jax.tree.leaves(trainable), strict=True):
        assert int(jax.lax.population_count(words).sum()) == w.size // 4


def test_refusals(tiny):
    config, _ = tiny
    with pytest.raises(ValueError, match=r"heads are \[\]"):
        MultiTask(config=config, heads=(), weights=())
    with pytest.raises(ValueError, match="names of their own"):
        MultiTask(config=config, heads=(HEADS[0], HEADS[0]), weights=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"weights are \(1\.0,\)"):
        MultiTask(config=config, heads=HEADS, weights=(1.0,))
