"""Where the language models' weights and activations lie on a mesh with axes "data", "fsdp" and "tensor".

Examples are divided over "data" and "fsdp"; weights over "fsdp" along the width of the residual stream and over
"tensor" along what is wide: heads, the MLP, the vocabulary. A mesh may lack any of the three, and an axis of an array
that a mesh axis does not divide stays whole.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from zojax.trees import path_string

__all__ = ["LOGICAL", "WEIGHTS", "constrain", "shardings"]

LOGICAL: dict[str, tuple[str, ...]] = {"batch": ("data", "fsdp"), "width": ("fsdp",), "wide": ("tensor",)}
"""The mesh axes of each logical axis."""

WEIGHTS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embeddings/word(/|$)", ("wide", "width")),
    (r"embeddings/(position|type)(/|$)", (None, "width")),
    (r"layers/(query|key|value|gate|up)/kernel(/|$)", ("width", "wide")),
    (r"layers/(query|key|value|gate|up)/bias(/|$)", ("wide",)),
    (r"layers/(output|down)/kernel(/|$)", ("wide", "width")),
    (r"(^|/)head/kernel(/|$)", ("width", "wide")),
    (r"masked_head/bias(/|$)", ("wide",)),
)
"""Logical axes of a weight's last axes by leaf path; a leaf that none matches is on every device."""


def _spec(axes: tuple[str | None, ...], shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
    """The mesh axes of an array, of those in `sizes` that divide it."""
    entries: list[Any] = [None] * (len(shape) - len(axes))
    for axis, length in zip(axes, shape[len(shape) - len(axes) :], strict=True):
        names = tuple(name for name in LOGICAL.get(axis or "", ()) if name in sizes)
        fits = names and length % math.prod(sizes[name] for name in names) == 0
        entries.append(names if fits else None)
    return PartitionSpec(*entries)


def shardings(params: Any, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> Any:
    """A sharding for every array of a parameter tree, for `jax.device_put`, `jax.jit` or shapes of a lowering.

    Arrays inside a leaf type (codes, scales, factors of an adapter) take the axes of their weight.

    Args:
      params: tree of arrays or shapes.
      mesh: the mesh.

    Returns:
      Tree of NamedSharding.

    Example:
      >>> from jax.sharding import AbstractMesh
      >>> params = {"layers": {"up": {"kernel": jax.ShapeDtypeStruct((2, 8, 12), "float32")}}}
      >>> tuple(shardings(params, AbstractMesh((2, 4), ("fsdp", "tensor")))["layers"]["up"]["kernel"].spec)
      (None, 'fsdp', 'tensor')
    """
    sizes = dict(mesh.shape)

    def place(path, leaf):
        name = path_string(path)
        axes = next((axes for pattern, axes in WEIGHTS if re.search(pattern, name)), ())
        return NamedSharding(mesh, _spec(axes if len(leaf.shape) >= len(axes) else (), leaf.shape, sizes))

    return jax.tree_util.tree_map_with_path(place, params)


def constrain(x: Shaped[Array, "..."], *axes: str | None) -> Shaped[Array, "..."]:
    """Pins an activation to the mesh of the context (`jax.set_mesh`); without one, x as it is.

    Args:
      x: the activation.
      *axes: the logical axis of each axis of x, or None.

    Returns:
      x.

    Example:
      >>> import jax.numpy as jnp
      >>> constrain(jnp.ones((2, 3)), "batch", None).shape
      (2, 3)
    """
    mesh = jax.sharding.get_abstract_mesh()
    # Axes of other types are placed by the program that made them so.
    auto = {n: mesh.shape[n] for n, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    return jax.lax.with_sharding_constraint(x, _spec(axes, x.shape, auto)) if auto else x
