"""Per-example leaves: every use gives each example its own weight, and none holds a weight for each example."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.estimators.problems import largest_intermediate
from zojax import ops, random
from zojax.directions import Gaussian, Rademacher
from zojax.estimators.per_example import _PerExampleSpec
from zojax.per_example import PerExample, map_examples
from zojax.perturb import PerturbSpec

KEY = jax.random.key(8)
SCALE, BATCH = 0.5, 3
SHAPES = {"matrix": (8, 5), "cube": (8, 3, 2), "table": (20, 5), "kernel": (3, 4, 5), "bias": (5,), "gain": ()}


def dense(name, w, example, direction, lead=0):
    """base + scale U o (r s^T) by the documented keys, the whole leaf drawn at once; `lead` axes index layers."""

    @jax.jit
    def draw():
        key = jax.random.fold_in(KEY, np.uint32(zlib.crc32(name.encode())))
        row_key, column_key = (jax.random.fold_in(jax.random.fold_in(key, n), np.uint32(example)) for n in (4, 5))
        layers, inner = w.shape[:lead], w.shape[lead:]
        s = random.signs(column_key, (*layers, *inner[-1:]) or (1,))
        r = random.signs(row_key, (*layers, inner[-2])) if len(inner) > 1 else jnp.ones(layers)
        return direction.sample(key, w.shape), r, s

    shared, r, s = (np.asarray(x, np.float64) for x in draw())
    inner = w.shape[lead:]
    s = s.reshape((*w.shape[:lead], *(1,) * (len(inner) - 1), *inner[-1:]))
    r = r.reshape(
        (*w.shape[:lead], *(1,) * (len(inner) - 2), *inner[-2:-1], 1)
        if len(inner) > 1
        else s.shape[:lead] + (1,) * (s.ndim - lead)
    )
    return np.asarray(w, np.float64) + SCALE * shared * r * s


@pytest.mark.parametrize(("direction", "dtype"), [(Rademacher(), jnp.float32), (Gaussian(), jnp.bfloat16)])
def test_each_use_gives_each_example_its_own_weight(direction, dtype):
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}
    # Representable in bfloat16, so that only the weights' rounding is compared.
    draw = lambda *shape: jnp.asarray(rng.integers(-8, 9, size=(BATCH, *shape)) / 8, jnp.float32)  # noqa: E731
    rows = {"x": draw(4, 8), "signal": draw(2, 9, 4), "ids": jnp.asarray(rng.integers(0, 20, (BATCH, 6)))}

    def uses(p, row):
        return {
            "matrix": ops.dot(row["x"], p["matrix"]),
            "cube": ops.einsum("bd,dhk->bhk", row["x"], p["cube"]),
            "table": ops.embed(p["table"], row["ids"]),
            "kernel": ops.conv(row["signal"], p["kernel"], padding="SAME", strides=2),
            "bias": ops.value(p["bias"]),
            "gain": ops.value(p["gain"]),
        }

    spec = _PerExampleSpec(spec=PerturbSpec(direction=direction))
    found = jax.jit(lambda p, row: map_examples(uses, spec.perturb(p, KEY, jnp.float32(SCALE)), row))(params, rows)
    for example in range(BATCH):
        w = {name: jnp.asarray(dense(name, w, example, direction), jnp.float32) for name, w in params.items()}
        expected = uses(w, jax.tree.map(lambda x, example=example: x[example], rows))
        for name, value in expected.items():
            # A product in half precision rounds U to 8 bits: 2^-9 of up to 12 summands of scale * |x z| < 2, in sum.
            half = dtype == jnp.bfloat16 and direction == Gaussian()
            tolerance = 2.0**-9 * SCALE * 12 if half else 1e-5
            np.testing.assert_allclose(found[name][example], value, rtol=1e-5, atol=tolerance, err_msg=name)
    assert not np.allclose(found["matrix"][0], found["matrix"][1])


def test_layers_of_a_scanned_leaf_have_signs_of_their_own():
    rng = np.random.default_rng(1)
    shapes = {"kernel": (4, 8, 8), "bias": (4, 8), "gain": (4,), "table": (4, 10, 8)}
    params = {"layers": {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}}
    spec = _PerExampleSpec(spec=PerturbSpec(stacked=("^layers/",)))

    def uses(p, ids):
        def layer(carry, w):
            seen = ops.dot(jnp.eye(8), w["kernel"]), ops.value(w["bias"]), ops.value(w["gain"])
            return carry, (*seen, ops.embed(w["table"], ids))

        whole = jax.tree.map(ops.value, p["layers"], is_leaf=lambda n: hasattr(n, "materialize"))
        return jax.lax.scan(layer, 0, p["layers"])[1], whole

    ids = jnp.array([[3, 0], [9, 9], [1, 2]])
    found, whole = jax.jit(lambda p, i: map_examples(uses, spec.perturb(p, KEY, jnp.float32(SCALE)), i))(params, ids)
    for example in range(BATCH):
        w = {name: dense(f"layers/{name}", leaf, example, Rademacher(), 1) for name, leaf in params["layers"].items()}
        expected = (w["kernel"], w["bias"], w["gain"], w["table"][:, ids[example]])
        for value, known in zip(found, expected, strict=True):
            np.testing.assert_allclose(value[example], known, atol=1e-5)
        for name, known in w.items():
            np.testing.assert_allclose(whole[name][example], known, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "shape"), [("bd,dhk->bhk", (6, 4, 5)), ("bhd,hdk->bhk", (4, 6, 5)), ("...d,dk->...k", (6, 5))]
)
def test_einsum_puts_the_signs_where_the_axes_are(spec, shape):
    w = jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)
    x = jnp.ones((BATCH, 2, *shape[:-1])) if spec.startswith("bh") else jnp.ones((BATCH, 2, 6))
    leaf = _PerExampleSpec(spec=PerturbSpec()).perturb({"w": w}, KEY, jnp.float32(SCALE))["w"]
    found = map_examples(lambda p, row: ops.einsum(spec, row, p), leaf, x)
    for example in range(BATCH):
        known = np.einsum(spec, np.asarray(x[example]), dense("w", w, example, Rademacher()))
        np.testing.assert_allclose(found[example], known, atol=1e-5)


def test_no_copy_of_the_weight_for_each_example():
    """Every way to multiply: the largest array is the weight, or the activations of the batch."""
    batch, width = 32, 48
    spec = _PerExampleSpec(spec=PerturbSpec())
    x, ids = jnp.ones((batch, 4, width)), jnp.zeros((batch, 4), jnp.int32)
    cases = {
        "dot": ((width, width), lambda p, row: ops.dot(row["x"], p).sum()),
        "einsum": ((width, 6, 8), lambda p, row: ops.einsum("sd,dhk->shk", row["x"], p).sum()),
        "conv": ((3, width, width), lambda p, row: ops.conv(row["x"][None], p, padding="SAME").sum()),
        "embed": ((1000, width), lambda p, row: ops.embed(p, row["ids"]).sum()),
    }
    for name, (shape, use) in cases.items():
        leaf = spec.perturb({"w": jnp.ones(shape)}, KEY, jnp.float32(1))["w"]
        largest = largest_intermediate(lambda p, use=use: map_examples(use, p, {"x": x, "ids": ids}), leaf)
        assert largest <= max(np.prod(shape) * 1.5, 4 * x.size), name
        assert largest < batch * np.prod(shape) / 4, name


def test_a_leaf_knows_no_example_outside():
    leaf = PerExample(base=jnp.ones(3), key=KEY, scale=jnp.float32(1), direction=Rademacher(), full_shape=(3,))
    with pytest.raises(ValueError, match=r"value_fn: a weight is used outside zojax\.per_example\.map_examples"):
        ops.value(leaf)
