import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.language import hub
from models.language.bert import STACKED, Bert
from models.language.classifier import TextClassifier
from models.language.probe import fit_linear_probe
from zojax import train
from zojax.directions import Gaussian, LowRank, Sparse
from zojax.estimators import spsa
from zojax.masks import layer_masks
from zojax.perturb import PerturbSpec
from zojax.train.task import Task
from zojax.trees import split


def make_batch(rows=6, length=10, classes=3, seed=0):
    """Random rows of 1 to `length` tokens; numpy, as the input pipeline gives them."""
    rng = np.random.default_rng(seed)
    return {
        "tokens": rng.integers(0, 40, (rows, length)).astype(np.int32),
        "mask": np.arange(length) < rng.integers(1, length + 1, (rows, 1)),
        "label": rng.integers(0, classes, rows).astype(np.int32),
        "weight": np.ones(rows, np.float32),
        "id": np.arange(rows, dtype=np.int32),
    }


@pytest.fixture
def task(tiny):
    config, params = tiny
    encoder = {name: tree for name, tree in params.items() if name != "pooler"}
    return TextClassifier(config=config, num_classes=3, pretrained=encoder)


@pytest.fixture
def params(task):
    """The task's parameters with a head that is not zero."""
    params = task.init(jax.random.key(0))
    kernel = jax.random.normal(jax.random.key(1), (32, 3))
    return {**params, "head": {"kernel": kernel, "bias": jnp.array([0.1, -0.2, 0.3])}}


def test_a_new_head_knows_nothing(task):
    loss, metrics = task.loss(task.init(jax.random.key(0)), make_batch())
    # Logits of 0: log 3 to float32's precision.
    assert float(loss) == pytest.approx(np.log(3), rel=1e-6)
    assert set(metrics) == {"loss", "accuracy"}


def test_loss_and_accuracy_by_hand(task, params):
    batch = make_batch()
    batch["weight"] = np.array([1, 1, 0, 1, 1, 0], np.float32)
    tokens, mask = jnp.asarray(batch["tokens"]), jnp.asarray(batch["mask"])
    hidden = np.asarray(Bert(task.config).apply({"params": params["encoder"]}, tokens, mask), np.float64)
    losses, right = [], []
    for row in np.flatnonzero(batch["weight"]):
        mean = hidden[row][batch["mask"][row]].mean(0)
        logits = mean @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
        losses.append(np.log(np.exp(logits).sum()) - logits[batch["label"][row]])
        right.append(logits.argmax() == batch["label"][row])
    loss, metrics = task.loss(params, batch)
    # Sums of 32 products of order 1 in float32: 1e-6 each.
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)
    assert [float(x) for x in metrics["loss"]] == pytest.approx([np.sum(losses), 4], rel=1e-5)
    assert [float(x) for x in metrics["accuracy"]] == [sum(right), 4]
    batch["weight"] *= np.array([0.5, 1, 1, 2, 1.5, 1], np.float32)
    # Rows drawn by probabilities: a mean over the four of them, whatever their weights sum to.
    assert float(task.loss(params, batch)[0]) == pytest.approx(np.mean(np.array(losses) * [0.5, 1, 2, 1.5]), rel=1e-5)
    for pair in (*metrics.values(), (loss,)):
        assert all(x.dtype == jnp.float32 and x.shape == () for x in pair)


def test_rows_of_weight_zero_do_not_count(task, params):
    batch = make_batch()
    filled = {name: np.concatenate([x, x[:2]]) for name, x in batch.items()}
    filled["label"][-2:] = 0
    filled["mask"][-2:] = False
    filled["weight"][-2:] = 0
    # The same sums over other shapes; 1e-5 for the order of the additions.
    np.testing.assert_allclose(task.loss(params, filled)[0], task.loss(params, batch)[0], rtol=1e-5)


def test_a_batch_of_weight_zero_has_loss_zero(task, params):
    batch = make_batch()
    batch["weight"] = np.zeros(6, np.float32)
    assert float(task.loss(params, batch)[0]) == 0.0


@pytest.mark.parametrize("label", [3, 7])
def test_a_label_out_of_range_is_loud(task, params, label):
    batch = make_batch()
    batch["label"][2] = label
    assert np.isnan(task.loss(params, batch)[0])


def test_features_do_not_depend_on_padding(task, params):
    batch = make_batch()
    longer = {"tokens": np.pad(batch["tokens"], ((0, 0), (0, 6))), "mask": np.pad(batch["mask"], ((0, 0), (0, 6)))}
    # The same sums over other shapes, two layers deep.
    np.testing.assert_allclose(task.features(params, longer), task.features(params, batch), atol=1e-5)


def test_features_of_a_row_without_tokens_are_zero(task, params):
    batch = make_batch()
    batch["mask"][1] = False
    features = np.asarray(task.features(params, batch))
    assert not features[1].any()
    assert np.isfinite(features).all()


def test_init_gives_buffers_that_may_be_donated(task):
    kept = jax.tree.map(np.array, task.pretrained)
    first = task.init(jax.random.key(0))
    for leaf in jax.tree.leaves(first):
        leaf.delete()
    second = task.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, second["encoder"], kept)


def test_init_of_device_arrays_copies(task, tiny):
    arrays = jax.tree.map(jnp.asarray, task.pretrained)
    on_device = TextClassifier(config=tiny[0], num_classes=3, pretrained=arrays)
    for leaf in jax.tree.leaves(on_device.init(jax.random.key(0))):
        leaf.delete()
    assert np.isfinite(arrays["embeddings"]["word"]).all()


def test_without_pretrained_weights_the_key_decides(tiny):
    task = TextClassifier(config=tiny[0], num_classes=3)
    words = [task.init(jax.random.key(k))["encoder"]["embeddings"]["word"] for k in (0, 0, 1)]
    np.testing.assert_array_equal(words[0], words[1])
    assert float(jnp.abs(words[0] - words[2]).max()) > 0


def test_half_precision(tiny, task):
    half = TextClassifier(config=tiny[0], num_classes=3, pretrained=task.pretrained, dtype="bfloat16")
    params = half.init(jax.random.key(0))
    assert params["encoder"]["layers"]["down"]["kernel"].dtype == jnp.bfloat16
    assert params["encoder"]["layers"]["down"]["bias"].dtype == jnp.float32
    assert params["head"]["kernel"].dtype == jnp.float32
    assert half.loss(params, make_batch())[0].dtype == jnp.float32


def test_fewer_than_two_classes_are_refused(tiny):
    with pytest.raises(ValueError, match="num_classes is 1; it must be 2 or more"):
        TextClassifier(config=tiny[0], num_classes=1)


def test_gradient_descent_learns_a_word(task):
    # The label says whether the first token is below 20. Adam at 1e-2 solves it within 40 steps.
    batch = make_batch(rows=16, classes=2)
    batch["mask"][:, 0] = True
    batch["label"] = (batch["tokens"][:, 0] < 20).astype(np.int32)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        gradient, metrics = jax.grad(task.loss, has_aux=True)(params, batch)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, metrics

    params = task.init(jax.random.key(0))
    state = optimizer.init(params)
    for _ in range(40):
        params, state, _ = step(params, state)
    metrics = task.evaluate(params, batch)
    assert float(metrics["accuracy"][0]) == 16
    assert float(task.loss(params, batch)[0]) < 0.1


def test_a_probe_is_a_head(task):
    batch = make_batch(rows=40, classes=2)
    batch["label"] = (batch["tokens"][:, 0] < 20).astype(np.int32)
    two = TextClassifier(config=task.config, num_classes=2, pretrained=task.pretrained)
    params = two.init(jax.random.key(0))
    head = fit_linear_probe(np.asarray(two.features(params, batch)), batch["label"], num_classes=2, l2=1e-3)
    before = float(two.loss(params, batch)[0])
    assert float(two.loss({**params, "head": head}, batch)[0]) < 0.5 * before


@pytest.mark.parametrize("direction", [Gaussian(), LowRank(rank=2)], ids=repr)
def test_perturbed_leaves_equal_perturbed_weights(task, params, direction):
    spec = PerturbSpec(direction=direction, stacked=STACKED)
    key, scale = jax.random.key(5), jnp.float32(0.1)
    dense = jax.tree.map(lambda p, z: p + scale * z, params, jax.jit(spec.noise)(params, key))
    batch = make_batch()
    value = jax.jit(lambda p: task.loss(spec.perturb(p, key, scale), batch)[0])(params)
    # Noise made where it is used, one layer at a time, or all beforehand: the same numbers in another order.
    np.testing.assert_allclose(value, task.loss(dense, batch)[0], rtol=1e-5)
    assert abs(float(value) - float(task.loss(params, batch)[0])) > 1e-3


def packed(batch):
    """The batch, a text a row, said to be packed."""
    rows = len(batch["tokens"])
    return {**batch, "segment": np.where(batch["mask"], np.arange(rows, dtype=np.int32)[:, None], rows)}


@pytest.mark.parametrize("form", [dict, packed])
def test_layers_below_the_probes_run_once_a_step_and_change_nothing(task, params, form):
    shared = dataclasses.replace(task, shared_layers=1)
    direction = Sparse(inner=Gaussian())
    spec = PerturbSpec(direction=direction, stacked=STACKED, masks=layer_masks((1,)))
    trainable, frozen = split(params, ("encoder/layers/value/kernel",))
    tx, batch, key = spsa(1e-2, spec, num_samples=2, key=jax.random.key(5)), form(make_batch()), jax.random.key(6)
    whole, own = (train.make_measure(t, tx)(trainable, frozen, tx.init(trainable), batch, key) for t in (task, shared))
    np.testing.assert_allclose(own.value, whole.value, rtol=1e-6)  # sums in another order
    # A few roundings of each of two losses, divided by 2 eps.
    np.testing.assert_allclose(own.projected, whole.projected, atol=8 * float(np.spacing(whole.value)) / 2e-2)
    assert np.all(np.abs(own.projected) > 1e-3)
    prepared = shared.prepare(params, batch)
    other = {**prepared, "hidden": prepared["hidden"].at[:, :, 0].add(1.0)}  # which no LayerNorm takes out again
    assert abs(float(shared.loss(params, other)[0]) - float(whole.value)) > 1e-3


def test_shared_layers_must_leave_one(task):
    with pytest.raises(ValueError, match=r"shared_layers is 2; of 2 layers it must leave one"):
        dataclasses.replace(task, shared_layers=2)


def test_the_classifier_is_a_task(task):
    assert isinstance(task, Task)


def test_a_decoder_is_refused(golden):
    # Without the type checks that only tests have, and that would be first here.
    task = object.__new__(TextClassifier)
    object.__setattr__(task, "config", hub.load(golden / "families" / "llama2")[0])
    with pytest.raises(ValueError, match=r"TextClassifier\.config is a LlamaConfig; it must be a BertConfig"):
        task.__post_init__()


def test_packed_texts_have_the_features_that_they_have_alone(task, params):
    texts = [np.array([3, 1, 4]), np.array([1, 5]), np.array([6, 2, 6, 5, 3])]
    tokens, segment = np.zeros((2, 8), np.int32), np.full((2, 8), 3, np.int32)
    for number, (row, start) in enumerate([(0, 0), (0, 3), (1, 0)]):
        columns = slice(start, start + len(texts[number]))
        tokens[row, columns], segment[row, columns] = texts[number], number
    batch = {"tokens": tokens, "mask": segment < 3, "segment": segment, "label": np.array([0, 1, 1])}
    together = task.features(params, batch)
    for number, text in enumerate(texts):
        alone = task.features(params, {"tokens": text[None], "mask": np.ones((1, len(text)), bool)})
        # float32 sums in another order
        np.testing.assert_allclose(together[number], alone[0], atol=1e-6)
