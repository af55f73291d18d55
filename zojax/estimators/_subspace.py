"""What the low-rank methods share: matrices that move along left right^T, with factors made beforehand."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from zojax._kept import normal_factor
from zojax.directions import LowRank
from zojax.estimators._base import FACTORS
from zojax.factored import Factored, outer
from zojax.perturb import Perturbed, PerturbSpec

Params = Any


def low_rank_spec(spec: PerturbSpec | None, method: str, rank: int) -> PerturbSpec:
    """The spec, checked to move matrices along low-rank directions; None: along those of `rank`."""
    spec = PerturbSpec(direction=LowRank(rank=rank)) if spec is None else spec
    if not isinstance(spec.direction, LowRank):
        raise ValueError(f"spec.direction: {spec.direction}; {method} needs LowRank(rank=...)")
    return spec


def leaves_of(
    spec: PerturbSpec, params: Params, key: Key[Array, ""], masks: Params | None, scale: Any = 1.0
) -> list[Perturbed]:
    """The leaves of `spec.perturb(params, key, scale, masks)`."""
    perturbed = spec.perturb(params, key, jnp.asarray(scale, jnp.float32), masks)
    return jax.tree.leaves(perturbed, is_leaf=lambda node: isinstance(node, Perturbed))


def unflatten(params: Params, leaves: list[Any]) -> Params:
    """A tree of the parameters' structure, a leaf type being one leaf."""
    return jax.tree.structure(params, is_leaf=lambda node: hasattr(node, "materialize")).unflatten(leaves)


def rank_of(w: Perturbed) -> int:
    """The rank of a matrix's direction; 0 where a leaf is no matrix."""
    return w.direction.rank if isinstance(w.direction, LowRank) else 0


def leaf_key(w: Perturbed) -> Key[Array, ""]:
    """The key of a leaf's noise; a stacked leaf repeats it over its slices."""
    return w.key[0] if w.key.ndim else w.key


def period_leaves(spec: PerturbSpec, params: Params, state: Any, step: Any, every: int) -> list[Perturbed]:
    """The leaves with keys that depend on the period of `every` steps in which `step` lies."""
    first = jnp.asarray(step) // every * every
    key = jax.random.fold_in(jax.random.fold_in(state.key, first), jnp.uint32(FACTORS))
    return leaves_of(spec, params, key, state.masks)


def update_noise(w: Perturbed) -> Float[Array, "..."]:
    """The z along which a leaf is updated."""
    return dataclasses.replace(w, direction=w.direction.for_update).noise()


def normal(key: Key[Array, ""], number: int, w: Perturbed, axis: int, columns: int) -> Float[Array, "*lead m r"]:
    """A factor of standard normals for an axis of a matrix, as `LowRank` draws it: number 0 is its A, 1 its B."""
    shape = (*w.full_shape[:-2], w.full_shape[axis], columns)
    return normal_factor(jax.random.fold_in(key, number), shape, start=jnp.zeros(len(shape), jnp.uint32), size=shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subspace:
    """Directions left(key) right^T of the matrices, with a right factor that all probes share.

    Stands for a spec in `finite_differences`. The factors are lists in the order of the leaves, None where a leaf is no
    matrix.

    Attributes:
      spec: which leaves are matrices, and the directions of the others.
      left: (key of the leaf's probe, the leaf, what `own` has there) -> [..., m, r].
      own: what `left` needs of each leaf.
      right: the right factors [..., n, r].
    """

    spec: PerturbSpec
    left: Callable[[Key[Array, ""], Perturbed, Any], Float[Array, "..."]]
    own: list[Any]
    right: list[Any]

    def perturb(self, params: Params, key: Key[Array, ""], scale: Array, masks: Params | None = None) -> Params:
        """The tree of leaves "weight + scale * z(key)"."""
        leaves = leaves_of(self.spec, params, key, masks, scale)

        def leaf(w: Perturbed, own: Any, right: Any) -> Any:
            if right is None:
                return w
            return Factored(base=w.base, left=self.left(leaf_key(w), w, own), right=right, scale=w.scale)

        return unflatten(params, [leaf(*row) for row in zip(leaves, self.own, self.right, strict=True)])

    def norm_factor(self, params: Params, key: Key[Array, ""], masks: Params | None = None) -> Float[Array, ""]:
        """1: these directions are not scaled."""
        del params, key, masks
        return jnp.float32(1)

    def sum_left(self, params: Params, state: Any, weights: Float[Array, "q"]) -> list[Array]:
        """For every leaf, sum_i weights_i of left(key_i), or of z_i where it is no matrix."""
        step_key = jax.random.fold_in(state.key, state.count)

        def term(index: int) -> list[Array]:
            leaves = leaves_of(self.spec, params, jax.random.fold_in(step_key, jnp.uint32(index)), state.masks)
            rows = zip(leaves, self.own, self.right, strict=True)
            parts = (update_noise(w) if right is None else self.left(leaf_key(w), w, own) for w, own, right in rows)
            return [weights[index] * part for part in parts]

        total = term(0)
        for index in range(1, weights.shape[0]):
            total = jax.tree.map(jnp.add, total, term(index))
        return total

    def gradient(self, params: Params, lefts: list[Array]) -> Params:
        """The tree of left right^T of the matrices and of what `lefts` holds of other leaves."""
        pairs = zip(lefts, self.right, strict=True)
        return unflatten(params, [left if right is None else outer(left, right) for left, right in pairs])
