"""The scaled integer product on a TPU: int8 products on the matrix unit, scales applied before the result is stored."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Num

from zojax.kernels._platform import round_up
from zojax.kernels.quantized_matmul.reference import is_integer

__all__ = ["Config"]

PLATFORM = "tpu"
SUBLANES, LANES = 32, 128  # of an int8 tile
VMEM_BYTES = 16 * 2**20  # what the compiler grants a kernel on v5e without further flags


@dataclass(frozen=True, kw_only=True)
class Config:
    """Block sizes.

    Attributes:
      block_m: rows of x a program; a multiple of 32, the rows of an int8 tile.
      block_n: columns of w a program; a multiple of 128.
      block_k: depth of one step; a multiple of 128.

    Example:
      >>> Config(block_m=128).block_k
      512
    """

    block_m: int = 256
    block_n: int = 256
    block_k: int = 512


def default_config(x, w, x_scale, w_scale) -> Config:
    """The same blocks for all arguments: they shrink to smaller arrays by themselves."""
    del x, w, x_scale, w_scale
    return Config()


def _blocks(m: int, n: int, k: int, groups: int, config: Config) -> tuple[int, int, int, int]:
    """(block_m, block_n, block_k, depth of one product): blocks shrink to the array, products to the group."""
    block_m = min(config.block_m, round_up(m, SUBLANES))
    block_n = min(config.block_n, round_up(n, LANES))
    if groups == 1:
        block_k = min(config.block_k, round_up(k, LANES))
        return block_m, block_n, block_k, block_k
    group = k // groups
    if group <= config.block_k:  # whole groups in a step, as many as fit and divide
        parts = next(parts for parts in range(config.block_k // group, 0, -1) if groups % parts == 0)
        return block_m, block_n, parts * group, group
    block_k = next(size for size in range(config.block_k, 0, -LANES) if group % size == 0)
    return block_m, block_n, block_k, block_k


def supported(x, w, x_scale, w_scale, *, config: Config) -> str | None:
    """None, or the reason why this kernel refuses the arguments of `scaled_product`."""
    groups, n = w_scale.shape
    m, k = x.shape
    if config.block_m % SUBLANES or config.block_n % LANES or config.block_k % LANES:
        return f"{config}: block_m must be a multiple of {SUBLANES}, block_n and block_k of {LANES}"
    if groups > 1 and (k // groups) % LANES:
        return f"w_scale: a group of {k // groups} rows is not a multiple of {LANES}"
    block_m, block_n, block_k, _ = _blocks(m, n, k, groups, config)
    # Two copies of what streams in and out (a scale of a row fills its lanes), one accumulator and one sum.
    scales = 4 * (round_up(groups, 8) * block_n + block_m * LANES)
    needed = 2 * (block_m * block_k + block_k * block_n + scales) + 4 * 4 * block_m * block_n
    if needed > VMEM_BYTES:
        return f"{config}: {needed} bytes of VMEM are needed and {VMEM_BYTES} are there"
    return None


def _kernel(x_ref, w_ref, x_scale_ref, w_scale_ref, out_ref, acc_ref, sum_ref, *, depth: int, steps: int):
    """One step in k: x_ref.shape[1] / depth products; `steps` steps share a group of rows of w.

    acc is the product of the current group so far, sum the scaled groups so far.
    """
    step, parts = pl.program_id(2), x_ref.shape[1] // depth
    operand = jnp.int8 if acc_ref.dtype == jnp.int32 else jnp.bfloat16  # 8-bit floats are bfloat16 numbers

    @pl.when(step == 0)
    def _():
        acc_ref[...] = jnp.zeros_like(acc_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    for part in range(parts):
        rows = slice(part * depth, (part + 1) * depth)
        x, w = x_ref[:, rows].astype(operand), w_ref[rows, :].astype(operand)
        acc_ref[...] += jnp.dot(x, w, preferred_element_type=acc_ref.dtype)

        @pl.when(step % steps == steps - 1)
        def _(group=step // steps * parts + part):
            sum_ref[...] += acc_ref[...].astype(jnp.float32) * w_scale_ref[pl.ds(group, 1), :]
            acc_ref[...] = jnp.zeros_like(acc_ref)

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        out_ref[...] = sum_ref[...] * x_scale_ref[...]


@partial(jax.jit, static_argnames=("config", "interpret"))
def run(
    x: Num[Array, "m k"],
    w: Num[Array, "k n"],
    x_scale: Float[Array, "m 1"],
    w_scale: Float[Array, "groups n"],
    *,
    config: Config,
    interpret: bool = False,
) -> Float[Array, "m n"]:
    """`scaled_product` by this kernel; what the blocks do not divide is padded with zeros, which is a copy."""
    (m, k), (groups, n) = x.shape, w_scale.shape
    block_m, block_n, block_k, depth = _blocks(m, n, k, groups, config)
    to_m, to_n, to_k = (-m % block_m, -n % block_n, -k % block_k)
    x, w = jnp.pad(x, ((0, to_m), (0, to_k))), jnp.pad(w, ((0, to_k), (0, to_n)))
    x_scale, w_scale = jnp.pad(x_scale, ((0, to_m), (0, 0))), jnp.pad(w_scale, ((0, 0), (0, to_n)))
    steps = x.shape[1] // groups // depth
    acc = jnp.int32 if is_integer(x.dtype) else jnp.float32
    out = pl.pallas_call(
        partial(_kernel, depth=depth, steps=steps),
        grid=(x.shape[0] // block_m, w.shape[1] // block_n, x.shape[1] // block_k),
        in_specs=[
            pl.BlockSpec((block_m, block_k), lambda i, j, s: (i, s)),
            pl.BlockSpec((block_k, block_n), lambda i, j, s: (s, j)),
            pl.BlockSpec((block_m, 1), lambda i, j, s: (i, 0)),
            pl.BlockSpec((groups, block_n), lambda i, j, s: (0, j)),
        ],
        out_specs=pl.BlockSpec((block_m, block_n), lambda i, j, s: (i, j)),
        out_shape=jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), jnp.float32),
        scratch_shapes=[pltpu.VMEM((block_m, block_n), acc), pltpu.VMEM((block_m, block_n), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="quantized_matmul",
    )(x, w, x_scale, w_scale)
    return out[:m, :n]
