"""A QuZO step on a quantised pretrained encoder, over the float step: time, and bytes of weights and state.

Both train all weights with SGD: the float step along signs (and along normal directions), QuZO along directions of 4
bits and along signs, with updates on the grid. At "billion" the model is a random decoder and the float step one in
bfloat16, with products split into x W + s x Z. The bytes are those of the arguments of `apply`, weights and state.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from launch.bench._harness import Record, interleave, record, temporaries, timings
from launch.bench._sizes import BERT_LARGE, LLAMA_1B, NextToken, chosen
from launch.bench.zo_step import EPS, LEARNING_RATE, classifier, programs, random_batch, sgd_chain
from models.language import bert, llama
from zojax import estimators, quant
from zojax.directions import Gaussian, Rademacher
from zojax.estimators import Estimator
from zojax.kernels.quantized_matmul import gpu
from zojax.perturb import PerturbSpec, Probe
from zojax.precision import cast

__all__ = ["run"]

BENCH = "quzo_step"
XLA = ", products by XLA"
"""Ends the names of settings that are measured without kernels."""


def _quzo(bits: int, probe: Probe, feedback: int) -> Estimator:
    spec = PerturbSpec(stacked=bert.STACKED, probe=probe)
    head = estimators.quzo(EPS, spec, bits=bits, key=jax.random.key(1))
    chain = estimators.chain(head, optax.sgd(LEARNING_RATE))
    return quant.on_grid(chain, key=jax.random.key(2), feedback=feedback)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """A model and what is measured of it.

    Attributes:
      source: as `zo_step.classifier` takes it; or the sizes of a random decoder, whose float step is in bfloat16.
      shapes: (rows, tokens) of the batches.
      cases: (name in `quant.PROFILES`, name in SETTINGS).
    """

    source: str | Path | bert.BertConfig | llama.LlamaConfig
    shapes: Sequence[tuple[int, int]]
    cases: Sequence[tuple[str, str]]


SETTINGS: dict[str, tuple[int, Probe, int]] = {
    "4 bits, beside": (4, "beside", 0),
    "signs, beside": (1, "beside", 0),
    "4 bits, codes": (4, "codes", 0),
    "signs, codes": (1, "codes", 0),
    "4 bits, beside, feedback 8": (4, "beside", 8),
    f"signs, beside{XLA}": (1, "beside", 0),
}
# A residual of the last records is for integers.
EVERY = tuple(
    (profile, setting)
    for profile in quant.PROFILES
    for setting, (_, _, feedback) in SETTINGS.items()
    if not setting.endswith(XLA) and not (feedback and "fp8" in profile)
)
FEW = (
    ("w8a8_int", "signs, beside"),
    ("w8a8_int", f"signs, beside{XLA}"),
    ("w8a8_int", "4 bits, codes"),
    ("w8a8_fp8", "signs, beside"),
)

SCALES: dict[str, Scale] = {
    "minilm": Scale(source="minilm", shapes=((16, 64),), cases=EVERY),
    "large": Scale(source=BERT_LARGE, shapes=((64, 64),), cases=FEW),
    "billion": Scale(source=LLAMA_1B, shapes=((8, 512),), cases=FEW),
}


def run(
    repeats: int = 5,
    *,
    scale: str = "minilm",
    source: str | Path | bert.BertConfig | llama.LlamaConfig | None = None,
    shapes: Sequence[tuple[int, int]] | None = None,
    cases: Sequence[tuple[str, str]] | None = None,
) -> Iterator[Record]:
    """Measures the step for every precision and way of probing.

    Args:
      repeats: rounds of each interleaved timing.
      scale: name in SCALES, whose fields hold where an argument is None.
      source: as `Scale` has it.
      shapes: (rows, tokens) of the batches.
      cases: as `Scale` has them.

    Yields:
      Lines: bytes, temporaries, and times in ms, each compared with the float step along signs.
    """
    sizes: Scale = chosen(scale, SCALES)
    task, params, kernels, tables = _model(sizes.source if source is None else source)
    plain = "float32"
    full = params
    if isinstance(task, NextToken):
        plain, full = "bfloat16", cast(params, "bfloat16", stacked=llama.STACKED)
    signs = f"{plain}, signs"
    held = {signs: [jax.tree.map(jnp.copy, full)], f"{plain}, normal": [jax.tree.map(jnp.copy, full)]}
    chains = {signs: sgd_chain(Rademacher()), f"{plain}, normal": sgd_chain(Gaussian())}
    quantized: dict[str, Any] = {}
    for profile, setting in sizes.cases if cases is None else cases:
        if profile not in quantized:
            rules = quant.profile_rules(quant.PROFILES[profile], kernels=kernels, tables=tables, rest="")
            quantized[profile] = quant.quantize_tree(params, rules)
        held[f"{profile}, {setting}"] = [jax.tree.map(jnp.copy, quantized[profile])]  # donated
        chains[f"{profile}, {setting}"] = _quzo(*SETTINGS[setting])
    quantized.clear()
    del params, full
    for rows, length in sizes.shapes if shapes is None else shapes:
        batch = jax.device_put(
            task.batch(rows, length)
            if isinstance(task, NextToken)
            else random_batch(task.config.vocab_size, rows, length)
        )
        shape, calls, needed, steps, compiled = f"{rows}x{length}", {}, {}, {}, {}
        for of_xla in (False, True):
            names = [name for name in chains if name.endswith(XLA) == of_xla]
            kinds = {name.split(",")[0] + of_xla * XLA: name for name in reversed(names)}  # of weights and products
            # The compiler works on all of them at once.
            with _without_kernels() if of_xla else nullcontext(), ThreadPoolExecutor() as pool:
                forwards = pool.map(lambda name: _forward(task, held[name], batch), kinds.values())  # noqa: B023
                made = pool.map(lambda name: programs(task, held[name], batch, chains[name]), names)  # noqa: B023
                calls |= {f"forward, {kind}, {shape}": f for kind, f in zip(kinds, forwards, strict=True)}
                compiled |= dict(zip(names, made, strict=True))
        for name, step in compiled.items():
            steps[f"step, {name}, {shape}"] = parts = (f"measure, {name}, {shape}", f"apply, {name}, {shape}")
            calls[parts[0]], calls[parts[1]] = step.call_measure, step.call_apply
            memory = step.apply.memory_analysis()
            needed[name] = {
                "weights_and_state": memory.argument_size_in_bytes,
                "measure_temporaries": temporaries(step.measure),
                "apply_temporaries": temporaries(step.apply),
            }
        for name, measured in needed.items():
            reference = None if name == signs else signs
            for metric, value in measured.items():
                yield record(
                    BENCH,
                    f"{name}, {shape}",
                    metric,
                    value,
                    "bytes",
                    reference=None if reference is None else f"{reference}, {shape}",
                    reference_value=needed[signs][metric],
                )
        seconds = interleave(calls, repeats)
        for step, (measure, apply) in steps.items():
            seconds[step] = seconds[measure] + seconds[apply]
        references = {}
        for case in seconds:
            kind = case.split(",", 1)[0]
            reference = f"{kind}, {plain if kind == 'forward' else signs}, {shape}"
            if case != reference:
                references[case] = reference
        yield from timings(BENCH, seconds, references)


@contextmanager
def _without_kernels():
    """What is compiled meanwhile on a GPU multiplies codes as XLA does."""
    supported = gpu.supported
    gpu.supported = lambda *args, **options: "switched off"
    try:
        yield
    finally:
        gpu.supported = supported


def _model(source: str | Path | bert.BertConfig | llama.LlamaConfig) -> tuple[Any, Any, str, str]:
    """(task, float32 parameters, patterns of matrices and of tables)."""
    if isinstance(source, llama.LlamaConfig):
        task = NextToken(config=source)
        return task, task.init(jax.random.key(0)), llama.KERNELS, llama.TABLES
    return *classifier(source), bert.KERNELS, bert.TABLES


def _forward(task, held, batch):
    forward = jax.jit(lambda params, batch: task.loss(params, batch)[0]).lower(held[0], batch).compile()
    return lambda: forward(held[0], batch)
