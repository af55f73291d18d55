"""Batches drawn by probabilities: as often as asked, weighted back to the mean over all examples, seekable."""

import json

import hypothesis.strategies as st
import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings

from zojax.data.pipeline import skip, train_batches
from zojax.data.sampling import importance

MAX_LENGTH = 20
quick = settings(deadline=None, max_examples=25)  # no deadline: the first example pays for imports


def make_examples(count):
    """Lengths rise with the id; tokens follow from it too."""
    return [
        {"tokens": np.full(1 + i * MAX_LENGTH // count, i + 1, np.int32), "label": i % 3, "id": i} for i in range(count)
    ]


def make_probabilities(count, uniform=0.2):
    """Probabilities that rise with the id, hence with the length, under a noise of their own."""
    scores = np.arange(1, count + 1) ** 2 * np.random.default_rng(0).uniform(0.2, 1, count)
    return (1 - uniform) * scores / scores.sum() + uniform / count


def make(count=40, probabilities=None, *, batch_size=4, seed=0, grouped=False, **options):
    p = make_probabilities(count) if probabilities is None else probabilities
    return train_batches(
        make_examples(count), batch_size=batch_size, seed=seed, max_length=MAX_LENGTH, buckets=(5, 10, 15),
        length_grouped=grouped, probabilities=p, **options,
    )  # fmt: skip


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], strict=True)


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_norms_of_gradients_at_the_logits(classes):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, classes)).astype(np.float32) * 3
    labels = rng.integers(classes, size=50)
    loss = lambda z: optax.softmax_cross_entropy_with_integer_labels(z, labels).sum()  # noqa: E731
    norms = np.linalg.norm(np.asarray(jax.grad(loss)(logits), np.float64), axis=1)
    # float32 gradients: probabilities near 1 leave errors of 1e-7, beside a uniform share of 4e-3
    np.testing.assert_allclose(importance(logits, labels), 0.8 * norms / norms.sum() + 0.2 / 50, atol=1e-8, rtol=1e-5)
    np.testing.assert_allclose(importance(logits, labels, uniform=1.0), 1 / 50, rtol=1e-12)


def test_scores_at_the_extremes():
    sure = np.array([[1e5, -1e5], [-1e5, 1e5], [1e5, -1e5]])
    np.testing.assert_allclose(importance(sure, np.array([0, 1, 0])), 1 / 3, rtol=1e-12)  # no error at all
    p = importance(sure, np.array([0, 1, 1]))
    np.testing.assert_allclose(p, [0.2 / 3, 0.2 / 3, 0.8 + 0.2 / 3], rtol=1e-12)
    # the uniform share bounds the weight
    assert (1 / (3 * p)).max() <= 1 / 0.2 * (1 + 1e-12)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, np.nan])
def test_scores_refuse_a_share_out_of_range(value):
    with pytest.raises(ValueError, match="uniform must lie above 0 and be at most 1, got"):
        importance(np.zeros((2, 2)), np.zeros(2, int), uniform=value)


def test_scores_refuse_logits_that_are_not_finite():
    logits = np.array([[0.0, np.nan], [np.inf, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="logits of 2 examples are not finite"):
        importance(logits, np.zeros(3, int))


@pytest.mark.parametrize("grouped", [False, True])
def test_examples_are_drawn_by_their_probabilities_and_weighted_against_them(grouped):
    count, steps = 40, 5000
    p = make_probabilities(count)
    batches = make(probabilities=p, grouped=grouped)
    drawn = [next(batches) for _ in range(steps)]
    ids, weights = (np.array([batch[name] for batch in drawn]) for name in ("id", "weight"))
    np.testing.assert_array_equal(weights, (1 / (count * p[ids])).astype(np.float32), strict=True)
    for column in range(4):
        # Each row of a batch is a multinomial draw over the batches of an epoch, in any order; strata make the
        # count of an example vary less than this standard deviation, never more. 160 counts under a fixed seed.
        counts = np.bincount(ids[:, column], minlength=count)
        assert (np.abs(counts - steps * p) < 4.5 * np.sqrt(steps * p * (1 - p))).all()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("shards", [1, 4])
def test_weighted_means_agree_with_the_mean_over_all_examples(grouped, shards):
    count, steps = 200, 4000
    # one that rises with length and probability, one that falls, one that has to do with neither
    f = np.stack(
        [np.arange(count) / count, np.exp(-np.arange(count) / 30), np.random.default_rng(1).normal(size=count)]
    )
    parts = [
        make(count, batch_size=16, grouped=grouped, shard_index=index, shard_count=shards) for index in range(shards)
    ]
    for part in parts:
        sums = []
        for _ in range(steps):
            batch = next(part)
            sums.append(f[:, batch["id"]] @ batch["weight"].astype(np.float64))
        sums = np.array(sums)

        def deviation(estimates):
            # The batches of a group share one sort by length, so they differ by more than independent ones: the
            # standard error of those is, if anything, too large.
            return np.abs(estimates.mean(0) - f.mean(1)) / (estimates.std(0) / np.sqrt(steps))

        assert (deviation(sums / (16 // shards)) < 4).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_strata_take_the_common_part_of_the_errors_out_of_a_batch(grouped):
    """Errors of two classes have opposite signs; a batch with one class too many has a gradient of its own."""
    p = make_probabilities(200, uniform=0.0)
    signs = np.where(np.arange(200) % 3 == 1, 1, -1)
    errors = p * signs  # as `importance` would have scored them
    batches = make(200, p, batch_size=16, grouped=grouped)
    drawn = [next(batches) for _ in range(1000)]
    means = [np.mean(errors[batch["id"]] * batch["weight"]) for batch in drawn]
    weighted = errors / (200 * p)
    independent = np.sqrt((p @ weighted**2 - (p @ weighted) ** 2) / 16)
    # All that is left are the strata over the border of two classes.
    assert np.std(means) < 0.4 * independent


@pytest.mark.parametrize("grouped", [False, True])
def test_strata_keep_the_classes_in_proportion(grouped):
    p = make_probabilities(200)
    labels = np.arange(200) % 3
    expected = 16 * np.bincount(labels, weights=p)
    batches = make(200, p, batch_size=16, grouped=grouped)
    for _ in range(200):
        counts = np.bincount([labels[number] for number in next(batches)["id"]], minlength=3)
        # A stratum over the border of two classes falls to either; a class in the middle has two borders.
        assert (np.abs(counts - expected) < 2).all()


@quick
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 2**64 - 1), st.booleans(), st.integers(0, 200))
def test_state_round_trip_and_skip_agree_with_iterating(extra, batch_size, seed, grouped, position):
    def fresh(**shard):
        return make(batch_size + extra, batch_size=batch_size, seed=seed, grouped=grouped, **shard)

    walked, skipped, restored = fresh(), fresh(), fresh()
    for _ in range(position):
        next(walked)
    skip(skipped, position)
    assert skipped.get_state() == walked.get_state()
    restored.set_state(json.loads(json.dumps(walked.get_state())))
    slices = [fresh(shard_index=index, shard_count=batch_size) for index in range(batch_size)]
    for part in slices:
        skip(part, position)
    for _ in range(3):
        expected = next(walked)
        assert_same(next(skipped), expected)
        assert_same(next(restored), expected)
        parts = [next(part) for part in slices]
        assert_same({name: np.concatenate([part[name] for part in parts]) for name in expected}, expected)


def test_batches_depend_on_seed_and_epoch_alone():
    def ids(seed, epoch):
        batches = make(seed=seed)
        skip(batches, 10 * epoch)
        return [number for _ in range(10) for number in next(batches)["id"].tolist()]

    assert ids(3, 0) == ids(3, 0)
    assert ids(3, 0) != ids(3, 1) != ids(4, 1)


def test_the_order_is_fixed_for_ever():
    # Golden: logs of old runs name batches by their number, so these orders must not change any more.
    p = np.array([1, 9, 2, 8, 3, 7, 4, 6, 5, 5]) / 50
    plain, grouped = make(10, p, seed=7), make(10, p, seed=7, grouped=True)
    assert [next(plain)["id"].tolist() for _ in range(4)] == [[7, 0, 3, 8], [7, 8, 3, 4], [1, 6, 8, 3], [5, 7, 1, 3]]
    assert [next(grouped)["id"].tolist() for _ in range(4)] == [[7, 4, 3, 8], [7, 8, 3, 0], [1, 7, 8, 3], [5, 6, 1, 3]]


def test_an_epoch_has_as_many_batches_as_without_probabilities(monkeypatch):
    epochs = []
    philox = np.random.Philox
    monkeypatch.setattr(np.random, "Philox", lambda *, key: epochs.append(int(key[1])) or philox(key=key))
    batches = make(43)
    for _ in range(31):
        next(batches)
    assert epochs == [0, 1, 2, 3]  # of 43 // 4 batches


def test_length_grouping_saves_padding():
    count = 4000
    p = np.random.default_rng(2).permutation(make_probabilities(count))

    def filled(grouped):
        epoch = make(count, p, batch_size=8, grouped=grouped)
        masks = [next(epoch)["mask"] for _ in range(count // 8)]
        return sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)

    # lengths are uniform in 1..20, as in the test without probabilities; sorted in 8 strata of 50 rows, the longest
    # of a batch exceeds its mean by about 1.4 * 20 * 0.06 more than if all were sorted together
    assert filled(grouped=False) < 0.6
    assert filled(grouped=True) > 0.7


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (np.full(9, 1 / 9), r"probabilities must be one for each of 10 examples, got shape \(9,\)"),
        (np.array([0.5, 0.5, *[0.0] * 8]), "probabilities must be positive, got 0.0 for example 2"),
        (np.array([1.2, -0.2, *[0.1] * 8]), "probabilities must be positive, got -0.2 for example 1"),
        (np.array([np.nan, *[0.1] * 9]), "probabilities must be positive, got nan for example 0"),
        (np.full(10, 0.11), r"probabilities must sum to 1, got 1\.1"),
        (np.full(10, np.inf), "probabilities must sum to 1, got inf"),
    ],
)
def test_bad_probabilities(probabilities, message):
    with pytest.raises(ValueError, match=message):
        make(10, probabilities)
