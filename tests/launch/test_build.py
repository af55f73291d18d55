"""What `build` makes of data.sampling."""

import copy
import json

import jax
import ml_collections
import numpy as np
import pytest

from launch.common.build import build
from zojax.trees import merge


@pytest.fixture
def weighted(tiny):
    fields = copy.deepcopy(tiny)
    fields["data"] |= {"sampling": "importance", "length_grouped": True, "train_examples": 22}
    return ml_collections.ConfigDict(fields)


def test_weights_follow_from_the_first_logits(weighted):
    run = build(weighted)
    params = merge(run.params, run.frozen)
    scores = np.zeros(22)
    for batch in run.evaluation["train"]:
        errors = jax.nn.softmax(run.task.logits(params, batch)) - jax.nn.one_hot(batch["label"], 2)
        real = batch["weight"] > 0
        scores[batch["id"][real]] = np.linalg.norm(errors, axis=1)[real]
    assert scores.max() > 1.5 * scores.min()  # else any order of the examples would pass
    weights = 1 / (22 * (0.8 * scores / scores.sum() + 0.2 / 22))
    for _ in range(12):
        batch = next(run.batches)
        # float32 logits, summed in another order
        np.testing.assert_allclose(batch["weight"], weights[batch["id"]], rtol=1e-4)


def head(fields):
    run = build(ml_collections.ConfigDict(copy.deepcopy(fields)))
    return merge(run.params, run.frozen)["head"]


def test_a_head_of_few_examples_is_fitted_to_the_first(tiny):
    fields = copy.deepcopy(tiny)
    fields["model"]["head_examples"] = 6
    few = head(fields)
    fields["model"]["head_examples"] = 0
    everything = head(fields)
    fields["data"]["train_examples"] = 6
    alone = head(fields)
    # The same rows in an order of their own: sums of floats.
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), few, alone)
    assert np.abs(everything["kernel"] - few["kernel"]).max() > 1e-3


def test_a_head_needs_every_class(tiny):
    fields = copy.deepcopy(tiny)
    fields["model"]["head_examples"] = 1
    with pytest.raises(ValueError, match=r"config\.model\.head_examples is 1; among the first 1"):
        build(ml_collections.ConfigDict(fields))


def test_uniform_batches_have_weight_1(tiny):
    assert (next(build(ml_collections.ConfigDict(tiny)).batches)["weight"] == 1).all()


def test_a_weighted_run_that_is_built_again_goes_on_with_the_same_batches(weighted):
    batches = build(weighted).batches
    for _ in range(7):  # 22 // 4 batches are an epoch: within the second
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    again = build(weighted).batches
    again.set_state(state)
    for _ in range(9):
        one, other = next(batches), next(again)
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], strict=True)
