"""Static scales against the largest magnitudes that numpy finds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import ops
from zojax.quant import Activations, calibrate, quantize

STATIC = Activations(grid="int8_127", per="static")


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def leaf(*shape, seed=0, blocks=None):
    return quantize(normal(*shape, seed=seed), "int8_127", blocks=blocks, activations=STATIC)


def model():
    """A matrix, a stack of three that a scan goes over, and a kernel; tanh keeps the layers apart."""
    return {
        "first": leaf(6, 8),
        "layers": {
            "w": leaf(3, 8, 8, seed=1, blocks=(3, 1, 8)),
            "b": normal(3, 8, seed=2),
            "gain": jnp.array([2.0, 3.0, 1.5]),
        },
        "kernel": leaf(2, 8, 4, seed=3),
        "table": quantize(normal(5, 6, seed=4), "int4", blocks=(5, 1)),
    }


def forward(params, x, scan=True):
    x = ops.dot(x + ops.embed(params["table"], jnp.zeros((), jnp.int32)), params["first"])

    def layer(x, p):
        return jnp.tanh(ops.dot(x, p["w"]) + p["b"]) * p["gain"], None

    if scan:
        x, _ = jax.lax.scan(layer, x, params["layers"])
    else:
        for i in range(3):
            x, _ = layer(x, jax.tree.map(lambda a, i=i: a[i], params["layers"]))
    return jnp.sum(ops.conv(x, params["kernel"]))


def inputs(params, x):
    """What enters each product, in float64, with activations quantised by one scale a call as `calibrate` says."""

    def rounded(x):
        scale = np.abs(x).max() / 127
        return np.rint(x / scale) * scale

    def weight(w):
        return np.asarray(w.materialize(), np.float64)

    first = np.asarray(x, np.float64) + weight(params["table"])[0]
    x, layers = rounded(first) @ weight(params["first"]), []
    rest = (np.asarray(params["layers"][name], np.float64) for name in ("b", "gain"))
    for w, b, gain in zip(weight(params["layers"]["w"]), *rest, strict=True):
        layers.append(x)
        x = np.tanh(rounded(x) @ w + b) * gain
    return first, layers, x


@pytest.mark.parametrize("percentile", [100.0, 90.0])
@pytest.mark.parametrize("jitted", [True, False])
def test_scales_are_those_of_numpy(jitted, percentile):
    params = model()
    batches = [normal(2, 7, 6, seed=10), 3 * normal(2, 7, 6, seed=11), normal(1, 9, 6, seed=12)]
    found = calibrate(jax.jit(forward) if jitted else forward, params, iter(batches), percentile=percentile)
    peaks = []
    for batch in batches:
        first, layers, last = inputs(params, batch)
        peaks.append([np.percentile(np.abs(a), percentile) for a in (first, *layers, last)])
    first, *layers, last = np.max(peaks, axis=0) / 127
    # an activation may lie on the other side of a tie in float32: one step of the quantised input of a layer
    np.testing.assert_allclose(found["first"].activation_scale, first, rtol=1e-6)
    np.testing.assert_allclose(found["layers"]["w"].activation_scale, layers, rtol=1e-2)
    np.testing.assert_allclose(found["kernel"].activation_scale, last, rtol=1e-2)
    assert found["layers"]["w"].activation_scale.shape == (3,)
    assert len({*found["layers"]["w"].activation_scale.tolist()}) == 3
    assert found["first"].activations == STATIC
    assert found["table"] is params["table"]


def test_the_calibrated_tree_runs_scanned_and_unrolled_alike():
    params = calibrate(forward, model(), [normal(2, 7, 6)])
    run = jax.jit(forward, static_argnames="scan")
    x = normal(2, 7, 6)
    scanned, unrolled = run(params, x), run(params, x, scan=False)
    np.testing.assert_allclose(scanned, unrolled, rtol=1e-5)
    dynamic = run(dynamic_activations(model()), x)
    # one batch: its static scales are those of that batch
    np.testing.assert_allclose(scanned, dynamic, rtol=1e-4)


def dynamic_activations(params):
    tensor = Activations(grid="int8_127", per="tensor")

    def leaf(node):
        static = getattr(node, "activations", None) == STATIC
        return dataclasses.replace(node, activations=tensor) if static else node

    return jax.tree.map(leaf, params, is_leaf=lambda node: hasattr(node, "materialize"))


def test_einsum_vmap_and_repeated_use():
    params = {"w": leaf(4, 5), "experts": leaf(3, 4, 5, blocks=(3, 1, 5))}

    def function(params, x):
        jax.vmap(ops.dot)(x, params["experts"])  # x[i] enters expert i
        return ops.einsum("ebd,dk->ebk", x, params["w"]), ops.dot(2 * x, params["w"])

    x = normal(3, 2, 4)
    found = calibrate(function, params, [x])
    np.testing.assert_allclose(found["w"].activation_scale, 2 * np.abs(x).max() / 127, rtol=1e-6)
    np.testing.assert_allclose(found["experts"].activation_scale, np.abs(x).max((1, 2)) / 127, rtol=1e-6)


def test_a_second_calibration_starts_anew():
    """A function that is jitted outside keeps its traces: they must not report to the first calibration's records."""
    function, params = jax.jit(lambda p, x: ops.dot(x, p["w"])), {"w": leaf(4, 5)}
    for size in (2.0, 1.0):
        found = calibrate(function, params, [jnp.full((1, 4), size)])
        np.testing.assert_allclose(found["w"].activation_scale, size / 127, rtol=1e-6)


def test_zeros_have_scale_one():
    found = calibrate(lambda p, x: ops.dot(x, p["w"]), {"w": leaf(4, 5)}, [jnp.zeros((1, 4))])
    assert float(found["w"].activation_scale) == 1.0


@pytest.mark.parametrize(
    ("function", "batch", "message"),
    [
        (lambda p, x: ops.dot(x, p["a"]["w"]), 1.0, "no activations entered a product with 'a/unused'"),
        (lambda p, x: [ops.dot(x, w) for w in p["a"].values()], jnp.nan, "'a/unused' are not finite"),
    ],
)
def test_leaves_without_usable_activations_are_named(function, batch, message):
    params = {"a": {"w": leaf(4, 5), "unused": leaf(4, 5)}}
    with pytest.raises(ValueError, match=message):
        calibrate(function, params, [jnp.full((1, 4), batch)])


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"percentile: 0\.0; a number in"):
        calibrate(forward, model(), [], percentile=0.0)
    with pytest.raises(ValueError, match="no leaf has activations"):
        calibrate(forward, {"w": quantize(normal(3, 3), "int4")}, [])
