"""Perturbed leaves over quantised weights: both ways of probing, in every use."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import ops
from zojax.directions import Gaussian, Rademacher, Rounded, Sparse
from zojax.perturb import Perturbed, PerturbSpec
from zojax.quant import Rule, quantize_tree

KEY, SCALE = jax.random.key(5), 0.02
EVERY = ("int8_127", "int4", "fp8_e4m3", "int8_asymmetric")


def weights(grid):
    rng = np.random.default_rng(0)
    shapes = {"matrix": (8, 6), "cube": (8, 3, 2), "table": (20, 6), "kernel": (3, 4, 6), "stack": (3, 8, 8)}
    params = {name: jnp.asarray(rng.normal(size=shape) * 0.05, jnp.float32) for name, shape in shapes.items()}
    return quantize_tree(params, (Rule(pattern="table", grid=grid, per="row"), Rule(pattern="", grid=grid)))


def materialize(tree):
    return jax.tree.map(ops.value, tree, is_leaf=lambda n: hasattr(n, "materialize"))


@pytest.mark.parametrize("grid", EVERY)
@pytest.mark.parametrize("probe", ["beside", "codes"])
@pytest.mark.parametrize(
    "direction", [Rounded(bits=4), Sparse(inner=Rademacher(), fraction=0.5)], ids=["4 bits", "sparse"]
)
def test_each_use_sees_the_same_weights(grid, probe, direction):
    """dot, einsum, embed, conv and a scan against dense algebra over what the leaf materialises."""
    spec, params = PerturbSpec(direction=direction, stacked=("stack",), probe=probe), weights(grid)
    rng = np.random.default_rng(1)
    x, signal = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 8), (2, 9, 4)))
    ids = jnp.array([[3, 19, 3], [0, 1, 7]])

    @jax.jit
    def both(params, key):
        leaves = spec.perturb(params, key, jnp.float32(SCALE), spec.prepare(params))
        dense = materialize(leaves)
        uses = lambda tree: {  # noqa: E731
            "dot": ops.dot(x, tree["matrix"]),
            "einsum": ops.einsum("bd,dhk->bhk", x, tree["cube"]),
            "embed": ops.embed(tree["table"], ids),
            "conv": ops.conv(signal, tree["kernel"], padding="SAME"),
            "scan": jax.lax.scan(lambda c, w: (c, ops.dot(x, w)), 0, tree["stack"])[1],
        }
        return uses(leaves), uses(dense), dense

    used, expected, dense = both(params, KEY)
    # Float32 sums of up to 24 products of size 0.3, in two halves beside one: a few 2^-24 of each.
    chex.assert_trees_all_close(used, expected, atol=1e-5)
    leaves = spec.perturb(params, KEY, jnp.float32(SCALE), spec.prepare(params))
    for name, leaf in leaves.items():
        added = np.asarray(dense[name]) - np.asarray(ops.value(params[name]))
        z = np.asarray(jax.jit(Perturbed.noise)(leaf))
        if probe == "beside":
            np.testing.assert_allclose(added, SCALE * z, atol=1e-6)
        else:
            codes = np.asarray(params[name].grid.levels(params[name].qvalue))
            on_grid = np.asarray(dense[name]) / np.asarray(params[name].scale)
            if params[name].zero_point is not None:
                on_grid = on_grid + np.asarray(params[name].zero_point)
            if "fp8" not in grid:
                np.testing.assert_allclose(on_grid, np.round(on_grid), atol=1e-3)
                assert np.abs(on_grid - codes - SCALE * z / np.asarray(params[name].scale)).max() < 1.001 or (
                    np.abs(on_grid).max() >= params[name].grid.high  # saturated
                )
            assert not (added[z == 0] > 1e-6).any()


@pytest.mark.parametrize("grid", ["int8_127", "int4"])
def test_the_two_sides_move_codes_oppositely_and_on_average_by_the_noise(grid):
    params = quantize_tree(
        {"w": jnp.full((16, 16), 0.05).at[0, 0].set(0.5)}, (Rule(pattern="w", grid=grid, per="tensor"),)
    )
    spec = PerturbSpec(direction=Gaussian(), probe="codes")

    @jax.jit
    @jax.vmap
    def sides(key):
        up, down = (spec.perturb(params, key, jnp.float32(s))["w"] for s in (SCALE, -SCALE))
        return up.materialize(), down.materialize(), up.noise()

    up, down, z = (np.asarray(x, np.float64) for x in sides(jax.random.split(KEY, 2000)))
    clean = np.asarray(params["w"].materialize(), np.float64)
    inside = np.ones((16, 16), bool)
    inside[0, 0] = False  # stands at the end of the grid
    np.testing.assert_allclose((up - clean)[:, inside], -(down - clean)[:, inside], atol=1e-6)
    error = (up - clean - SCALE * z)[:, inside]
    assert np.abs(error.mean(0) / (error.std(0) / np.sqrt(2000))).max() < 4.5  # 255 weights
    # Rounded apart from z: no part of the error goes along it.
    along = (error * z[:, inside]).ravel()
    assert abs(along.mean()) < 4 * along.std() / np.sqrt(along.size)


@pytest.mark.parametrize("probe", ["beside", "codes"])
def test_a_shard_makes_its_own_tile(probe):
    full, part = (12, 10), (slice(4, 8), slice(5, 10))
    w = quantize_tree({"w": 0.05 * jax.random.normal(KEY, full)}, (Rule(pattern="w", grid="int8_127", per="tensor"),))[
        "w"
    ]
    piece = type(w)(qvalue=w.qvalue[part], scale=w.scale, grid=w.grid)
    options = dict(key=KEY, scale=jnp.float32(SCALE), direction=Rounded(bits=4), full_shape=full, probe=probe)

    @jax.jit
    def both(w, piece):
        whole = Perturbed(base=w, **options)
        tile = Perturbed(base=piece, start=jnp.array([4, 5], jnp.uint32), **options)
        rows = ops.embed(tile, jnp.array([3, 0]))
        return whole.materialize()[part], tile.materialize(), ops.dot(jnp.eye(4), tile), rows

    whole, tile, product, rows = both(w, piece)
    np.testing.assert_allclose(tile, whole, atol=1e-6)
    np.testing.assert_allclose(product, whole, atol=1e-6)
    np.testing.assert_allclose(rows, whole[jnp.array([3, 0])], atol=1e-6)
