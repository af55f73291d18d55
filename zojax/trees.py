"""Parameter trees: the path of a leaf, and the trainable and the frozen part of a tree."""

import re
from collections.abc import Sequence
from typing import Any

import jax

__all__ = ["leaf_paths", "merge", "path_string", "split"]

Params = Any


def path_string(path: tuple[Any, ...]) -> str:
    """A leaf's key path as text: its keys joined by "/".

    Args:
      path: key path, as `jax.tree_util.tree_map_with_path` gives it.

    Returns:
      For example "encoder/layers/query/kernel".

    Example:
      >>> path_string((jax.tree_util.DictKey("a"), jax.tree_util.SequenceKey(0)))
      'a/0'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_paths(tree: Params) -> Params:
    """The path of every leaf, in the tree's own structure.

    Args:
      tree: any pytree; None stays None.

    Returns:
      Tree of str.

    Example:
      >>> leaf_paths({"a": {"b": 1.0}})
      {'a': {'b': 'a/b'}}
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path_string(path), tree)


def split(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """Divides a tree into what is trained and what is not.

    Args:
      params: tree of arrays or leaf types.
      patterns: regular expressions, searched in the leaf paths; a leaf is trainable if any is found.

    Returns:
      (trainable, frozen), both of the structure of params, with None where the other has the leaf.

    Raises:
      ValueError: if a pattern matches no leaf.

    Example:
      >>> split({"w": 1.0, "b": 2.0}, ("^b$",))
      ({'b': 2.0, 'w': None}, {'b': None, 'w': 1.0})
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_weight)
    paths = [path_string(path) for path, _ in flat]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(f"trainable: the pattern {pattern!r} matches no leaf; the leaves are {', '.join(paths)}")
    chosen = [any(re.search(pattern, path) for pattern in patterns) for path in paths]
    trainable = [leaf if take else None for take, (_, leaf) in zip(chosen, flat, strict=True)]
    frozen = [None if take else leaf for take, (_, leaf) in zip(chosen, flat, strict=True)]
    return treedef.unflatten(trainable), treedef.unflatten(frozen)


def merge(trainable: Params, frozen: Params) -> Params:
    """Puts the two parts of `split` together again.

    Args:
      trainable: tree with None at the frozen leaves.
      frozen: tree with None at the trainable leaves.

    Returns:
      The whole tree.

    Raises:
      ValueError: if a leaf stands in both trees or the structures differ.

    Example:
      >>> merge({"b": 2.0, "w": None}, {"b": None, "w": 1.0})
      {'b': 2.0, 'w': 1.0}
    """

    def pick(path, a, b):
        if a is not None and b is not None:
            raise ValueError(f"merge: the leaf {path_string(path)!r} stands in both trees")
        return b if a is None else a

    return jax.tree_util.tree_map_with_path(pick, trainable, frozen, is_leaf=lambda x: x is None or _is_weight(x))


def _is_weight(node: Any) -> bool:
    # A leaf type is a pytree node of its own; splitting must not look inside it.
    return hasattr(node, "materialize")
