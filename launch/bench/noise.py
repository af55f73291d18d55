"""Noise: the cost of w + 1e-3 z and of z alone, for this library's draws, jax.random's and torch's.

The floor is "add", w plus a constant, in place as an update is. A draw is compared with its namesake in `jax.random`
(whose normals and signs it must equal bit for bit; `signs` is a format of its own), torch with `zojax.random.normal`.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from launch.bench._harness import (
    Record,
    finished,
    import_torch,
    interleave,
    no_torch,
    record,
    temporaries,
    timings,
    torch_device,
)
from launch.bench._sizes import chosen
from zojax import random

__all__ = ["run"]

BENCH = "noise"
SCALE = 1e-3

# Draw -> what it is compared with.
DRAWS: dict[str, tuple[Callable[..., jax.Array], str | None]] = {
    "jax.random.normal": (jax.random.normal, None),
    "zojax.random.normal": (random.normal, "jax.random.normal"),
    "jax.random.rademacher": (functools.partial(jax.random.rademacher, dtype=jnp.float32), None),
    "zojax.random.rademacher": (random.rademacher, "jax.random.rademacher"),
    "zojax.random.signs": (random.signs, "jax.random.rademacher"),
}
EQUAL = ("zojax.random.normal", "zojax.random.rademacher")


SCALES: dict[str, tuple[int, int]] = {
    "minilm": (2640, 2640),  # as many weights as a third of MiniLM
    "large": (16384, 16384),  # on a GPU long beside the launch of a kernel
}


def run(repeats: int = 20, *, scale: str = "minilm", shape: tuple[int, int] | None = None) -> Iterator[Record]:
    """Measures every draw.

    Args:
      repeats: rounds of the interleaved timing.
      scale: name in SCALES.
      shape: of w; None: that of the scale.

    Yields:
      Lines: bitwise equality (1 or 0), temporaries in bytes, times in ns an element.
    """
    size: tuple[int, int] = chosen(scale, SCALES) if shape is None else shape
    key = jax.random.key(0)
    for name in EQUAL:
        draw, other = DRAWS[name]
        assert other is not None
        equal = jnp.array_equal(jax.jit(draw, static_argnums=1)(key, size), DRAWS[other][0](key, size))
        yield record(BENCH, f"z, {name}", "bitwise_equal", int(equal), "bool", reference=f"z, {other}")

    cases: dict[str, Callable[[], Any]] = {}
    references: dict[str, str] = {}
    bytes_of: dict[str, int] = {}

    def add_case(case: str, compiled: Any, call: Callable[[], Any], reference: str | None) -> None:
        cases[case], bytes_of[case] = call, temporaries(compiled)
        if reference is not None:
            references[case] = reference

    constant = lambda key, shape: jnp.float32(1)  # noqa: E731
    add_case("add", *_in_place(constant, key, size), None)
    for name, (draw, other) in DRAWS.items():
        add_case(f"w + z, {name}", *_in_place(draw, key, size), f"w + z, {other}" if other else "add")
    for name, (draw, other) in DRAWS.items():
        compiled = jax.jit(draw, static_argnums=1).lower(key, size).compile()
        add_case(f"z, {name}", compiled, functools.partial(compiled, key), f"z, {other}" if other else None)
    for case, needed in bytes_of.items():
        other = references.get(case)
        other_bytes = None if other is None else bytes_of[other]
        yield record(BENCH, case, "temporaries", needed, "bytes", reference=other, reference_value=other_bytes)

    torch = import_torch()
    if torch is None:
        yield no_torch(BENCH)
    else:
        device = torch_device(torch)
        generator, w = torch.Generator(device).manual_seed(0), torch.zeros(size, device=device)
        options = dict(generator=generator, device=device)
        cases["w + z, torch.randn"] = finished(torch, lambda: w.add_(torch.randn(size, **options), alpha=SCALE))
        cases["z, torch.normal"] = finished(torch, lambda: torch.normal(0.0, 1.0, size, **options))
        references["w + z, torch.randn"] = "w + z, zojax.random.normal"
        references["z, torch.normal"] = "z, zojax.random.normal"
    seconds = interleave(cases, repeats)
    yield from timings(BENCH, seconds, references, unit="ns/element", scale=1e9 / math.prod(size))


def _in_place(draw: Callable[..., jax.Array], key: jax.Array, shape: tuple[int, ...]) -> tuple[Any, Callable[[], Any]]:
    """The program w <- w + SCALE z, w donated, and a call of it that keeps w."""
    held = [jnp.zeros(shape)]
    program = jax.jit(lambda w, key: w + SCALE * draw(key, shape), donate_argnums=0)
    compiled = program.lower(held[0], key).compile()

    def call():
        held[0] = compiled(held[0], key)
        return held[0]

    return compiled, call
