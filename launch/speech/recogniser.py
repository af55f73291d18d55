"""A run of speech without its data: what its folder holds is enough to recognise."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from launch.common import schema, weights
from launch.common.build import build
from launch.common.methods import make_method
from launch.common.schema import Config
from launch.speech import recipe, recognition, signals
from launch.speech.exported import Exported
from models.transducer.decode import Fusion
from models.transducer.deployed import DeployedTask, config_of
from models.transducer.task import TransducerTask
from zojax.data.audio.features import FilterBank
from zojax.data.audio.units import Units
from zojax.train import checkpoint
from zojax.trees import merge, split

__all__ = ["Recogniser", "load", "of_export"]

Params = Any


class Recogniser(NamedTuple):
    """What recognises.

    Attributes:
      config: of the run; None: it is an export.
      task: the transducer.
      params: all of its weights; on an accelerator its integers.
      units: what labels stand for.
      bank: the features.
      boost: phrases that lead its searches, beside those that it remembers itself; None: none.
    """

    config: Config
    task: TransducerTask
    params: Params
    units: Units
    bank: FilterBank
    boost: Fusion | None = None

    @property
    def signals(self) -> tuple[int, ...]:
        """The signals that are heard; none where an utterance is one."""
        return () if self.config is None else tuple(self.config.speech.signals)


def of_export(held: Exported) -> Recogniser:
    """What recognises with the integers of a file of `launch.export`."""
    task = DeployedTask(config=config_of(held.network), accelerator=held.accelerator, front_end=signals.one(held.bank))
    return Recogniser(None, task, {"network": held.network, "frames": held.frames}, held.units, held.bank)


def load(workdir: Path, which: str) -> Recogniser:
    """Reads a run of speech. What it kept frozen is that of the run which its config starts from.

    A run on an accelerator is built as it was for its training: its formats are ranges over the training data, which it
    needs for that.

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
    if config.adapter.rank:
        raise ValueError(f"workdir: {workdir} holds a run with config.adapter.rank={config.adapter.rank}; 0 is needed")
    units = recipe.load_units(workdir)
    if config.integer.accelerator != "none":
        path = weights.find_weights(workdir, which)
        run = build(config, splits=("dev",))
        task, params = recognition.deployed(run.task, merge(weights.load_weights(path, run), run.frozen))
        return Recogniser(config, task, params, units, recipe.filter_bank(config))
    task, key = recipe.make_task(config, units.size), jax.random.key(config.seed)
    trainable, frozen = split(jax.eval_shape(task.init, key), tuple(config.trainable))
    if jax.tree.leaves(frozen):
        if not config.model.weights:
            raise ValueError(
                f"workdir: {workdir} has trained {tuple(config.trainable)} of random weights; the others were not kept"
            )
        # What has been added to that run is trained here, or nowhere.
        whole = recipe.with_new_parts(load(*weights.parse(config.model.weights)).params, jax.eval_shape(task.init, key))
        _, frozen = split(whole, tuple(config.trainable))
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(frozen)):
            raise ValueError(
                f"workdir: {workdir} has trained {tuple(config.trainable)} of new adapters; the others were not kept"
            )
    path = weights.find_weights(workdir, which)
    if path.parent.name == "checkpoints":
        method, _ = make_method(config, task, trainable, key, rounding_key=key, steps_per_epoch=1)
        found = checkpoint.load(path, (trainable, jax.eval_shape(method.init, trainable)))[0]
    else:
        found = checkpoint.load(path, trainable)
    return Recogniser(config, task, merge(found, frozen), units, recipe.filter_bank(config))
