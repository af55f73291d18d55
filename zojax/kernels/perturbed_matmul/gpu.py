"""The perturbed product on a GPU, through Triton: noise is made in registers beside the tile that it perturbs.

Not through Mosaic GPU: its products are those of the tensor cores, which have no float32, and its register layouts do
not spread one word of signs over 32 rows. Triton does both.

Signs are bit for bit those of `zojax.random`. Normals are within 4 units in the last place of a CPU's: the PTX that
jaxlib 0.10.2 compiles for an H100 rounds every product of erf_inv (a fused 1 - u u would differ by 65 units in the
tail), and its arithmetic, repeated in numpy over 3 million words, differs by 4 at most. On an H200 they are within 1e-6
of XLA's own.
"""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Num

from zojax.kernels._platform import cdiv, is_power_of_two
from zojax.kernels.perturbed_matmul.reference import Direction, operand_dtype, product, splits
from zojax.kernels.perturbed_matmul.tile import noise

__all__ = ["Config"]

PLATFORM = "cuda"
MAX_ROWS = 128
"""Of both sides together; see `supported`."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Block sizes, all powers of two.

    Attributes:
      block_m: rows of x a program, of both sides together (of each side for float32 weights); at least 16.
      block_n: columns of w a program; at least 16.
      block_k: depth of one product; at least 32, the rows of a word of signs.
      num_warps: warps a program.
      num_stages: depth of the software pipeline.
      splits: parts into which the depth is cut, each a program's, so that few rows occupy the whole GPU; the parts are
        added in order. 1 for float32 weights.

    Example:
      >>> Config(block_m=16).block_k
      32
    """

    block_m: int = 64
    block_n: int = 64
    block_k: int = 32
    num_warps: int = 4
    num_stages: int = 2
    splits: int = 1


def default_config(x, w, words, scale, w_scale, start) -> Config:
    """Fewer rows where x has few; then also a depth in parts, for weights that are split anyway."""
    del words, scale, w_scale, start
    sides, m, k = x.shape
    if not splits(w.dtype):
        return Config(block_m=min(Config.block_m, max(16, 1 << (m - 1).bit_length())))
    rows = max(16, 1 << (sides * m - 1).bit_length())
    parts = next(parts for parts in (8, 4, 2, 1) if cdiv(k, 64) % parts == 0)
    # Eight warps for many normals a thread, or many rows.
    return Config(
        block_m=min(rows, 128), block_n=64, block_k=64, num_warps=4 if rows <= 32 else 8, num_stages=4, splits=parts
    )


def supported(x, w, words, scale, w_scale, start, *, direction: Direction, full_shape, config: Config) -> str | None:
    """None, or the reason why this kernel refuses the arguments of `reference.perturbed_matmul`."""
    del words, scale, w_scale, start, direction, full_shape
    blocks = (config.block_m, config.block_n, config.block_k)
    if not all(map(is_power_of_two, blocks)) or min(blocks) < 16 or config.block_k < 32:
        return f"{config}: blocks must be powers of two, block_m and block_n at least 16 and block_k at least 32"
    if w.dtype == jnp.int4:
        return "w: Triton loads no int4"
    if x.shape[0] * x.shape[1] > MAX_ROWS:
        # Every block of rows makes the noise again. On an H200, with 4096 x 4096 weights of bfloat16, 32 rows took 0.3
        # (signs) and 0.9 (normal) of XLA's time, 8,192 rows 1.4 and 7.6 times it.
        return f"x: {x.shape[0] * x.shape[1]} rows; XLA, which stores the noise, is faster beyond {MAX_ROWS}"
    if config.splits > 1 and (not splits(w.dtype) or cdiv(w.shape[0], config.block_k) % config.splits):
        return f"{config}: splits must divide the {cdiv(w.shape[0], config.block_k)} steps, and is 1 for float32"
    if max(x.size, w.size, x.shape[0] * x.shape[1] * w.shape[1]) >= 2**31:
        return f"x, w: shapes {x.shape} and {w.shape}; Triton counts the elements of an operand or a result in 31 bits"
    return None


def _window(ref, lead: tuple, first: tuple, size: tuple[int, int]):
    """(window, mask) of the tile at `first` of the matrix ref[lead]; the mask is None where tiles divide the matrix."""
    shape = ref.shape[-2:]
    axes = [axis for axis in (0, 1) if shape[axis] % size[axis]]
    inside = [first[axis] + lax.broadcasted_iota(jnp.int32, size, axis) < shape[axis] for axis in axes]
    window = ref.at[(*map(jnp.int32, lead), pl.ds(first[0], size[0]), pl.ds(first[1], size[1]))]
    return window, functools.reduce(operator.and_, inside) if inside else None


def _load(ref, lead: tuple, first: tuple, size: tuple[int, int]) -> Array:
    window, mask = _window(ref, lead, first, size)
    return plt.load(window) if mask is None else plt.load(window, mask=mask, other=0)


def _whole_kernel(index_ref, scale_ref, x_ref, w_ref, *rest, direction, full_shape, block, has_start):
    """One tile of both sides, of float32 weights."""
    *w_scale_ref, out_ref = rest
    sides, (block_m, block_n, block_k) = x_ref.shape[0], block
    row, column = pl.program_id(0) * block_m, pl.program_id(1) * block_n
    words = index_ref[0], index_ref[1]
    start = [index_ref[2 + axis] for axis in range(len(full_shape))] if has_start else None
    scale = scale_ref[0]
    w_scale = _load(w_scale_ref[0], (), (0, column), (1, block_n)) if w_scale_ref else None

    def step(number, totals):
        at = number * block_k
        z = noise(direction, words, full_shape, start, at, column, (block_k, block_n))
        w = _load(w_ref, (), (at, column), (block_k, block_n))
        x = [_load(x_ref, (side,), (row, at), (block_m, block_k)) for side in range(sides)]
        parts = [product(x[side], w, z, scale if side == 0 else -scale, w_scale) for side in range(sides)]
        return tuple(total + part for total, part in zip(totals, parts, strict=True))

    zero = jnp.zeros((block_m, block_n), jnp.float32)
    totals = lax.fori_loop(0, cdiv(w_ref.shape[0], block_k), step, (zero,) * sides)
    for side, total in enumerate(totals):
        window, mask = _window(out_ref, (side,), (row, column), (block_m, block_n))
        plt.store(window, total, mask=mask)


def _split_kernel(index_ref, scale_ref, x_ref, w_ref, *rest, direction, full_shape, block, has_start, sides, parts):
    """One tile of x W + s (x Z) over a part of the depth; rows of the second side have -s."""
    *w_scale_ref, out_ref = rest
    (rows, k), (block_m, block_n, block_k) = x_ref.shape, block
    row, column, part = pl.program_id(0) * block_m, pl.program_id(1) * block_n, pl.program_id(2)
    words = index_ref[0], index_ref[1]
    start = [index_ref[2 + axis] for axis in range(len(full_shape))] if has_start else None
    steps = cdiv(k, block_k) // parts

    def step(number, totals):
        depth = (part * steps + number) * block_k
        z = noise(direction, words, full_shape, start, depth, column, (block_k, block_n))
        x = _load(x_ref, (), (row, depth), (block_m, block_k))
        w = _load(w_ref, (), (depth, column), (block_k, block_n)).astype(x.dtype)
        dot = functools.partial(jnp.dot, x, preferred_element_type=jnp.float32)
        return totals[0] + dot(w), totals[1] + dot(z.astype(x.dtype))

    zero = jnp.zeros((block_m, block_n), jnp.float32)
    clean, along = lax.fori_loop(0, steps, step, (zero, zero))
    if w_scale_ref:
        clean = clean * _load(w_scale_ref[0], (), (0, column), (1, block_n))
    side = row + lax.broadcasted_iota(jnp.int32, (block_m, block_n), 0) >= rows // sides
    scale = jnp.where(side, -scale_ref[0], scale_ref[0]) if sides == 2 else scale_ref[0]
    window, mask = _window(out_ref, (part,), (row, column), (block_m, block_n))
    plt.store(window, clean + scale * along, mask=mask)


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
    block = (config.block_m, config.block_n, config.block_k)
    index = jnp.stack(words) if start is None else jnp.concatenate([jnp.stack(words), start])
    options = dict(direction=direction, full_shape=full_shape, block=block, has_start=start is not None)
    compiler = plt.CompilerParams(num_warps=config.num_warps, num_stages=config.num_stages)
    scales = [] if w_scale is None else [w_scale]
    if not splits(w.dtype):
        # The first axis of the grid counts fastest: programs that share a tile of weights follow one another.
        return pl.pallas_call(
            functools.partial(_whole_kernel, **options),
            grid=(cdiv(m, config.block_m), cdiv(n, config.block_n)),
            out_shape=jax.ShapeDtypeStruct((sides, m, n), jnp.float32),
            compiler_params=compiler,
            interpret=interpret,
            name="perturbed_matmul",
        )(index, scale.reshape(1), x, w, *scales)
    rows = x.astype(operand_dtype(w.dtype)).reshape(sides * m, k)
    parts = pl.pallas_call(
        functools.partial(_split_kernel, **options, sides=sides, parts=config.splits),
        grid=(cdiv(sides * m, config.block_m), cdiv(n, config.block_n), config.splits),
        out_shape=jax.ShapeDtypeStruct((config.splits, sides * m, n), jnp.float32),
        compiler_params=compiler,
        interpret=interpret,
        name="perturbed_matmul",
    )(index, scale.reshape(1), rows, w, *scales)
    total = parts[0]
    for part in range(1, config.splits):
        total += parts[part]
    return total.reshape(sides, m, n)
