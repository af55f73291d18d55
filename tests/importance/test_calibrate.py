"""What calibration observes against numpy, its probes against back-propagation, and the sum over tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import ops, trees
from zojax.adapters.lora import add_lora
from zojax.importance import Importance, calibrate, importance_scores, score_masks, task_score
from zojax.quant import quantize

KEY = jax.random.key(5)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def model():
    """A matrix, a stack of two that a scan goes over, and a gain that is frozen."""
    return {"first": normal(3, 4), "layers": {"w": normal(2, 4, 4, seed=1)}}, {"gain": normal(4, seed=2)}


def hidden(params, frozen, x):
    x = jnp.tanh(ops.dot(x, params["first"])) * ops.value(frozen["gain"])
    return jax.lax.scan(lambda x, w: (jnp.tanh(ops.dot(x, w)), x), x, params["layers"]["w"])


def loss(params, frozen, batch):
    """Mean over the tokens that count."""
    y, _ = hidden(params, frozen, batch["x"])
    return jnp.sum(jnp.sum((y - 0.3) ** 2, axis=-1) * batch["mask"]) / jnp.sum(batch["mask"])


def batches(seed=7):
    """Two batches of other shapes; what stands at padding is huge."""
    made = []
    for number, (rows, length) in enumerate(((2, 3), (3, 2))):
        mask = np.ones((rows, length), bool)
        mask[0, -1] = False
        x = np.array(normal(rows, length, 3, seed=seed + number))
        x[~mask] = 100.0
        made.append({"x": jnp.asarray(x), "mask": jnp.asarray(mask)})
    return made


def observed(**options):
    params, frozen = model()
    return calibrate(loss, params, frozen, batches(), (".",), key=KEY, tokens=lambda b: b["mask"], **options)


@pytest.mark.parametrize("block", [2048, 2, 3])
def test_grams_are_those_of_the_inputs_that_count(block):
    params, frozen = model()
    found = observed(gradient="backward", block=block)
    inputs = [[], [], []]
    for batch in batches():
        _, layers = hidden(params, frozen, batch["x"])
        for kept, x in zip(inputs, (batch["x"], *layers), strict=True):
            kept.append(np.asarray(x, np.float64)[np.asarray(batch["mask"])])
    grams = [found["first"].gram, *found["layers"]["w"].gram]
    for x, gram in zip(map(np.concatenate, inputs), grams, strict=True):
        m = x.shape[1]
        count, size = len(gram), gram.shape[1]
        assert count == -(-m // block)
        x = np.pad(x, ((0, 0), (0, count * size - m)))
        whole = x.T @ x / len(x)
        expected = np.stack([whole[b * size : (b + 1) * size, b * size : (b + 1) * size] for b in range(count)])
        np.testing.assert_allclose(gram, expected, rtol=1e-5, atol=1e-6)  # float32 sums of a dozen products


def test_backward_gradients_are_the_mean_of_the_batches():
    params, frozen = model()
    found = observed(gradient="backward")
    grads = [jax.grad(loss)(params, frozen, batch) for batch in batches()]
    np.testing.assert_allclose(found["first"].gradient, (grads[0]["first"] + grads[1]["first"]) / 2, rtol=1e-5)
    expected = (grads[0]["layers"]["w"] + grads[1]["layers"]["w"]) / 2
    np.testing.assert_allclose(found["layers"]["w"].gradient, expected, rtol=1e-5)


def test_probes_of_the_outputs_estimate_the_gradient():
    exact, found = observed(gradient="backward"), observed(num_probes=400, eps=1e-2)
    for of in (
        lambda t: t["first"].gradient,
        lambda t: t["layers"]["w"].gradient[0],
        lambda t: t["layers"]["w"].gradient[1],
    ):
        g, estimate = of(exact), of(found)
        # 60 signs a batch: a relative error of some sqrt(60 / 800), a little more where the inputs are large.
        assert np.linalg.norm(estimate - g) < 0.4 * np.linalg.norm(g)


def test_factors_of_adapters_and_quantised_bases():
    """With b = 0 nothing is known of a: its rows go by magnitude, those of b by their scores."""
    base = {"kernel": quantize(normal(8, 6), "int8_127")}
    params = add_lora(base, ("kernel$",), rank=4, alpha=4.0, key=KEY)
    trainable, frozen = trees.split(params, ("kernel/(a|b)$",))
    x = normal(5, 8, seed=3)
    function = lambda t, f, x: jnp.mean(ops.dot(x, trees.merge(t, f)["kernel"]) ** 2)  # noqa: E731
    scores = importance_scores([function], trainable, frozen, [[x]], ("(a|b)$",), key=KEY)
    assert not scores["kernel"]["a"].any()
    masks = score_masks(scores, trainable, keep=0.25)
    assert int(jax.lax.population_count(masks["kernel"]["b"]).sum()) == 6  # one of four in each of six rows
    largest = np.argsort(-np.abs(np.asarray(trainable["kernel"]["a"])), axis=0)[:2]
    rows = (np.asarray(masks["kernel"]["a"])[0] >> np.arange(8)[:, None]) & 1
    np.testing.assert_array_equal(np.sort(largest, axis=0), np.stack([np.flatnonzero(r) for r in rows.T], axis=1))


def test_scores_of_tasks_are_summed_after_each_has_unit_rows():
    params, frozen = model()
    losses = [loss, lambda *arguments: 1000 * loss(*arguments)]
    options = Importance(alpha=0.5, beta=0.01)
    own = [batches(), batches(seed=20)]
    arguments = dict(gradient="backward", tokens=lambda b: b["mask"])
    found = importance_scores(losses, params, frozen, own, ("w$",), options, key=KEY, **arguments)
    assert found["first"] is None
    expected = 0
    for function, data in zip(losses, own, strict=True):
        seen = calibrate(function, params, frozen, data, ("w$",), key=KEY, **arguments)["layers"]["w"]
        expected += np.stack(
            [
                task_score(*map(jnp.asarray, s), options)
                for s in zip(seen.gradient, seen.gram, params["layers"]["w"], strict=True)
            ]
        )
    np.testing.assert_allclose(found["layers"]["w"], expected, rtol=1e-4)
    # A loss a thousand times as large has not a thousand times the say; all scores here are positive.
    np.testing.assert_allclose(np.abs(found["layers"]["w"]).sum(axis=-2), 2.0, rtol=1e-2)


def test_refusals():
    params, frozen = model()
    run = lambda function, where=(".",), **o: calibrate(function, params, frozen, batches(), where, key=KEY, **o)  # noqa: E731
    with pytest.raises(ValueError, match="num_probes: 0"):
        run(loss, num_probes=0)
    with pytest.raises(ValueError, match="'nothing' matches no leaf"):
        run(loss, ("nothing",))
    with pytest.raises(ValueError, match="batches: none"):
        calibrate(loss, params, frozen, [], (".",), key=KEY)
    with pytest.raises(ValueError, match="no inputs entered a product with 'layers/w'"):
        run(lambda p, f, b: jnp.sum(ops.dot(b["x"], p["first"])), gradient="backward")
    twice = lambda p, f, b: loss(p, f, b) + jnp.sum(ops.dot(b["x"], p["first"]))  # noqa: E731
    with pytest.raises(ValueError, match="'first' enters several products"):
        run(twice, num_probes=1)
    with pytest.raises(ValueError, match=r"enters ops\.einsum"):
        run(lambda p, f, b: jnp.sum(ops.einsum("btm,mn->btn", b["x"], p["first"])), ("first",))
    with pytest.raises(ValueError, match=r"tokens: shape \(2,\)"):
        run(loss, tokens=lambda b: b["mask"][:, 0])
    with pytest.raises(ValueError, match="batches: 1 sequences for 2 losses"):
        importance_scores([loss, loss], params, frozen, [batches()], (".",), key=KEY)
