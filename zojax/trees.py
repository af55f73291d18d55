"""Parameter trees: the path of a leaf, and the trainable and the frozen part of a tree."""

import dataclasses
import re
from collections.abc import Callable, Sequence
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
    """The path of every leaf, in the tree's own structure; a leaf type is one leaf.

    Args:
      tree: any pytree; None stays None.

    Returns:
      Tree of str.

    Example:
      >>> leaf_paths({"a": {"b": 1.0}})
      {'a': {'b': 'a/b'}}
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path_string(path), tree, is_leaf=_is_weight)


def split(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """Divides a tree into what is trained and what is not.

    A pattern may also match inside a leaf type, as "kernel/scale$" does where the kernels are quantised: the trainable
    tree then holds a dictionary of the matched fields in place of the leaf, and the frozen tree the leaf without them.

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
    pairs, used, paths = [], set(), []

    def found(path: str) -> bool:
        paths.append(path)
        hits = [pattern for pattern in patterns if re.search(pattern, path)]
        used.update(hits)
        return bool(hits)

    for key_path, leaf in flat:
        path = path_string(key_path)
        if found(path):
            pairs.append((leaf, None))
        elif _is_weight(leaf):
            fields, rest = _split_inside(leaf, path, found)
            pairs.append((fields or None, rest))
        else:
            pairs.append((None, leaf))
    for pattern in patterns:
        if pattern not in used:
            raise ValueError(f"trainable: the pattern {pattern!r} matches no leaf; the leaves are {', '.join(paths)}")
    trainable, frozen = zip(*pairs, strict=True) if pairs else ((), ())
    return treedef.unflatten(trainable), treedef.unflatten(frozen)


def _split_inside(leaf: Any, path: str, found: Callable[[str], bool]) -> tuple[dict[str, Any], Any]:
    """The fields of a leaf type that are trained, and the leaf without them."""
    chosen, left = {}, {}
    for field in dataclasses.fields(leaf):
        value = getattr(leaf, field.name)
        if value is None or field.metadata.get("static"):
            continue
        inner = f"{path}/{field.name}"
        if found(inner):
            chosen[field.name], left[field.name] = value, None
        elif _is_weight(value):
            fields, rest = _split_inside(value, inner, found)
            if fields:
                chosen[field.name], left[field.name] = fields, rest
    return chosen, dataclasses.replace(leaf, **left) if left else leaf


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

    def pick(path, frozen_leaf, trained):
        if frozen_leaf is None or trained is None:
            return trained if frozen_leaf is None else frozen_leaf
        if not _is_weight(frozen_leaf) or not isinstance(trained, dict):
            raise ValueError(f"merge: the leaf {path_string(path)!r} stands in both trees")
        return _filled(frozen_leaf, trained, path_string(path))

    return jax.tree_util.tree_map_with_path(pick, frozen, trainable, is_leaf=lambda x: x is None or _is_weight(x))


def _filled(leaf: Any, fields: dict[str, Any], path: str) -> Any:
    values = {}
    for name, value in fields.items():
        present = getattr(leaf, name)
        if isinstance(value, dict) and present is not None:
            value = _filled(present, value, f"{path}/{name}")
        elif present is not None:
            raise ValueError(f"merge: the leaf {path + '/' + name!r} stands in both trees")
        values[name] = value
    return dataclasses.replace(leaf, **values)


def _is_weight(node: Any) -> bool:
    # A leaf type is a pytree node of its own; splitting must not look inside it.
    return hasattr(node, "materialize")
