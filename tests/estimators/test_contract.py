"""What every estimator promises, whatever its method, direction and order of evaluation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from tests.estimators.problems import (
    DIRECTIONS,
    ESTIMATORS,
    KEY,
    MODES,
    PAIRS,
    make,
    regression,
    weights,
)
from zojax import diagnostics, estimators, ops, precision
from zojax.diagnostics import AutoEps
from zojax.directions import Gaussian, Rademacher
from zojax.estimators import Scalars
from zojax.perturb import PerturbSpec

every_estimator = pytest.mark.parametrize("name", ESTIMATORS)
every_pair = pytest.mark.parametrize(("name", "direction"), PAIRS)
every_mode = pytest.mark.parametrize(("name", "probes"), MODES)
every_dtype = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def cosine(a, b):
    a, b = flat(a), flat(b)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


# ---------------------------------------------------------------- as an optax transformation


@every_mode
def test_a_step_is_compiled_once_and_keeps_its_types(name, probes):
    """Under an eps schedule, with arguments that belong to other transformations of a chain."""
    eps = optax.exponential_decay(1e-2, 1, 0.5)
    tx = estimators.chain(make(name, probes=probes, eps=eps), optax.adam(1e-2))
    params = weights(jnp.bfloat16)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=regression, loss=1.0, labels=None, step=3)
        return optax.apply_updates(params, updates), state, updates

    for count in range(3):
        before = params, state
        params, state, updates = step(*before)
        chex.assert_trees_all_equal_shapes_and_dtypes(before, (params, state))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((updates, state[0].last)))
        assert int(state[0].count) == count + 1
        assert float(state[0].last.eps) == pytest.approx(1e-2 * 0.5**count, rel=1e-6)
    assert step._cache_size() == 1


OPTIMISERS = {
    "sgd": lambda: optax.sgd(1e-2),
    "momentum": lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=1e-2),
    "decay_clip_sgd": lambda: optax.chain(optax.add_decayed_weights(1e-2), optax.clip(1.0), optax.sgd(1e-2)),
}


@pytest.mark.parametrize(
    ("optimiser", "dtype", "rounding"),
    [
        *((name, jnp.bfloat16, None) for name in OPTIMISERS),
        ("adam", jnp.float32, None),
        ("adamw", jnp.bfloat16, "stochastic"),
        ("adamw", jnp.bfloat16, "compensated"),
        ("sgd", jnp.float32, "compensated"),
    ],
)
def test_dtypes_are_stable_through_a_chain(optimiser, dtype, rounding):
    last = {"stochastic": precision.stochastic_rounding(KEY), "compensated": precision.compensated()}.get(rounding)
    tx = estimators.chain(make("spsa", num_samples=1), OPTIMISERS[optimiser](), rounding=last)
    params = weights(dtype)
    state = tx.init(params)

    def apply(carry, projected):
        params, state = carry
        scalars = Scalars(projected[None], jnp.float32(1), jnp.float32(1e-2), jnp.ones(1))
        updates, state = tx.update(None, state, params, scalars=scalars)
        return (optax.apply_updates(params, updates), state), None

    # A scan takes no carry whose dtypes or structure change.
    (moved, end), _ = jax.jit(lambda c: jax.lax.scan(apply, c, jnp.linspace(-3, 3, 4)))((params, state))
    chex.assert_trees_all_equal_shapes_and_dtypes((params, state), (moved, end))
    floats = [leaf for leaf in jax.tree.leaves(state[:2]) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(leaf.dtype == jnp.float32 for leaf in floats)  # moments too, also where the weights are half
    assert all(bool(jnp.any(a != b)) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(moved), strict=True))


@every_pair
def test_convergence(name, direction):
    if name == "fzoo":  # its steps have a fixed length, so its rate decays
        rate, num_samples = optax.linear_schedule(0.1, 0.0, 400), 4
    else:
        rate, num_samples = 1e-2, 2
    tx = estimators.chain(make(name, direction=direction, num_samples=num_samples, eps=1e-3), optax.sgd(rate))
    params = weights()

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=regression)
        return (optax.apply_updates(params, updates), state), state[0].last.value

    losses = jax.jit(lambda c: jax.lax.scan(step, c, length=400)[1])((params, tx.init(params)))
    # The sparse direction never moves the larger half of a leaf's weights.
    share = 0.5 if direction == DIRECTIONS["sparse"] else 0.3 if name == "fzoo" else 0.05
    assert float(losses[-1]) < share * float(losses[0])


def test_inject_hyperparams():
    """Static: what is no number. eps is then a traced hyperparameter, readable in the state."""
    make_spsa = optax.inject_hyperparams(
        estimators.spsa, static_args=("num_samples", "max_samples", "key", "spec", "probes")
    )
    tx = optax.chain(
        make_spsa(eps=optax.linear_schedule(1e-2, 1e-3, 9), num_samples=2, key=KEY),
        optax.inject_hyperparams(optax.sgd)(learning_rate=1e-2),
    )
    params = weights()
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=regression)
        return optax.apply_updates(params, updates), state

    start = float(regression(params))
    for count in range(3):
        params, state = step(params, state)
        # float32 evaluation of a linear schedule
        assert float(state[0].hyperparams["eps"]) == pytest.approx(1e-2 - count * 1e-3, rel=1e-5)
        assert float(state[0].inner_state.last.eps) == pytest.approx(1e-2 - count * 1e-3, rel=1e-5)
    assert float(regression(params)) < start


def test_multi_steps_after_the_estimator_averages_its_estimates():
    estimator, params = make("spsa", num_samples=1), weights()
    tx = optax.chain(estimator, optax.MultiSteps(optax.sgd(1.0), every_k_schedule=3))
    state = tx.init(params)

    @jax.jit
    def step(state):
        gradient, _ = estimator.update(None, state[0], params, value_fn=regression)
        return *tx.update(None, state, params, value_fn=regression), gradient

    gradients = []
    for count in range(3):
        updates, state, gradient = step(state)
        gradients.append(gradient)
        assert any(bool(jnp.any(u)) for u in jax.tree.leaves(updates)) == (count == 2)
    mean = jax.tree.map(lambda *g: -sum(g) / 3, *gradients)
    chex.assert_trees_all_close(updates, mean, rtol=1e-5, atol=1e-5)  # a running mean in float32


@pytest.mark.parametrize("bad", [False, True])
def test_apply_if_finite_after_the_estimator(bad):
    tx = optax.chain(make("spsa"), optax.apply_if_finite(optax.sgd(1e-2), max_consecutive_errors=3))
    params = weights()
    loss = (lambda p: regression(p) * jnp.nan) if bad else regression
    updates, state = jax.jit(lambda s: tx.update(None, s, params, value_fn=loss))(tx.init(params))
    assert bool(state[1].last_finite) != bad
    assert any(bool(jnp.any(u != 0)) for u in jax.tree.leaves(updates)) != bad


def test_checkpoint_round_trip(tmp_path):
    tx = estimators.chain(make("spsa", direction=DIRECTIONS["sparse"]), optax.adam(1e-2))
    params = weights(jnp.bfloat16)
    step = jax.jit(lambda p, s: tx.update(None, s, p, value_fn=regression))
    _, state = step(params, tx.init(params))
    ocp.save(tmp_path / "state", state)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
    restored = ocp.load(tmp_path / "state", abstract)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert restored[0].key.dtype == state[0].key.dtype
    a, b = step(params, state), step(params, restored)
    chex.assert_trees_all_equal(*[jax.tree.map(_plain, x) for x in (a, b)])


def _plain(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


# ---------------------------------------------------------------- the two halves of a step


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
    params = weights()
    state = tx.init(params)
    scalars = jax.jit(lambda p, s: tx.measure(p, s, regression))(params, state)
    in_halves, end = jax.jit(lambda p, s, c: tx.update(None, s, p, scalars=c))(params, state, scalars)
    at_once, end_at_once = jax.jit(lambda p, s: tx.update(None, s, p, value_fn=regression))(params, state)
    # Two programs round a loss of about 10 differently: 2^-23 * 10 / eps in a projected gradient.
    chex.assert_trees_all_close(in_halves, at_once, atol=2.0**-22 * 10 / 1e-2, rtol=1e-4)
    chex.assert_trees_all_equal(end[0].last, scalars)
    assert int(end[0].count) == int(end_at_once[0].count) == 1
    np.testing.assert_array_equal(jax.random.key_data(end[0].key), jax.random.key_data(KEY))


@pytest.mark.parametrize(("name", "direction"), [*PAIRS[:3], ("spsa", DIRECTIONS["sphere"])])
def test_the_order_of_evaluation_does_not_matter(name, direction):
    modes = [probes for other, probes in MODES if other == name]
    params = weights()
    results = {}
    for probes in modes:
        estimator = make(name, direction=direction, probes=probes)
        results[probes] = jax.jit(lambda p, s, e=estimator: e.measure(p, s, regression))(params, estimator.init(params))
    for probes in modes[1:]:
        # The rounding of a loss of about 10 in differences over 2 eps = 2e-2; fzoo divides by a deviation instead.
        atol = 2.0**-20 * 10 / 1e-2
        chex.assert_trees_all_close(results[probes], results["turn"], rtol=1e-4, atol=atol)


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


# ---------------------------------------------------------------- refusals


@every_estimator
def test_losses_that_cannot_be_differenced_are_refused(name):
    estimator, params = make(name), weights()
    state = estimator.init(params)
    with pytest.raises(ValueError, match="value_fn: returned bfloat16; a float32 loss"):
        estimator.measure(params, state, lambda p: regression(p).astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="value_fn: returned int32"):
        estimator.measure(params, state, lambda p: regression(p).astype(jnp.int32))
    with pytest.raises(ValueError, match=r"value_fn: returned shape \(1,\)"):
        estimator.measure(params, state, lambda p: regression(p)[None])


@every_estimator
def test_refusals(name):
    estimator, params = make(name), weights()
    state = estimator.init(params)
    scalars = state.last
    with pytest.raises(ValueError, match="params:"):
        estimator.update(None, state, value_fn=regression)
    with pytest.raises(ValueError, match="exactly one of value_fn and scalars"):
        estimator.update(None, state, params)
    with pytest.raises(ValueError, match="exactly one of value_fn and scalars"):
        estimator.update(None, state, params, value_fn=regression, scalars=scalars)
    for eps in (0.0, -1e-3, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="eps: "):
            make(name, eps=eps)
    with pytest.raises(ValueError, match="num_samples: 0"):
        make(name, num_samples=0)
    with pytest.raises(ValueError, match="num_samples: 0"):
        estimator.measure(params, state, regression, num_samples=0)
    with pytest.raises(ValueError, match="is of dtype int32"):
        estimator.init({**params, "steps": jnp.int32(3)})


def test_refusals_of_single_methods():
    schedule = lambda count: 1 + count  # noqa: E731
    with pytest.raises(ValueError, match="max_samples"):
        make("spsa", num_samples=schedule)
    with pytest.raises(ValueError, match='"turn"'):
        make("spsa", num_samples=schedule, max_samples=4, probes="batch")
    with pytest.raises(ValueError, match='probes: "pair"'):
        make("forward", probes="pair")
    with pytest.raises(ValueError, match="at least 2"):
        make("fzoo", num_samples=1)
    estimator = make("fzoo", num_samples=3)
    with pytest.raises(ValueError, match="at least 2"):
        estimator.measure(weights(), estimator.init(weights()), regression, num_samples=1)
    scheduled = make("spsa", num_samples=schedule, max_samples=4)
    with pytest.raises(ValueError, match="schedule"):
        scheduled.measure(weights(), scheduled.init(weights()), regression, num_samples=4)
    with pytest.raises(ValueError, match="max_abs: 0"):
        estimators.clip_projected(make("spsa"), 0.0)


# ---------------------------------------------------------------- the weights and the noise


@every_dtype
def test_a_thousand_probes_leave_the_weights_alone(dtype):
    tx = estimators.chain(make("spsa", num_samples=2, eps=1e-3), optax.sgd(0.0))
    params = weights(dtype)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=regression)
        return (optax.apply_updates(params, updates), state), state[0].last.projected

    (end, _), projected = jax.jit(lambda c: jax.lax.scan(step, c, length=500))((params, tx.init(params)))
    chex.assert_trees_all_equal(end, params)
    assert np.unique(np.asarray(projected)).size > 900  # and a thousand different probes there were


@pytest.mark.parametrize(
    ("direction", "dtype"),
    [
        *((direction, jnp.bfloat16) for direction in DIRECTIONS.values()),
        *((DIRECTIONS["gaussian"], dtype) for dtype in (jnp.float32, jnp.float16)),
    ],
)
def test_the_update_is_parallel_to_the_probe(direction, dtype):
    """What a forward really sees, w(+) - w(-) through ops, points where the update goes, leaf by leaf."""
    spec, params, eps = PerturbSpec(direction=direction), {**weights(dtype), "bias": jnp.zeros(4, dtype)}, 1e-3
    estimator = estimators.spsa(eps, spec, key=KEY)
    state = estimator.init(params)

    @jax.jit
    def both(params, state):
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.count), 0)

        def seen(scale):
            leaves = spec.perturb(params, key, scale, state.masks)
            # an identity product sees the matrix as a layer does
            return {name: ops.dot(jnp.eye(6), w) if w.ndim == 2 else ops.value(w) for name, w in leaves.items()}

        probe = jax.tree.map(jnp.subtract, seen(jnp.float32(eps)), seen(jnp.float32(-eps)))
        scalars = Scalars(jnp.ones(1), jnp.float32(0), jnp.float32(eps), jnp.ones(1))
        return probe, estimator.update(None, state, params, scalars=scalars)[0]

    probe, update = both(params, state)
    for name in params:
        # .37 is what a gain of 1.0 in bfloat16 would show if the probe were added to it in its own precision.
        assert cosine(probe[name], update[name]) > 0.999, name


def test_streams_differ_over_leaves_probes_and_steps():
    params = {name: jnp.zeros((64, 64)) for name in "ab"}
    estimator = make("spsa", num_samples=2)

    @jax.jit
    def noise(step, probe):
        state = estimator.init(params)._replace(count=step)
        scalars = Scalars(jax.nn.one_hot(probe, 2), jnp.float32(0), jnp.float32(1), jnp.ones(2))
        return estimator.update(None, state, params, scalars=scalars)[0]

    z = [jnp.ravel(noise(jnp.int32(s), i)[name]) * 2 for s in range(3) for i in range(2) for name in "ab"]
    correlation = np.stack(z) @ np.stack(z).T / 4096 - np.eye(len(z))
    assert np.abs(correlation).max() < 4.5 / 64  # 66 pairs of 4096 signs: standard error 1/64


def test_a_float64_loss_keeps_the_state_in_float32():
    with jax.enable_x64(True):
        estimator, params = make("spsa", eps=1e-7), {"w": jnp.linspace(-1, 1, 5, dtype=jnp.float64)}
        state = estimator.init(params)
        loss = lambda p: jnp.sum(p["w"].materialize() ** 2)  # noqa: E731
        _, end = jax.jit(lambda p, s: estimator.update(None, s, p, value_fn=loss))(params, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, end)
        # eps = 1e-7 is out of reach of float32 losses, where the quotient would be off by 1.
        z = PerturbSpec().noise(params, jax.random.fold_in(jax.random.fold_in(KEY, 0), 0))["w"]
        assert float(end.last.projected[0]) == pytest.approx(float(2 * params["w"] @ z), abs=1e-6)
