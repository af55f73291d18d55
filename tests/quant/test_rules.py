"""Rules: which leaf is quantised how."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax.quant import (
    PROFILES,
    Activations,
    QArray,
    Rule,
    dequantize_tree,
    profile_rules,
    quantize,
    quantize_tree,
)

REST = Rule(pattern="", grid=None)


def tree():
    rng = np.random.default_rng(0)
    shapes = {"table": (10, 6), "layers": {"kernel": (3, 6, 8), "bias": (3, 8)}, "conv": (5, 6, 4)}
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


@pytest.mark.parametrize(
    ("per", "shape", "blocks"),
    [
        ("column", (6, 8), (1, 8)),
        ("column", (3, 6, 8), (3, 1, 8)),
        ("row", (6, 8), (6, 1)),
        ("tensor", (3, 6, 8), (3, 1, 1)),
        ("channel", (5, 6, 8), (1, 1, 8)),
        (2, (3, 6, 8), (3, 3, 8)),
    ],
)
def test_blocks(per, shape, blocks):
    assert Rule(pattern="w", grid="int4", per=per).blocks("w", shape) == blocks


def test_the_first_match_counts():
    params = tree()
    activations = Activations(grid="int8_127")
    rules = (
        Rule(pattern="conv$", grid="int8_128", per="channel", calibration="mse", power_of_two=True),
        Rule(pattern="kernel$", grid="int4", per=3, activations=activations),
        Rule(pattern="table", grid="int8_127", per="row"),
        REST,
    )
    q = quantize_tree(params, rules)
    assert q["layers"]["bias"] is params["layers"]["bias"]
    assert {name: q[name].scale.shape for name in ("table", "conv")} == {"table": (10, 1), "conv": (1, 1, 4)}
    assert q["layers"]["kernel"].scale.shape == (3, 2, 8)
    assert q["layers"]["kernel"].activations == activations
    assert np.all(np.frexp(np.asarray(q["conv"].scale))[0] == 0.5)
    np.testing.assert_array_equal(q["table"].qvalue, quantize(params["table"], "int8_127", blocks=(10, 1)).qvalue)
    back = dequantize_tree(q)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    np.testing.assert_array_equal(back["conv"], q["conv"].materialize())


def test_a_stacked_leaf_is_its_slices():
    kernel = tree()["layers"]["kernel"]
    stacked = quantize_tree({"w": kernel}, [Rule(pattern="w", grid="int4", calibration="mse")])["w"]
    for i in range(3):
        alone = quantize(kernel[i], "int4", calibration="mse")
        np.testing.assert_array_equal(stacked.qvalue[i], alone.qvalue)
        np.testing.assert_array_equal(stacked.scale[i], alone.scale)


def test_a_quantised_leaf_is_one_leaf():
    w = quantize(tree()["table"], "int8_127")
    kept = quantize_tree({"w": w, "v": tree()["conv"]}, [Rule(pattern="^v$", grid="int4"), REST])
    assert kept["w"] is w
    coarser = quantize_tree({"w": w}, [Rule(pattern="^w$", grid="int4")])["w"]
    np.testing.assert_array_equal(coarser.qvalue, quantize(w.materialize(), "int4").qvalue)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule(pattern="nothing", grid="int4"), REST], "'nothing' matches no leaf; the leaves are conv, layers/bias"),
        ([Rule(pattern="table", grid="int4")], "none matches 'conv'"),
        ([Rule(pattern="kernel", grid="int4", per=4), REST], "groups of 4 do not divide the 6 rows of 'layers/kernel'"),
    ],
)
def test_mistakes_are_named(rules, message):
    with pytest.raises(ValueError, match=message):
        quantize_tree(tree(), rules)


def test_wrong_fields_are_named():
    with pytest.raises(ValueError, match=r"per: 'diagonal'; .* is needed"):
        Rule(pattern="w", grid="int4", per="diagonal")
    with pytest.raises(ValueError, match="grid: 'int9' is not one of"):
        Rule(pattern="w", grid="int9")
    with pytest.raises(ValueError, match=r"quantises 'b' of shape \(8,\), which is no matrix"):
        quantize_tree({"b": jnp.ones(8)}, [Rule(pattern="b", grid="int4")])


@pytest.mark.parametrize("name", PROFILES)
def test_profiles(name):
    profile = PROFILES[name]
    q = quantize_tree(tree(), profile_rules(profile, kernels="kernel$", tables="table", rest=""))
    kernel, table = q["layers"]["kernel"], q["table"]
    assert isinstance(kernel, QArray)
    assert kernel.grid.name == table.grid.name == profile.weights
    assert kernel.activations == profile.activations is not None
    assert table.activations is None
    assert (kernel.scale.shape, table.scale.shape) == ((3, 1, 8), (10, 1))
    # name: weights' bits, activations' bits and kind
    weights, activations, kind = name[1], name[3], name.rsplit("_")[-1]
    assert kernel.grid.bits == int(weights)
    assert profile.activations.grid.startswith({"8int": "int8", "8fp8": "fp8", "4int": "int4"}[activations + kind])
