"""GQ, S8BQAT and learned steps: published levels, float64 oracles, gradients, and what their forwards consist of."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zojax import ops, quant
from zojax.quant import cosine, general, learned_step
from zojax.quant.tables import Depth, assign, depths

RULES = (
    quant.Rule(pattern="table", grid="int8_127", per="tensor"),
    quant.Rule(pattern="kernel", grid="int8_127"),
    quant.Rule(pattern="", grid=None),
)


def weights(seed=0, rows=40, columns=3) -> Any:
    rng = np.random.default_rng(seed)
    made = {"a": {"kernel": rng.normal(size=(rows, columns)) * [0.1, 1.0, 30.0][:columns]}, "bias": np.ones(columns)}
    made["table"] = rng.normal(size=(5, 4))
    return jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), made)


def every(bits):
    return (Depth(pattern="", bits=bits),)


# ---------------------------------------------------------------- GQ


@pytest.mark.parametrize(
    ("bits", "published"),
    [
        (2, [0.02098, 1]),
        (3, [0.00474, 0.0383, 0.20197, 1]),
        (4, [0.00175, 0.00797, 0.02098, 0.04823, 0.10532, 0.2249, 0.47537, 1]),
    ],
)
def test_uniform_centroids_give_the_published_levels(bits, published):
    levels = np.asarray(general.inverse_mu_law(general.uniform_centroids(bits)), np.float64)
    np.testing.assert_allclose(levels[2 ** (bits - 1) :], published, atol=0.5e-5)  # five digits are published
    np.testing.assert_allclose(levels, -levels[::-1], atol=1e-6)


def test_four_bits_on_the_grid_are_the_published_codes():
    """The smallest level collapses into 0: the two of them are one code, and that is counted."""
    rules = (quant.Rule(pattern="", grid="int8_127"),)
    leaf = {"w": general.inverse_mu_law(general.uniform_centroids(4))[:, None]}
    z = general.initial_centroids(leaf, rules, every(4))
    codes = np.unique(np.asarray(general.general(leaf, z, rules)["w"].quantized.qvalue))
    assert codes.tolist() == [-127, -60, -29, -13, -6, -3, -1, 0, 1, 3, 6, 13, 29, 60, 127]
    assert int(general.merged_levels(leaf, z, rules)) == 1


def test_mu_law_and_its_inverse():
    x = np.linspace(-1, 1, 201)
    want = np.sign(x) * np.log(1 + 255 * np.abs(x)) / np.log(256)
    np.testing.assert_allclose(general.mu_law(jnp.asarray(x, jnp.float32)), want, atol=1e-6)
    np.testing.assert_allclose(general.inverse_mu_law(general.mu_law(jnp.asarray(x, jnp.float32))), x, atol=2e-6)


def test_soft_assignment_is_the_formula_and_hardens():
    rng = np.random.default_rng(0)
    x, z = rng.uniform(-1, 1, (6, 2)), np.sort(rng.uniform(-1, 1, 8))
    for sharpness in (0.5, 4.0):
        a = sharpness * 7 / 2
        weight = np.exp(-a * np.abs(x[..., None] - z))
        want = (weight * z).sum(-1) / weight.sum(-1)
        got = general.soft_assignment(jnp.asarray(x, jnp.float32), jnp.asarray(z, jnp.float32), sharpness)
        np.testing.assert_allclose(got, want, atol=1e-6)  # float32 against float64
    hard = z[np.abs(x[..., None] - z).argmin(-1)]
    got = general.soft_assignment(jnp.asarray(x, jnp.float32), jnp.asarray(z, jnp.float32), 3000.0)
    np.testing.assert_allclose(got, hard, atol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
@pytest.mark.parametrize("start", ["uniform", "lloyd_max"])
def test_the_hard_forward_has_few_levels_on_the_grid(bits, start):
    params = weights()
    z = general.initial_centroids(params, RULES, every(bits), start=start)
    made = general.general(params, z, RULES)
    for leaf, master in ((made["a"]["kernel"], params["a"]["kernel"]), (made["table"], params["table"])):
        q = leaf.quantized
        assert len(np.unique(q.qvalue)) <= 2**bits
        codes = np.asarray(q.qvalue, np.float32) * np.asarray(q.scale)
        np.testing.assert_array_equal(np.asarray(leaf.materialize()), codes)
        # A scale a column: columns of very different size are quantised alike.
        error = np.square(codes - master).sum(0) / np.square(np.asarray(master)).sum(0)
        # Uniform at 2 bits, most weights are at 0.02 of the largest or at the largest itself: worse than none at all.
        limit = {1: 0.6, 2: 0.3, 3: 0.1, 5: 0.01} if start == "lloyd_max" else {1: 0.6, 2: 3.0, 3: 0.7, 5: 0.1}
        assert error.max() < limit[bits]
    if bits == 1:
        assert set(np.abs(np.asarray(made["a"]["kernel"].quantized.qvalue)).ravel().tolist()) == {
            int(np.abs(made["a"]["kernel"].quantized.qvalue[0, 0]))
        }
    assert made["bias"] is params["bias"]


def test_phases_frequency_and_depth_8():
    params = weights()
    allocation = (Depth(pattern="table", bits=8), Depth(pattern="", bits=3))
    z = general.initial_centroids(params, RULES, allocation)
    assert jax.tree.map(jnp.shape, z) == {"a": {"kernel": (8,)}}
    annealing = general.Annealing(steps=4, every=2)
    plain, hard = quant.straight_through(params, RULES), general.general(params, z, RULES)
    counts = []
    for step in range(6):
        made = general.general(params, z, RULES, step=jnp.int32(step), annealing=annealing)
        codes = np.asarray(made["a"]["kernel"].quantized.qvalue)
        if step in (1, 3):
            np.testing.assert_array_equal(codes, plain["a"]["kernel"].quantized.qvalue)
        if step >= 4:
            np.testing.assert_array_equal(codes, hard["a"]["kernel"].quantized.qvalue)
        np.testing.assert_array_equal(made["table"].quantized.qvalue, plain["table"].quantized.qvalue)
        counts.append(len(np.unique(codes)))
    assert counts[0] > 8
    assert counts[4] == len(np.unique(hard["a"]["kernel"].quantized.qvalue))


def test_gradients_of_both_phases():
    params = {"w": weights()["a"]["kernel"]}
    rules = (quant.Rule(pattern="", grid="int8_127"),)
    z = general.initial_centroids(params, rules, every(3))
    direction = jnp.asarray(np.random.default_rng(3).normal(size=params["w"].shape), jnp.float32)

    def loss(params, z, **options):
        return jnp.sum(ops.value(general.general(params, z, rules, **options)["w"]) * direction)

    of_w, of_z = jax.grad(loss, argnums=(0, 1))(params, z)
    np.testing.assert_array_equal(of_w["w"], direction)  # straight through
    # Of the table: each centroid by the weights that lie at it, times the derivative of F^-1.
    values = np.asarray(z["w"], np.float64)
    magnitude = np.abs(np.asarray(params["w"])).max(0)
    index = np.asarray(assign(general.mu_law(params["w"] / magnitude), z["w"]))
    slope = np.log(256) * 256 ** np.abs(values) / 255
    want = [(np.where(index == k, direction, 0) * magnitude).sum() * slope[k] for k in range(8)]
    np.testing.assert_allclose(of_z["w"], want, rtol=1e-4)
    # Soft: the derivative of the formula, in float64 by differences; the magnitude has no gradient.
    annealing, step = general.Annealing(steps=10, start=3.0, end=3.0), jnp.int32(0)
    of_w, of_z = jax.grad(lambda p, z: loss(p, z, step=step, annealing=annealing), argnums=(0, 1))(params, z)

    def formula(w, z):
        x = w / magnitude
        y = np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256)
        weight = np.exp(-3.0 * 3.5 * np.abs(y[..., None] - z))
        near = (weight * z).sum(-1) / weight.sum(-1)
        return np.sum(magnitude * np.sign(near) * np.expm1(np.abs(near) * np.log(256)) / 255 * np.asarray(direction))

    w, eps = np.asarray(params["w"], np.float64), 1e-6
    for at in itertools.product((0, 7, 21), range(3)):
        if abs(w[at]) == magnitude[at[1]]:
            continue
        moved = [w.copy(), w.copy()]
        moved[0][at] += eps
        moved[1][at] -= eps
        want = (formula(moved[0], values) - formula(moved[1], values)) / (2 * eps)
        np.testing.assert_allclose(of_w["w"][at], want, rtol=2e-3, atol=1e-3)  # float32 exponentials
    for k in range(1, 7):  # the largest weights lie on the kink of the first and the last
        moved = values.copy(), values.copy()
        moved[0][k] += eps
        moved[1][k] -= eps
        want = (formula(w, moved[0]) - formula(w, moved[1])) / (2 * eps)
        np.testing.assert_allclose(of_z["w"][k], want, rtol=2e-3, atol=1e-2)


def test_centroids_move_and_lower_the_loss():
    """Quantisation-aware training of a regression: at 2 bits uniform centroids are bad, trained ones are not."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(200, 20)), jnp.float32)
    y = x @ jnp.asarray(rng.choice([-1.0, -0.3, 0.3, 1.0], (20, 4)), jnp.float32)
    params = {"w": jnp.asarray(np.linalg.lstsq(np.asarray(x), np.asarray(y), rcond=None)[0])}
    rules, annealing = (quant.Rule(pattern="", grid="int8_127"),), general.Annealing(steps=150)
    trained: Any = (params, general.initial_centroids(params, rules, every(2)))

    def loss(trained, step):
        w = general.general(trained[0], trained[1], rules, step=step, annealing=annealing)
        return jnp.mean((ops.dot(x, w["w"]) - y) ** 2)

    tx: Any = optax.adam(1e-2)

    @jax.jit
    def fit(trained, state, step):
        gradient = jax.grad(loss)(trained, step)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(trained, updates), state

    before, state = loss(trained, jnp.int32(150)), tx.init(trained)
    for step in range(300):
        trained, state = fit(trained, state, jnp.int32(step))
    assert loss(trained, jnp.int32(150)) < 0.05 * before
    assert len(np.unique(general.general(trained[0], trained[1], rules)["w"].quantized.qvalue)) <= 4


def test_sensitivity_and_allocation():
    params = weights()
    target = jax.tree.map(lambda w: w, params)

    def value_fn(tree):  # the kernel matters a hundred times as much
        error = [jnp.sum((ops.value(tree[n]) - target[n]) ** 2) for n in ("table",)]
        return error[0] + 100 * jnp.sum((ops.value(tree["a"]["kernel"]) - target["a"]["kernel"]) ** 2)

    rises = general.sensitivity(value_fn, params, RULES, bits=(5, 3, 1))
    assert set(rises) == {"a/kernel", "table"}
    assert all(rise[1] > rise[3] > rise[5] for rise in rises.values())
    sizes = {"a/kernel": 120, "table": 20}
    chosen = general.allocate(rises, sizes, average_bits=6.0)
    assert sum(chosen[p] * sizes[p] for p in sizes) <= 6 * 140
    assert chosen["table"] < 8
    with pytest.raises(ValueError, match=r"average_bits: 0\.5; the least that was tried gives 1\.000"):
        general.allocate(rises, sizes, average_bits=0.5)


def test_refusals():
    assert depths(["x/y"], (Depth(pattern="y", bits=2),)) == {"x/y": 2}
    with pytest.raises(ValueError, match="allocation: 'q' matches none of x"):
        depths(["x"], (Depth(pattern="q", bits=2), Depth(pattern="", bits=2)))
    with pytest.raises(ValueError, match="allocation: no depth matches 'x'"):
        depths(["x", "y"], (Depth(pattern="y", bits=2),))
    with pytest.raises(ValueError, match="steps, every, start, end: 3, 0"):
        general.Annealing(steps=3, every=0)
    with pytest.raises(ValueError, match="every: 0"):
        cosine.hard_compressor({}, every=0)


# ---------------------------------------------------------------- S8BQAT


@pytest.mark.parametrize(
    ("levels", "published", "error"),
    [
        (2, [0.7979], 0.3634),
        (4, [0.4528, 1.5104], 0.1175),
        (8, [0.2451, 0.7560, 1.3439, 2.1519], 0.0345),
        (16, [0.1284, 0.3880, 0.6568, 0.9423, 1.2562, 1.6180, 2.0690, 2.7326], 0.0095),
    ],
)
def test_lloyd_max_of_the_normal_density_has_the_published_levels(levels, published, error):
    # Borders move by whole points of the density, so the points are close.
    x = (np.arange(2_000_000) + 0.5) / 2_000_000 * 12 - 6
    density = np.exp(-(x**2) / 2)
    found = cosine.lloyd_max(x, levels, weights=density)
    np.testing.assert_allclose(found[levels // 2 :], published, atol=1e-4)  # four digits are published
    nearest = found[np.abs(x[::500, None] - found).argmin(1)]
    mean = np.average((x[::500] - nearest) ** 2, weights=density[::500])
    np.testing.assert_allclose(mean, error, atol=1e-4)


def test_lloyd_max_against_every_partition():
    """Sorted numbers cut into runs in every way: what has the least squared error is what it finds, or nearly."""
    rng = np.random.default_rng(0)
    equal = 0
    for _ in range(20):
        x = np.sort(rng.normal(size=12))
        best = math.inf
        for cuts in itertools.combinations(range(1, 12), 3):
            parts = np.split(x, cuts)
            best = min(best, sum(((part - part.mean()) ** 2).sum() for part in parts))
        found = cosine.lloyd_max(x, 4)
        error = np.square(x - found[np.abs(x[:, None] - found).argmin(1)]).sum()
        assert error >= best - 1e-12
        assert error <= 4 * best  # a local optimum: twelve numbers are no smooth density
        equal += error <= best * (1 + 1e-9)
        # The two conditions of an optimum: levels are the means of what is nearest to them.
        nearest = np.abs(x[:, None] - found).argmin(1)
        np.testing.assert_allclose([x[nearest == k].mean() for k in range(4)], found, atol=1e-9)
    assert equal >= 4


def test_the_regulariser_vanishes_at_levels_and_pulls_towards_them():
    levels = jnp.array([-1.0, -0.2, 0.1, 0.9])
    np.testing.assert_allclose(cosine.absolute_cosine(levels, levels), 0, atol=1e-6)
    middles = (levels[1:] + levels[:-1]) / 2
    np.testing.assert_allclose(cosine.absolute_cosine(middles, levels), 1, atol=1e-6)
    assert cosine.absolute_cosine(jnp.array([-3.0, 1.9]), levels).round(5).tolist() == [2.0, 1.0]
    x = jnp.linspace(-1.4, 1.3, 400)
    slope = jax.vmap(jax.grad(lambda x: cosine.absolute_cosine(x, levels)))(x)
    nearest = levels[jnp.abs(x[:, None] - levels).argmin(1)]
    away = jnp.abs(x - nearest) > 1e-3
    middle = jnp.min(jnp.abs(x[:, None] - middles), axis=1) < 1e-2
    pulled = jnp.sign(slope) == jnp.sign(x - nearest)
    assert bool(jnp.all(pulled | ~away | middle))
    assert bool(jnp.all(jnp.isfinite(slope)))


def test_the_compressor_snaps_every_few_steps():
    params: Any = weights()
    levels = cosine.tables(params, RULES, every(3))
    tx: Any = optax.chain(optax.sgd(1e-3), cosine.hard_compressor(levels, every=3))
    state, start = tx.init(params), params
    for step in range(1, 7):
        gradient = jax.tree.map(jnp.ones_like, params)
        updates, state = jax.jit(tx.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
        codes = np.round(np.asarray(params["a"]["kernel"] / levels["a/kernel"].scale), 3)
        on_levels = len(np.unique(codes)) <= 8
        assert on_levels == (step % 3 == 0)
    np.testing.assert_allclose(params["bias"], start["bias"] - 6e-3, rtol=1e-6)  # no leaf of the rules
    # What is compressed once stays: the forward of the compressed weights is the weights.
    forward = cosine.compressed(params, levels, RULES)["a"]["kernel"].materialize()
    np.testing.assert_allclose(forward, params["a"]["kernel"], rtol=1e-5)


# ---------------------------------------------------------------- learned steps


def test_learned_steps_have_the_published_gradients():
    rules = (quant.Rule(pattern="", grid="int4"),)
    params = {"w": jnp.array([[0.7, 1.0], [0.24, -0.31], [-0.9, 0.06]])}
    steps = {"w": jnp.array([[0.05, 0.1]])}
    made = learned_step.learned_step(params, steps, rules)["w"]
    assert made.quantized.qvalue.tolist() == [[7, 7], [5, -3], [-7, 1]]
    direction = jnp.array([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0]])

    def loss(params, steps):
        return jnp.sum(learned_step.learned_step(params, steps, rules)["w"].materialize() * direction)

    of_w, of_d = jax.grad(loss, argnums=(0, 1))(params, steps)
    assert of_w["w"].tolist() == [[0.0, 0.0], [3.0, 5.0], [0.0, 11.0]]
    share = 1 / math.sqrt(3 * 7)
    want = [[(7 + 3 * (5 - 0.24 / 0.05) - 7 * 7) * share, (14 + 5 * (-3 + 3.1) + 11 * (1 - 0.6)) * share]]
    np.testing.assert_allclose(of_d["w"], want, rtol=1e-5)


def test_the_first_learned_steps_are_post_training_quantisation():
    params = weights()
    made = learned_step.learned_step(params, learned_step.initial_steps(params, RULES), RULES)
    plain = quant.straight_through(params, RULES)
    np.testing.assert_array_equal(made["a"]["kernel"].quantized.qvalue, plain["a"]["kernel"].quantized.qvalue)
