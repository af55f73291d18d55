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
      profiles: names in `quant.PROFILES`.
      settings: names in SETTINGS.
    """

    source: str | Path | bert.BertConfig | llama.LlamaConfig
    shapes: Sequence[tuple[int, int]]
    profiles: Sequence[str]
    settings: Sequence[str]


SETTINGS: dict[str, tuple[int, Probe, int]] = {
    "4 bits, beside": (4, "beside", 0),
    "signs, beside": (1, "beside", 0),
    "4 bits, codes": (4, "codes", 0),
    "signs, codes": (1, "codes", 0),
    "4 bits, beside, feedback 8": (4, "beside", 8),
    f"signs, beside{XLA}": (1, "beside", 0),
}
SHORT = ("signs, beside", f"signs, beside{XLA}", "4 bits, codes", "signs, codes")
BYTES = ("w8a8_int", "w8a8_fp8")

SCALES: dict[str, Scale] = {
    "minilm": Scale(source="minilm", shapes=((16, 64),), profiles=tuple(quant.PROFILES), settings=tuple(SETTINGS)[:-1]),
    "large": Scale(source=BERT_LARGE, shapes=((64, 64),), profiles=BYTES, settings=SHORT),
    "billion": Scale(source=LLAMA_1B, shapes=((8, 512),), profiles=BYTES, settings=SHORT),
}


def run(
    repeats: int = 5,
    *,
    scale: str = "minilm",
    source: str | Path | bert.BertConfig | llama.LlamaConfig | None = None,
    shapes: Sequence[tuple[int, int]] | None = None,
    profiles: Sequence[str] | None = None,
    settings: Sequence[str] | None = None,
) -> Iterator[Record]:
    """Measures the step for every precision and way of probing.

    Args:
      repeats: rounds of each interleaved timing.
      scale: name in SCALES, whose fields hold where an argument is None.
      source: as `Scale` has it.
      shapes: (rows, tokens) of the batches.
      profiles: names in `quant.PROFILES`.
      settings: names in SETTINGS; those with feedback are left out for 8-bit floats.

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
    for name in sizes.profiles if profiles is None else profiles:
        quantized = quant.quantize_tree(
            params, quant.profile_rules(quant.PROFILES[name], kernels=kernels, tables=tables, rest="")
        )
        for setting in sizes.settings if settings is None else settings:
            bits, probe, feedback = SETTINGS[setting]
            if not (feedback and "fp8" in name):
                held[f"{name}, {setting}"] = [jax.tree.map(jnp.copy, quantized)]  # donated
                chains[f"{name}, {setting}"] = _quzo(bits, probe, feedback)
    del params, full
    for rows, length in sizes.shapes if shapes is None else shapes:
        batch = jax.device_put(
            task.batch(rows, length)
            if isinstance(task, NextToken)
            else random_batch(task.config.vocab_size, rows, length)
        )
        shape, calls, needed, steps = f"{rows}x{length}", {}, {}, {}
        compiled = {}
        for of_xla in (False, True):
            names = [name for name in chains if name.endswith(XLA) == of_xla]
            # The compiler works on all of them at once.
            with _without_kernels() if of_xla else nullcontext(), ThreadPoolExecutor() as pool:
                forwards = pool.map(lambda name: _forward(task, held[name], batch), names)  # noqa: B023
                made = pool.map(lambda name: programs(task, held[name], batch, chains[name]), names)  # noqa: B023
                compiled |= dict(zip(names, zip(forwards, made, strict=True), strict=True))
        for name, (forward, step) in compiled.items():
            calls[f"forward, {name}, {shape}"] = forward
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
            if case != f"{kind}, {signs}, {shape}":
                references[case] = f"{kind}, {signs}, {shape}"
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
