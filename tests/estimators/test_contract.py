"""What every estimator promises as an optax transformation, and what it refuses."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from tests.estimators.problems import (
    DIRECTIONS,
    ESTIMATORS,
    KEY,
    MODES,
    NORMALIZED,
    PAIRS,
    make,
    protocol,
    regression,
    weights,
)
from zojax import estimators, precision
from zojax.estimators import Scalars

every_estimator = pytest.mark.parametrize("name", ESTIMATORS)
every_pair = pytest.mark.parametrize(("name", "direction"), PAIRS)
every_mode = pytest.mark.parametrize(("name", "probes"), MODES)


@every_mode
def test_a_step_is_compiled_once_and_keeps_its_types(name, probes):
    """Under an eps schedule, with arguments that belong to other transformations of a chain."""
    eps = optax.exponential_decay(1e-2, 1, 0.5)
    tx = estimators.chain(make(name, probes=probes, eps=eps), optax.adam(1e-2))
    value_fn = protocol(name, regression)
    params = weights(jnp.bfloat16)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=value_fn, loss=1.0, labels=None, step=3)
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
    if name in NORMALIZED:  # the rate decays instead
        steps, num_samples = 400, 4
        rate = optax.linear_schedule(0.1, 0.0, steps)
    else:  # after 400 steps a run may still be on the plateau where the gains are small
        steps, num_samples, rate = 1600, 2, 1e-2
    tx = estimators.chain(make(name, direction=direction, num_samples=num_samples, eps=1e-3), optax.sgd(rate))
    params = weights()

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=protocol(name, regression, num_samples))
        return (optax.apply_updates(params, updates), state), state[0].last.value

    losses = jax.jit(lambda c: jax.lax.scan(step, c, length=steps)[1])((params, tx.init(params)))
    # The sparse direction never moves the larger half of a leaf's weights.
    share = 0.5 if direction == DIRECTIONS["sparse"] else 0.3 if name in NORMALIZED else 0.05
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


# ---------------------------------------------------------------- refusals


@every_estimator
def test_losses_that_cannot_be_differenced_are_refused(name):
    estimator, params = make(name), weights()
    state = estimator.init(params)
    shapes = {"per_example": r"\(2, 1\)", "grzo": r"\(2, 1\)", "multi_task": r"\(1, 2\)"}
    shape = shapes.get(name, r"\(1,\)")
    for change, message in (
        (lambda x: x.astype(jnp.bfloat16), "value_fn: returned bfloat16; a float32 loss"),
        (lambda x: x.astype(jnp.int32), "value_fn: returned int32"),
        (lambda x: x[None], f"value_fn: returned shape {shape}"),
    ):
        with pytest.raises(ValueError, match=message):
            estimator.measure(params, state, protocol(name, lambda p, change=change: change(regression(p))))


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
    with pytest.raises(ValueError, match=r"(num_samples|batch_size): 0"):
        make(name, num_samples=0)
    if name not in ("per_example", "grzo"):  # whose losses say how many there are
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
