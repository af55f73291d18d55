"""Perturbed leaves: every use adds the same z, and z is a function of key and path alone."""

import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import ops
from zojax.directions import Gaussian, LowRank, Rademacher, Sparse, Sphere
from zojax.masks import layer_masks, pack_mask, unpack_mask
from zojax.perturb import Perturbed, PerturbSpec, materialized

KEY = jax.random.key(5)
SCALE = 0.5
DIRECTIONS = {
    "gaussian": Gaussian(),
    "rademacher": Rademacher(),
    "low_rank": LowRank(rank=2),
    "sparse": Sparse(inner=Gaussian(), fraction=0.3),
}
every_direction = pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS.keys())

# To compile is what a test costs: in half precision, the two whose products round the noise or do without it.
direction_and_dtype = pytest.mark.parametrize(
    ("direction", "dtype"),
    [
        *((direction, jnp.float32) for direction in DIRECTIONS.values()),
        *((DIRECTIONS[name], jnp.bfloat16) for name in ("gaussian", "low_rank")),
    ],
)


def weights(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"matrix": (8, 5), "cube": (8, 3, 2), "table": (20, 5), "kernel": (3, 4, 5), "bias": (5,), "gain": ()}
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def densely(params, z, scale=SCALE):
    return jax.tree.map(lambda w, n: w.astype(jnp.float32) + scale * n, params, z)


# ---------------------------------------------------------------- what a use adds is what `noise` says


@direction_and_dtype
def test_each_use_adds_the_noise_of_the_spec(direction, dtype):
    """materialize, dot, einsum, embed, conv and value against dense float32 algebra over PerturbSpec.noise."""
    spec, params = PerturbSpec(direction=direction), weights(dtype)
    rng = np.random.default_rng(1)
    # The inputs are representable in bfloat16, so that only the weights' and the noise's rounding is compared.
    x = jnp.asarray(rng.integers(-8, 9, size=(4, 8)) / 8, jnp.float32)
    signal = jnp.asarray(rng.integers(-8, 9, size=(2, 9, 4)) / 8, jnp.float32)
    ids = jnp.array([[3, 19, 3], [0, 1, 7]])

    @jax.jit
    def uses(params, key):
        leaves = spec.perturb(params, key, jnp.float32(SCALE), spec.prepare(params))
        return {
            "matrix": ops.dot(x, leaves["matrix"]),
            "cube": ops.einsum("bd,dhk->bhk", x, leaves["cube"]),
            "table": ops.embed(leaves["table"], ids),
            "kernel": ops.conv(signal, leaves["kernel"], padding="SAME", strides=2),
            "bias": ops.value(leaves["bias"]),
            "gain": ops.value(leaves["gain"]),
        }, jax.tree.map(lambda leaf: leaf.materialize(), leaves, is_leaf=lambda n: isinstance(n, Perturbed))

    @jax.jit
    def expected(params, key):
        z = spec.noise(params, key, spec.prepare(params))
        dense = densely(params, z)
        return {
            "matrix": jnp.dot(x, dense["matrix"]),
            "cube": jnp.einsum("bd,dhk->bhk", x, dense["cube"]),
            "table": dense["table"][ids],
            "kernel": ops.conv(signal, dense["kernel"], padding="SAME", strides=2),
            "bias": dense["bias"],
            "gain": dense["gain"],
        }, dense

    (used, values), (dense_used, dense_values) = uses(params, KEY), expected(params, KEY)
    # Materialised: one float32 addition; contraction may change its last bit.
    chex.assert_trees_all_close(values, dense_values, rtol=3e-7, atol=3e-7)
    # A product in half precision rounds z to 8 bits: 2^-9 relative of up to 12 summands of scale * |x z| < 2, in sum.
    half = dtype == jnp.bfloat16
    chex.assert_trees_all_close(used, dense_used, rtol=1e-5, atol=2.0**-9 * SCALE * 12 if half else 5e-6)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(used))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_signs_survive_half_precision_exactly(dtype):
    # +1 and -1 are exact in bfloat16, so the split product adds exactly scale * x z; integers keep the sums exact.
    params, x = {"w": jnp.zeros((16, 8), dtype)}, jnp.arange(32.0).reshape(2, 16)
    spec = PerturbSpec()
    product = ops.dot(x, spec.perturb(params, KEY, jnp.float32(0.25))["w"])
    np.testing.assert_array_equal(product, 0.25 * (x @ spec.noise(params, KEY)["w"]))


def test_products_with_half_precision_weights_multiply_in_half_precision():
    spec, x = PerturbSpec(direction=Gaussian()), jnp.ones((3, 16))
    leaf = spec.perturb({"w": jnp.zeros((16, 8), jnp.bfloat16)}, KEY, jnp.float32(1))["w"]
    products = [e for e in jax.make_jaxpr(ops.dot)(x, leaf).eqns if e.primitive.name == "dot_general"]
    assert len(products) == 2  # the weight's and the noise's
    assert {v.aval.dtype.name for e in products for v in e.invars} == {"bfloat16"}
    assert {v.aval.dtype.name for e in products for v in e.outvars} == {"float32"}


@every_direction
def test_scale_zero_is_the_weight_itself(direction):
    spec, params = PerturbSpec(direction=direction), weights(jnp.bfloat16)
    params = {name: params[name] for name in ("matrix", "bias")}
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 8)), jnp.float32)

    @jax.jit
    def use(params, key):
        leaves = spec.perturb(params, key, jnp.float32(0), spec.prepare(params))
        return ops.dot(x, leaves["matrix"]), ops.value(leaves["bias"])

    product, bias = use(params, KEY)
    np.testing.assert_array_equal(product, ops.dot(x, params["matrix"]))
    np.testing.assert_array_equal(bias, params["bias"].astype(jnp.float32))


def test_materialized_lets_plain_functions_in():
    params, spec = {name: weights()[name] for name in ("matrix", "bias")}, PerturbSpec()
    loss = lambda p: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(p))  # noqa: E731
    leaves = spec.perturb(params, KEY, jnp.float32(SCALE))
    expected = loss(densely(params, spec.noise(params, KEY)))
    np.testing.assert_allclose(materialized(loss)(leaves), expected, rtol=1e-5)  # sums of 200 terms in other orders
    np.testing.assert_allclose(materialized(loss)(params), loss(params), rtol=1e-6)
    np.testing.assert_allclose(jnp.sin(leaves["bias"]), jnp.sin(leaves["bias"].materialize()))  # __jax_array__


# ---------------------------------------------------------------- leaves that a model scans over


@direction_and_dtype
def test_slices_of_a_stacked_leaf_are_tiles_of_one_whole(direction, dtype):
    rng = np.random.default_rng(3)
    params = {
        "layers": {
            "kernel": jnp.asarray(rng.normal(size=(3, 8, 8)), dtype),
            "bias": jnp.asarray(rng.normal(size=(3, 8)), dtype),
            "gain": jnp.asarray(rng.normal(size=(3,)), dtype),
        }
    }
    spec = PerturbSpec(direction=direction, stacked=("^layers/",))

    @jax.jit
    def both(params, key):
        masks = spec.prepare(params)
        leaves = spec.perturb(params, key, jnp.float32(SCALE), masks)
        _, scanned = jax.lax.scan(lambda c, layer: (c, jax.tree.map(ops.value, layer, is_leaf=is_leaf)), 0, leaves)
        eye = jnp.eye(8)
        _, products = jax.lax.scan(lambda c, layer: (c, ops.dot(eye, layer["layers"]["kernel"])), 0, leaves)
        whole = jax.tree.map(lambda leaf: leaf.materialize(), leaves, is_leaf=is_leaf)
        return scanned, products, whole, densely(params, spec.noise(params, key, masks))

    is_leaf = lambda node: isinstance(node, Perturbed)  # noqa: E731
    scanned, products, whole, dense = both(params, KEY)
    # One float32 addition each; contraction may change its last bit.
    chex.assert_trees_all_close(scanned, dense, rtol=3e-7, atol=3e-7)
    chex.assert_trees_all_close(whole, dense, rtol=3e-7, atol=3e-7)
    # An identity product picks single elements: z rounded to 8 bits in half precision, |z| < 4 (< 16 of rank two).
    tolerance = 2.0**-9 * 16 * SCALE if dtype == jnp.bfloat16 else 1e-6
    np.testing.assert_allclose(products, dense["layers"]["kernel"], atol=tolerance)


def test_stacked_low_rank_takes_a_scanned_vector_for_a_vector():
    spec = PerturbSpec(direction=LowRank(), stacked=("^b$",))
    chosen = spec.directions({"b": jnp.zeros((3, 8)), "w": jnp.zeros((3, 8))})
    assert chosen == {"b": Gaussian(), "w": LowRank()}


@every_direction
def test_a_shard_makes_its_own_tile(direction):
    """A row and column shard, as shard_map sees it, through every use that a shard can have."""
    full, start = (12, 10), (4, 5)
    base = jnp.asarray(np.random.default_rng(4).normal(size=full), jnp.float32)
    part = (slice(4, 8), slice(5, 10))

    @jax.jit
    def both(base, key, start):
        whole = Perturbed(base=base, key=key, scale=jnp.float32(SCALE), direction=direction, full_shape=full)
        tile = Perturbed(
            base=base[part], key=key, scale=jnp.float32(SCALE), start=start, direction=direction, full_shape=full
        )
        rows = ops.embed(tile, jnp.array([3, 0]))
        return whole.materialize()[part], tile.materialize(), ops.dot(jnp.eye(4), tile), rows

    whole, tile, product, rows = both(base, KEY, jnp.array(start, jnp.uint32))
    np.testing.assert_allclose(tile, whole, atol=1e-6)
    np.testing.assert_allclose(product, whole, atol=1e-6)
    np.testing.assert_allclose(rows, whole[jnp.array([3, 0])], atol=1e-6)


# ---------------------------------------------------------------- vmap over the scale


@pytest.mark.parametrize("direction", [Gaussian(), Rademacher(), LowRank()])
def test_vmap_over_scale_is_one_at_a_time(direction):
    rng = np.random.default_rng(5)
    spec = PerturbSpec(direction=direction, stacked=("^layers$",))
    params = {"layers": jnp.asarray(rng.normal(size=(3, 8, 8)) / 3, jnp.float32)}
    x = jnp.asarray(rng.normal(size=(4, 8)), jnp.float32)

    def forward(key, scale):
        leaves = spec.perturb(params, key, scale)
        return jax.lax.scan(lambda h, layer: (jnp.tanh(ops.dot(h, layer["layers"])), None), x, leaves)[0]

    scales = jnp.array([0.1, -0.1, 0.0])
    batched = jax.jit(jax.vmap(forward, in_axes=(None, 0)))(KEY, scales)
    single = jnp.stack([jax.jit(forward)(KEY, scale) for scale in scales])
    np.testing.assert_allclose(batched, single, atol=1e-5)  # three products of 8 terms, batched in another order
    assert not np.allclose(batched[0], batched[1])


# ---------------------------------------------------------------- which noise a leaf gets


def test_the_key_of_a_leaf_is_as_documented():
    z = PerturbSpec(direction=Gaussian()).noise({"a": {"b": [jnp.zeros(3), jnp.zeros((4, 2))]}}, KEY)["a"]["b"][1]
    key = jax.random.fold_in(KEY, np.uint32(zlib.crc32(b"a/b/1")))
    np.testing.assert_array_equal(z, jax.random.normal(key, (4, 2)))


@pytest.mark.parametrize("direction", [Rademacher(), LowRank()])
def test_another_leaf_changes_no_leafs_noise(direction):
    params, spec = {"b": jnp.ones((6, 5)), "z": jnp.ones((5,))}, PerturbSpec(direction=direction)
    more = {"a": jnp.ones((6, 5)), **params, "c": {"b": jnp.ones((6, 5))}}
    noise = jax.jit(lambda params, key: spec.noise(params, key, spec.prepare(params)))
    small, large = noise(params, KEY), noise(more, KEY)
    chex.assert_trees_all_equal(small, {name: large[name] for name in params})
    frozen = {"b": params["b"], "z": None}
    chex.assert_trees_all_equal(noise(frozen, KEY), {"b": small["b"], "z": None})
    assert not np.array_equal(large["a"], large["b"])
    assert not np.array_equal(large["c"]["b"], large["b"])


def test_rules_choose_by_path_and_the_first_match_counts():
    spec = PerturbSpec(
        direction=LowRank(rank=2), rules=(("bias$", Gaussian()), ("^head/", Rademacher()), ("^head/w$", Gaussian()))
    )
    params = {"head": {"w": jnp.ones((4, 4)), "bias": jnp.ones(4)}, "w": jnp.ones((4, 4))}
    assert spec.directions(params) == {"head": {"w": Rademacher(), "bias": Gaussian()}, "w": LowRank(rank=2)}


# ---------------------------------------------------------------- sparse directions


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_magnitude_mask_moves_its_share_and_the_small_ones(fraction):
    spec = PerturbSpec(direction=Sparse(fraction=fraction), stacked=("^s$",))
    rng = np.random.default_rng(6)
    params = {"w": jnp.asarray(rng.normal(size=(40, 30)), jnp.float32)}
    params["s"] = jnp.stack([params["w"], 100 * params["w"]])
    z = jax.jit(lambda params, key: spec.noise(params, key, spec.prepare(params)))(params, KEY)
    for moved, w in ((z["w"] != 0, params["w"]), (z["s"][0] != 0, params["s"][0]), (z["s"][1] != 0, params["s"][1])):
        assert float(moved.mean()) == pytest.approx(fraction, abs=1 / w.size)  # a quantile between two weights
        assert fraction == 1 or float(jnp.abs(w[moved]).max()) < float(jnp.abs(w[~moved]).min())


def test_magnitude_mask_is_taken_from_the_weights_of_the_moment():
    spec, params = PerturbSpec(direction=Sparse(fraction=0.5)), {"w": jnp.arange(1.0, 9.0)}
    kept = spec.prepare(params)
    later = {"w": params["w"][::-1]}
    np.testing.assert_array_equal(spec.noise(later, KEY, kept)["w"] != 0, later["w"] <= 4.5)


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 70])
def test_masks_pack_and_unpack(columns):
    mask = np.random.default_rng(7).random((3, columns)) < 0.5
    words = pack_mask(jnp.asarray(mask))
    assert words.shape == (3, -(-columns // 32))
    assert words.dtype == jnp.uint32
    np.testing.assert_array_equal(unpack_mask(words, columns), mask)


def test_packed_masks_choose_the_weights():
    rng = np.random.default_rng(8)
    params = {"w": jnp.ones((6, 40)), "s": jnp.ones((3, 6, 40)), "b": jnp.ones((40,))}
    chosen = jax.tree.map(lambda w: jnp.asarray(rng.random(w.shape) < 0.3), params)
    spec = PerturbSpec(direction=Sparse(), stacked=("^s$",), masks=lambda _: chosen)
    kept = spec.prepare(params)
    z = jax.jit(spec.noise)(params, KEY, kept)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x != 0, z), chosen)
    dense, ids = densely(params, z), jnp.array([5, 0, 5])

    @jax.jit
    def use(params, key):
        leaves = spec.perturb(params, key, jnp.float32(SCALE), kept)
        scanned = jax.lax.scan(lambda c, layer: (c, ops.dot(jnp.eye(6), layer)), 0, leaves["s"])[1]
        return scanned, ops.embed(leaves["w"], ids)

    scanned, rows = use(params, KEY)
    np.testing.assert_array_equal(scanned, dense["s"])  # 1 +- 0.5 is exact
    np.testing.assert_array_equal(rows, dense["w"][ids])
    assert kept["w"].size * 4 <= 6 * 8  # a bit a weight, rows padded to words


def test_layer_masks_move_their_layers_alone():
    params = {"w": jnp.ones((4, 3, 2)), "b": jnp.ones((4, 3)), "g": jnp.ones((4,))}
    spec = PerturbSpec(direction=Sparse(), stacked=(".",), masks=layer_masks((0, 2)))
    kept = spec.prepare(params)

    @jax.jit
    def both(params, key):
        leaves = spec.perturb(params, key, jnp.float32(SCALE), kept)
        layer = lambda c, x: (c, {name: ops.value(leaf) for name, leaf in x.items()})  # noqa: E731
        return spec.noise(params, key, kept), jax.lax.scan(layer, 0, leaves)[1]

    z, layers = both(params, KEY)
    for name, w in params.items():
        moved = [bool((z[name][layer] != 0).all()) for layer in range(4)]
        assert moved == [True, False, True, False]
        assert not (z[name][jnp.array([1, 3])] != 0).any()
        np.testing.assert_array_equal(layers[name], w + SCALE * z[name])
    with pytest.raises(ValueError, match=r"layers: \(4,\); numbers in \[0, 4\)"):
        layer_masks((4,))(params)
    with pytest.raises(ValueError, match=r"masks: shape \(3,\) for a leaf of shape \(4, 3\)"):
        PerturbSpec(direction=Sparse(), masks=lambda _: {"b": jnp.ones(3, bool)}).prepare({"b": params["b"]})


def test_a_sparse_direction_without_its_mask_is_refused():
    with pytest.raises(ValueError, match="masks"):
        PerturbSpec(direction=Sparse()).perturb({"w": jnp.ones(4)}, KEY, jnp.float32(1))


def test_a_packed_mask_holds_for_scalar_leaves_too():
    params = {"gain": jnp.float32(1), "layers": jnp.ones((3,))}
    nothing = lambda p: jax.tree.map(lambda w: jnp.zeros(w.shape, bool), p)  # noqa: E731
    spec = PerturbSpec(direction=Sparse(), stacked=("^layers$",), masks=nothing)
    chex.assert_trees_all_equal(spec.noise(params, KEY, spec.prepare(params)), {"gain": 0.0, "layers": jnp.zeros(3)})


# ---------------------------------------------------------------- errors


def test_colliding_paths_are_an_error():
    pair = ("olbfmjqn", "fomlonrv")  # found by brute force
    assert zlib.crc32(pair[0].encode()) == zlib.crc32(pair[1].encode())
    with pytest.raises(ValueError, match="share a crc32"):
        PerturbSpec().directions({name: jnp.ones(2) for name in pair})


def test_keys_with_a_slash_cannot_make_two_leaves_one():
    with pytest.raises(ValueError, match="share a crc32"):
        PerturbSpec().directions({"a": {"b": jnp.ones(2)}, "a/b": jnp.ones(2)})


def test_refusals():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"'kernel' matches no leaf; the leaves are b, w"):
        PerturbSpec(rules=(("kernel", Gaussian()),)).directions(params)
    with pytest.raises(ValueError, match=r"'\^layers/' matches no leaf"):
        PerturbSpec(stacked=("^layers/",)).perturb(params, KEY, jnp.float32(1))
    with pytest.raises(ValueError, match=r"'n' is of dtype int32"):
        PerturbSpec().noise({**params, "n": jnp.arange(3)}, KEY)
    with pytest.raises(ValueError, match=r"rules: 'w' asks for Sphere"):
        PerturbSpec(rules=(("w", Sphere()),))
