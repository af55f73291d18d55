"""What a transducer recognises, and how far that is from what was said."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.common import quantization
from launch.common.schema import Config
from launch.speech import biasing, recipe
from models.transducer.decode import ExpansionBeam, Greedy, Hypotheses, Search, decode
from models.transducer.deployed import deploy
from models.transducer.integer_task import IntegerTask
from models.transducer.task import TransducerTask
from zojax import train
from zojax.data.audio.units import Units
from zojax.metrics import Errors, word_errors
from zojax.train import checkpoint
from zojax.trees import merge

Params = Any

# The most labels at one encoder frame, and nats by which the beam's extensions may fall behind.
MAX_SYMBOLS, GAMMA = 5, 6.0


def search(frames: int, beam: int) -> Search:
    """How frames are searched: for up to a label a frame, in few sizes, so that few programs are compiled.

    Args:
      frames: encoder frames of the longest utterance.
      beam: hypotheses; 0: greedy search.

    Returns:
      The search.
    """
    most = max(64, 1 << (frames - 1).bit_length())
    if not beam:
        return Greedy(max_labels=most, max_symbols=MAX_SYMBOLS)
    return ExpansionBeam(max_labels=most, beam=beam, max_symbols=MAX_SYMBOLS, gamma=GAMMA)


def recognise(
    task: train.Task, params: Params, found: Iterable[Any], made: Units, *, beam: int = 0
) -> Iterator[tuple[int, str, str]]:
    """What is said in evaluation batches.

    Args:
      task: the transducer.
      params: all of its weights.
      found: batches.
      made: the units.
      beam: hypotheses; 0: greedy search.

    Yields:
      (id, what was said, what was recognised) of each utterance.
    """
    one, params = deployed(task, params)
    for batch in found:
        led = biasing.led(one, params, batch)
        frames, mask = encoder_program(one)(led, batch)
        best = decode(search(frames.shape[1], beam), one.decodable(led), frames, mask)
        heard = best_labels(best)
        for row in np.flatnonzero(batch["weight"] > 0):
            said = made.decode(batch["labels"][row, : batch["label_lengths"][row]])
            yield int(batch["id"][row]), said, made.decode(heard[row])


def best_labels(found: Hypotheses) -> list[np.ndarray]:
    """The labels of each row's best hypothesis."""
    tokens, lengths = np.asarray(found.tokens[:, 0]), np.asarray(found.lengths[:, 0])
    return [row[:length] for row, length in zip(tokens, lengths, strict=True)]


def deployed(task: train.Task, params: Params) -> tuple[TransducerTask, Params]:
    """The task and the weights that recognise: the integers themselves, where the task is on an accelerator."""
    task, params = quantization.deployed(task, params)
    if isinstance(task, IntegerTask):
        task, params = deploy(task, params)
    assert isinstance(task, TransducerTask)
    return task, params


@functools.lru_cache(maxsize=8)
def encoder_program(task: TransducerTask) -> Callable[[Params, Any], Any]:
    """The program that encodes a batch: one for all evaluations of a run."""
    return jax.jit(task.encode)


def errors(*arguments: Any, **options: Any) -> Errors:
    """The word errors of what `recognise` yields, of all utterances together."""
    return sum((word_errors(said, heard) for _, said, heard in recognise(*arguments, **options)), Errors())


def metrics(config: Config, run: Any, trainable: Params, *, split: str, beam: int = 0) -> dict[str, float]:
    """The word error rate of a split, and what it is counted from; nothing for a run of text.

    Args:
      config: the config of the run.
      run: what `build` has made of it.
      trainable: the trained weights.
      split: name of evaluation batches.
      beam: hypotheses; 0: greedy search.

    Returns:
      {"wer", "errors", "words"}.
    """
    if config.model.name != "transducer":
        return {}
    params = merge(trainable, run.frozen)
    found = errors(run.task, params, run.evaluation[split], recipe.make_units(config), beam=beam)
    return {"wer": found.rate, "errors": found.errors, "words": found.words}


def table(config: Config, run: Any, workdir: Path, result: train.Result) -> str:
    """Word error rates and losses on dev and test, of the last and the best weights; they go to eval.jsonl too."""
    program = train.make_evaluate(run.task)
    ends = {"last": (result.step, result.params)}
    if result.best is not None:
        step = result.best["step"]
        ends["best"] = (step, checkpoint.load(workdir / "best" / str(step), result.params))
    records = []
    lines = ["weights  step   split  words  errors     WER  nats a label"]
    for which, (step, params) in ends.items():
        for split in ("dev", "test"):
            loss = train.evaluate(program, params, run.frozen, run.evaluation[split])
            found = metrics(config, run, params, split=split)
            records.append({"split": split, "weights": which, "step": step, **loss, **found})
            counted = f"{found['words']:6,}  {found['errors']:6,}  {found['wer']:6.2%}"
            lines.append(f"{which:<7}  {step:<5}  {split:<5}  {counted}  {loss['nats_per_label']:12.4f}")
    (workdir / "eval.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return "\n".join([*lines, f"forward passes: {result.forwards:,}"])
