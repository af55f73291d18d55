"""Import of a checkpoint of random weights: peak memory over the model's own, and time.

A LLaMA of 1.04 billion weights (--scale=1b) is written to a temporary folder as bfloat16 safetensors, in files of 1 GB.
Each import runs in a process of its own, which says how far its memory rose above what it was before. The files are in
the page cache by then: the time is that of reading memory, not a disk.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from launch.bench._harness import Record, record
from models.language import families, hub
from models.language.llama_config import LlamaConfig
from models.language.tensors import write_folder
from zojax.quant import Rule
from zojax.trees import path_string

__all__ = ["CASES", "SCALES", "run", "write"]

BENCH = "hub_import"

SCALES: dict[str, LlamaConfig] = {
    "tiny": LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
    ),
    "1b": LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        intermediate_size=8192,
        tie_word_embeddings=True,
    ),
}

RULES = (
    Rule(pattern=r"kernel$", grid="int8_127"),
    Rule(pattern=r"embeddings/word$", grid="int8_127", per="row"),
    Rule(pattern=r".*", grid=None),
)

CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8 codes": {"rules": RULES},
}


def run(repeats: int = 1, *, scale: str = "1b", names: Sequence[str] = tuple(CASES)) -> Iterator[Record]:
    """Measures imports.

    Args:
      repeats: imports of each kind.
      scale: a name in SCALES.
      names: names in CASES.

    Yields:
      Lines: for every import the model's bytes, the rise of memory over them, and the least of its times.

    Raises:
      ValueError: if there is no such scale or case, or an import failed.
    """
    if scale not in SCALES or not set(names) <= set(CASES):
        raise ValueError(f"scale {scale!r} and names {list(names)}: of {list(SCALES)} and {list(CASES)} are needed")
    with tempfile.TemporaryDirectory() as folder:
        count = write(Path(folder), SCALES[scale])
        for name in names:
            found = [_child(folder, name) for _ in range(repeats)]
            case = f"{name}, {count:,} weights"
            yield record(BENCH, case, "model", found[0]["model"], "bytes")
            rise = max(one["rise"] for one in found)
            yield record(BENCH, case, "peak", rise, "bytes")
            yield record(BENCH, case, "peak over model", rise / found[0]["model"], "1")
            yield record(BENCH, case, "time_min", min(one["seconds"] for one in found), "s")


def write(folder: Path, config: LlamaConfig) -> int:
    """Writes a checkpoint of random weights, a tensor at a time.

    Args:
      folder: an existing folder.
      config: the model's sizes.

    Returns:
      The number of weights.
    """
    family = families.family_of(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(families.abstract(config)):
        path = path_string(path)
        stacked = path.startswith("layers/")
        shape = leaf.shape[1:] if stacked else leaf.shape
        for name in families.names(family, path, leaf.shape[0] if stacked else None):
            shapes[name] = shape[::-1] if path.endswith("/kernel") else shape
    generator = np.random.default_rng(0)
    arrays = (generator.standard_normal(shape, np.float32) for shape in shapes.values())
    write_folder(folder, shapes, arrays, dtype=ml_dtypes.bfloat16, shard_bytes=10**9)
    text = {**config.to_dict(), "architectures": [family.architectures[True]], "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(text))
    return sum(int(np.prod(shape)) for shape in shapes.values())


def _child(folder: str, name: str) -> dict[str, float]:
    words = [sys.executable, "-m", "launch.bench.hub_import", folder, name]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise ValueError(f"the import of {name} failed: {' '.join(done.stderr.split())[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _memory(field: str) -> int:
    """Bytes of this process's memory, now (VmRSS) or at most (VmHWM)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        raise ValueError("there is no /proc/self/status, from which memory is read")
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(field))


def _import(folder: str, name: str) -> dict[str, float]:
    # What compiles and starts with the first array is not the model's.
    jax.block_until_ready(jax.numpy.zeros(1))
    before, start = _memory("VmRSS"), time.perf_counter()
    _, params = hub.load(folder, **CASES[name])
    seconds = time.perf_counter() - start
    model = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return {"seconds": seconds, "model": model, "rise": _memory("VmHWM") - before}


if __name__ == "__main__":
    print(json.dumps(_import(*sys.argv[1:])))
