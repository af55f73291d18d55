"""Quantisation with stochastic rounding on a TPU: the words of a block are made beside it."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int8, UInt32

from zojax import random
from zojax.kernels._platform import cdiv, round_up
from zojax.kernels.stochastic_round.reference import to_codes

__all__ = ["Config"]

PLATFORM = "tpu"
SUBLANES, LANES = 32, 128  # of an int8 tile


@dataclass(frozen=True, kw_only=True)
class Config:
    """Block sizes.

    Attributes:
      block_rows: rows a program; a multiple of 32, the rows of an int8 tile.
      block_columns: columns a program; a multiple of 128.

    Example:
      >>> Config(block_rows=64).block_columns
      512
    """

    block_rows: int = 256
    block_columns: int = 512


def default_config(x, scale, words, start) -> Config:
    """The same blocks for all arguments: they shrink to smaller arrays by themselves."""
    del x, scale, words, start
    return Config()


def supported(x, scale, words, start, *, low: int, high: int, shape: tuple[int, int], config: Config) -> str | None:
    """None, or the reason why this kernel refuses the arguments."""
    del x, scale, words, start, low, high, shape
    if config.block_rows % SUBLANES or config.block_columns % LANES:
        return f"{config}: block_rows must be a multiple of {SUBLANES}, block_columns of {LANES}"
    return None


def _kernel(index_ref, x_ref, scale_ref, out_ref, *, low: int, high: int, shape: tuple[int, int]):
    coordinates = []
    for axis in range(2):
        first = index_ref[2 + axis] + (pl.program_id(axis) * x_ref.shape[axis]).astype(jnp.uint32)
        coordinates.append(lax.broadcasted_iota(jnp.uint32, x_ref.shape, axis) + first)
    words = random.bits_at((index_ref[0], index_ref[1]), shape, coordinates)
    out_ref[...] = to_codes(x_ref[...], scale_ref[...], words, low, high)


@partial(jax.jit, static_argnames=("low", "high", "shape", "config", "interpret"))
def run(
    x: Float[Array, "rows columns"],
    scale: Float[Array, "_ _"],
    words: tuple[UInt32[Array, ""], UInt32[Array, ""]],
    start: UInt32[Array, "2"],
    *,
    low: int,
    high: int,
    shape: tuple[int, int],
    config: Config,
    interpret: bool = False,
) -> Int8[Array, "rows columns"]:
    """`reference.stochastic_round` of a matrix by this kernel; what blocks hold beyond the edge is not kept."""
    blocks = (
        min(config.block_rows, round_up(x.shape[0], SUBLANES)),
        min(config.block_columns, round_up(x.shape[1], LANES)),
    )
    # A scale that is constant along an axis has one block there.
    constant = [n == 1 for n in scale.shape]
    call = pl.pallas_call(
        partial(_kernel, low=low, high=high, shape=shape),
        grid=tuple(map(cdiv, x.shape, blocks)),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec(blocks, lambda i, j: (i, j)),
            pl.BlockSpec(
                tuple(1 if one else block for one, block in zip(constant, blocks, strict=True)),
                lambda i, j: (0 if constant[0] else i, 0 if constant[1] else j),
            ),
        ],
        out_specs=pl.BlockSpec(blocks, lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct(x.shape, jnp.int8),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="stochastic_round",
    )
    # Under vmap one call after the other: the compiler takes no batched scalars.
    return sequential_vmap(call)(jnp.stack([*words, *start]), x, scale)
