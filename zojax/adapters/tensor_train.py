"""Matrices as tensor trains: a chain of small cores, a few hundred weights for a matrix of a hundred thousand.

A `TensorTrain` is a container of cores, not a leaf type: each core is a leaf of the parameter tree of its own, so that
a probe, an optimiser and a pattern of `zojax.trees.split` see cores, as they see biases.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from zojax import ops, random

__all__ = ["TensorTrain", "factorise", "init_tensor_train", "tensor_train_dot", "train_shape"]

# Sums of a few dozen products: they cost next to nothing, and a probe of eps = 1e-3 does not survive TF32 or bfloat16.
EXACT = jax.lax.Precision.HIGHEST

BITS = 3
"""A core stands for about 2^3 rows or columns (ours; it gives the published shapes)."""


class TensorTrain(NamedTuple):
    """A matrix [m, n] as a chain of cores.

        W[(i_1 .. i_p), (j_1 .. j_q)] = G_1[:, i_1, :] .. G_p[:, i_p, :] H_1[:, j_1, :] .. H_q[:, j_q, :]

    The border between rows and columns is the border between the two fields. The first of the indices that make a row
    or a column is the most significant.

    Attributes:
      inputs: cores G_k [r_{k-1}, m_k, r_k] with m = m_1 .. m_p and r_0 = 1; arrays or leaf types such as `Perturbed`.
      outputs: cores H_k likewise, with n = n_1 .. n_q, from the rank of the last G to 1.
    """

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


@functools.cache
def factorise(width: int, count: int) -> tuple[int, ...]:
    """Divides a width into factors, as even as they come.

    Of all products of at most `count` factors, none of them 1, the one of the least sum; of those the one with the
    smallest factor largest. A width with fewer prime factors than `count` has that many: a prime stays whole.

    Args:
      width: positive.
      count: the most factors.

    Returns:
      Factors, increasing; (1,) for a width of 1.

    Raises:
      ValueError: if either is below 1.

    Example:
      >>> factorise(1024, 3), factorise(384, 3), factorise(14, 3)
      ((8, 8, 16), (6, 8, 8), (2, 7))
    """
    for name, value in (("width", width), ("count", count)):
        if value < 1:
            raise ValueError(f"{name}: {value}; at least 1 is needed")
    if count == 1 or width == 1:
        return (width,)
    small = [n for n in range(1, math.isqrt(width) + 1) if width % n == 0]
    divisors = {*small, *(width // n for n in small)} - {1}
    found = [tuple(sorted((n, *factorise(width // n, count - 1)))) for n in divisors if n < width]
    return min([(width,), *found], key=lambda parts: (sum(parts), [-n for n in parts]))


def train_shape(d_in: int, d_out: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How a tensor train cuts the rows and the columns of a matrix.

    K = log2(d_in d_out) / 3, rounded, cores: half of them for either side, and the odd one for the wider. Each side is
    cut as evenly as it can be (`factorise`), so that a factor ends where rows and columns meet. The smallest factors
    are at the end of the wider side. The rule is ours; it gives the shapes of AdaZeta's runs, which are a table there.

    Args:
      d_in: rows.
      d_out: columns.

    Returns:
      (factors of d_in, factors of d_out).

    Raises:
      ValueError: if a width is below 1.

    Example:
      >>> train_shape(1024, 64), train_shape(64, 4096)
      (((8, 8, 16), (8, 8)), ((4, 4, 4), (16, 16, 16)))

    References:
      AdaZeta, arXiv 2406.18060.
    """
    if d_in < d_out:
        outputs, inputs = train_shape(d_out, d_in)
        return inputs[::-1], outputs[::-1]
    if d_out < 1:
        raise ValueError(f"d_out: {d_out}; at least 1 is needed")
    cores = max(round(math.log2(d_in * d_out) / BITS), 2)
    return factorise(d_in, cores - cores // 2), factorise(d_out, cores // 2)


def init_tensor_train(
    key: Key[Array, ""], d_in: int, d_out: int, *, rank: int, lead: tuple[int, ...] = (), zero: bool = False
) -> TensorTrain:
    """A random tensor train.

        G_k ~ N(0, sigma^(2/K) / r_k),  sigma^2 = 1 / (d_in + d_out),  r_K = 1

    An element of the matrix has variance sigma^2.

    Args:
      key: typed key; core k of the chain folds in k.
      d_in: rows.
      d_out: columns.
      rank: r of every border inside the chain.
      lead: leading axes of every core: trains that a model scans over.
      zero: whether the last core is 0, and so the matrix.

    Returns:
      float32 cores.

    Raises:
      ValueError: if the rank or a width is below 1.

    Example:
      >>> train = init_tensor_train(jax.random.key(0), 6, 4, rank=5)
      >>> [core.shape for core in (*train.inputs, *train.outputs)]
      [(1, 6, 5), (5, 4, 1)]

    References:
      The initialisation that AdaZeta's authors released (arXiv 2406.18060); `zero` is ours.
    """
    if rank < 1:
        raise ValueError(f"rank: {rank}; at least 1 is needed")
    inputs, outputs = train_shape(d_in, d_out)
    sizes = (*inputs, *outputs)
    ranks = (1, *(rank,) * (len(sizes) - 1), 1)
    spread = (d_in + d_out) ** (-0.5 / len(sizes))
    cores = []
    for number, (before, size, after) in enumerate(zip(ranks, sizes, ranks[1:], strict=False)):
        shape = (*lead, before, size, after)
        draw = random.normal(jax.random.fold_in(key, number), shape) * (spread / math.sqrt(after))
        cores.append(jnp.zeros(shape) if zero and number == len(sizes) - 1 else draw)
    return TensorTrain(tuple(cores[: len(inputs)]), tuple(cores[len(inputs) :]))


def _contract(cores: tuple[Any, ...]) -> Float[Array, "r width s"]:
    """The product of neighbouring cores: their indices become one, the first the most significant."""
    whole, *rest = (ops.value(core) for core in cores)
    for core in rest:
        joined = jnp.einsum("aib,bjc->aijc", whole, core, precision=EXACT)
        whole = joined.reshape(whole.shape[0], -1, core.shape[-1])
    return whole


def tensor_train_dot(x: Float[Array, "*batch m"], train: TensorTrain) -> Float[Array, "*batch n"]:
    """x W for a matrix W given as a tensor train, without W.

    y = (x A) B,  A [m, r] the product of the input cores and B [r, n] that of the output cores. Everything is float32.

    Args:
      x: activations [..., m].
      train: the cores, without leading axes (`jax.vmap` over them, or a scan); arrays or leaf types.

    Returns:
      [..., n], at least float32.

    Raises:
      ValueError: if the train has other rows than x has columns.

    Example:
      >>> cores = TensorTrain((jnp.ones((1, 2, 3)), jnp.ones((3, 2, 5))), (jnp.ones((5, 6, 1)),))
      >>> tensor_train_dot(jnp.ones((1, 4)), cores).tolist()
      [[60.0, 60.0, 60.0, 60.0, 60.0, 60.0]]

    References:
      AdaZeta, arXiv 2406.18060 (its parallel contraction).
    """
    rows = math.prod(core.shape[1] for core in train.inputs)
    if rows != x.shape[-1]:
        sizes = ", ".join(str(core.shape[1]) for core in train.inputs)
        raise ValueError(f"train: its input cores make {rows} rows ({sizes}); x has {x.shape[-1]} columns")
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    narrow = jnp.matmul(x, _contract(train.inputs)[0], precision=EXACT)
    return jnp.matmul(narrow, _contract(train.outputs)[..., 0], precision=EXACT)
