"""The passes through a lattice on a TPU: utterances in sublanes, u in lanes, steps in blocks one after the other."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from zojax.kernels._platform import cdiv, round_up
from zojax.kernels.transducer_lattice.reference import Arcs, Rows, Semiring

__all__ = ["Config"]

PLATFORM = "tpu"
SUBLANES, LANES = 8, 128
# Of a core's 16 MiB: four blocks of steps, each twice, for the next is fetched while one is in use.
BLOCK_BYTES = 12 * 2**20


@dataclass(frozen=True, kw_only=True)
class Config:
    """Block sizes.

    Attributes:
      block_steps: steps a program.
      block_batch: utterances a program; a multiple of 8.

    Example:
      >>> Config(block_steps=32).block_batch
      8
    """

    block_steps: int = 64
    block_batch: int = 8


def default_config(rows, end, last) -> Config:
    """The same blocks for all arguments."""
    del rows, end, last
    return Config()


def supported(
    rows, end, last, *, arcs: Arcs, config: Config, semiring: Semiring = "sum", keep: bool = True
) -> str | None:
    """None, or the reason why this kernel refuses the arguments."""
    del end, last, keep
    if arcs != ((1, False), (1, True)) or semiring != "sum":
        return f"arcs {arcs}, semiring {semiring!r}; the sum over a blank and a label arc of one step each is known"
    if rows[0].dtype != jnp.float32:
        return f"{rows[0].dtype}; float32 is known"
    if config.block_steps < 1 or config.block_batch < 1 or config.block_batch % SUBLANES:
        return f"{config}: block_steps must be positive, block_batch a multiple of {SUBLANES}"
    needed = 8 * 4 * config.block_steps * config.block_batch * round_up(rows[0].shape[-1], LANES)
    if needed > BLOCK_BYTES:
        return f"{config}: {needed} bytes with {rows[0].shape[-1]} symbols; up to {BLOCK_BYTES} fit"
    return None


def _forward_kernel(end_ref, last_ref, blank_ref, label_ref, total_ref, *refs, symbols: int):
    *share_refs, alpha_ref, taken_ref = refs
    block = pl.program_id(1)
    size = blank_ref.shape[0]
    u = lax.broadcasted_iota(jnp.int32, alpha_ref.shape, 1)
    end, last = end_ref[...], last_ref[...]

    @pl.when(block == 0)
    def _():
        alpha_ref[...] = jnp.where(u == 0, 0.0, -jnp.inf)
        taken_ref[...] = jnp.zeros_like(taken_ref)
        total_ref[...] = jnp.where((end == 0) & (last == 0), 0.0, -jnp.inf)

    def step(i, carry):
        alpha, taken, total = carry
        # Lanes beyond the symbols hold anything.
        blank, label = (jnp.where(u < symbols, ref[i], -jnp.inf) for ref in (blank_ref, label_ref))
        blank = alpha + blank
        label = jnp.where(u == 0, -jnp.inf, pltpu.roll(alpha, 1, 1)) + label
        top = jnp.maximum(blank, label)
        nothing = top == -jnp.inf
        top = jnp.where(nothing, 0.0, top)
        parts = jnp.exp(blank - top), jnp.exp(label - top)
        whole = jnp.where(nothing, 1.0, parts[0] + parts[1])
        for ref, part in zip(share_refs, parts, strict=False):
            ref[i] = part / whole
        alpha = jnp.where(nothing, -jnp.inf, top + jnp.log(whole))
        offset = jnp.floor(jnp.max(alpha, axis=1, keepdims=True))
        offset = jnp.where((offset > -jnp.inf) & (offset < jnp.inf), offset, 0.0)
        alpha, taken = alpha - offset, taken + offset
        found = taken + jnp.sum(jnp.where(u == last, alpha, 0.0), axis=1, keepdims=True)
        return alpha, taken, jnp.where(block * size + i + 1 == end, found, total)

    carry = (alpha_ref[...], taken_ref[...], total_ref[...])
    alpha_ref[...], taken_ref[...], total_ref[...] = lax.fori_loop(0, size, step, carry)


def _blocks(rows: Rows, config: Config) -> tuple[int, int, int]:
    steps, _, symbols = rows[0].shape
    return min(config.block_steps, steps), config.block_batch, round_up(symbols, LANES)


@partial(jax.jit, static_argnames=("arcs", "semiring", "keep", "config", "interpret"))
def forward(
    arriving: Rows,
    end: Int[Array, "batch"],
    last: Int[Array, "batch"],
    *,
    arcs: Arcs,
    semiring: Semiring,
    keep: bool,
    config: Config,
    interpret: bool = False,
) -> tuple[Float[Array, "batch"], Rows]:
    """`reference.forward` by this kernel; what blocks hold beyond the edge is not kept."""
    del arcs, semiring
    steps, batch, symbols = arriving[0].shape
    blocks = _blocks(arriving, config)
    rows = pl.BlockSpec(blocks, lambda b, s: (s, b, 0))
    one = pl.BlockSpec((blocks[1], 1), lambda b, s: (b, 0))
    kept = 2 if keep else 0
    total, *shares = pl.pallas_call(
        partial(_forward_kernel, symbols=symbols),
        grid=(cdiv(batch, blocks[1]), cdiv(steps, blocks[0])),
        in_specs=[one, one, rows, rows],
        out_specs=[one, *[rows] * kept],
        out_shape=[
            jax.ShapeDtypeStruct((batch, 1), jnp.float32),
            *[jax.ShapeDtypeStruct(arriving[0].shape, jnp.float32)] * kept,
        ],
        scratch_shapes=[pltpu.VMEM(blocks[1:], jnp.float32), pltpu.VMEM((blocks[1], 1), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="transducer_lattice_forward",
    )(*(x.astype(jnp.int32)[:, None] for x in (end, last)), *arriving)
    return total[:, 0], tuple(shares)


def _backward_kernel(end_ref, last_ref, *refs, steps: int, symbols: int):
    *refs, due_ref = refs
    size, width = refs[0].shape[0], due_ref.shape[1]
    first = (pl.num_programs(1) - 1 - pl.program_id(1)) * size
    u = lax.broadcasted_iota(jnp.int32, due_ref.shape, 1)
    end, unit = end_ref[...], jnp.where(u == last_ref[...], 1.0, 0.0)

    @pl.when(pl.program_id(1) == 0)
    def _():
        due_ref[...] = jnp.zeros_like(due_ref)

    def step(count, due):
        i = size - 1 - count
        node = due + jnp.where(first + i + 1 == end, unit, 0.0)
        # Steps beyond the last and lanes beyond the symbols hold anything.
        real = u < jnp.where(first + i < steps, symbols, 0)
        blank, label = (jnp.where(real, node * ref[i], 0.0) for ref in refs[:2])
        refs[2][i], refs[3][i] = blank, label
        return blank + jnp.where(u == width - 1, 0.0, pltpu.roll(label, width - 1, 1))

    due_ref[...] = lax.fori_loop(0, size, step, due_ref[...])


@partial(jax.jit, static_argnames=("arcs", "config", "interpret"))
def backward(
    shares: Rows,
    end: Int[Array, "batch"],
    last: Int[Array, "batch"],
    *,
    arcs: Arcs,
    config: Config,
    interpret: bool = False,
) -> Rows:
    """`reference.backward` by this kernel; what blocks hold beyond the edge is not kept."""
    del arcs
    steps, batch, symbols = shares[0].shape
    blocks = _blocks(shares, config)
    count = cdiv(steps, blocks[0])
    rows = pl.BlockSpec(blocks, lambda b, s: (count - 1 - s, b, 0))
    one = pl.BlockSpec((blocks[1], 1), lambda b, s: (b, 0))
    flows = pl.pallas_call(
        partial(_backward_kernel, steps=steps, symbols=symbols),
        grid=(cdiv(batch, blocks[1]), count),
        in_specs=[one, one, rows, rows],
        out_specs=[rows, rows],
        out_shape=[jax.ShapeDtypeStruct(shares[0].shape, jnp.float32)] * 2,
        scratch_shapes=[pltpu.VMEM(blocks[1:], jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="transducer_lattice_backward",
    )(*(x.astype(jnp.int32)[:, None] for x in (end, last)), *shares)
    return tuple(flows)
