"""Every estimator that a config can name: its step, its record and its cost."""

import copy

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from launch.bench import __main__ as program
from launch.bench import estimators as bench
from launch.bench.zo_step import classifier, random_batch
from launch.common import protocols, schema
from launch.common.build import build
from launch.common.methods import ESTIMATORS, FORWARDS
from tests.launch.test_bench import TINY, check_lines
from zojax import replay
from zojax.trees import merge

DIRECTION = {
    **dict.fromkeys(("eggroll", "lozo", "lozo_m", "subzero"), "low_rank"),
    **dict.fromkeys(("per_example", "grzo"), "rademacher"),
}
# Forwards of the first and the second step; a step of mezo_svrg that takes an anchor runs the 6 batches of 4 rows.
COST = {"hizoo": (5, 5), "per_example": (2, 2), "mezo_svrg": (24, 8)}


def config_of(tiny, name, **changes):
    fields = copy.deepcopy(tiny)
    fields["method"] |= {"name": name, "direction": DIRECTION.get(name, "gaussian")}
    fields["method"]["num_samples"] = 1 if name in protocols.PER_EXAMPLE else 2
    for path, value in changes.items():
        section, field = path.split("__")
        fields[section][field] = value
    return ml_collections.ConfigDict(fields)


def test_the_schema_and_the_dictionaries_name_the_same():
    named = schema.FIELDS["method.name"].needed.removeprefix("one of ").split(", ")
    assert {*named} == {*ESTIMATORS, "first_order"}
    assert ESTIMATORS.keys() == FORWARDS.keys()


@pytest.mark.parametrize("name", COST)
def test_a_config_names_it_and_its_record_replays(tiny, name):
    config = config_of(tiny, name)
    schema.check(config)
    run = build(config)
    start = replay.digest(run.params)
    params, frozen, method = run.params, run.frozen, run.method
    state = method.init(params)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), method.scalars_like(params, state))
    fresh = lambda tree: jax.tree.map(jnp.array, tree)  # noqa: E731 (a step donates)
    trained, end, records = fresh(params), fresh(state), []
    for step in (1, 2, 3):
        trained, end, scalars = method.step(trained, frozen, end, next(run.batches), jax.random.key(0), step)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), scalars) == shapes
        records.append(scalars)
    assert replay.digest(trained) != start
    again, state = fresh(params), fresh(state)
    for scalars in records:
        again, state = method.apply(again, state, scalars)
    assert replay.digest(again) == replay.digest(trained)
    probes = len(records[0].projected)
    assert tuple(method.forwards(probes, step) for step in (1, 2)) == COST[name]


def test_losses_of_examples_have_the_mean_of_the_batch(tiny):
    run = build(config_of(tiny, "spsa"))
    batch, params = next(run.batches), merge(run.params, run.frozen)
    task = protocols.wrap_task(config_of(tiny, "per_example"), run.task)
    each, whole = jax.jit(lambda p, b: (task.loss(p, b)[0], run.task.loss(p, b)[0]))(params, batch)
    assert each.shape == (4,)
    assert float(each.mean()) == pytest.approx(float(whole), rel=1e-5)


def test_the_anchor_is_the_whole_training_set(tiny):
    run = build(config_of(tiny, "mezo_svrg"))
    batch, params = next(run.batches), merge(run.params, run.frozen)
    task = protocols.wrap_task(config_of(tiny, "mezo_svrg"), run.task)
    pair = jax.jit(lambda p, b: task.loss(p, b)[0])(params, batch)
    loss = jax.jit(lambda p, b: run.task.loss(p, b))
    sums = [loss(params, part)[1]["loss"] for part in run.evaluation["train"]]
    whole = np.sum([s for s, _ in sums]) / np.sum([w for _, w in sums])
    # Sums of 24 float32 losses in another order and another padding.
    assert float(pair[1]) == pytest.approx(float(whole), rel=1e-4)
    rest = {name: value for name, value in batch.items() if name != "anchor"}
    assert float(pair[0]) == pytest.approx(float(loss(params, rest)[0]), rel=1e-6)
    assert float(sum(np.asarray(batch["anchor"]["weight"]).ravel())) == 24
    state = run.batches.get_state()
    first = next(run.batches)
    run.batches.set_state(state)
    np.testing.assert_array_equal(next(run.batches)["id"], first["id"])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mezo_svrg", {"train__microbatches": 2}, "config.train.microbatches is 2; mezo_svrg needs 1"),
        ("per_example", {"train__microbatches": 2}, "config.train.microbatches is 2; per_example needs 1"),
        ("grzo", {"data__sampling": "importance"}, "config.data.sampling is 'importance'; grzo weighs examples alike"),
        ("grzo", {"method__num_samples": 3}, "config.method.num_samples is 3 and queries 'constant'; grzo takes one"),
        ("lozo", {"method__every": 0}, "config.method.every is 0; it must be an integer, 1 or more"),
    ],
)
def test_what_does_not_go_together(tiny, name, changes, message):
    with pytest.raises(ValueError, match=message):
        schema.check(config_of(tiny, name, **changes))


def test_a_direction_that_a_method_does_not_take_is_refused(tiny):
    with pytest.raises(ValueError, match=r"spec.direction: Gaussian\(\); lozo needs LowRank"):
        build(config_of(tiny, "lozo", method__direction="gaussian"))


def test_bench():
    """One estimator: compiling takes nearly all of the time."""
    lines = list(bench.run(1, source=TINY, shape=(2, 8), names=("hizoo",), populations=(2,)))
    values = check_lines(lines, "estimators")
    assert values["step, hizoo, 2x8", "time_min"] > 0
    parameters = sum(x.size for x in jax.tree.leaves(classifier(TINY)[1]))
    assert (
        4 * parameters < values["apply, hizoo, 2x8", "state"] < 4 * parameters + 2000
    )  # the diagonal, and little else
    assert values["population of 2, 2x8", "share of throughput, min"] > 0
    compared = {line["case"]: line["reference"] for line in lines if line["metric"] == "time_median"}
    assert compared["step, hizoo, 2x8"] == "3 forwards, 2x8"
    assert program.BENCHES["estimators"]() is bench.run
    # grzo weighs the losses of per_example anew, multi_task those of spsa: a few scalars of a step.
    assert {*bench.CASES} == {*ESTIMATORS} - {"grzo", "multi_task"}


def test_the_bench_gives_each_estimator_its_protocol():
    task, params = classifier(TINY)
    batch = random_batch(task.config.vocab_size, 2, 8)
    for name, shapes in (("spsa", [()]), ("per_example", [(2,)]), ("mezo_svrg", [(), ()])):
        wrapped, _, rows = bench._protocol(name, task, [params], batch)
        loss = jax.eval_shape(lambda p, b, wrapped=wrapped: wrapped.loss(p, b)[0], params, rows)
        assert [x.shape for x in jax.tree.leaves(loss)] == shapes
