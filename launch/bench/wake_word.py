"""Dual attention for wake words: operations and time of a frame in and out of wake words, against a single attention.

Operations are those of the compiled programs, set against 2 d (d_q + d_out) + 4 K d. Times are of whole programs, with
the spotter where there is one, a frame:

    stream, inside      one row, frame by frame, all frames of a wake word: the small attention alone runs
    stream, outside     the same of frames that are none: the large one alone
    stream, single      the large one over wake words and catalogue
    whole, ..           rows of utterances: in blocks that chose alike, by both attentions at each frame (dense), single
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.bench._harness import Record, interleave, record
from launch.speech.wake_words import operations
from models.transducer import wake_word
from models.transducer.wake_word import WakeWordConfig

__all__ = ["run"]

BENCH = "wake_word"
LABELS = 12  # of a phrase


def run(
    repeats: int = 30,
    *,
    width: int = 640,
    large: int = 640,
    small: int = 64,
    catalogue: int = 300,
    words: int = 5,
    rows: int = 16,
    frames: int = 96,
    inside: float = 0.125,
) -> Iterator[Record]:
    """Measures all cases.

    Args:
      repeats: rounds of the interleaved timing.
      width: of the frames.
      large: of the attention over the catalogue.
      small: of the attention over wake words.
      catalogue: phrases in it.
      words: wake words.
      rows: of the whole utterances.
      frames: of a row; of the stream as well.
      inside: share of the whole utterances' frames that are of wake words.

    Yields:
      Lines: operations a frame, those of wake words and of others against the single attention's, those of each
      attention against the formula; microseconds a frame, against the single attention's; the largest difference of
      blocks from the dense program.
    """
    config = WakeWordConfig(width=width, classes=30, large=large, small=small)
    single = dataclasses.replace(config, single=True)
    cost, alone = operations(config, words, catalogue), operations(single, words, catalogue)["inside"]
    spotter = operations(config, 0, 0)["spotter"]
    rival = f"single, K={words + catalogue}"
    yield record(BENCH, rival, "flops", alone, "1/frame")
    for place in ("inside", "outside"):
        yield record(BENCH, place, "flops", cost[place], "1/frame", reference=rival, reference_value=alone)
    yield record(BENCH, "spotter", "flops", spotter, "1/frame")
    for name, place, d, k in (("small", "inside", small, words), ("large", "outside", large, catalogue)):
        formula = 4 * d * width + 4 * k * d
        of = f"formula, d={d}, K={k}"
        yield record(BENCH, of, "flops", formula, "1/frame")
        own = cost[place] - spotter
        yield record(BENCH, f"{name}, K={k}", "flops", own, "1/frame", reference=of, reference_value=formula)

    calls, references = _calls(config, single, words, catalogue, rows, frames, inside)
    whole, dense = (np.asarray(calls[f"whole, {name}"]()) for name in ("blocks", "dense"))
    yield record(BENCH, "whole, blocks", "error", float(np.abs(whole - dense).max()), "1")
    seconds = interleave(calls, repeats)
    per_frame = {case: frames * (rows if case.startswith("whole") else 1) for case in calls}
    for case, measured in seconds.items():
        other = references.get(case)
        for metric, reduce in (("time_median", np.median), ("time_min", np.min)):
            value = 1e6 * float(reduce(measured)) / per_frame[case]
            against = None if other is None else 1e6 * float(reduce(seconds[other])) / per_frame[other]
            yield record(BENCH, case, metric, value, "us/frame", reference=other, reference_value=against)


def _calls(
    config: WakeWordConfig, single: WakeWordConfig, words: int, catalogue: int, rows: int, frames: int, inside: float
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Compiled programs by case, and what each is compared with."""
    rng = np.random.default_rng(0)
    # Outputs start as 0, and a product with 0 would not be dense's.
    params = jax.tree.map(
        lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), wake_word.init(config, jax.random.key(0))
    )
    lists = tuple(jnp.asarray(rng.integers(1, 30, (count, LABELS))) for count in (words, catalogue))
    remember = jax.jit(wake_word.remember, static_argnums=0)
    calls: dict[str, Callable[[], Any]] = {}
    for name, shape in (("stream", (1, frames)), ("whole", (rows, frames))):
        x = jnp.asarray(rng.normal(size=(*shape, config.width)), jnp.float32)
        ways = {"stream": {"inside": 1.0, "outside": 0.0}, "whole": {"blocks": inside, "dense": inside}}[name]
        for way, share in ways.items():
            choice = jnp.asarray(rng.random(shape) < share, jnp.int32)
            if name == "whole":
                choice = jnp.asarray(np.arange(frames) < share * frames, jnp.int32) * jnp.ones(shape, jnp.int32)
            calls[f"{name}, {way}"] = _compiled(config, way, params, remember(config, params, *lists), x, choice)
        memories = remember(single, params, *lists)
        calls[f"{name}, single"] = _compiled(single, name, params, memories, x, jnp.zeros(shape, jnp.int32))
    return calls, {case: f"{case.split(',')[0]}, single" for case in calls if not case.endswith("single")}


def _compiled(config: WakeWordConfig, way: str, params: Any, memories: Any, x: Any, choice: Any) -> Callable[[], Any]:
    """The biases of frames, the spotter's work done beside them: what it chooses is given, so that it is known."""

    def program(params, memories, x, choice):
        chosen = wake_word.branches(config, params, memories)
        if not config.single:
            # Its logits are used, but never change a choice.
            logits = wake_word.spot(config, params, x, jnp.ones(choice.shape, bool))
            choice = jnp.where(jnp.isnan(logits), -1, choice)
        if way == "dense":
            made = [branch(x.reshape(-1, config.width)).reshape(x.shape) for branch in chosen]
            return jnp.where((choice == 0)[..., None], made[0], made[1])
        if way in ("blocks", "whole"):
            return wake_word.bias(chosen, x, choice, config.block)
        return wake_word.bias_step(chosen, x, choice)

    return functools.partial(jax.jit(program).lower(params, memories, x, choice).compile(), params, memories, x, choice)
