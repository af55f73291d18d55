"""Weights below 8 bits: each is one of a few levels, and the levels are codes of the accelerator's 8-bit grid.

What the methods of `general`, `cosine` and `learned_step` share: which leaves, of how many bits, and the leaf type of
their forwards, a `FakeQuant` whose codes come from a table and whose gradient is the method's own.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zojax import ops
from zojax.quant.calibration import expand
from zojax.quant.qarray import QArray
from zojax.quant.rules import Rule, quantize_tree
from zojax.quant.straight_through import FakeQuant
from zojax.trees import path_string

__all__ = ["Depth", "Grids", "assign", "depths", "grids", "magnitude", "nested", "with_codes"]

Params = Any
Grids = dict[str, QArray]
"""The quantised leaves of a tree by path, as `quantize_tree` makes them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depth:
    """How many bits the weights have whose path a pattern matches.

    Attributes:
      pattern: regular expression, searched in the leaf path.
      bits: 1 to 8; 8 is the grid itself.

    Raises:
      ValueError: if there are fewer or more bits.

    Example:
      >>> Depth(pattern="joiner", bits=9)
      Traceback (most recent call last):
      ...
      ValueError: bits: 9 of 'joiner'; 1 to 8 is needed
    """

    pattern: str
    bits: int

    def __post_init__(self):
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits: {self.bits} of {self.pattern!r}; 1 to 8 is needed")


def grids(params: Params, rules: Sequence[Rule]) -> Grids:
    """The leaves that rules quantise, with scales of these weights; no gradient passes.

    Args:
      params: tree of float arrays.
      rules: as for `quantize_tree`, of symmetric grids.

    Returns:
      {path: QArray}.

    Raises:
      ValueError: as `quantize_tree`.

    Example:
      >>> rules = (Rule(pattern="w", grid="int8_127"), Rule(pattern="", grid=None))
      >>> list(grids({"w": jnp.eye(2), "b": jnp.ones(2)}, rules))
      ['w']
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(
        quantize_tree(jax.lax.stop_gradient(params), rules), is_leaf=lambda node: isinstance(node, QArray)
    )
    return {path_string(path): leaf for path, leaf in flat if isinstance(leaf, QArray)}


def depths(paths: Sequence[str], allocation: Sequence[Depth]) -> dict[str, int]:
    """The bits of leaves; the first depth whose pattern matches counts.

    Args:
      paths: of the leaves.
      allocation: the depths; a leaf without one is an error, as is one that no path matches.

    Returns:
      {path: bits}.

    Raises:
      ValueError: naming the leaf or the pattern.

    Example:
      >>> depths(["a/x", "a/y"], (Depth(pattern="y$", bits=2), Depth(pattern="", bits=5)))
      {'a/x': 5, 'a/y': 2}
    """
    for depth in allocation:
        if not any(re.search(depth.pattern, path) for path in paths):
            raise ValueError(f"allocation: {depth.pattern!r} matches none of {', '.join(paths)}")
    found = {}
    for path in paths:
        bits = next((depth.bits for depth in allocation if re.search(depth.pattern, path)), None)
        if bits is None:
            raise ValueError(f"allocation: no depth matches {path!r}")
        found[path] = bits
    return found


def magnitude(grid: QArray) -> Float[Array, "..."]:
    """The largest magnitude of each block of a leaf, to which its scale belongs; without gradient.

    Args:
      grid: the leaf, quantised.

    Returns:
      float32, broadcastable against the leaf.

    Example:
      >>> magnitude(grids({"w": jnp.array([[0.5], [-2.0]])}, (Rule(pattern="", grid="int8_127"),))["w"]).tolist()
      [[2.0]]
    """
    return jax.lax.stop_gradient(expand(ops.value(grid.scale), grid.shape) * grid.grid.span)


def assign(x: Float[Array, "*s"], levels: Float[Array, "n"]) -> Int[Array, "*s"]:
    """The index of the nearest level; of two that are as near, the lower one.

    Args:
      x: numbers.
      levels: sorted.

    Returns:
      int32.

    Example:
      >>> assign(jnp.array([-9.0, 0.1, 0.5, 0.6]), jnp.array([0.0, 1.0])).tolist()
      [0, 0, 0, 1]
    """
    middles = (levels[1:] + levels[:-1]) / 2
    # A comparison with each of a few levels; a search would gather.
    return sum((jnp.greater(x, m).astype(jnp.int32) for m in middles), start=jnp.zeros(x.shape, jnp.int32))


def with_codes(value: Float[Array, "*s"], grid: QArray, codes: Array) -> FakeQuant:
    """The leaf with these codes whose gradient is that of `value`.

    Args:
      value: float32, within the grid.
      grid: the leaf's grid and scale.
      codes: integers of the grid, in any type.

    Returns:
      FakeQuant.

    Example:
      >>> grid = grids({"w": jnp.eye(2)}, (Rule(pattern="", grid="int8_127"),))["w"]
      >>> with_codes(jnp.eye(2), grid, jnp.zeros((2, 2), jnp.int32)).materialize().tolist()
      [[0.0, 0.0], [0.0, 0.0]]
    """
    held = jax.lax.stop_gradient(codes).astype(grid.qvalue.dtype)
    return FakeQuant(value=value, quantized=dataclasses.replace(grid, qvalue=held))


def nested(by_path: dict[str, Any]) -> Params:
    """A tree of the leaves of a dictionary by path.

    Args:
      by_path: leaves; no path is the beginning of another.

    Returns:
      Nested dictionaries.

    Example:
      >>> nested({"a/x": 1, "a/y": 2, "b": 3})
      {'a': {'x': 1, 'y': 2}, 'b': 3}
    """
    tree: dict[str, Any] = {}
    for path, leaf in by_path.items():
        *folders, name = path.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = leaf
    return tree


def flat(tree: Params) -> dict[str, Any]:
    """The leaves of a tree by path: the inverse of `nested`."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_string(path): leaf for path, leaf in found}


def replaced(params: Params, leaves: dict[str, Any]) -> Params:
    """The tree with other leaves at these paths."""
    return jax.tree_util.tree_map_with_path(lambda path, w: leaves.get(path_string(path), w), params)


def code_table(levels: np.ndarray | Array, grid: QArray) -> Array:
    """Levels in [-1, 1] as codes of the grid, floats; several may become one code."""
    return jnp.clip(jnp.round(jnp.asarray(levels) * grid.grid.span), grid.grid.low, grid.grid.high)
