"""What a partitioned program sends: collectives are found in XLA's text, loops counted.

The text is that of the module right after the SPMD partitioner, so that types are the program's own: the compiler for
the CPU, whose products know no bfloat16, would later widen what is sent.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

__all__ = ["partitioned", "sent"]

_WIDTH = {"pred": 1, "bf16": 2, "f8e4m3fn": 1, "f8e5m2": 1, "s4": 1, "u4": 1}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(
    r"= (\(?[^=]*?\)?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"\b(pred|bf16|f8\w+|[suf]\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:body|true_computation|false_computation|to_apply)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONSTANT = re.compile(r"= s32\[\] constant\((\d+)\)")

# Bytes that a device sends in a ring of n, by those of the result.
_SENT = {
    "all-gather": lambda n, size: size * (n - 1) / n,
    "all-reduce": lambda n, size: 2 * size * (n - 1) / n,
    "reduce-scatter": lambda n, size: size * (n - 1),
    "all-to-all": lambda n, size: size * (n - 1) / n,
    "collective-permute": lambda n, size: size,
}


def partitioned(lowered: Any) -> tuple[Any, str]:
    """Compiles for the devices that there are.

    Args:
      lowered: a `jax.stages.Lowered` for a mesh of CPU devices; nothing is allocated but the program.

    Returns:
      (the compiled program, the module's text after partitioning, "" for one device).
    """
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "xla_dump_to": folder,
            "xla_dump_hlo_pass_re": "spmd-partitioning",
            "xla_dump_hlo_as_text": True,
            # The default keeps temporaries alive longer than they are needed.
            "xla_cpu_enable_concurrency_optimized_scheduler": False,
        }
        cached = jax.config.values["jax_enable_compilation_cache"]
        jax.config.update("jax_enable_compilation_cache", False)  # a cached program writes no text
        try:
            compiled = lowered.compile(compiler_options=options)
        finally:
            jax.config.update("jax_enable_compilation_cache", cached)
        found = sorted(Path(folder).glob("*after_spmd-partitioning*"))
        return compiled, found[-1].read_text() if found else ""


def sent(text: str) -> dict[str, float]:
    """Bytes that a device sends in one call of a program, by kind of collective.

    Rings are assumed: an all-reduce of size bytes among n devices sends 2 size (n - 1) / n. A loop counts as often as
    the constant in its condition says, which is how `scan` and `fori_loop` are written.

    Args:
      text: as `partitioned` returns it.

    Returns:
      Bytes by kind.

    Example:
      >>> text = "ENTRY %main (x: f32[4]) -> f32[4] {\\n  %y = f32[4]{0} all-reduce(%x), replica_groups={{0,1}}\\n}"
      >>> sent(text)
      {'all-reduce': 16.0}
    """
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        begun = _COMPUTATION.match(line)
        if begun:
            name = begun[1]
            entry = name if line.startswith("ENTRY") else entry
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    total: Counter[str] = Counter()
    _count(bodies, entry, 1, total)
    return dict(total)


def _count(bodies: Mapping[str, list[str]], name: str, times: int, total: Counter[str]) -> None:
    for line in bodies.get(name, ()):
        found = _COLLECTIVE.search(line)
        if found:
            result, kind = found.groups()
            size = sum(_bytes(*array) for array in _ARRAY.findall(result))
            count = _group(line)
            if count > 1 or kind == "collective-permute":
                total[kind] += times * _SENT[kind](count, size)
            continue
        called = _CALLED.findall(line)
        called += [part.strip().lstrip("%") for part in ",".join(_BRANCHES.findall(line)).split(",") if part.strip()]
        again = _trips(bodies, line) if " while(" in line else 1
        for other in called:
            _count(bodies, other, times * again, total)


def _trips(bodies: Mapping[str, list[str]], line: str) -> int:
    condition = re.search(r"condition=%([\w.\-]+)", line)
    constants = [int(n) for text in bodies.get(condition[1] if condition else "", ()) for n in _CONSTANT.findall(text)]
    return max(constants, default=1)


def _bytes(kind: str, shape: str) -> int:
    width = _WIDTH[kind] if kind in _WIDTH else int(re.sub(r"\D", "", kind)) // 8
    return width * int(np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64))


def _group(line: str) -> int:
    """The devices of a group, in any of the ways in which XLA writes groups."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if tiled := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(tiled[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        return int(np.prod([sizes[axis] for axis in re.findall(r"'(\w+)'", mesh[2])]))
    return 1
