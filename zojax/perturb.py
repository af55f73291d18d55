"""Perturbed weights as leaves of the parameter tree.

`PerturbSpec.perturb` turns a tree of weights into a tree of `Perturbed` leaves, each the expression
"weight + scale * direction(key)". Nothing is added until a model uses the weight through `zojax.ops`, and then only
to the tile that is used: the clean weights are never touched, and no array of noise outlives a layer.

Keys: the key of leaf p for probe i of step n is fold_in(fold_in(fold_in(run key, n), i), crc32(p)), so a leaf that is
added or frozen changes no other leaf's noise.
"""

import dataclasses
import functools
import math
import re
import zlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key

from zojax import ops, random
from zojax.directions import Direction, Rademacher, Sparse, Sphere, row_coordinates
from zojax.masks import apply_mask, keep_mask, mask_rows
from zojax.trees import path_string

__all__ = ["PerturbSpec", "Perturbed", "materialized"]

Params = Any
Probe = Literal["beside", "codes"]

# Leaf keys of what a probe draws beside its direction: numbers 1 and 2 are the roundings of `Rounded`.
ROUNDING = 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Perturbed:
    """The leaf "base + scale * z", z the tile of direction(key) at `start` of an array of shape `full_shape`.

    Products add and multiply in float32. Where the base is of half precision they are split, x base + scale x z, since
    base + scale z would round the probe away.

    A leaf that a model scans over carries the scanned axis on every field (key repeated, start counting up), so that
    its slices are tiles of one array of noise.

    Attributes:
      base: the weight, an array or another leaf type; first, because Flax compares the first array's shape.
      key: typed key of this leaf's noise.
      scale: float32 scalar.
      start: uint32 coordinates of the tile, or None for the origin.
      mask: of a sparse direction: the threshold of magnitude (float32) or the packed mask (uint32); else None.
      factor: what z is multiplied by, element by element (float32, of the leaf's shape), or None.
      direction: the distribution of z.
      full_shape: shape of the whole leaf of which this is a tile.
      probe: of a quantised base: "beside", x base + scale x z as two products of codes; or "codes", the base's codes
        moved by a stochastically rounded scale z. The latter is scale z on average, but for codes at an end of the
        grid, which move one way only; and on a float8 grid the two sides of a probe are rounded with unequal variance
        at powers of two, where the spacing of the codes changes.

    Example:
      >>> from zojax.directions import Gaussian
      >>> key = jax.random.key(0)
      >>> w = Perturbed(base=jnp.zeros((2, 3)), key=key, scale=jnp.float32(1), direction=Gaussian(), full_shape=(2, 3))
      >>> bool((ops.dot(jnp.eye(2), w) == jax.random.normal(key, (2, 3))).all())
      True
    """

    base: Any
    key: Key[Array, "..."]
    scale: Float[Array, "..."]
    start: Array | None = None
    mask: Array | None = None
    factor: Array | None = None
    direction: Direction = dataclasses.field(metadata={"static": True})
    full_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    probe: Probe = dataclasses.field(default="beside", metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self):
        return self.base.dtype

    @property
    def ndim(self) -> int:
        return len(self.base.shape)

    @property
    def _size(self) -> tuple[int, ...]:
        return (1,) * (len(self.full_shape) - self.ndim) + tuple(self.shape)

    @property
    def _is_stacked(self) -> bool:
        return self.scale.ndim > 0

    def noise(self) -> Float[Array, "..."]:
        """z, float32, of the leaf's shape."""
        if self._is_stacked:
            return jax.vmap(Perturbed.noise)(self)
        sample = functools.partial(self.direction.sample, self.key, self.full_shape, start=self.start, size=self._size)
        # A vector is broadcast over the activations, and a fused draw would be made anew for each of their rows.
        is_vector = self.ndim < 2 or self.shape[-2] == 1
        z = random.stored(self.key, sample) if is_vector else sample()
        z = apply_mask(z.reshape(self.shape), self.mask, self.base)
        return z if self.factor is None else z * self.factor

    def materialize(self) -> Float[Array, "..."]:
        """base + scale z in float32."""
        if self._is_stacked:
            return jax.vmap(Perturbed.materialize)(self)
        if self._moves_codes:
            return self._moved().materialize()
        return ops.value(self.base) + self.scale * self.noise()

    def __jax_array__(self) -> Array:
        return self.materialize()

    def dot(self, x: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        """x @ (base + scale z)."""
        if self.mask is None and self.factor is None and self.ndim == 2 and not self._moves_codes:
            product = self.direction.dot(x, self.key, self.full_shape, start=self.start, size=self._size)
            if product is not None:
                return ops.dot(x, self.base) + self.scale * product
        return self._apply(lambda w: ops.dot(x, w))

    def einsum(self, spec: str, x: Array) -> Array:
        """The contraction of x with base + scale z."""
        return self._apply(lambda w: ops.einsum(spec, x, w))

    def conv(self, x: Array, **options) -> Array:
        """The convolution of x with base + scale z."""
        return self._apply(lambda w: ops.conv(x, w, **options))

    def _apply(self, product: Callable[[Any], Array]) -> Array:
        if self._moves_codes:
            return product(self._moved())
        if self._is_quantized:
            return product(self.base) + self.scale * product(self._second())
        if self.base.dtype.itemsize < 4:
            # Signs are exact in half precision; a Gaussian keeps 8 bits or more of each element.
            return product(self.base) + self.scale * product(self.noise().astype(self.base.dtype))
        return product(self.materialize())

    def embed(self, ids: Integer[Array, "*batch"]) -> Float[Array, "*batch d"]:
        """Rows of base + scale z; noise is made for these rows alone."""
        start, size = self.start, self._size
        z = self.direction.rows(self.key, self.full_shape, ids, start=start, size=size)
        if self.factor is not None:
            z = z * jnp.take(self.factor, ids, axis=0)
        mask = self.mask
        if mask is not None and mask.dtype == jnp.uint32:
            mask = mask_rows(mask, ids, self.shape)
        if not self._moves_codes:
            rows = ops.embed(self.base, ids)
            return rows + self.scale * apply_mask(z, mask, rows)
        codes = self.base.rows(ids)
        words = random.bits_at(self._rounding_key, self.full_shape, row_coordinates(self.full_shape, ids, start, size))
        return codes.moved(self.scale * apply_mask(z, mask, codes), self._mirrored(words)).materialize()

    @property
    def _is_quantized(self) -> bool:
        return hasattr(self.base, "moved")

    @property
    def _moves_codes(self) -> bool:
        return self._is_quantized and self.probe == "codes"

    @property
    def _rounding_key(self) -> Key[Array, ""]:
        return jax.random.fold_in(self.key, ROUNDING)

    def _mirrored(self, words: Array) -> Array:
        # The two sides of a probe move the codes oppositely.
        return jnp.where(self.scale < 0, ~words, words)

    def _moved(self) -> Any:
        words = random.bits(self._rounding_key, self.full_shape, start=self.start, size=self._size)
        return self.base.moved(self.scale * self.noise(), self._mirrored(words.reshape(self.shape)))

    def _second(self) -> Any:
        """z as a leaf to multiply by beside a quantised base: on its grid where it has one."""
        tile = self.direction.codes(self.key, self.full_shape, start=self.start, size=self._size)
        if tile is None or self.factor is not None:
            return self.noise()
        codes, step, bits = tile
        codes = apply_mask(codes.reshape(self.shape), self.mask, self.base).astype(jnp.int8)
        return self.base.beside(codes, step, bits)


def materialized(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a function of plain arrays take a tree with leaf types: the way in for models that do not use `zojax.ops`.

    Args:
      function: function whose first argument is a tree of arrays.

    Returns:
      The function of a tree of arrays and leaf types; leaf types are materialised.

    Example:
      >>> loss = materialized(lambda p: jnp.sum(p["w"] ** 2))
      >>> tree = PerturbSpec().perturb({"w": jnp.zeros((3,))}, jax.random.key(0), jnp.float32(2))
      >>> float(loss(tree))
      12.0
    """

    @functools.wraps(function)
    def call(params, *args, **kwargs):
        is_leaf = lambda node: hasattr(node, "materialize")  # noqa: E731
        return function(jax.tree.map(ops.value_as_stored, params, is_leaf=is_leaf), *args, **kwargs)

    return call


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerturbSpec:
    """Which direction each leaf takes.

    Attributes:
      direction: the direction of leaves without a rule.
      rules: exceptions, (regular expression searched in the leaf path, direction); the first match counts.
      stacked: regular expressions of leaves whose first axis the model scans over; models export theirs.
      probe: how quantised leaves are probed: "beside" or "codes" (see `Perturbed`).
      masks: for `Sparse` directions by mask: a function from the weights to a tree of masks (booleans, True: moved; or
        what else `zojax.masks.keep_mask` takes), called once when an estimator's state is made; None: by magnitude.

    Example:
      >>> from zojax.directions import Gaussian, LowRank
      >>> spec = PerturbSpec(direction=LowRank(rank=2), rules=(("bias$", Gaussian()),))
      >>> spec.directions({"w": jnp.ones((4, 4)), "bias": jnp.ones((4,))})["bias"]
      Gaussian()
    """

    direction: Direction = Rademacher()
    rules: tuple[tuple[str, Direction], ...] = ()
    stacked: tuple[str, ...] = ()
    probe: Probe = "beside"
    masks: Callable[[Params], Params] | None = None

    def __post_init__(self):
        if self.probe not in ("beside", "codes"):
            raise ValueError(f'probe: {self.probe!r}; "beside" or "codes" is needed')
        for pattern, direction in self.rules:
            if isinstance(direction, Sphere):
                raise ValueError(f"rules: {pattern!r} asks for Sphere, which is a direction of the whole tree")

    def directions(self, params: Params) -> Params:
        """The direction of every leaf, in the structure of params.

        Raises:
          ValueError: if a pattern matches no leaf, or a leaf is not of a float dtype.
        """
        flat, treedef = _flatten(params)
        paths = [path for path, _ in flat]
        for pattern in (*(pattern for pattern, _ in self.rules), *self.stacked):
            if not any(re.search(pattern, path) for path in paths):
                raise ValueError(f"perturb: the pattern {pattern!r} matches no leaf; the leaves are {', '.join(paths)}")
        crcs: dict[int, str] = {}
        for path in paths:
            crc = zlib.crc32(path.encode())
            if crc in crcs:  # also where "/" in a key gives two leaves one path
                raise ValueError(f"perturb: the leaves {path!r} and {crcs[crc]!r} share a crc32, and so their noise")
            crcs[crc] = path
        return treedef.unflatten([self._direction(path, leaf) for path, leaf in flat])

    def _direction(self, path: str, leaf: Any) -> Direction:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"perturb: the leaf {path!r} is of dtype {leaf.dtype}; freeze it or give it a float dtype")
        chosen = next((d for pattern, d in self.rules if re.search(pattern, path)), self.direction)
        return chosen.for_leaf(len(leaf.shape) - self._is_stacked(path))

    def _is_stacked(self, path: str) -> bool:
        return any(re.search(pattern, path) for pattern in self.stacked)

    def prepare(self, params: Params) -> Params:
        """What sparse directions keep: a threshold or a packed mask for each leaf, None for other leaves."""
        directions = self.directions(params)
        if self.masks is not None:
            chosen = self.masks(params)
            leaves, treedef = _flatten(params)
            triples = zip(leaves, treedef.flatten_up_to(directions), treedef.flatten_up_to(chosen), strict=True)
            return treedef.unflatten(
                [
                    keep_mask(w, mask, stacked=self._is_stacked(path)) if isinstance(d, Sparse) else None
                    for (path, w), d, mask in triples
                ]
            )

        def threshold(path: str, direction: Direction, w: Any) -> Array | None:
            if not isinstance(direction, Sparse):
                return None
            magnitude = jnp.abs(ops.value(w))
            if self._is_stacked(path):
                return jnp.quantile(magnitude.reshape(w.shape[0], -1), direction.fraction, axis=1)
            return jnp.quantile(magnitude, direction.fraction)

        flat, treedef = _flatten(params)
        kinds = treedef.flatten_up_to(directions)
        return treedef.unflatten([threshold(path, d, w) for (path, w), d in zip(flat, kinds, strict=True)])

    def perturb(
        self, params: Params, key: Key[Array, ""], scale: Float[Array, ""], masks: Params | None = None
    ) -> Params:
        """The tree of `Perturbed` leaves "weight + scale * z(key)".

        Args:
          params: tree of float arrays or leaf types; None leaves stay None.
          key: the probe's key; each leaf folds in the crc32 of its path.
          scale: float32 scalar.
          masks: what `prepare` returned; None where no direction is sparse.

        Returns:
          Tree of the structure of params.

        Raises:
          ValueError: as `directions`.
        """
        return self._map(functools.partial(self._leaf, key=key, scale=scale), params, masks)

    def noise(self, params: Params, key: Key[Array, ""], masks: Params | None = None) -> Params:
        """The tree of the z of the update, in float32, as lazy as XLA makes it.

        It is the z of the probe, but for directions whose update is another rounding (`Rounded`).

        Args:
          params: tree of float arrays or leaf types, for shapes, paths and sparse masks.
          key: the probe's key.
          masks: what `prepare` returned.

        Returns:
          Tree of float32 arrays.

        Raises:
          ValueError: as `directions`.
        """

        def leaf(path, w, direction, mask):
            return apply_mask(direction.for_update.sample(_leaf_key(key, path), tuple(w.shape)), mask, w)

        return self._map(leaf, params, masks)

    def norm_factor(self, params: Params, key: Key[Array, ""], masks: Params | None = None) -> Float[Array, ""]:
        """sqrt(d) / |n| for the sphere, 1 for every other direction."""
        if not self.direction.unit_norm:
            return jnp.float32(1)
        squares = [jnp.sum(jnp.square(z)) for z in jax.tree.leaves(self.noise(params, key, masks))]
        size = sum(math.prod(leaf.shape) for _, leaf in _flatten(params)[0])
        return jnp.sqrt(jnp.float32(size)) / jnp.sqrt(sum(squares))

    def _map(self, make: Callable[..., Any], params: Params, masks: Params | None) -> Params:
        flat, treedef = _flatten(params)
        directions = treedef.flatten_up_to(self.directions(params))
        if masks is None and any(isinstance(direction, Sparse) for direction in directions):
            raise ValueError("masks: a sparse direction needs what PerturbSpec.prepare returned")
        kept = [None] * len(flat) if masks is None else treedef.flatten_up_to(masks)
        leaves = [make(path, w, d, m) for (path, w), d, m in zip(flat, directions, kept, strict=True)]
        return treedef.unflatten(leaves)

    def _leaf(self, path: str, w: Any, direction: Direction, mask: Array | None, *, key, scale) -> Perturbed:
        key, scale = _leaf_key(key, path), jnp.asarray(scale, jnp.float32)
        start = None
        if self._is_stacked(path):
            length = w.shape[0]
            start = jnp.zeros((length, len(w.shape)), jnp.uint32).at[:, 0].set(jnp.arange(length, dtype=jnp.uint32))
            key, scale = jnp.broadcast_to(key, (length,)), jnp.broadcast_to(scale, (length,))
        return Perturbed(
            base=w,
            key=key,
            scale=scale,
            start=start,
            mask=mask,
            direction=direction,
            full_shape=tuple(w.shape),
            probe=self.probe,
        )


def _leaf_key(key: Key[Array, ""], path: str) -> Key[Array, ""]:
    return jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode())))


def _flatten(params: Params) -> tuple[list[tuple[str, Any]], Any]:
    is_leaf = lambda node: hasattr(node, "materialize")  # noqa: E731
    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_leaf)
    return [(path_string(path), leaf) for path, leaf in flat], treedef
