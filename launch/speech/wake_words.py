"""Wake words: from the `wake` fields of a config to phrases, spans and figures; and what a run of them is judged by."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.common.schema import Config
from models.transducer import wake_word
from models.transducer.model import transducer
from models.transducer.task import TransducerTask
from models.transducer.wake_word import WakeWordConfig
from models.transducer.wake_word_task import WakeWordTask
from zojax.data.audio import wake
from zojax.data.audio.features import FilterBank
from zojax.data.audio.units import Units
from zojax.data.audio.waves import RATE
from zojax.metrics import Detections, detections, runs

__all__ = [
    "Beside",
    "Lists",
    "beside",
    "figures",
    "judged",
    "lists",
    "named",
    "operations",
    "phrases",
    "remembering",
    "summary",
    "task_of",
]

# Files of a folder of speech, a phrase a line.
FILES = {"wake": "wake_words.txt", "catalogue": "catalogue.txt"}

# Share of the training batches' own phrases that their catalogue lacks, so that "none of these" is learnt.
ABSENT = 0.2

# Seconds by which a wake word may be heard beside where it is said.
TOLERANCE = 0.25


class Lists(NamedTuple):
    """Phrases: the wake words, and the catalogue."""

    wake: tuple[str, ...]
    catalogue: tuple[str, ...]


def lists(config: Config, split: str) -> Lists:
    """The phrases of a split: those of the embedded corpus, or of a folder's own files for all its splits.

    Args:
      config: of a run.
      split: its name.

    Returns:
      The phrases; none of a corpus that has none.
    """
    if config.data.source == "wake":
        return Lists(wake.wake_words(split), wake.names(split))
    paths = (Path(config.data.source) / name for name in FILES.values())
    return Lists(*(read(path) if path.is_file() else () for path in paths))


def read(path: Path) -> tuple[str, ...]:
    """The phrases of a file, one a line; empty lines are none."""
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def phrases(found: Lists, made: Units) -> dict[str, np.ndarray]:
    """Phrases as the task takes them.

    Args:
      found: the phrases.
      made: the units.

    Returns:
      {"wake", "catalogue"}: int32 labels, 0 behind them.

    Raises:
      ValueError: naming a phrase and its character that no unit writes.
    """
    return {name: _labels(getattr(found, name), made) for name in Lists._fields}


def _labels(texts: Sequence[str], made: Units) -> np.ndarray:
    rows = [made.encode(text) for text in texts]
    padded = np.zeros((len(rows), max(map(len, rows), default=1)), np.int32)
    for row, labels in zip(padded, rows, strict=True):
        row[: len(labels)] = labels
    return padded


def task_of(config: Config, task: TransducerTask) -> TransducerTask:
    """The task with the attentions of a config, where it has any."""
    c = config.wake
    if c.attention == "none":
        return task
    sizes = WakeWordConfig(
        width=task.config.joint,
        classes=task.config.classes,
        embedding=c.hidden,
        hidden=c.hidden,
        small=c.small,
        large=c.large,
        spotter=c.spotter,
        single=c.attention == "single",
    )
    return WakeWordTask(**vars(task), wake=sizes, jitter=c.jitter, spotting=float(c.spotting))


Beside = Callable[[np.ndarray, int | None], dict[str, Any]]


def beside(
    config: Config, made: Units, split: str, ids: Sequence[str], texts: Sequence[str], bank: FilterBank
) -> Beside:
    """What the batches of a split have beside speech: phrases, and the spans of wake words.

    A training batch has a catalogue of `wake.catalogue` phrases: those that are said in it, but for a fifth of them,
    and others by chance. It depends on the seed and the step alone. An evaluation batch has the whole catalogue.

    Args:
      config: of the run.
      made: the units.
      split: its name.
      ids: of its utterances, which tell the spans.
      texts: of its utterances.
      bank: the features.

    Returns:
      (positions of the rows' utterances, those heard at other speeds behind the others; step, None in evaluation) ->
      fields of a batch.
    """
    if config.wake.attention == "none":
        return lambda rows, step: {}
    found = lists(config, split)
    known, size, speeds = phrases(found, made), len(ids), np.array(config.speech.speeds)
    spans = np.array([wake.span(name) or (0, 0) for name in ids])
    said = [[n for n, phrase in enumerate(found.catalogue) if f" {phrase} " in f" {text} "] for text in texts]
    most = min(config.wake.catalogue, len(found.catalogue))

    def fields(rows: np.ndarray, step: int | None) -> dict[str, Any]:
        if step is None:
            return {"phrases": known, "spans": _frames(spans[rows], bank)}
        rng = np.random.default_rng((config.seed, step))
        own = np.unique([n for row in rows for n in said[row % size]]).astype(int)
        own = own[rng.random(len(own)) >= ABSENT]
        others = rng.permutation(np.setdiff1d(np.arange(len(found.catalogue)), own))
        listed = rng.permutation(np.concatenate([own, others])[:most])
        heard = spans[rows % size] * (100 / speeds[rows // size])[:, None]
        return {"phrases": known | {"catalogue": known["catalogue"][listed]}, "spans": _frames(heard, bank)}

    return fields


def _frames(samples: np.ndarray, bank: FilterBank) -> np.ndarray:
    return np.round(samples / bank.hop).astype(np.int32)


@functools.lru_cache(maxsize=8)
def _hears(task: WakeWordTask) -> Callable[[Any, Any], jax.Array]:
    return jax.jit(task.hears)


def remembering(task: TransducerTask, params: Any, made: Units, found: Lists) -> Any:
    """The weights of a run with phrases that they remember; themselves, where nothing reads phrases.

    Args:
      task: the transducer.
      params: all of its weights.
      made: the units.
      found: the phrases.

    Raises:
      ValueError: naming a phrase and its character that no unit writes.
    """
    return task.with_catalogue(params, phrases(found, made)) if isinstance(task, WakeWordTask) else params


def named(config: Config, words: str, catalogue: str) -> Lists:
    """The phrases of two files; where one is not named, those of the run's own test split.

    Args:
      config: of the run.
      words: file of wake words, or nothing.
      catalogue: file of the other phrases, or nothing.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    own = lists(config, "test")
    return Lists(read(Path(words)) if words else own.wake, read(Path(catalogue)) if catalogue else own.catalogue)


def figures(found: Lists, pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """How well wake words are recognised, by the texts.

    Args:
      found: the phrases.
      pairs: (what was said, what was recognised).

    Returns:
      "wake_f1", of (utterance, wake word) pairs; nothing without wake words.
    """
    if not found.wake:
        return {}
    total = Detections()
    for said, heard in pairs:
        for word in found.wake:
            total += _counted(*(f" {word} " in f" {text} " for text in (said, heard)))
    return {"wake_f1": total.f1}


def judged(
    task: TransducerTask, params: Any, batches: Sequence[Any], bank: FilterBank, found: Lists
) -> dict[str, float]:
    """Figures of a run's attentions: of its spotter, what a frame costs, and its weights; nothing of a run without.

    Args:
      task: the transducer.
      params: all of its weights.
      batches: evaluation batches.
      bank: the features.
      found: their phrases.

    Returns:
      Those of `spotting`; "flops_inside" and "flops_outside", operations a frame in and out of wake words, and "flops",
      of the mean frame; "added" and "weights": how many the small attention and the spotter have, and all together.
    """
    if not isinstance(task, WakeWordTask):
        return {}
    values = spotting(task, params, batches, bank)
    cost = operations(task.wake, len(found.wake), len(found.catalogue))
    inside = values.get("inside", 0.0)
    values |= {f"flops_{name}": value for name, value in cost.items()}
    values["flops"] = inside * cost["inside"] + (1 - inside) * cost["outside"]
    added, weights = share(params)
    return values | {"added": added, "weights": weights}


def summary(values: Mapping[str, float]) -> str:
    """What `judged` has found, in two lines."""
    cost = " ".join(f"{values[f'flops_{name}'] / 1e6:.3f} {name}" for name in ("inside", "outside"))
    first = f"attention: MFLOP a frame {cost}, {values['flops'] / 1e6:.3f} over all"
    if "spot_f1" not in values:
        return first
    timed = f"spotter: F1 {values['spot_f1']:.3f}, {values['spot_f1_timed']:.3f} in its place"
    weights = f"{values['added'] / values['weights']:.2%} of the weights are its own and the small attention's"
    return f"{first}; {values['inside']:.1%} of the frames inside\n{timed}; {weights}"


def spotting(task: WakeWordTask, params: Any, batches: Sequence[Any], bank: FilterBank) -> dict[str, float]:
    """How well a spotter hears wake words, and how often it chooses the small attention.

    Args:
      task: the transducer.
      params: all of its weights.
      batches: evaluation batches with spans.
      bank: the features.

    Returns:
      "spot_f1", by utterance; "spot_f1_timed", where what is heard has to be where it is, to a quarter of a second;
      "inside", share of frames. Nothing of a task without a spotter.
    """
    if task.wake.single:
        return {}
    stride, second = transducer(task.config).encoder.stride, bank.hop / RATE
    by_utterance, timed, inside, frames = Detections(), Detections(), 0, 0
    for batch in batches:
        heard = np.asarray(_hears(task)(params, batch))
        for row in np.flatnonzero(batch["weight"] > 0):
            begin, end = (float(x) * second for x in batch["spans"][row])
            wanted = [(begin, end)] if end > begin else []
            events = [(a * stride * second, b * stride * second) for a, b in runs(heard[row].tolist(), task.wake.least)]
            by_utterance += _counted(bool(wanted), bool(events))
            timed += detections(events, wanted, tolerance=TOLERANCE)
            inside, frames = inside + int(heard[row].sum()), frames + int(batch["frame_lengths"][row]) // stride
    return {"spot_f1": by_utterance.f1, "spot_f1_timed": timed.f1, "inside": inside / max(frames, 1)}


def _counted(there: bool, found: bool) -> Detections:
    return Detections(hits=int(there and found), misses=int(there and not found), false=int(found and not there))


def operations(config: WakeWordConfig, wake_words: int, catalogue: int) -> dict[str, float]:
    """Operations of the attentions and the spotter for a frame, of the compiled programs.

    Args:
      config: sizes.
      wake_words: how many there are.
      catalogue: phrases in it.

    Returns:
      "inside" and "outside" of wake words, the "spotter"'s among them; with `single` both are alike, and it has none.
    """
    params = jax.eval_shape(lambda: wake_word.init(config, jax.random.key(0)))
    words, names = (jnp.ones((count, 1), jnp.int32) for count in (wake_words, catalogue))
    memories = jax.eval_shape(functools.partial(wake_word.remember, config), params, words, names)
    x, mask = jnp.ones((1, 1, config.width)), jnp.ones((1, 1), bool)

    def branch(number: int) -> Callable[..., Any]:
        return lambda p, m: wake_word.branches(config, p, m)[number](x[0])

    if config.single:
        return dict.fromkeys(("inside", "outside"), _flops(branch(0), params, memories)) | {"spotter": 0.0}
    spotter = _flops(lambda p: wake_word.spot(config, p, x, mask), params)
    own = {name: _flops(branch(number), params, memories) for name, number in (("outside", 0), ("inside", 1))}
    return {name: spotter + value for name, value in own.items()} | {"spotter": spotter}


def _flops(function: Callable[..., Any], *args: Any) -> float:
    cost: Any = jax.jit(function).lower(*args).compile().cost_analysis()
    return float(cost["flops"])


def share(params: Any) -> tuple[int, int]:
    """(weights that dual attention has beside a single one, all weights)."""
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    own = {name: params["wake"].get(name, ()) for name in ("small", "spotter")}
    return count(own), count({name: tree for name, tree in params.items() if name != "memories"})
