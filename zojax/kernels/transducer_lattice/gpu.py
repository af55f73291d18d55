"""The passes through a lattice on a GPU, through Triton: a program an utterance, its nodes of a step in registers.

Launching a kernel costs more than a step of the recursion, so a pass is one launch.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Int

from zojax.kernels._platform import is_power_of_two
from zojax.kernels.transducer_lattice.reference import Arcs, Rows, Semiring

__all__ = ["Config"]

PLATFORM = "cuda"
MAX_SYMBOLS = 256


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a program is divided.

    Attributes:
      num_warps: warps a program; a power of two.

    Example:
      >>> Config(num_warps=1).num_warps
      1
    """

    num_warps: int = 4


def default_config(rows, end, last) -> Config:
    """A warp for narrow lattices, whose reductions then stay inside it; eight for others (by measurement, of 61)."""
    del end, last
    return Config(num_warps=8 if rows[0].shape[-1] > 32 else 1)


def supported(
    rows, end, last, *, arcs: Arcs, config: Config, semiring: Semiring = "sum", keep: bool = True
) -> str | None:
    """None, or the reason why this kernel refuses the arguments."""
    del end, last, keep
    if arcs != ((1, False), (1, True)) or semiring != "sum":
        return f"arcs {arcs}, semiring {semiring!r}; the sum over a blank and a label arc of one step each is known"
    if rows[0].dtype != jnp.float32:
        return f"{rows[0].dtype}; float32 is known"
    if rows[0].shape[-1] > MAX_SYMBOLS:
        return f"{rows[0].shape[-1]} symbols; up to {MAX_SYMBOLS} are known"
    if not is_power_of_two(config.num_warps):
        return f"{config}: num_warps must be a power of two"
    return None


def _neighbour(x: Array, by: int) -> Array:
    """x moved by `by` places, 0 where nothing comes. Triton has no shift: each place picks its own, which is exact."""
    n = x.shape[0]
    to, source = (lax.broadcasted_iota(jnp.int32, (n, n), axis) for axis in (0, 1))
    return jnp.sum(jnp.where(source == to - by, x[None, :], 0.0), axis=1)


def _forward_kernel(end_ref, last_ref, blank_ref, label_ref, total_ref, *share_refs, steps: int, symbols: int):
    at, u = pl.program_id(0), jnp.arange(pl.next_power_of_2(symbols))
    inside = u < symbols
    end, last = plt.load(end_ref.at[at]), plt.load(last_ref.at[at])

    def read(ref, i):
        return plt.load(ref.at[i, at, pl.ds(0, u.shape[0])], mask=inside, other=-jnp.inf)

    def step(i, carry):
        alpha, taken, total = carry
        blank = alpha + read(blank_ref, i)
        label = jnp.where(u == 0, -jnp.inf, _neighbour(alpha, 1)) + read(label_ref, i)
        nothing = (blank == -jnp.inf) & (label == -jnp.inf)  # not of the maximum, in which Triton passes over NaN
        top = jnp.where(nothing, 0.0, jnp.maximum(blank, label))
        parts = jnp.exp(blank - top), jnp.exp(label - top)
        whole = jnp.where(nothing, 1.0, parts[0] + parts[1])
        for ref, part in zip(share_refs, parts, strict=False):
            plt.store(ref.at[i, at, pl.ds(0, u.shape[0])], part / whole, mask=inside)
        alpha = jnp.where(nothing, -jnp.inf, top + jnp.log(whole))
        offset = jnp.floor(jnp.max(alpha))
        offset = jnp.where((offset > -jnp.inf) & (offset < jnp.inf), offset, 0.0)
        alpha, taken = alpha - offset, taken + offset
        found = taken + jnp.sum(jnp.where(u == last, alpha, 0.0))
        return alpha, taken, jnp.where(i + 1 == end, found, total)

    start = jnp.where(u == 0, 0.0, -jnp.inf)
    total = jnp.sum(jnp.where(u == last, start, 0.0))  # without a step
    _, _, total = lax.fori_loop(0, steps, step, (start, jnp.float32(0), total))
    plt.store(total_ref.at[at], total)


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
    """`reference.forward` by this kernel."""
    del arcs, semiring
    steps, batch, symbols = arriving[0].shape
    shares = [jax.ShapeDtypeStruct(arriving[0].shape, jnp.float32)] * (2 if keep else 0)
    total, *shares = pl.pallas_call(
        partial(_forward_kernel, steps=steps, symbols=symbols),
        grid=(batch,),
        out_shape=[jax.ShapeDtypeStruct((batch,), jnp.float32), *shares],
        compiler_params=plt.CompilerParams(num_warps=config.num_warps),
        interpret=interpret,
        name="transducer_lattice_forward",
    )(end.astype(jnp.int32), last.astype(jnp.int32), *arriving)
    return total, tuple(shares)


def _backward_kernel(end_ref, last_ref, *refs, steps: int, symbols: int):
    at, u = pl.program_id(0), jnp.arange(pl.next_power_of_2(symbols))
    inside = u < symbols
    end, last = plt.load(end_ref.at[at]), plt.load(last_ref.at[at])
    unit = jnp.where(u == last, 1.0, 0.0)

    def step(count, due):
        i = steps - 1 - count
        place = (i, at, pl.ds(0, u.shape[0]))
        node = due + jnp.where(i + 1 == end, unit, 0.0)
        blank, label = (node * plt.load(ref.at[place], mask=inside, other=0.0) for ref in refs[:2])
        for ref, flow in zip(refs[2:], (blank, label), strict=True):
            plt.store(ref.at[place], flow, mask=inside)
        return blank + _neighbour(label, -1)

    lax.fori_loop(0, steps, step, jnp.zeros(u.shape, jnp.float32))


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
    """`reference.backward` by this kernel."""
    del arcs
    steps, batch, symbols = shares[0].shape
    flows = pl.pallas_call(
        partial(_backward_kernel, steps=steps, symbols=symbols),
        grid=(batch,),
        out_shape=[jax.ShapeDtypeStruct(shares[0].shape, jnp.float32)] * 2,
        compiler_params=plt.CompilerParams(num_warps=config.num_warps),
        interpret=interpret,
        name="transducer_lattice_backward",
    )(end.astype(jnp.int32), last.astype(jnp.int32), *shares)
    return tuple(flows)
