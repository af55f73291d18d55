"""A run of speech without its data: what its folder holds is enough to recognise."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from launch import schema, speech, weights
from launch.methods import make_method
from launch.schema import Config
from models.transducer.task import TransducerTask
from zojax.data.audio.features import FilterBank
from zojax.data.audio.units import Units
from zojax.train import checkpoint
from zojax.trees import merge, split

__all__ = ["Recogniser", "load"]

Params = Any


class Recogniser(NamedTuple):
    """What recognises.

    Attributes:
      config: of the run.
      task: the transducer.
      params: all of its weights.
      units: what labels stand for.
      bank: the features.
    """

    config: Config
    task: TransducerTask
    params: Params
    units: Units
    bank: FilterBank


def load(workdir: Path, which: str) -> Recogniser:
    """Reads a run of speech. What it kept frozen is that of the run which its config starts from.

    Args:
      workdir: folder of the run.
      which: "last", "best" or "base" weights.

    Returns:
      What recognises.

    Raises:
      FileNotFoundError: if the folder holds no run, no such weights or no units.
      ValueError: if it is no run of speech, or frozen weights are nowhere to be read.
    """
    config = schema.load(workdir)
    if config.model.name != "transducer":
        raise ValueError(f"workdir: {workdir} holds a run with config.model.name={config.model.name!r}, not transducer")
    for name, value, needed in (
        ("adapter.rank", config.adapter.rank, 0),
        ("integer.accelerator", config.integer.accelerator, "none"),
    ):
        if value != needed:
            raise ValueError(f"workdir: {workdir} holds a run with config.{name}={value!r}; {needed!r} is needed")
    units = speech.load_units(workdir)
    task, key = speech.make_task(config, units.size), jax.random.key(config.seed)
    trainable, frozen = split(jax.eval_shape(task.init, key), tuple(config.trainable))
    if jax.tree.leaves(frozen):
        if not config.model.weights:
            raise ValueError(
                f"workdir: {workdir} has trained {tuple(config.trainable)} of random weights; the others were not kept"
            )
        _, frozen = split(load(*weights.parse(config.model.weights)).params, tuple(config.trainable))
    path = weights.find_weights(workdir, which)
    if path.parent.name == "checkpoints":
        method, _ = make_method(config, task, trainable, key, rounding_key=key, steps_per_epoch=1)
        found = checkpoint.load(path, (trainable, jax.eval_shape(method.init, trainable)))[0]
    else:
        found = checkpoint.load(path, trainable)
    return Recogniser(config, task, merge(found, frozen), units, speech.filter_bank(config))
