"""The scaled integer product on a GPU, through Triton.

Mosaic GPU would take 8-bit operands of `wgmma` with k as their last axis only (w lies the other way round) and lowers
no `vmap` of a kernel; Triton does both.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Num

from zojax.kernels._platform import cdiv, is_power_of_two
from zojax.kernels.quantized_matmul.reference import is_integer

__all__ = ["Config"]

PLATFORM = "cuda"
MAX_FLOAT_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Config:
    """Block sizes, all powers of two.

    Attributes:
      block_m: rows of x a program; at least 16.
      block_n: columns of w a program; at least 16.
      block_k: depth of one product; at least 32, and a divisor of the group's rows where w has group scales.
      num_warps: warps a program.
      num_stages: depth of the software pipeline.
      splits: parts into which the depth is cut, each a program's, so that few rows occupy the whole GPU; a divisor of
        the steps, and 1 where w has group scales.
      turned: whether integers of w are first written out as int8 [n, k], the only layout in which tensor cores take
        8-bit operands without a shuffle; it pays for many rows.

    Example:
      >>> Config(block_m=16).block_k
      64
    """

    block_m: int = 64
    block_n: int = 128
    block_k: int = 64
    num_warps: int = 4
    num_stages: int = 3
    splits: int = 1
    turned: bool = False


def default_config(x, w, x_scale, w_scale) -> Config:
    """Blocks for these arguments: no taller than x, and a depth that divides a group; integers of many rows turned."""
    (m, k), groups = x.shape, w_scale.shape[0]
    depth = next(depth for depth in (128, 64, 32) if groups == 1 or not k // groups % depth or depth == 32)
    if m > MAX_FLOAT_ROWS and is_integer(w.dtype):
        warps = 4 if groups == 1 else 8  # sums of a group and of all groups are in registers
        return Config(block_m=128, block_n=128, block_k=depth, num_warps=warps, num_stages=3, turned=True)
    rows = next((rows for rows in (16, 32) if m <= rows), Config.block_m)
    parts = next(parts for parts in (4, 2, 1) if cdiv(k, depth) % parts == 0) if groups == 1 else 1
    return Config(block_m=rows, block_k=depth, splits=parts)


def _lacks_e4m3() -> bool:
    """Whether this machine's GPU is older than Ada (8.9), which was the first to convert float8_e4m3fn."""
    capability = getattr(jax.devices()[0], "compute_capability", None)
    return capability is not None and float(capability) < 8.9


def supported(x, w, x_scale, w_scale, *, config: Config) -> str | None:
    """None, or the reason why this kernel refuses the arguments of `scaled_product`."""
    groups = w_scale.shape[0]
    blocks = (config.block_m, config.block_n, config.block_k)
    if not all(map(is_power_of_two, blocks)) or min(blocks) < 16 or config.block_k < 32:
        return f"{config}: blocks must be powers of two, block_m and block_n at least 16 and block_k at least 32"
    if groups > 1 and (w.shape[0] // groups) % config.block_k:
        return f"w_scale: a group of {w.shape[0] // groups} rows is not a multiple of block_k={config.block_k}"
    if config.splits > 1 and (groups > 1 or cdiv(w.shape[0], config.block_k) % config.splits):
        return f"{config}: splits must divide {cdiv(w.shape[0], config.block_k)} steps, and is 1 beside group scales"
    if x.shape[0] > MAX_FLOAT_ROWS and not is_integer(x.dtype):
        # On an H200, 4096 x 4096 x 4096, it took 2.1 times XLA's time: each block of rows converts w again.
        return f"x: {x.shape[0]} rows of {x.dtype}; XLA is faster beyond {MAX_FLOAT_ROWS}"
    if config.turned and not is_integer(w.dtype):
        return f"{config}: integers alone are turned, not {w.dtype}"
    if jnp.float8_e4m3fn in (x.dtype, w.dtype) and _lacks_e4m3():
        return "x, w: float8_e4m3fn needs a GPU of compute capability 8.9 or more"
    return None


def _kernel(x_ref, w_ref, x_scale_ref, w_scale_ref, out_ref, *, block_k: int, steps: int, turned: bool):
    """One tile of the result: `steps` products of depth block_k a group, then the group's scale.

    A result that is no float32 is a part of the depth, which the caller scales.
    """
    integer = is_integer(x_ref.dtype)
    operand, acc_dtype = (jnp.int8, jnp.int32) if integer else (jnp.bfloat16, jnp.float32)
    tile = out_ref.shape

    def product(group):
        def add_product(step, acc):
            rows = pl.ds((group * steps + step) * block_k, block_k)
            x, w = x_ref[:, rows].astype(operand), w_ref[:, rows].T if turned else w_ref[rows, :].astype(operand)
            return acc + jnp.dot(x, w, preferred_element_type=acc_dtype)

        return lax.fori_loop(0, steps, add_product, jnp.zeros(tile, acc_dtype))

    if x_scale_ref is None:
        out_ref[...] = product(0)
        return

    def add_group(group, total):
        return total + product(group).astype(jnp.float32) * w_scale_ref[pl.ds(group, 1), :]

    total = lax.fori_loop(0, w_scale_ref.shape[0], add_group, jnp.zeros(tile, jnp.float32))
    out_ref[...] = total * x_scale_ref[...]


def _part_kernel(x_ref, w_ref, out_ref, **options):
    _kernel(x_ref, w_ref, None, None, out_ref, **options)


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
    (m, k), (groups, n), parts = x.shape, w_scale.shape, config.splits
    to_m, to_n, to_k = -m % config.block_m, -n % config.block_n, -k % config.block_k
    x, w = jnp.pad(x, ((0, to_m), (0, to_k))), jnp.pad(w, ((0, to_k), (0, to_n)))
    (rows, depth), columns = (x.shape[0], x.shape[1] // parts), w.shape[1]
    if config.turned:
        w = w.astype(jnp.int8).T
    operands = [
        pl.BlockSpec((config.block_m, depth), lambda i, j, part: (i, part)),
        pl.BlockSpec((config.block_n, depth), lambda i, j, part: (j, part))
        if config.turned
        else pl.BlockSpec((depth, config.block_n), lambda i, j, part: (part, j)),
    ]
    scales = [
        pl.BlockSpec((config.block_m, 1), lambda i, j, part: (i, 0)),
        pl.BlockSpec((groups, config.block_n), lambda i, j, part: (0, j)),
    ]
    options = dict(block_k=config.block_k, steps=depth // groups // config.block_k, turned=config.turned)
    call = partial(
        pl.pallas_call,
        grid=(rows // config.block_m, columns // config.block_n, parts),
        compiler_params=plt.CompilerParams(num_warps=config.num_warps, num_stages=config.num_stages),
        interpret=interpret,
        name="quantized_matmul",
    )
    if parts == 1:
        x_scale, w_scale = jnp.pad(x_scale, ((0, to_m), (0, 0))), jnp.pad(w_scale, ((0, 0), (0, to_n)))
        return call(
            partial(_kernel, **options),
            in_specs=[*operands, *scales],
            out_specs=pl.BlockSpec((config.block_m, config.block_n), lambda i, j, part: (i, j)),
            out_shape=jax.ShapeDtypeStruct((rows, columns), jnp.float32),
        )(x, w, x_scale, w_scale)[:m, :n]
    sums = call(
        partial(_part_kernel, **options),
        in_specs=operands,
        out_specs=pl.BlockSpec((None, config.block_m, config.block_n), lambda i, j, part: (part, i, j)),
        out_shape=jax.ShapeDtypeStruct((parts, rows, columns), jnp.int32 if is_integer(x.dtype) else jnp.float32),
    )(x, w)
    total = sums[0]
    for part in range(1, parts):  # in order; of integers exactly
        total += sums[part]
    return total[:m, :n].astype(jnp.float32) * w_scale * x_scale
