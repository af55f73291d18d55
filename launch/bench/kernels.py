"""The kernels at the sizes of a language model: beside XLA's way, the plain bfloat16 product and the hardware's floor.

For the hardware that the kernels are for: elsewhere, and where a kernel fails, a line holds the error and the run goes
on. A time is one of many calls that are queued together, on weights that take turns so that no cache holds them. The
floor is the greater of the bytes that must move (operands and result once) over the rate of a large copy and the
products over the tensor cores' measured rate in bfloat16, both of an NVIDIA H200, November 2026.
"""

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.bench._harness import Record, record
from launch.bench._sizes import chosen
from zojax import random
from zojax.kernels.perturbed_matmul import gpu as perturbed
from zojax.kernels.perturbed_matmul import reference as perturbed_reference
from zojax.kernels.quantized_matmul import gpu as quantized
from zojax.kernels.quantized_matmul import reference as quantized_reference
from zojax.kernels.stochastic_round import gpu as rounding
from zojax.kernels.stochastic_round import reference as rounding_reference
from zojax.kernels.transducer_lattice import gpu as lattice
from zojax.kernels.transducer_lattice import reference as lattice_reference

__all__ = ["SCALES", "Case", "run"]

BENCH = "kernels"
COPY_RATE, PRODUCT_RATE = 4.3e12, 790e12  # bytes/s and flop/s
SETS_BYTES = 256 * 2**20  # of the operands that take turns: five times the H200's cache of 50 MiB
QUEUED_SECONDS = 0.02

SCALE = 1e-3
ARCS = ((1, False), (1, True))


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is computed, and in which ways.

    Attributes:
      name: with all sizes.
      make: of a seed: the operands.
      define: XLA's way; its result is the one that the kernel's is compared with.
      kernel: of operands and a `config`.
      configs: the candidates; the fastest counts.
      others: further ways by name, which are timed only.
      flops: of the result.
      moved: bytes that must move.
    """

    name: str
    make: Callable[[int], tuple[Any, ...]]
    define: Callable[..., Any]
    kernel: Callable[..., Any]
    configs: Sequence[Any]
    others: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    flops: float
    moved: float


Program = Callable[[Sequence[tuple[Any, ...]]], Any]


def _compiled(way: Callable[..., Any], sets: Sequence[tuple[Any, ...]]) -> Program:
    """One program that computes all sets."""
    return jax.jit(lambda sets: [way(*args) for args in sets]).lower(sets).compile()


def _seconds(program: Program, sets: Sequence[tuple[Any, ...]], repeats: int) -> float:
    """Median seconds of one set; so many runs of the program are queued that waiting for the last does not count."""

    def queued(runs: int) -> float:
        start, result = time.perf_counter(), None
        for _ in range(runs):
            result = program(sets)
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / (runs * len(sets))

    queued(1)
    runs = max(2, min(50, round(QUEUED_SECONDS / (queued(2) * len(sets)))))
    return float(np.median([queued(runs) for _ in range(repeats)]))


def _error(found: Any, expected: Any) -> float:
    """|found - expected| / |expected| over all leaves, in float32; infinite places must agree."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    over, under = 0.0, 0.0
    for a, b in pairs:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        same = a == b
        over += float(jnp.sum(jnp.where(same, 0, a - b) ** 2))
        under += float(jnp.sum(jnp.where(jnp.isfinite(b), b, 0) ** 2))
    return float(np.sqrt(over / under))


def _count(case: Case) -> int:
    """How many sets of operands take turns."""
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(case.make, 0)))
    return max(2, min(8, round(SETS_BYTES / size)))


def _programs(case: Case, pool: ThreadPoolExecutor) -> dict[Any, Future[Program]]:
    """All ways by name, and the kernel by config, while they compile: the compiler takes longer than the timing."""
    sets = [jax.eval_shape(case.make, 0)] * _count(case)
    ways = {"xla": case.define, **case.others}
    ways |= {config: functools.partial(case.kernel, config=config) for config in case.configs}
    return {name: pool.submit(_compiled, way, sets) for name, way in ways.items()}


def _lines(case: Case, programs: Mapping[Any, Future[Program]], repeats: int) -> Iterator[dict[str, Any]]:
    sets = [case.make(seed) for seed in range(_count(case))]
    seconds: dict[Any, float] = {}
    for way, program in programs.items():
        try:
            seconds[way] = _seconds(program.result(), sets, repeats)
        except Exception as error:  # a compiler refuses in many ways; the others are still to be measured
            yield _failure(f"{case.name}, {way}", error)
            continue
        kind = "time_median" if isinstance(way, str) else "time_tuning"
        yield record(BENCH, f"{case.name}, {way}", kind, 1e3 * seconds[way], "ms")
    tried = [config for config in case.configs if config in seconds]
    if not tried:
        return
    config, name = min(tried, key=seconds.__getitem__), f"{case.name}, kernel"
    yield {"bench": BENCH, "case": name, "config": str(config)}
    own, xla = seconds[config], seconds.get("xla")
    compared = {} if xla is None else {"reference": f"{case.name}, xla", "reference_value": 1e3 * xla}
    yield record(BENCH, name, "time_median", 1e3 * own, "ms", **compared)
    yield record(BENCH, name, "share of the floor", max(case.flops / PRODUCT_RATE, case.moved / COPY_RATE) / own, "1")
    if "bfloat16 product" in seconds:
        yield record(BENCH, name, "share of the bfloat16 product", seconds["bfloat16 product"] / own, "1")
    for way in [config, *case.others] if xla is not None else []:
        found, expected = (programs[w].result()(sets)[0] for w in (way, "xla"))
        if jax.eval_shape(lambda x: x, found) == jax.eval_shape(lambda x: x, expected):
            named = name if way == config else f"{case.name}, {way}"
            yield record(BENCH, named, "relative difference from xla", _error(found, expected), "1")


def _failure(case: str, error: Exception) -> dict[str, Any]:
    return {"bench": BENCH, "case": case, "error": f"{type(error).__name__}: {str(error)[:600]}"}


def _bfloat16_product(x, w, *_):
    """A plain layer of as many rows, which keeps its activations in bfloat16."""
    return x.reshape(-1, x.shape[-1]).astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)


def _quantized(m: int, k: int, n: int, x_dtype: Any, w_dtype: Any, groups: int = 1) -> Case:
    def make(seed: int):
        keys = jax.random.split(jax.random.key(seed))
        scales = jnp.full((m, 1), 0.02, jnp.float32), jnp.full((groups, n), 0.01, jnp.float32)
        return _codes(keys[0], (m, k), x_dtype), _codes(keys[1], (k, n), w_dtype), *scales

    bits, more = {jnp.int4: 0.5}.get(w_dtype, 1), {}
    blocks = [(16, 64, 128, 4, 4, 8), (16, 128, 64, 4, 4, 8), (16, 128, 128, 4, 3, 4)]
    if m > 64:
        blocks = [(128, 128, 64, 8, 3, 1), (128, 256, 64, 8, 3, 1)]
        if x_dtype == jnp.int8:
            more = {"turned": True}
            blocks = [(128, 128, 128, 4, 3, 1), (128, 128, 128, 4, 4, 1), (128, 256, 128, 8, 3, 1)]
    if groups > 1:
        blocks = [(min(m, 128), 128, 128, warps, 3, 1) for warps in (4, 8)]
    name = f"quantized_matmul, {np.dtype(x_dtype).name} x {np.dtype(w_dtype).name}, {m}x{k}x{n}"
    name += f", {groups} groups" * (groups > 1)
    return Case(
        name=name,
        make=make,
        define=quantized_reference.scaled_product,
        kernel=quantized.run,
        configs=[_blocks(quantized, *b, **more) for b in blocks if k // b[2] % b[5] == 0],
        flops=2.0 * m * k * n / 2,  # 8-bit operands take half of the time
        moved=m * k + k * n * bits + 4 * m * n,
        others={"bfloat16 product": lambda x, w, *_: _product_like(x, w)} if x_dtype == jnp.int8 else {},
    )


def _product_like(x, w):
    """The product of bfloat16 operands of the same sizes, made of the codes: what rounding them away costs."""
    return x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)


def _blocks(module: Any, m: int, n: int, k: int, warps: int, stages: int, parts: int, **more: bool) -> Any:
    return module.Config(block_m=m, block_n=n, block_k=k, num_warps=warps, num_stages=stages, splits=parts, **more)


def _codes(key: jax.Array, size: tuple[int, int], dtype: Any) -> jax.Array:
    if not jnp.issubdtype(dtype, jnp.integer):
        return jax.random.normal(key, size).astype(dtype)
    info = jnp.iinfo(dtype)
    return jax.random.randint(key, size, int(info.min), int(info.max) + 1, jnp.int8).astype(dtype)


def _perturbed(m: int, k: int, n: int, w_dtype: Any, direction: perturbed_reference.Direction) -> Case:
    def make(seed: int):
        key = jax.random.key(seed)
        x = jax.random.normal(key, (2, m, k), jnp.bfloat16)
        integer = jnp.issubdtype(w_dtype, jnp.integer)
        w = _codes(key, (k, n), w_dtype) if integer else (0.02 * jax.random.normal(key, (k, n))).astype(w_dtype)
        w_scale = jnp.full((1, n), 2e-4, jnp.float32) if integer else None
        return x, w, random.key_words(random.own(key)), jnp.float32(SCALE), w_scale, None

    options = dict(direction=direction, full_shape=(k, n))
    blocks = [(32, 128, 64, 4, 4, 8), (32, 64, 64, 4, 4, 8), (32, 64, 64, 8, 4, 8)]
    if direction != "signs":
        blocks = [(32, 64, 64, 8, 3, 8), (32, 64, 64, 4, 4, 8)]
    if m > 64:
        blocks = [(128, 128, 64, 8, 3, 1)]
    return Case(
        name=f"perturbed_matmul, {np.dtype(w_dtype).name}, {direction}, 2x{m}x{k}x{n}",
        make=make,
        define=functools.partial(perturbed_reference.perturbed_matmul, **options),
        kernel=functools.partial(perturbed.run, **options),
        configs=[_blocks(perturbed, *b) for b in blocks if k // b[2] % b[5] == 0],
        flops=4.0 * m * k * n,
        moved=2 * 2 * m * k + k * n * np.dtype(w_dtype).itemsize + 2 * 4 * m * n,
        others={"bfloat16 product": _bfloat16_product, "sum in float16": functools.partial(_sum_in_float16, **options)},
    )


def _sum_in_float16(x, w, words, scale, w_scale, start, *, direction, full_shape):
    """One product a side with a stored float16 W + s Z: not the operator, whose sum is exact."""
    z = perturbed_reference.DRAWS[direction](words, full_shape)
    weight = w.astype(jnp.float32) if w_scale is None else w * w_scale
    sides = [weight + scale * z, weight - scale * z]
    dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    return jnp.stack([dot(x[i].astype(jnp.float16), side.astype(jnp.float16)) for i, side in enumerate(sides)])


def _rounded(rows: int, columns: int) -> Case:
    def make(seed: int):
        key = jax.random.key(seed)
        x = 30 * jax.random.normal(key, (rows, columns))
        scale = jnp.full((1, columns), 0.37, jnp.float32)
        return x, scale, random.key_words(random.own(key)), jnp.zeros(2, jnp.uint32)

    options = dict(low=-127, high=127, shape=(rows, columns))
    sizes = [(4, 256, 4), (1, 1024, 4), (1, 2048, 8)]
    return Case(
        name=f"stochastic_round, {rows}x{columns}",
        make=make,
        define=functools.partial(rounding_reference.stochastic_round, **options),
        kernel=functools.partial(rounding.run, **options),
        configs=[rounding.Config(block_rows=r, block_columns=c, num_warps=w) for r, c, w in sizes],
        flops=0,
        moved=5.0 * rows * columns,
    )


def _lattice(batch: int, frames: int, labels: int) -> Case:
    steps = frames + labels

    def make(seed: int):
        keys = jax.random.split(jax.random.key(seed))
        rows = [-0.1 - jax.random.exponential(key, (steps, batch, labels + 1)) for key in keys]
        rows[1] = rows[1].at[..., 0].set(-jnp.inf)
        return tuple(rows), jnp.full(batch, steps, jnp.int32), jnp.full(batch, labels, jnp.int32)

    def passes(module, arriving, end, last, **options):
        total, shares = module.forward(arriving, end, last, arcs=ARCS, semiring="sum", keep=True, **options)
        return total, module.backward(shares, end, last, arcs=ARCS, **options)

    return Case(
        name=f"transducer_lattice, forward and backward, {batch}x{frames}x{labels}",
        make=make,
        define=functools.partial(passes, lattice_reference),
        kernel=functools.partial(passes, lattice),
        configs=[lattice.Config(num_warps=warps) for warps in (1, 2, 4, 8)],
        flops=0,
        moved=4.0 * 8 * steps * batch * (labels + 1),
    )


def _cases(tokens: int, few: int, wide: tuple[int, int], square: int, speech: tuple[int, int, int]) -> list[Case]:
    e4m3 = jnp.float8_e4m3fn
    found = [_rounded(*wide), _lattice(*speech)]
    for rows in (few, tokens):
        found += [_quantized(rows, *wide, jnp.int8, jnp.int8), _quantized(rows, square, square, jnp.int8, jnp.int8)]
        found += [_quantized(rows, square, square, *pair) for pair in ((jnp.int8, jnp.int4), (e4m3, e4m3))]
        found.append(_quantized(rows, square, square, jnp.int8, jnp.int4, square // min(128, square)))
        found += [_perturbed(rows, square, square, dtype, "signs") for dtype in (jnp.bfloat16, jnp.int8)]
        found.append(_perturbed(rows, square, square, jnp.bfloat16, "normal"))
        found.append(_perturbed(rows, *wide, jnp.bfloat16, "signs"))
    return found


SCALES: dict[str, Callable[[], list[Case]]] = {
    "small": lambda: _cases(64, 16, (512, 128), 512, (3, 7, 4)),
    "large": lambda: _cases(4096, 16, (4096, 11008), 4096, (30, 400, 60)),
}


def run(repeats: int = 5, *, scale: str = "large", names: Sequence[str] = ()) -> Iterator[dict[str, Any] | Record]:
    """Measures the kernels of the default platform.

    Args:
      repeats: rounds of each timing.
      scale: name in SCALES.
      names: parts of the names of the cases that are wanted; none: all.

    Yields:
      Lines: times in ms, shares of the floor and of the bfloat16 product's rate, differences, and failures.
    """
    cases = [case for case in chosen(scale, SCALES)() if not names or any(name in case.name for name in names)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = {case.name: _programs(case, pool) for case in cases}
        wait([program for of_case in programs.values() for program in of_case.values()])  # a quiet machine for timing
        for case in cases:
            try:
                yield from _lines(case, programs.pop(case.name), repeats)
            except Exception as error:  # one kernel's fault costs no other's measurement
                yield _failure(case.name, error)
