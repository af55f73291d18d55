"""Half precision: weights that move by less than a spacing still move on average."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from zojax import precision, random

KEY = jax.random.key(3)
FORMATS = [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2]
every_format = pytest.mark.parametrize("dtype", FORMATS, ids=lambda d: np.dtype(d).name)
round_to = jax.jit(precision.round_to, static_argnums=1)


def interesting(dtype):
    """Representable numbers, midpoints, neighbours of midpoints, tiny and huge ones, of both signs."""
    info = ml_dtypes.finfo(dtype)
    rng = np.random.default_rng(0)
    # Below 2^-118 the spacing of bfloat16 is a subnormal float32, which the CPU flushes: no place for weights.
    smallest = max(float(info.smallest_normal), 2.0**-110)
    spread = np.exp2(rng.uniform(np.log2(smallest), np.log2(float(info.max)), 3000))
    grid = spread.astype(dtype).astype(np.float32)
    step = grid * float(info.eps) / 2
    x = np.concatenate([spread, grid, grid + step, grid + step * 1.001, grid + step * 0.999, [0, float(info.max) * 4]])
    return np.concatenate([x, -x]).astype(np.float32)


@every_format
def test_to_nearest_even_and_saturating(dtype):
    x = interesting(dtype)
    info = ml_dtypes.finfo(dtype)
    expected = np.clip(x, float(info.min), float(info.max)).astype(dtype)
    np.testing.assert_array_equal(
        np.asarray(round_to(x, dtype), np.float32), np.asarray(expected, np.float32), strict=True
    )


@every_format
def test_stochastic_rounding_takes_one_of_two_neighbours_without_bias(dtype):
    info = ml_dtypes.finfo(dtype)
    x = interesting(dtype)[::97]
    draws = 4096
    words = random.bits(KEY, (draws, x.size))
    rounded = jax.jit(jax.vmap(lambda w: precision.round_to(jnp.asarray(x), dtype, w)))(words)
    rounded = np.asarray(rounded.astype(jnp.float32), np.float64)
    inside = np.clip(x, float(info.min), float(info.max)).astype(np.float64)

    low, high = rounded.min(0), rounded.max(0)
    assert np.all((low <= inside) & (inside <= high))
    # Nothing lies between the two values that occur: they are neighbours, and no third one occurs.
    assert np.all((rounded == low) | (rounded == high))
    spacing = np.maximum(np.abs(inside) * 2 * float(info.eps), float(info.smallest_subnormal))
    assert np.all(high - low <= spacing)
    # Means within 4.5 standard errors of a Bernoulli draw; 60 numbers a format.
    error = (high - low) / 2 / np.sqrt(draws)
    assert np.all(np.abs(rounded.mean(0) - inside) <= 4.5 * error)


@every_format
def test_representable_numbers_stay(dtype):
    x = np.asarray(interesting(dtype).astype(dtype), np.float32)
    x = x[np.isfinite(x)]
    words = random.bits(KEY, x.shape)
    np.testing.assert_array_equal(np.asarray(round_to(x, dtype, words), np.float32), x)


def test_infinities_saturate_and_nan_stays():
    x = jnp.array([jnp.inf, -jnp.inf, jnp.nan])
    for words in (None, random.bits(KEY, (3,))):
        rounded = np.asarray(round_to(x, jnp.bfloat16, words), np.float32)
        assert np.isnan(rounded[2])
        assert rounded[0] == -rounded[1] == float(ml_dtypes.finfo(jnp.bfloat16).max)


# ---------------------------------------------------------------- as transformations


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_updates_arrive_on_average(dtype):
    """1e-6 a step on weights of size 1: a plain addition in half precision moves nothing."""
    params, step = {"w": jnp.ones((64, 256), dtype)}, -1e-6
    updates = {"w": jnp.full((64, 256), step)}

    def run(tx):
        @jax.jit
        def body(_, carry):
            params, state = carry
            moved, state = tx.update(updates, state, params)
            return optax.apply_updates(params, moved), state

        w = jax.lax.fori_loop(0, 100, body, (params, tx.init(params)))[0]["w"]
        assert w.dtype == dtype
        return np.asarray(w, np.float64).mean() - 1

    assert run(optax.identity()) == 0
    # Each of 16384 weights jumps by at most eps per weight and step: variance 100 * 1e-6 * eps / 16384.
    error = np.sqrt(100 * 1e-6 * float(ml_dtypes.finfo(dtype).eps) / 16384)
    assert abs(run(precision.stochastic_rounding(KEY)) - 100 * step) < 4.5 * error


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_compensation_is_within_a_spacing_of_the_exact_sum(dtype):
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.normal(size=1000), dtype)
    steps = jnp.asarray(rng.normal(size=(200, 1000)) * 1e-4 + 1e-4, jnp.float32)
    tx = precision.compensated()

    @jax.jit
    def body(carry, update):
        params, state = carry
        moved, state = tx.update(update, state, params)
        return (optax.apply_updates(params, moved), state), None

    (end, _), _ = jax.lax.scan(body, (w, tx.init(w)), steps)
    exact = np.asarray(w, np.float64) + np.asarray(steps, np.float64).sum(0)
    eps = float(ml_dtypes.finfo(dtype).eps)
    # Half a spacing of rounding, and 200 residuals (each below a spacing) that are kept to eps / 2 of themselves.
    bound = eps * np.maximum(np.abs(exact), 2.0**-3) * (0.5 + 200 * eps / 2)
    assert np.all(np.abs(np.asarray(end, np.float64) - exact) <= bound)


@pytest.mark.parametrize("make", [lambda: precision.stochastic_rounding(KEY), precision.compensated])
def test_float32_leaves_pass_untouched(make):
    params = {"w": jnp.ones(4, jnp.bfloat16), "b": jnp.ones(4)}
    updates = {"w": jnp.full(4, 1e-3), "b": jnp.full(4, 1e-9)}
    tx = make()
    moved, _ = tx.update(updates, tx.init(params), params)
    np.testing.assert_array_equal(moved["b"], updates["b"])
    with pytest.raises(ValueError, match="params"):
        tx.update(updates, tx.init(params))


def test_rounding_noise_depends_on_key_step_path_and_not_on_other_leaves():
    w = jnp.ones((128,), jnp.bfloat16)
    update = jnp.full((128,), 1e-3)
    tx = precision.stochastic_rounding(KEY)

    def moved(names, steps=1, tx=tx):
        state = tx.init({})
        for _ in range(steps):
            updates, state = tx.update(dict.fromkeys(names, update), state, dict.fromkeys(names, w))
        return {n: np.asarray(u) for n, u in updates.items()}

    both = moved("ab")
    np.testing.assert_array_equal(both["a"], moved("a")["a"])
    assert not np.array_equal(both["a"], both["b"])
    assert not np.array_equal(both["a"], moved("a", steps=2)["a"])
    assert not np.array_equal(both["a"], moved("a", tx=precision.stochastic_rounding(jax.random.key(4)))["a"])


def test_cast_keeps_vectors_in_float32():
    tree = {"w": jnp.ones((2, 3)), "b": jnp.ones(3), "s": {"w": jnp.ones((4, 2, 3)), "b": jnp.ones((4, 3))}}
    kinds = jax.tree.map(lambda x: x.dtype.name, precision.cast(tree, jnp.bfloat16, stacked=("^s/",)))
    assert kinds == {"w": "bfloat16", "b": "float32", "s": {"w": "bfloat16", "b": "float32"}}


def test_cast_refuses_a_pattern_without_a_leaf():
    with pytest.raises(ValueError, match="matches no leaf"):
        precision.cast({"w": jnp.ones((2, 2))}, jnp.bfloat16, stacked=("^layers/",))
