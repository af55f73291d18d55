"""Updates on the grid: whole codes, the float update on average, replay, error feedback, and no float copy."""

import dataclasses
import functools
import math
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zojax import estimators, ops
from zojax.directions import Gaussian, Sparse
from zojax.masks import layer_masks
from zojax.perturb import PerturbSpec
from zojax.quant import QArray, get_grid, on_grid, quantize, update_noise
from zojax.quant.rules import Rule, quantize_tree
from zojax.trees import merge, split

KEY, ROUNDING = jax.random.key(404), jax.random.key(7)
GRIDS = ("int8_127", "int4", "fp8_e4m3", "int8_asymmetric")
every_grid = pytest.mark.parametrize("grid", GRIDS)


def normal(*shape, seed=0, sigma=0.05):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * sigma, jnp.float32)


def model(grid, shape=(16, 32)):
    return {"bias": jnp.zeros(shape[-1:]), "kernel": quantize(normal(*shape), grid)}


def loss(params):
    target = normal(16, 32, seed=1)
    return 100 * jnp.mean(jnp.square(ops.value(params["kernel"]) + ops.value(params["bias"]) - target))


def chain(rate, *, spec=None, **options):
    return estimators.chain(estimators.quzo(1e-2, spec, key=KEY, **options), optax.sgd(rate))


def given(scalar):
    """A step's scalars: one projected gradient."""
    return estimators.Scalars(jnp.full(1, scalar), jnp.float32(0), jnp.float32(1e-2), jnp.ones(1))


def constantly(update):
    """A chain whose update is the same number for every weight in every step."""
    full = lambda u, p: jax.tree.map(lambda leaf: jnp.full(leaf.shape, update, jnp.float32), u)  # noqa: E731
    return estimators.chain(estimators.quzo(1e-2, key=KEY), optax.stateless(full))


def stepper(tx):
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, scalars):
        updates, state = tx.update(None, state, params, scalars=scalars)
        return optax.apply_updates(params, updates), state

    return lambda params, state, scalars: step(*jax.tree.map(jnp.copy, (params, state)), scalars)


def ends(grid):
    """A leaf whose codes are the ends, their neighbours and 0; scale 1."""
    g = get_grid(grid)
    codes = jnp.tile(jnp.array([g.low, g.high, g.low + 1, g.high - 1, 0], jnp.int32), 8).reshape(4, 10)
    zero = jnp.zeros((1, 10)) if g.asymmetric else None
    return QArray(qvalue=codes.astype(g.dtype), scale=jnp.ones((1, 10)), zero_point=zero, grid=g)


# ---------------------------------------------------------------- a step


@every_grid
@pytest.mark.parametrize("size", [0.7, 3.0, 2000.0])
def test_codes_move_as_by_hand_and_saturate(grid, size):
    """New codes, `moved` and `clipped` by brute force; sizes far beyond the ends wrap around in no dtype."""
    params = {"w": ends(grid)}
    span = get_grid(grid).span
    inner = chain(-size if "fp8" not in grid else -size * span / 50)  # so that few, some or all go beyond an end
    tx = on_grid(inner, key=ROUNDING)
    new, state = stepper(tx)(params, tx.init(params), given(1.0))
    g, w = params["w"].grid, params["w"]
    u = np.asarray(inner.update(None, inner.init(params), params, scalars=given(1.0))[0]["w"], np.float64)
    leaf_key = jax.random.fold_in(jax.random.fold_in(ROUNDING, 0), np.uint32(zlib.crc32(b"w")))
    r = (np.asarray(jax.random.bits(leaf_key, u.shape)) >> 8) / 2.0**24
    old, got = (np.asarray(x.qvalue, np.int64) for x in (w, new["w"]))
    assert new["w"].qvalue.dtype == w.qvalue.dtype
    chex.assert_trees_all_equal(new["w"].scale, w.scale)
    assert got.min() >= g.low
    assert got.max() <= g.high
    if g.float_type:
        table = np.asarray(g.levels(jnp.arange(g.low, g.high + 1, dtype=jnp.int8)), np.float64)
        target = table[old - g.low] + u
        low = np.clip(np.searchsorted(table, np.clip(target, -span, span), side="right") - 1, 0, len(table) - 2)
        inside = np.abs(target) < span
        assert (((got - g.low == low) | (got - g.low == low + 1)) | ~inside).all()  # a neighbour of the target
        np.testing.assert_array_equal(got[~inside], (np.sign(target) * g.high)[~inside])
        clipped = np.abs(target) > span
    else:
        step = np.floor(u + r)
        expected = np.clip(old + step, g.low, g.high)
        np.testing.assert_array_equal(got, expected)
        clipped = old + step != expected
    assert float(state.moved) == pytest.approx(np.mean(got != old), abs=1e-6)
    assert float(state.clipped) == pytest.approx(np.mean(clipped), abs=1e-6)
    assert clipped.any()
    assert not clipped.all()


@every_grid
def test_on_average_a_step_is_the_float_update(grid):
    params = model(grid, (8, 16))
    inner = chain(0.01)
    wanted = inner.update(None, inner.init(params), params, scalars=given(0.5))[0]

    def moved(key):
        tx = on_grid(inner, key=key)
        updates, _ = tx.update(None, tx.init(params), params, scalars=given(0.5))
        new = optax.apply_updates(params, updates)
        return new["kernel"].materialize(), new["bias"]

    kernels, biases = jax.jit(jax.vmap(moved))(jax.random.split(KEY, 4000))
    samples = np.asarray(kernels, np.float64)
    target = np.asarray(params["kernel"].materialize(), np.float64) + np.asarray(wanted["kernel"], np.float64)
    codes = np.asarray(params["kernel"].qvalue)
    lowest, highest = (
        np.asarray(dataclasses.replace(params["kernel"], qvalue=jnp.full_like(codes, end)).materialize())
        for end in (get_grid(grid).low, get_grid(grid).high)
    )
    middle, half = (highest + lowest) / 2, (highest - lowest) / 2
    inside = np.abs(target - middle) < 0.99 * half
    error = samples.std(0) / math.sqrt(4000)
    # 128 weights under fixed keys, P(any beyond 4) = 8e-3 beforehand; 1e-6 where a step is sure to the last place.
    assert (np.abs(samples.mean(0) - target) < 4 * error + 1e-6)[inside].all()
    assert inside.mean() > 0.4
    assert (error > 0).any()
    chex.assert_trees_all_close(biases[0], wanted["bias"], rtol=1e-6)  # a float leaf takes the float update


@pytest.mark.parametrize(("grid", "feedback"), [*((grid, 0) for grid in GRIDS), ("int8_127", 3), ("int4", 3)])
def test_a_replay_from_scalars_ends_in_the_same_codes(grid, feedback):
    params = model(grid)
    tx = on_grid(chain(0.05), key=ROUNDING, feedback=feedback)
    state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def whole(params, state):
        updates, state = tx.update(None, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    replay, here = stepper(tx), (params, state)
    live = jax.tree.map(jnp.copy, here)
    for _ in range(5):
        live = whole(*live)
        here = replay(*here, live[1].inner[0].last)
    chex.assert_trees_all_equal(live[0]["kernel"], here[0]["kernel"])
    assert float(live[1].moved) > 0.05
    assert int(live[1].count) == 5
    chex.assert_trees_all_equal_shapes_and_dtypes(state, live[1])


def test_training_on_the_grid_lowers_the_loss():
    params = model("int8_127")
    tx = on_grid(chain(5e-3, num_samples=4), key=ROUNDING)

    def step(carry, _):
        updates, state = tx.update(None, carry[1], carry[0], value_fn=loss)
        return (optax.apply_updates(carry[0], updates), state), state.inner[0].last.value

    losses = jax.jit(lambda c: jax.lax.scan(step, c, length=300)[1])((params, tx.init(params)))
    assert float(losses[-1]) < 0.5 * float(losses[0])


def test_layers_that_a_mask_leaves_out_stay():
    rule = Rule(pattern="kernel", grid="int4")
    params = quantize_tree({"kernel": normal(4, 8, 16)}, (rule,))
    spec = PerturbSpec(direction=Sparse(), stacked=("kernel",), masks=layer_masks((1, 3)))
    for feedback in (0, 2):
        tx = on_grid(chain(0.1, spec=spec), key=ROUNDING, feedback=feedback)
        new, state = stepper(tx)(params, tx.init(params), given(1.0))
        changed = np.asarray(new["kernel"].qvalue != params["kernel"].qvalue)
        assert changed[[1, 3]].mean() > 0.5
        assert not changed[[0, 2]].any()
        assert float(state.moved) == pytest.approx(changed.mean())


def test_sign_steps():
    """ZOQO's: every weight moves by the rate, here to one code on average, whatever the projected gradient."""
    params = {"w": quantize(normal(16, 32), "int8_127", blocks=(1, 1))}
    rate = 0.25 * float(params["w"].scale[0, 0])
    tx = on_grid(
        estimators.chain(estimators.quzo(1e-2, bits=1, key=KEY), optax.scale_by_sign(), optax.scale(-rate)),
        key=ROUNDING,
        feedback=4,
    )
    state, step, here = tx.init(params), stepper(tx), params
    signs = 0
    for scalar in (3.0, -1e-5, 40.0, 0.5):
        z = PerturbSpec().noise(params, jax.random.fold_in(jax.random.fold_in(KEY, state.count), 0))["w"]
        signs -= np.sign(scalar) * np.asarray(z)
        here, state = step(here, state, given(scalar))
    moved = np.asarray(here["w"].qvalue, int) - np.asarray(params["w"].qvalue, int)
    inside = np.abs(np.asarray(params["w"].qvalue, int)) < 120
    # A block of four quarters of a code, rounded once: within a code of their sum, and equal to it where it is whole.
    assert (np.abs(moved - signs / 4) < 1)[inside].all()
    np.testing.assert_array_equal(moved[inside & (signs % 4 == 0)], (signs / 4)[inside & (signs % 4 == 0)])


def test_scales_alone_train_and_codes_stay():
    """QZO: a regex inside the leaf type, and the projected gradient clipped."""
    params = {"kernel": quantize(normal(16, 32), "int4"), "bias": jnp.zeros(32)}
    trainable, frozen = split(params, ("kernel/scale$",))
    tx = estimators.clip_projected(
        estimators.chain(
            estimators.spsa(1e-4, PerturbSpec(direction=Gaussian()), num_samples=4, key=KEY), optax.sgd(1e-3)
        ),
        max_abs=1.0,
    )
    target = 2 * params["kernel"].materialize()
    value = lambda t: 100 * jnp.mean(jnp.square(ops.dot(jnp.eye(16), merge(t, frozen)["kernel"]) - target))  # noqa: E731

    def step(carry, _):
        updates, state = tx.update(None, carry[1], carry[0], value_fn=value)
        return (optax.apply_updates(carry[0], updates), state), state[0].last.value

    (end, _), losses = jax.jit(lambda c: jax.lax.scan(step, c, length=400))((trainable, tx.init(trainable)))
    assert float(losses[-1]) < 0.5 * float(losses[0])
    chex.assert_trees_all_equal(merge(end, frozen)["kernel"].qvalue, params["kernel"].qvalue)
    assert not np.array_equal(merge(end, frozen)["kernel"].scale, params["kernel"].scale)


# ---------------------------------------------------------------- error feedback


@pytest.mark.parametrize("grid", ["int8_127", "int4"])
def test_feedback_is_that_of_a_stored_residual(grid):
    """Two blocks and a half, bit for bit, by its definition: e stored, started anew with each block of K steps."""
    params, block = {"w": quantize(normal(16, 32, sigma=0.02), grid)}, 4
    wide = params["w"].scale * 3  # far from the ends, so that nothing clips
    params["w"] = QArray(qvalue=params["w"].qvalue // 3, scale=wide, grid=params["w"].grid)
    inner = estimators.chain(
        estimators.quzo(1e-2, key=KEY, num_samples=2), optax.sgd(optax.exponential_decay(2e-4, 1, 0.9))
    )
    tx = on_grid(inner, key=ROUNDING, feedback=block)
    rng = np.random.default_rng(3)
    record = [
        estimators.Scalars(jnp.asarray(rng.normal(size=2), jnp.float32), jnp.float32(0), jnp.float32(1e-2), jnp.ones(2))
        for _ in range(10)
    ]

    @jax.jit
    def stored(params, state, residual, number, scalars):
        update, state = inner.update(None, state, params, scalars=scalars)
        key = jax.random.fold_in(jax.random.fold_in(ROUNDING, number // block), np.uint32(zlib.crc32(b"w")))
        wanted = update["w"] + jnp.where(number % block == 0, 0.0, residual)
        steps = params["w"].steps(wanted, jax.random.bits(key, wanted.shape))
        return steps, state, wanted - steps.astype(jnp.float32) * params["w"].scale

    state, step, here = tx.init(params), stepper(tx), params
    inner_state, residual, codes = inner.init(params), jnp.zeros((16, 32)), params["w"].qvalue.astype(jnp.int32)
    for number, scalars in enumerate(record):
        here, state = step(here, state, scalars)
        steps, inner_state, residual = stored(params, inner_state, residual, number, scalars)
        codes = codes + steps
        np.testing.assert_array_equal(here["w"].qvalue.astype(jnp.int32), codes)
        assert float(state.clipped) == 0
    assert np.abs(np.asarray(codes) - np.asarray(params["w"].qvalue, int)).max() >= 1


def drift(tx, params, scalars, steps):
    """Float trajectory minus codes' trajectory, in units of the weights, after so many equal scalars."""
    flat = lambda tree: tree["w"].materialize()  # noqa: E731

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, scalars=scalars)
        return (optax.apply_updates(params, updates), state), state.clipped

    run = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))
    (end, _), clipped = run((params, tx.init(params)))
    assert not np.asarray(clipped).any()
    return np.asarray(flat(end), np.float64) - np.asarray(flat(params), np.float64)


def middle(shape, scale):
    """A leaf of zeros, far from the ends."""
    return {"w": QArray(qvalue=jnp.zeros(shape, jnp.int8), scale=jnp.full((1, 1), scale), grid=get_grid("int8_127"))}


def float_drift(inner, params, scalars, steps):
    state, total = inner.init(params), 0.0
    update = jax.jit(lambda s: inner.update(None, s, params, scalars=scalars))
    for _ in range(steps):
        u, state = update(state)
        total = total + np.asarray(u["w"], np.float64)
    return total


def test_rounding_is_a_random_walk_and_feedback_shortens_it():
    """RMS distance from the float trajectory: sqrt(0.8 T s |rate c|), K^(-1/4) of it with blocks of K.

    A step of y = rate c / s codes along a normal u has a variance of y|u| (1 - y|u|) codes^2, E|u| = 0.8; a block of K
    such steps is one of sqrt(K) y. The term in y^2, 2 % here, and the rounding of u to 4 bits are within the 15 %.
    """
    scale, y, steps, block = 0.01, 0.02, 96, 8
    params, scalars = middle((64, 64), scale), given(1.0)
    inner = estimators.chain(estimators.spsa(1e-2, PerturbSpec(direction=Gaussian()), key=KEY), optax.sgd(y * scale))
    wanted = float_drift(inner, params, scalars, steps)
    plain = np.sqrt(np.mean((drift(on_grid(inner, key=ROUNDING), params, scalars, steps) - wanted) ** 2))
    predicted = math.sqrt(0.8 * steps * scale * y * scale)
    assert plain == pytest.approx(predicted, rel=0.15)
    held = drift(on_grid(inner, key=ROUNDING, feedback=block), params, scalars, steps) - wanted
    blocked = np.sqrt(np.mean(held**2))
    assert blocked == pytest.approx(predicted / block**0.25, rel=0.15)
    assert abs(held.mean()) < 4 * held.std() / 64
    whole = drift(on_grid(inner, key=ROUNDING, feedback=block), params, scalars, block)
    # After one block the codes are one rounding of the float trajectory: never a code away from it.
    assert np.abs(whole - float_drift(inner, params, scalars, block)).max() < scale


def test_feedback_follows_a_constant_update():
    scale, share, steps = 0.01, 0.05, 50
    params = middle((32, 32), scale)
    inner = constantly(share * scale)
    wanted = share * scale * steps  # 2.5 codes
    plain = drift(on_grid(inner, key=ROUNDING), params, given(1.0), steps) - wanted
    held = drift(on_grid(inner, key=ROUNDING, feedback=25), params, given(1.0), steps) - wanted
    for error in (plain, held):
        assert abs(error.mean()) < 4 * error.std() / 32
    # T roundings of variance y (1 - y); two of the sum of 25 updates, whose fraction is 1/4.
    assert plain.std() == pytest.approx(scale * math.sqrt(steps * share * (1 - share)), rel=0.1)  # 1/sqrt(2048) x 4
    assert held.std() == pytest.approx(scale * math.sqrt(2 * 0.25 * 0.75), rel=0.1)
    assert np.abs(held).max() < 2 * scale


# ---------------------------------------------------------------- what it says of itself, and what it holds


@pytest.mark.parametrize(("grid", "rate"), [("int8_127", 1e-5), ("int4", 4e-4)])
def test_update_noise_is_as_predicted(grid, rate):
    params = {"w": quantize(normal(128, 128), grid, blocks=(1, 128))}
    inner = chain(rate)
    tx = on_grid(inner, key=ROUNDING)
    noise = update_noise(tx, inner, params, tx.init(params), given(1.0))
    # Some 1 % of 16,384 weights move: a standard error of up to 9 % in a square.
    assert float(noise.measured) == pytest.approx(float(noise.predicted), rel=0.1)
    step = float(jnp.sqrt(jnp.mean(jnp.square(params["w"].scale))))
    assert float(noise.predicted) == pytest.approx(math.sqrt(0.8 * step * rate), rel=0.1)  # s |u|, E|u| = 0.8
    assert float(noise.update) == pytest.approx(rate * math.sqrt(1 + (4 / 7) ** 2 / 6), rel=0.05)


@pytest.mark.parametrize(
    ("grid", "feedback", "weight_bytes"),
    [("int8_127", 0, 1.1), ("int4", 0, 0.55), ("fp8_e4m3", 0, 1.1), ("int8_127", 3, 1.1)],
)
def test_no_float_copy_of_the_weights(grid, feedback, weight_bytes):
    """XLA's sizes of the compiled apply. An int16 step and an int8 difference a weight: less than a float copy's 4."""
    params = {name: quantize(normal(256, 512, seed=i), grid) for i, name in enumerate("ab")}
    count = 2 * 256 * 512
    tx = on_grid(chain(1e-3), key=ROUNDING, feedback=feedback)

    def apply(params, state, scalars):
        updates, state = tx.update(None, state, params, scalars=scalars)
        return optax.apply_updates(params, updates), state

    arguments, treedef = jax.tree.flatten((params, tx.init(params), given(1.0)))
    flat = jax.jit(lambda *leaves: apply(*treedef.unflatten(leaves)), donate_argnums=range(len(arguments) - 4))
    sizes = flat.lower(*arguments).compile().memory_analysis()
    print(f"apply {grid} {feedback}: {sizes.argument_size_in_bytes / count} + {sizes.temp_size_in_bytes / count} bytes")
    scales = 2 * 512 * 4
    assert sizes.argument_size_in_bytes <= weight_bytes * count + scales
    assert sizes.temp_size_in_bytes <= 3.2 * count


# ---------------------------------------------------------------- refusals


def test_refusals():
    params = model("int8_127")
    with pytest.raises(ValueError, match="no leaf is quantised"):
        on_grid(chain(1e-3), key=ROUNDING).init({"w": jnp.ones(3)})
    for feedback in (-1, 1):
        with pytest.raises(ValueError, match=f"feedback: {feedback}; 0, or a block of at least 2"):
            on_grid(chain(1e-3), key=ROUNDING, feedback=feedback)
    for optimiser in (optax.adam(1e-3), optax.sgd(1e-3, momentum=0.9)):
        stateful = estimators.chain(estimators.quzo(1e-2, key=KEY), optimiser)
        on_grid(stateful, key=ROUNDING).init(params)
        with pytest.raises(ValueError, match="feedback: the chain keeps a state beside step counters"):
            on_grid(stateful, key=ROUNDING, feedback=4).init(params)
    with pytest.raises(ValueError, match="feedback: a leaf lies on a float8 grid"):
        on_grid(chain(1e-3), key=ROUNDING, feedback=4).init(model("fp8_e4m3"))
    tx = on_grid(chain(1e-3), key=ROUNDING)
    state = tx.init(params)
    with pytest.raises(ValueError, match="params: on_grid needs the parameters"):
        tx.update(None, state, scalars=given(1.0))
    with pytest.raises(ValueError, match="exactly one of value_fn and scalars"):
        tx.update(None, state, params)
    with pytest.raises(ValueError, match="exactly one of value_fn and scalars"):
        tx.update(None, state, params, value_fn=loss, scalars=given(1.0))
