"""The two halves of a step, the scalars between them, and the guards on those, for every estimator."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.estimators.problems import (
    DIRECTIONS,
    ESTIMATORS,
    KEY,
    MODES,
    PAIRS,
    flat,
    make,
    protocol,
    regression,
    weights,
)
from zojax import diagnostics, estimators, ops
from zojax.diagnostics import AutoEps
from zojax.directions import Gaussian, Rademacher
from zojax.estimators import Scalars
from zojax.perturb import PerturbSpec

every_estimator = pytest.mark.parametrize("name", ESTIMATORS)


@pytest.mark.parametrize(
    ("direction", "num_samples"),
    [
        *((direction, 2) for direction in DIRECTIONS.values()),
        (DIRECTIONS["rademacher"], 1),
        (DIRECTIONS["gaussian"], 1),
    ],
)
def test_lazy_is_dense(direction, num_samples):
    """The update is mean_i c_i z_i of PerturbSpec.noise with the documented keys."""
    spec, params = PerturbSpec(direction=direction), weights()
    estimator = estimators.spsa(1e-2, spec, num_samples=num_samples, key=KEY)
    state = estimator.init(params)._replace(count=jnp.int32(5))
    projected = jnp.asarray(np.random.default_rng(2).normal(size=num_samples), jnp.float32)
    scalars = Scalars(projected, jnp.float32(0), jnp.float32(1e-2), jnp.ones(num_samples))

    @jax.jit
    def lazy(params, state, scalars):
        return estimator.update(None, state, params, scalars=scalars)[0]

    @jax.jit
    def noise(params, index):
        key = jax.random.fold_in(jax.random.fold_in(KEY, 5), index)
        return spec.noise(params, key, state.masks)

    z = [jax.tree.map(lambda x: np.asarray(x, np.float64), noise(params, i)) for i in range(num_samples)]
    dense = jax.tree.map(
        lambda *parts: sum(float(c) * x for c, x in zip(projected, parts, strict=True)) / num_samples, *z
    )
    signs = direction in (DIRECTIONS["rademacher"], DIRECTIONS["sparse"])
    for a, b in zip(jax.tree.leaves(lazy(params, state, scalars)), jax.tree.leaves(dense), strict=True):
        if num_samples == 1 and signs:
            np.testing.assert_array_equal(a, b.astype(np.float32))
        else:
            # XLA may fold the scalar into the constants of a normal draw, and add in any order: 2 ulp of the summands.
            np.testing.assert_allclose(a, b, rtol=2.0**-22, atol=2.0**-22 * float(np.abs(projected).max()) * 3)


@every_estimator
def test_measure_and_update_are_the_halves_of_update(name):
    tx = estimators.chain(make(name), optax.sgd(1.0))
    value_fn = protocol(name, regression)
    params = weights()
    state = tx.init(params)
    scalars = jax.jit(lambda p, s: tx.measure(p, s, value_fn))(params, state)
    in_halves, end = jax.jit(lambda p, s, c: tx.update(None, s, p, scalars=c))(params, state, scalars)
    at_once, end_at_once = jax.jit(lambda p, s: tx.update(None, s, p, value_fn=value_fn))(params, state)
    # Two programs round a loss of about 10 differently: 2^-23 * 10 / eps in a projected gradient.
    chex.assert_trees_all_close(in_halves, at_once, atol=2.0**-22 * 10 / 1e-2, rtol=1e-4)
    chex.assert_trees_all_equal(end[0].last, scalars)
    assert int(end[0].count) == int(end_at_once[0].count) == 1
    np.testing.assert_array_equal(jax.random.key_data(end[0].key), jax.random.key_data(KEY))


@pytest.mark.parametrize(
    ("name", "direction"), [*(p for p in PAIRS if sum(p[0] == m[0] for m in MODES) > 1), ("spsa", DIRECTIONS["sphere"])]
)
def test_the_order_of_evaluation_does_not_matter(name, direction):
    modes = [probes for other, probes in MODES if other == name]
    params = weights()
    results = {}
    for probes in modes:
        estimator = make(name, direction=direction, probes=probes)
        measure = jax.jit(lambda p, s, e=estimator: e.measure(p, s, protocol(name, regression)))
        results[probes] = measure(params, estimator.init(params))
    for probes in modes[1:]:
        # The rounding of a loss of about 10 in differences over 2 eps = 2e-2; fzoo divides by a deviation instead.
        for field in results["turn"]._fields:
            # Second differences are over eps^2.
            atol = 2.0**-20 * 10 / (1e-4 if field == "curvature" else 1e-2)
            found, known = (getattr(result, field) for result in (results[probes], results["turn"]))
            np.testing.assert_allclose(found, known, rtol=1e-4, atol=atol, err_msg=field)


def test_the_scalars_of_spsa_and_forward_are_their_formulas():
    params, eps = weights(), 1e-2
    for name in ("spsa", "forward", "fzoo"):
        estimator = make(name, direction=Gaussian(), num_samples=3, eps=eps)
        scalars = jax.jit(lambda p, s, e=estimator: e.measure(p, s, regression))(params, estimator.init(params))
        up, down, base = (
            [float(regression(_moved(params, jax.random.fold_in(jax.random.fold_in(KEY, 0), i), s))) for i in range(3)]
            for s in (eps, -eps, 0.0)
        )
        if name == "spsa":
            expected, value = (np.array(up) - down) / (2 * eps), np.mean(up + down)
        else:
            scale = eps if name == "forward" else np.std(up, ddof=1)
            expected, value = (np.array(up) - base[0]) / scale, np.mean([*up, base[0]])
        # losses of about 10 in float32: 2^-23 * 10 over eps
        np.testing.assert_allclose(scalars.projected, expected, rtol=1e-3, atol=2.0**-21 * 10 / eps)
        np.testing.assert_allclose(scalars.value, value, rtol=1e-6)
        assert float(scalars.eps) == pytest.approx(eps)


@jax.jit
def _moved(params, key, scale):
    return jax.tree.map(lambda w, z: w + scale * z, params, PerturbSpec(direction=Gaussian()).noise(params, key))


@pytest.mark.parametrize("name", ["spsa", "forward"])
def test_num_samples_and_first_probe_divide_a_step_between_workers(name):
    params = weights()
    four, two = make(name, num_samples=4), make(name, num_samples=2)
    state = four.init(params)
    whole = jax.jit(lambda s: four.measure(params, s, regression))(state)
    parts = [
        jax.jit(lambda s, f=f: four.measure(params, s, regression, num_samples=2, first_probe=f))(state) for f in (0, 2)
    ]
    # Other programs round a loss of about 10 otherwise.
    joined = np.concatenate([part.projected for part in parts])
    np.testing.assert_allclose(joined, whole.projected, atol=2.0**-20 * 10 / 1e-2)
    if name == "spsa":  # forward counts the unperturbed loss once a worker
        np.testing.assert_allclose(np.mean([part.value for part in parts]), whole.value, rtol=1e-5)
    # The merged scalars move one worker of two probes exactly as they move one of four, and neither state grows.
    updates = [jax.jit(lambda s, e=e: e.update(None, s, params, scalars=whole))(e.init(params)) for e in (four, two)]
    chex.assert_trees_all_equal(updates[0][0], updates[1][0])
    for estimator, (_, end) in zip((four, two), updates, strict=True):
        chex.assert_trees_all_equal_shapes_and_dtypes(end, estimator.init(params))
    # Fewer than its own: the mean of what there is, in a state of its own shape.
    half, end = jax.jit(lambda s: four.update(None, s, params, scalars=parts[0]))(state)
    alone, _ = jax.jit(lambda s: two.update(None, s, params, scalars=parts[0]))(two.init(params))
    chex.assert_trees_all_equal(half, alone)
    chex.assert_trees_all_equal_shapes_and_dtypes(end, state)


def test_a_traced_number_of_probes_is_the_static_one():
    params, schedule = weights(), optax.linear_schedule(1.0, 3.0, 4)
    traced = make("spsa", num_samples=schedule, max_samples=3)

    @jax.jit
    def step(state):
        return traced.update(None, state, params, value_fn=regression)

    for count in (0, 20):
        state = traced.init(params)._replace(count=jnp.int32(count))
        gradient, end = step(state)
        q = min(int(schedule(count)), 3)
        static = make("spsa", num_samples=q)
        expected, static_end = jax.jit(lambda s, e=static: e.update(None, s, params, value_fn=regression))(
            static.init(params)._replace(count=jnp.int32(count))
        )
        atol = 2.0**-20 * 10 / 1e-2  # other programs round a loss of about 10 otherwise
        chex.assert_trees_all_close(gradient, expected, atol=atol, rtol=1e-4)
        assert float(end.last.value) == pytest.approx(float(static_end.last.value), rel=1e-6)
        assert np.count_nonzero(end.last.projected) == q
        # From the record alone, the same number of probes.
        replayed = jax.jit(lambda s, c: traced.update(None, s, params, scalars=c)[0])(state, end.last)
        chex.assert_trees_all_close(replayed, gradient, rtol=1e-5, atol=1e-6)
    assert step._cache_size() == 1


@pytest.mark.parametrize("name", ["spsa", "forward"])
def test_auto_eps_is_chosen_by_the_diagnostics_and_kept(name):
    estimator, params = make(name, eps=AutoEps(every=2, num_directions=1), direction=Gaussian()), weights()
    step = jax.jit(lambda s: estimator.update(None, s, params, value_fn=lambda p: regression(p) ** 2)[1])
    state = estimator.init(params)
    chosen = []
    for _ in range(4):
        state = step(state)
        chosen.append(float(state.last.eps))
    assert chosen[0] == chosen[1]
    assert chosen[2] == chosen[3] != chosen[1]  # other directions, so never to the bit the same
    key = jax.random.fold_in(jax.random.fold_in(KEY, 0), jnp.uint32(2**32 - 1))
    spec = PerturbSpec(direction=Gaussian())
    expected = diagnostics.choose_eps(
        lambda p: regression(p) ** 2, params, spec, key, auto=AutoEps(num_directions=1), two_sided=name == "spsa"
    )
    assert chosen[0] == pytest.approx(float(expected.eps), rel=1.0)  # rounding errors are what it measures
    assert ESTIMATORS[name]("auto", num_samples=2, key=KEY).init(params).last.eps == 0


# ---------------------------------------------------------------- guards


def test_clip_projected():
    params = weights()
    plain = make("spsa")
    bound = 1e-3
    clipped = estimators.clip_projected(plain, bound)
    state = clipped.init(params)
    before = jax.jit(lambda s: plain.measure(params, s, regression))(state)
    after = jax.jit(lambda s: clipped.measure(params, s, regression))(state)
    np.testing.assert_allclose(after.projected, np.clip(before.projected, -bound, bound), rtol=1e-6)
    assert float(np.abs(before.projected).max()) > bound
    # The other half clips too, so scalars from elsewhere are bounded as well.
    apply = jax.jit(lambda s, c, e: e.update(None, s, params, scalars=c)[0], static_argnums=2)
    chex.assert_trees_all_equal(apply(state, before, clipped), apply(state, after, plain))


@pytest.mark.parametrize("guard", [estimators.skip_nonfinite, lambda e: estimators.clip_projected(e, 1.0)])
def test_guards_wrap_chains(guard):
    params = weights()
    tx = guard(estimators.chain(make("spsa"), optax.sgd(1.0)))
    updates, state = jax.jit(lambda s: tx.update(None, s, params, value_fn=regression))(tx.init(params))
    chex.assert_trees_all_equal_shapes(updates, params)
    assert np.isfinite(flat(updates)).all()
    assert int(state[0].count) == 1


def test_skip_nonfinite_drops_the_probe_that_failed():
    params = weights()
    tx = estimators.skip_nonfinite(make("spsa", num_samples=4, direction=Rademacher()))
    state = tx.init(params)
    plain = jax.jit(lambda s: tx.measure(params, s, regression))(state)
    # A loss that is not finite where the first gain goes down: at one side of every probe, so all are dropped.
    cliff = lambda p: jnp.where(ops.value(p["gain"])[0] < 1, jnp.nan, regression(p))  # noqa: E731
    every = jax.jit(lambda s: tx.measure(params, s, cliff))(state)
    assert every.projected.tolist() == [0.0] * 4
    # One that is not finite where two gains go up together: at a side of those probes whose two signs agree.
    corner = lambda p: jnp.where(jnp.all(ops.value(p["gain"])[:2] > 1), jnp.inf, regression(p))  # noqa: E731
    some = jax.jit(lambda s: tx.measure(params, s, corner))(state)
    dropped = some.projected == 0
    assert 0 < int(dropped.sum()) < 4
    np.testing.assert_allclose(some.projected[~dropped], plain.projected[~dropped], atol=2.0**-20 * 10 / 1e-2)
    updates, _ = jax.jit(lambda s: tx.update(None, s, params, value_fn=cliff))(state)
    assert not flat(updates).any()
