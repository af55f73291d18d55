"""Leaf paths, and the trainable and the frozen part of a tree."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import pytest

from zojax.adapters import Lora, add_lora
from zojax.perturb import Perturbed, PerturbSpec
from zojax.quant import quantize
from zojax.trees import leaf_paths, merge, split


class Point(NamedTuple):
    x: jax.Array
    y: jax.Array | None


TREE = {"encoder": {"w": jnp.ones(2), "b": jnp.zeros(2)}, "list": [jnp.ones(1), Point(jnp.ones(3), None)]}


def test_paths_join_keys_of_every_kind():
    assert leaf_paths(TREE) == {
        "encoder": {"w": "encoder/w", "b": "encoder/b"},
        "list": ["list/0", Point("list/1/x", None)],
    }


@pytest.mark.parametrize("patterns", [("^encoder/",), ("w$", "/0$"), (".",), ()])
def test_merge_undoes_split(patterns):
    trainable, frozen = split(TREE, patterns)
    chex.assert_trees_all_equal(merge(trainable, frozen), TREE)
    assert jax.tree.structure(merge(trainable, frozen)) == jax.tree.structure(TREE)
    counts = [len(jax.tree.leaves(part)) for part in (trainable, frozen)]
    assert sum(counts) == len(jax.tree.leaves(TREE))


def test_split_searches_the_path():
    trainable, frozen = split(TREE, ("w$",))
    assert jax.tree.leaves(leaf_paths(trainable)) == ["encoder/w"]
    assert jax.tree.leaves(leaf_paths(frozen)) == ["encoder/b", "list/0", "list/1/x"]


def test_a_leaf_type_stays_whole():
    perturbed = PerturbSpec().perturb(TREE["encoder"], jax.random.key(0), jnp.float32(1))
    trainable, frozen = split(perturbed, ("^w$",))
    assert isinstance(trainable["w"], Perturbed)
    assert trainable["b"] is None
    assert frozen["w"] is None
    merged = merge(trainable, frozen)
    assert merged["w"] is perturbed["w"]
    assert merged["b"] is perturbed["b"]


def test_merge_and_split_trace():
    trainable, frozen = split(TREE, ("^encoder/",))
    doubled = jax.jit(lambda t, f: jax.tree.map(lambda x: 2 * x, merge(t, f)))(trainable, frozen)
    chex.assert_trees_all_equal(doubled, jax.tree.map(lambda x: 2 * x, TREE))


def test_refusals():
    with pytest.raises(ValueError, match=r"'decoder' matches no leaf; the leaves are encoder/b, encoder/w, list/0"):
        split(TREE, ("encoder", "decoder"))
    with pytest.raises(ValueError, match=r"merge: the leaf 'b' stands in both trees"):
        merge({"b": 1.0, "w": None}, {"b": 2.0, "w": 3.0})
    with pytest.raises(ValueError, match=r"w"):
        merge({"b": 1.0, "w": None}, {"b": None})


def adapted():
    quantized = quantize(jnp.ones((4, 2)), "int8_127")
    return add_lora({"kernel": quantized, "bias": jnp.zeros(2)}, ("kernel",), rank=1, alpha=1, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("pattern", "inside"),
    [
        ("kernel/(a|b)$", {"a": (4, 1), "b": (1, 2)}),
        ("kernel/base/scale$", {"base": {"scale": (1, 2)}}),
        ("(/a|scale)$", {"base": {"scale": (1, 2)}, "a": (4, 1)}),
    ],
)
def test_a_pattern_may_match_inside_a_leaf_type(pattern, inside):
    tree = adapted()
    trainable, frozen = split(tree, (pattern,))
    assert jax.tree.map(jnp.shape, trainable) == {"bias": None, "kernel": inside}
    assert len(jax.tree.leaves(trainable)) + len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(tree))
    assert isinstance(frozen["kernel"], Lora)
    merged = jax.jit(merge)(trainable, frozen)
    chex.assert_trees_all_equal(merged, tree)
    assert jax.tree.structure(merged) == jax.tree.structure(tree)


def test_a_match_of_the_whole_leaf_type_keeps_it_whole():
    tree = adapted()
    trainable, frozen = split(tree, ("kernel",))
    assert trainable["kernel"] is tree["kernel"]
    assert frozen["kernel"] is None


def test_refusals_inside_leaf_types():
    tree = adapted()
    with pytest.raises(ValueError, match=r"'kernel/c' matches no leaf; .*kernel/base/qvalue"):
        split(tree, ("kernel/c",))
    trainable, _ = split(tree, ("kernel/(a|b)$",))
    with pytest.raises(ValueError, match=r"merge: the leaf 'kernel/a' stands in both trees"):
        merge(trainable, tree)
    nested, _ = split(tree, ("scale$",))
    with pytest.raises(ValueError, match=r"merge: the leaf 'kernel/base/scale' stands in both trees"):
        merge(nested, tree)
