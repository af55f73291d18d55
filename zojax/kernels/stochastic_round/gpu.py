"""Quantisation with stochastic rounding on a GPU, through Triton: the words of a block are made in registers.

Not through Mosaic GPU, which lowers no `vmap` of a kernel and masks no edge that a block does not divide.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Int8, UInt32

from zojax import random
from zojax.kernels._platform import cdiv, is_power_of_two
from zojax.kernels.stochastic_round.reference import to_codes

__all__ = ["Config"]

PLATFORM = "cuda"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Block sizes, powers of two.

    Attributes:
      block_rows: rows a program.
      block_columns: columns a program.
      num_warps: warps a program.

    Example:
      >>> Config(block_rows=1).block_columns
      256
    """

    block_rows: int = 4
    block_columns: int = 256
    num_warps: int = 4


def default_config(x, scale, words, start) -> Config:
    """The same blocks for all arguments."""
    del x, scale, words, start
    return Config()


def supported(x, scale, words, start, *, low: int, high: int, shape: tuple[int, int], config: Config) -> str | None:
    """None, or the reason why this kernel refuses the arguments."""
    del x, scale, words, start, low, high, shape
    if not is_power_of_two(config.block_rows) or not is_power_of_two(config.block_columns):
        return f"{config}: blocks must be powers of two"
    return None


def _kernel(index_ref, x_ref, scale_ref, out_ref, *, low, high, shape, config: Config):
    size = (config.block_rows, config.block_columns)
    slices = tuple(pl.ds(pl.program_id(axis) * n, n) for axis, n in enumerate(size))
    # Triton checks no bounds: elements over the edge are neither read nor written.
    inside, coordinates = [], []
    for axis, n in enumerate(size):
        at = lax.broadcasted_iota(jnp.int32, size, axis) + pl.program_id(axis) * n
        inside.append(at < x_ref.shape[axis])
        coordinates.append(at.astype(jnp.uint32) + index_ref[2 + axis])
    mask = inside[0] & inside[1]
    words = random.bits_at((index_ref[0], index_ref[1]), shape, coordinates)
    x = plt.load(x_ref.at[slices], mask=mask, other=0)
    # A scale that is constant along an axis is read once.
    scale_slices = tuple(pl.ds(0, 1) if n == 1 else at for n, at in zip(scale_ref.shape, slices, strict=True))
    scale_size = tuple(1 if n == 1 else block for n, block in zip(scale_ref.shape, size, strict=True))
    scale_mask = jnp.ones(scale_size, bool)
    for axis, n in enumerate(scale_size):
        at = lax.broadcasted_iota(jnp.int32, scale_size, axis) + (pl.program_id(axis) * n if n > 1 else 0)
        scale_mask &= at < scale_ref.shape[axis]
    scale = plt.load(scale_ref.at[scale_slices], mask=scale_mask, other=1)
    plt.store(out_ref.at[slices], to_codes(x, scale, words, low, high), mask=mask)


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
    """`reference.stochastic_round` of a matrix by this kernel."""
    return pl.pallas_call(
        partial(_kernel, low=low, high=high, shape=shape, config=config),
        grid=(cdiv(x.shape[0], config.block_rows), cdiv(x.shape[1], config.block_columns)),
        out_shape=jax.ShapeDtypeStruct(x.shape, jnp.int8),
        compiler_params=plt.CompilerParams(num_warps=config.num_warps),
        interpret=interpret,
        name="stochastic_round",
    )(jnp.stack([*words, *start]), x, scale)
