"""Random directions of a weight: what a zeroth-order probe adds to it.

A direction z of a leaf is a pure function of (key, index) with zero mean and E[z z^T] = I, so that the two-point
estimate c z is an unbiased gradient up to O(eps^2). Directions are frozen dataclasses, passed by value; they hold no
arrays. `sample` makes any tile; where there is something better than a tile, `dot` multiplies by z directly.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Integer, Key

from zojax import _roundings, random
from zojax._kept import normal_factor
from zojax._threefry import coordinates_of
from zojax.rounding import stochastic

__all__ = ["Direction", "Gaussian", "LowRank", "Rademacher", "Rounded", "Sparse", "Sphere"]

Start = Any
"""First coordinate of a tile in each axis: a uint32 array or a sequence; None is the origin."""


def _start_at(start: Start, axis: int) -> Array:
    return jnp.uint32(0) if start is None else jnp.asarray(start[axis], jnp.uint32)


class Direction(abc.ABC):
    """A distribution over z for a leaf of a given shape.

    Example:
      >>> z = Rademacher().sample(jax.random.key(0), (64, 8))
      >>> bool((z[32:40] == Rademacher().sample(jax.random.key(0), (64, 8), start=(32, 0), size=(8, 8))).all())
      True
    """

    @abc.abstractmethod
    def sample(
        self, key: Key[Array, ""], shape: Sequence[int], *, start: Start = None, size: Sequence[int] | None = None
    ) -> Float[Array, "..."]:
        """The tile of z at `start` of shape `size`, for a leaf of full shape `shape`."""

    @abc.abstractmethod
    def rows(
        self,
        key: Key[Array, ""],
        shape: Sequence[int],
        ids: Integer[Array, "*batch"],
        *,
        start: Start = None,
        size: Sequence[int] | None = None,
    ) -> Float[Array, "*batch d"]:
        """Rows `ids` of the two-axis tile at `start` of shape `size` in z's last two axes."""

    def dot(
        self,
        x: Float[Array, "*batch m"],
        key: Key[Array, ""],
        shape: Sequence[int],
        *,
        start: Start,
        size: Sequence[int],
    ) -> Float[Array, "*batch n"] | None:
        """x @ z for a two-axis tile without making z, or None where there is no such way."""
        del x, key, shape, start, size
        return None

    def codes(
        self, key: Key[Array, ""], shape: Sequence[int], *, start: Start = None, size: Sequence[int] | None = None
    ) -> tuple[Int8[Array, "..."], float, int] | None:
        """The tile of z as (small integers, what one is worth, their bits), or None where z lies on no grid."""
        del key, shape, start, size
        return None

    @property
    def for_update(self) -> "Direction":
        """The direction along which the weights move after a probe along this one: itself, unless they differ."""
        return self

    def for_leaf(self, ndim: int) -> "Direction":
        """The direction to use for a leaf of `ndim` axes: itself, unless it is meant for matrices alone."""
        del ndim
        return self

    @property
    def unit_norm(self) -> bool:
        """Whether the whole tree's z is scaled to the norm sqrt(number of weights), one factor a step."""
        return False


def _refuse_sphere(field: str, direction: Direction) -> None:
    if direction.unit_norm:
        raise ValueError(f"{field}: Sphere is a direction of the whole tree; use Gaussian here")


def row_coordinates(shape: Sequence[int], ids: Array, start: Start, size: Sequence[int] | None) -> tuple[Array, ...]:
    """Coordinates in a leaf of rows `ids` of a two-axis tile, to address noise by."""
    lead = [_start_at(start, axis) for axis in range(len(shape) - 2)]
    column = _start_at(start, -1) + jnp.arange((size or shape)[-1], dtype=jnp.uint32)
    return (*lead, ids.astype(jnp.uint32)[..., None] + _start_at(start, -2), column)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian(Direction):
    """z ~ N(0, 1), equal to `jax.random.normal(key, shape)`.

    Example:
      >>> Gaussian().sample(jax.random.key(0), (2, 3)).shape
      (2, 3)
    """

    def sample(self, key, shape, *, start=None, size=None):
        return random.normal(key, shape, start=start, size=size)

    def rows(self, key, shape, ids, *, start=None, size=None):
        return random.normal_at(key, shape, row_coordinates(shape, ids, start, size))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rademacher(Direction):
    """z = +1 or -1 with equal probability, 32 signs from one 32-bit word (`zojax.random.signs`).

    The estimate c z has a smaller second moment than with Gaussian z (d against d + 2 on a quadratic), and the signs
    cost next to nothing.

    Example:
      >>> set(Rademacher().sample(jax.random.key(0), (8, 8)).flatten().tolist()) == {1.0, -1.0}
      True
    """

    def sample(self, key, shape, *, start=None, size=None):
        return random.signs(key, shape, start=start, size=size)

    def rows(self, key, shape, ids, *, start=None, size=None):
        return random.signs_at(key, shape, row_coordinates(shape, ids, start, size))

    def codes(self, key, shape, *, start=None, size=None):
        return self.sample(key, shape, start=start, size=size).astype(jnp.int8), 1.0, 2


BOUNDS = {8: 5.5, 7: 5.5, 6: 5.5, 5: 5.5, 4: 4.0, 3: 3.0, 2: 2.0}
"""Magnitude of the outermost level of `Rounded` by bits. 5.5 clips no float32 normal; the smaller ones trade a bias,
which `Rounded.product_moment` gives, for less variance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounded(Direction):
    """A standard normal u, rounded stochastically to `bits` bits: the directions of QuZO.

        u_i = D clip(floor(u / D + r_i), -n, n),    n = 2^(bits - 1) - 1,    D = bound / n

    r_i is uniform in [0, 1). The probe moves along u_1 and the update along u_2: two roundings of the same u, with
    independent r (Q-RGE2), so that E[u_2 u_1^T] = I where nothing clips. With `independent=False` both are u_1
    (Q-RGE1), and on the diagonal E[u_1 u_1] = 1 + D^2 E[f (1 - f)], f the fraction of u / D: a bias of

        D^2 / 6 - (D / pi)^2 sum_(k >= 1) exp(-2 (pi k / D)^2) / k^2,

    of which D^2 / 6 is all but 0.5 % up to D = 2, and all but 7 % at D = 3.

    D is a constant of the bits, and not a multiple of the leaf's largest draw as in the paper, so that a tile needs no
    pass over the leaf. Up to 4 bits the codes are drawn from the joint distribution of (u_1, u_2), with probabilities
    that are multiples of 2^-16, and u itself is never made (ours; five times as fast).

    Attributes:
      bits: 2 to 8; for one bit, use `Rademacher`, which needs no rounding.
      bound: magnitude of the outermost level; None: `BOUNDS` of the bits.
      independent: whether the update has a rounding of its own.
      number: which rounding this is: 1 the probe's, 2 the update's.

    Raises:
      ValueError: if bits or bound are out of range.

    Example:
      >>> z, step, _ = Rounded(bits=3).codes(jax.random.key(0), (64, 8))
      >>> sorted(set(z.flatten().tolist())), step
      ([-3, -2, -1, 0, 1, 2, 3], 1.0)

    References:
      QuZO, arXiv 2502.12346.
    """

    bits: int = 4
    bound: float | None = None
    independent: bool = True
    number: int = 1

    def __post_init__(self):
        if self.bits not in BOUNDS:
            raise ValueError(f"bits: {self.bits}; a number of bits from 2 to 8 is needed (for 1, use Rademacher)")
        if self.bound is not None and not 0 < self.bound < math.inf:
            raise ValueError(f"bound: {self.bound}; a positive number is needed")

    @property
    def levels(self) -> int:
        """n, the greatest code."""
        return 2 ** (self.bits - 1) - 1

    @property
    def step(self) -> float:
        """D, what a code is worth."""
        return (BOUNDS[self.bits] if self.bound is None else self.bound) / self.levels

    @property
    def product_moment(self) -> float:
        """E[u_1 u_2] of independent roundings: E[clip(u)^2], which is 1 where nothing clips.

        Up to 4 bits it is that of the drawn distribution, the same to some 2^-16.

        Example:
          >>> round(Rounded(bits=4).product_moment, 3), round(Rounded(bits=2).product_moment, 3)
          (1.0, 0.921)
        """
        if self._by_table:
            return self.step**2 * self._table.product_moment
        r = self.step * self.levels
        tail = math.erfc(r / math.sqrt(2))
        density = math.exp(-r * r / 2) / math.sqrt(2 * math.pi)
        return 1 - tail - 2 * r * density + r * r * tail

    @property
    def for_update(self):
        return dataclasses.replace(self, number=2) if self.independent else self

    def codes(self, key, shape, *, start=None, size=None):
        if self._by_table and self.number == 1:  # half a draw an element
            codes = self._table.first(random.halves(key, shape, word=0, start=start, size=size))
        else:
            codes = self._codes_at(key, shape, coordinates_of(shape, start, size))
        return codes, self.step, self.bits

    def sample(self, key, shape, *, start=None, size=None):
        codes, step, _ = self.codes(key, shape, start=start, size=size)
        return codes.astype(jnp.float32) * step

    def rows(self, key, shape, ids, *, start=None, size=None):
        return self._codes_at(key, shape, row_coordinates(shape, ids, start, size)).astype(jnp.float32) * self.step

    @property
    def _by_table(self) -> bool:
        # 2^bits - 2 comparisons an element: at 5 bits they begin to cost what the normal does.
        return self.bits <= 4

    @property
    def _table(self) -> _roundings.Tables:
        return _roundings.tables(self.levels, self.step)

    def _codes_at(self, key: Array, shape: Sequence[int], at: Sequence[Array]) -> Int8[Array, "..."]:
        """All that this needs fuses into what consumes it: nothing is kept in memory."""
        if self._by_table:
            first, second = (random.halves_at(key, shape, at, word=word) for word in (0, 1))  # of one draw
            return self._table.first(first) if self.number == 1 else self._table.second(first, second)
        level = random.normal_at(key, shape, at) / self.step
        words = random.bits_at(jax.random.fold_in(key, self.number), shape, at)
        return jnp.clip(stochastic(level, words), -self.levels, self.levels).astype(jnp.int8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sphere(Gaussian):
    """z uniform on the sphere of radius sqrt(d), d the number of weights of the whole tree.

    z = sqrt(d) n / |n| with n ~ N(0, I). The factor sqrt(d) / |n| is one scalar of the step; it stands in the log.
    As the direction of a rule for some leaves it is an error: the sphere is that of the whole tree.

    Example:
      >>> Sphere().unit_norm
      True
    """

    @property
    def unit_norm(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank(Direction):
    """z = A B^T / sqrt(r) over the last two axes, A and B standard normal with r columns.

    x z = (x A) B^T / sqrt(r), so a product with a perturbed matrix costs r (m + n) more multiplications a row instead
    of m n draws. Leading axes index independent matrices. Leaves of fewer than two axes use `vector`.

    Attributes:
      rank: r, at least 1.
      vector: the direction of leaves that are no matrices.

    Example:
      >>> z = LowRank(rank=1).sample(jax.random.key(0), (6, 5))
      >>> int(jnp.linalg.matrix_rank(z))
      1

    References:
      EGGROLL, arXiv 2511.16652; LOZO, arXiv 2410.07698.
    """

    rank: int = 1
    vector: Direction = Gaussian()

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank: {self.rank}; a low-rank direction needs at least 1")
        _refuse_sphere("vector", self.vector)

    def for_leaf(self, ndim):
        return self if ndim >= 2 else self.vector.for_leaf(ndim)

    def factors(
        self, key: Key[Array, ""], shape: Sequence[int], *, start: Start = None, size: Sequence[int] | None = None
    ) -> tuple[Float[Array, "*lead m r"], Float[Array, "*lead n r"]]:
        """The tiles of A and B that make a tile of z = A B^T / sqrt(r)."""
        size = tuple(shape) if size is None else tuple(size)
        lead = tuple(_start_at(start, axis) for axis in range(len(shape) - 2))

        def factor(number: int, axis: int) -> Array:
            full = (*shape[:-2], shape[axis], self.rank)
            at = jnp.stack([*lead, _start_at(start, axis), jnp.uint32(0)])
            tile = (*size[:-2], size[axis], self.rank)
            return normal_factor(jax.random.fold_in(key, number), full, start=at, size=tile)

        return factor(0, -2), factor(1, -1)

    def sample(self, key, shape, *, start=None, size=None):
        A, B = self.factors(key, shape, start=start, size=size)
        return self._product(A, B[..., None, :, :])

    def rows(self, key, shape, ids, *, start=None, size=None):
        size = (1,) * (len(shape) - 2) + tuple((size or shape)[-2:])
        A, B = self.factors(key, shape, start=start, size=size)
        A, B = A.reshape(A.shape[-2:]), B.reshape(B.shape[-2:])
        return self._product(jnp.take(A, ids, axis=0), B)

    def _product(self, A: Array, B: Array) -> Array:
        # Written out: a matrix product of rank 1 to 8 would not fuse into the update that consumes it.
        terms = [A[..., i, None] * B[..., i] for i in range(self.rank)]
        return functools.reduce(jnp.add, terms) / math.sqrt(self.rank)

    def dot(self, x, key, shape, *, start, size):
        A, B = self.factors(key, shape, start=start, size=size)
        A, B = A.reshape(A.shape[-2:]), B.reshape(B.shape[-2:])
        return self._product(jnp.dot(x, A), B)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sparse(Direction):
    """`inner` where a mask holds and 0 elsewhere.

    By magnitude (the default): the mask holds for the `fraction` of a leaf's weights that are smallest in magnitude,
    with the threshold taken once, when the estimator's state is made, and the mask recomputed from the weights at every
    use, so that nothing but one number a leaf is stored. By mask: a tree of booleans given to `PerturbSpec.masks` is
    kept bit-packed, one bit a weight.

    Attributes:
      inner: the direction of the weights that are moved.
      fraction: share of a leaf's weights under the threshold, in (0, 1]; not used with a mask.

    Example:
      >>> Sparse(fraction=0.25).inner
      Rademacher()

    References:
      Sparse-MeZO, arXiv 2402.15751 (perturbs the small weights; the fraction is the user's).
    """

    inner: Direction = Rademacher()
    fraction: float = 0.25

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction: {self.fraction}; a share of the weights in (0, 1] is needed")
        _refuse_sphere("inner", self.inner)

    def for_leaf(self, ndim):
        inner = self.inner.for_leaf(ndim)
        return self if inner is self.inner else dataclasses.replace(self, inner=inner)

    @property
    def for_update(self):
        return dataclasses.replace(self, inner=self.inner.for_update)

    def codes(self, key, shape, *, start=None, size=None):
        return self.inner.codes(key, shape, start=start, size=size)

    def sample(self, key, shape, *, start=None, size=None):
        return self.inner.sample(key, shape, start=start, size=size)

    def rows(self, key, shape, ids, *, start=None, size=None):
        return self.inner.rows(key, shape, ids, start=start, size=size)
