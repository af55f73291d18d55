"""A QuZO step on a quantised pretrained encoder, over the float step: time, and bytes of weights and state.

Both train all weights with SGD: the float step along signs (and along normal directions), QuZO along directions of 4
bits and along signs, with updates on the grid. The bytes are those of the arguments of `apply`, weights and state.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from launch.bench._harness import Record, interleave, record, temporaries, timings
from launch.bench.zo_step import EPS, LEARNING_RATE, classifier, programs, random_batch, sgd_chain
from models.language import bert
from zojax import estimators, quant
from zojax.directions import Gaussian, Rademacher
from zojax.estimators import Estimator
from zojax.perturb import PerturbSpec, Probe

__all__ = ["run"]

BENCH = "quzo_step"
REFERENCE = "float32, signs"


def _quzo(bits: int, probe: Probe, feedback: int) -> Estimator:
    spec = PerturbSpec(stacked=bert.STACKED, probe=probe)
    head = estimators.quzo(EPS, spec, bits=bits, key=jax.random.key(1))
    chain = estimators.chain(head, optax.sgd(LEARNING_RATE))
    return quant.on_grid(chain, key=jax.random.key(2), feedback=feedback)


def run(
    repeats: int = 5,
    *,
    source: str | Path = "minilm",
    shapes: Sequence[tuple[int, int]] = ((16, 64),),
    profiles: Sequence[str] = tuple(quant.PROFILES),
) -> Iterator[Record]:
    """Measures the step for every precision and way of probing.

    Args:
      repeats: rounds of each interleaved timing.
      source: as `hub.load` takes it.
      shapes: (rows, tokens) of the batches.
      profiles: names in `quant.PROFILES`.

    Yields:
      Lines: bytes, temporaries, and times in ms, each compared with the float step along signs.
    """
    task, params = classifier(source)
    held = {REFERENCE: [params], "float32, normal": [jax.tree.map(jnp.copy, params)]}
    chains = {REFERENCE: sgd_chain(Rademacher()), "float32, normal": sgd_chain(Gaussian())}
    for name in profiles:
        rules = quant.profile_rules(quant.PROFILES[name], kernels=bert.KERNELS, tables=bert.TABLES, rest="")
        settings: dict[str, tuple[int, Probe, int]] = {
            "4 bits, beside": (4, "beside", 0),
            "signs, beside": (1, "beside", 0),
            "4 bits, codes": (4, "codes", 0),
            "signs, codes": (1, "codes", 0),
        }
        if "fp8" not in name:
            settings["4 bits, beside, feedback 8"] = (4, "beside", 8)
        for setting, options in settings.items():
            held[f"{name}, {setting}"] = [jax.tree.map(jnp.copy, quant.quantize_tree(params, rules))]  # donated
            chains[f"{name}, {setting}"] = _quzo(*options)
    for rows, length in shapes:
        batch = jax.device_put(random_batch(task.config.vocab_size, rows, length))
        shape, calls, sizes, steps = f"{rows}x{length}", {}, {}, {}
        for name, tx in chains.items():
            calls[f"forward, {name}, {shape}"] = _forward(task, held[name], batch)
            step = programs(task, held[name], batch, tx)
            steps[f"step, {name}, {shape}"] = parts = (f"measure, {name}, {shape}", f"apply, {name}, {shape}")
            calls[parts[0]], calls[parts[1]] = step.call_measure, step.call_apply
            memory = step.apply.memory_analysis()
            sizes[name] = {
                "weights_and_state": memory.argument_size_in_bytes,
                "measure_temporaries": temporaries(step.measure),
                "apply_temporaries": temporaries(step.apply),
            }
        for name, measured in sizes.items():
            reference = None if name == REFERENCE else REFERENCE
            for metric, value in measured.items():
                yield record(
                    BENCH,
                    f"{name}, {shape}",
                    metric,
                    value,
                    "bytes",
                    reference=None if reference is None else f"{reference}, {shape}",
                    reference_value=sizes[REFERENCE][metric],
                )
        seconds = interleave(calls, repeats)
        for step, (measure, apply) in steps.items():
            seconds[step] = seconds[measure] + seconds[apply]
        references = {}
        for case in seconds:
            kind = case.split(",", 1)[0]
            if case != f"{kind}, {REFERENCE}, {shape}":
                references[case] = f"{kind}, {REFERENCE}, {shape}"
        yield from timings(BENCH, seconds, references)


def _forward(task, held, batch):
    forward = jax.jit(lambda params, batch: task.loss(params, batch)[0]).lower(held[0], batch).compile()
    return lambda: forward(held[0], batch)
