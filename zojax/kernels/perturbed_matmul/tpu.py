"""The perturbed product on a TPU: noise is made in vector memory beside the tile of weights that it perturbs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Num

from zojax.kernels._platform import cdiv, round_up
from zojax.kernels.perturbed_matmul.reference import Direction, operand_dtype, product, splits
from zojax.kernels.perturbed_matmul.tile import noise

__all__ = ["Config"]

PLATFORM = "tpu"
SUBLANES, LANES = 16, 128  # of a bfloat16 tile; a float32 tile has 8 rows
VMEM_BYTES = 16 * 2**20  # what the compiler grants a kernel on v5e without further flags


@dataclass(frozen=True, kw_only=True)
class Config:
    """Block sizes.

    Attributes:
      block_m: rows of each side of x a program; a multiple of 16. Noise is made once for every block of rows.
      block_n: columns of w a program; a multiple of 128.
      block_k: depth of one step; a multiple of 128.

    Example:
      >>> Config(block_m=128).block_k
      512
    """

    block_m: int = 256
    block_n: int = 256
    block_k: int = 512


def default_config(x, w, words, scale, w_scale, start) -> Config:
    """The same for all: a block shrinks to the array."""
    del x, w, words, scale, w_scale, start
    return Config()


def _blocks(x, w, config: Config) -> tuple[int, int, int]:
    return (
        min(config.block_m, round_up(x.shape[1], SUBLANES)),
        min(config.block_n, round_up(w.shape[1], LANES)),
        min(config.block_k, round_up(w.shape[0], LANES)),
    )


def supported(x, w, words, scale, w_scale, start, *, direction: Direction, full_shape, config: Config) -> str | None:
    """None, or the reason why this kernel refuses the arguments of `reference.perturbed_matmul`."""
    del words, scale, w_scale, start, direction, full_shape
    if config.block_m % SUBLANES or config.block_n % LANES or config.block_k % LANES:
        return f"{config}: block_m must be a multiple of {SUBLANES}, block_n and block_k of {LANES}"
    block_m, block_n, block_k = _blocks(x, w, config)
    sides, operand = x.shape[0], operand_dtype(w.dtype).dtype.itemsize
    # Two copies of what streams in and out; noise, weights, operands and products of one step as float32. With these
    # counts what passes does compile for v5e, and little that is refused would.
    streams = 2 * (sides * block_m * (block_k * operand + block_n * 4) + block_k * block_n * w.dtype.itemsize)
    needed = streams + 5 * 4 * block_k * block_n + 4 * sides * block_m * block_n
    if needed > VMEM_BYTES:
        return f"{config}: {needed} bytes of VMEM are needed and {VMEM_BYTES} are there"
    return None


def _kernel(index_ref, scale_ref, x_ref, w_ref, *rest, direction, full_shape, depth, has_start):
    """One step in k of one tile of both sides."""
    *w_scale_ref, out_ref = rest
    (block_k, block_n), operand = w_ref.shape, operand_dtype(w_ref.dtype)
    row, column = pl.program_id(2) * block_k, pl.program_id(1) * block_n

    @pl.when(pl.program_id(2) == 0)
    def _():
        out_ref[...] = jnp.zeros_like(out_ref)

    words = index_ref[0, 0], index_ref[0, 1]
    start = [index_ref[0, 2 + axis] for axis in range(len(full_shape))] if has_start else None
    z = noise(direction, words, full_shape, start, row, column, (block_k, block_n))
    # int4 becomes a float by way of int32; bfloat16 is compared and selected as float32
    w = w_ref[...] if jnp.issubdtype(w_ref.dtype, jnp.floating) else w_ref[...].astype(jnp.int32)
    w = w.astype(jnp.float32)
    ragged = depth % block_k != 0  # beyond the array's end memory holds anything, NaN included
    if ragged:
        w = jnp.where(lax.broadcasted_iota(jnp.int32, w.shape, 0) < depth - row, w, 0)
    w_scale = w_scale_ref[0][...] if w_scale_ref else None
    scale = scale_ref[0, 0]
    for side in range(x_ref.shape[0]):
        x = x_ref[side].astype(jnp.float32)
        if ragged:
            x = jnp.where(lax.broadcasted_iota(jnp.int32, x.shape, 1) < depth - row, x, 0)
        out_ref[side] += product(x.astype(operand), w.astype(operand), z, scale if side == 0 else -scale, w_scale)


def run(
    x: Float[Array, "sides m k"],
    w: Num[Array, "k n"],
    words,
    scale: Float[Array, ""],
    w_scale: Float[Array, "one n"] | None,
    start,
    *,
    direction: Direction,
    full_shape: Sequence[int],
    config: Config,
    interpret: bool = False,
) -> Float[Array, "sides m n"]:
    """`reference.perturbed_matmul` by this kernel."""
    (sides, m, k), n = x.shape, w.shape[1]
    block_m, block_n, block_k = _blocks(x, w, config)
    x = x.astype(operand_dtype(w.dtype)) if splits(w.dtype) else x
    index = jnp.stack(words) if start is None else jnp.concatenate([jnp.stack(words), start])
    # Rows and not vectors: under vmap a block of scalars must span the last two axes of its array.
    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    specs = [
        smem,
        smem,
        pl.BlockSpec((sides, block_m, block_k), lambda i, j, s: (0, i, s)),
        pl.BlockSpec((block_k, block_n), lambda i, j, s: (s, j)),
    ]
    operands = [index[None], scale.reshape(1, 1), x, w]
    if w_scale is not None:
        specs.append(pl.BlockSpec((1, block_n), lambda i, j, s: (0, j)))
        operands.append(w_scale)
    kernel = partial(_kernel, direction=direction, full_shape=full_shape, depth=k, has_start=start is not None)
    return pl.pallas_call(
        kernel,
        grid=(cdiv(m, block_m), cdiv(n, block_n), cdiv(k, block_k)),
        in_specs=specs,
        out_specs=pl.BlockSpec((sides, block_m, block_n), lambda i, j, s: (0, i, j)),
        out_shape=jax.ShapeDtypeStruct((sides, m, n), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="perturbed_matmul",
    )(*operands)
