"""From the `integer` fields of a config of speech to a transducer on an accelerator."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax

from launch.common.integer_schema import depth
from launch.common.quantization import QuantisedTask
from launch.common.schema import Config
from launch.speech.recipe import STATISTICS, Loaded
from models.transducer.integer_formats import Formats
from models.transducer.integer_task import IntegerTask, calibrate
from zojax import quant, train
from zojax.accelerator import PRESETS
from zojax.quant import cosine, general
from zojax.quant.learned_step import initial_steps, learned_step
from zojax.quant.tables import Depth

Params = Any

GATES = r"^(encoder|predictor)/(.*/)?(input|recurrent)$"
KERNELS = r"^(encoder|predictor|joiner)/(.*/)?(input|recurrent|projection|kernel)$"
TABLES = r"^predictor/table$"


def rules(config: Config) -> tuple[quant.Rule, ...]:
    """How a transducer's weights lie on the accelerator's grid: a scale a column, and one for the table of labels.

    With `config.integer.scales` "gate", LSTMs have a scale a gate, as the kernels of some runtimes want it.
    """
    of_gates = quant.Rule(pattern=GATES, grid="int8_127", per="gate")
    return (
        quant.Rule(pattern=TABLES, grid="int8_127", per="tensor"),
        *([of_gates] if config.integer.scales == "gate" else []),
        quant.Rule(pattern=KERNELS, grid="int8_127"),
        quant.Rule(pattern="", grid=None),
    )


class Quantiser(NamedTuple):
    """A way of training weights that end on their grid.

    Attributes:
      extra: what is trained beside the weights, by its name in the tree.
      forward: (params with the extras, step or None) -> the tree with leaves that know their grid.
      penalty: params -> a term of the loss; None: none.
      compressor: what ends the chain of the optimiser; None: nothing.
    """

    extra: dict[str, Params]
    forward: Callable[[Params, Any], Params]
    penalty: Callable[[Params], Any] | None = None
    compressor: optax.GradientTransformation | None = None


def _without(params: Params, name: str) -> Params:
    return {key: value for key, value in params.items() if key != name}


def _allocation(config: Config) -> tuple[Depth, ...]:
    found = [depth(text) for text in config.integer.allocation]
    return (
        *(Depth(pattern=pair[0], bits=pair[1]) for pair in found if pair),
        Depth(pattern="", bits=config.integer.bits),
    )


def _absmax(config: Config, params: Params) -> Quantiser:
    return Quantiser({}, lambda params, step: quant.straight_through(params, rules(config)))


def _learned_step(config: Config, params: Params) -> Quantiser:
    def forward(params: Params, step: Any) -> Params:
        return learned_step(_without(params, "steps"), params["steps"], rules(config))

    return Quantiser({"steps": initial_steps(params, rules(config))}, forward)


def _gq(config: Config, params: Params) -> Quantiser:
    annealing = general.Annealing(steps=config.integer.soft_steps, every=config.integer.every)

    def forward(params: Params, step: Any) -> Params:
        plain = _without(params, "centroids")
        return general.general(plain, params["centroids"], rules(config), step=step, annealing=annealing)

    start = config.integer.centroids
    return Quantiser(
        {"centroids": general.initial_centroids(params, rules(config), _allocation(config), start=start)}, forward
    )


def _s8bqat(config: Config, params: Params) -> Quantiser:
    tables = cosine.tables(params, rules(config), _allocation(config))

    def forward(params: Params, step: Any) -> Params:
        if step is None:
            return cosine.compressed(params, tables, rules(config))
        # In training the regulariser and the compressor do the work; the forward has 8 bits.
        return quant.straight_through(params, rules(config))

    def penalty(params: Params) -> Any:
        return config.integer.strength * cosine.penalty(params, tables)

    return Quantiser({}, forward, penalty, cosine.hard_compressor(tables, every=config.integer.every))


QUANTISERS: dict[str, Callable[[Config, Params], Quantiser]] = {
    "absmax": _absmax,
    "learned_step": _learned_step,
    "gq": _gq,
    "s8bqat": _s8bqat,
}


def on_accelerator(config: Config, found: Loaded, inherited: train.Task | None) -> Loaded:
    """Puts a transducer on the accelerator of the config, where it names one.

    Args:
      config: a config that `schema.check` has passed.
      found: the float transducer.
      inherited: the task of the run whose weights it has; if that one was on the same accelerator, its formats stay,
        so that a model is trained further as it was.

    Returns:
      What `build` needs.

    Raises:
      ValueError: if a pattern matches no leaf, or the transducer has no integer network.
    """
    if config.integer.accelerator == "none":
        return found
    accelerator = PRESETS[config.integer.accelerator]
    formats = formats_of(inherited, accelerator.name)
    if formats is None:
        batches = found.evaluation["train"]
        chosen = sorted({int(i) for i in np.linspace(0, len(batches) - 1, STATISTICS)})
        formats = calibrate(found.task, found.params, (batches[i] for i in chosen), accelerator)
    first_order = config.method.name == "first_order"
    own = {field.name: getattr(found.task, field.name) for field in dataclasses.fields(found.task)}
    own["alone"] = 0  # steps that lead random weights on their way; these are trained
    forward = config.integer.forward if first_order else "integer"
    task = IntegerTask(**own, formats=formats, accelerator=accelerator, forward=forward)
    if not first_order:
        return found._replace(task=task, params=quant.quantize_tree(found.params, rules(config)))
    quantiser = QUANTISERS[config.integer.weights](config, found.params)
    return found._replace(
        task=QuantisedTask(
            task=task, forward=quantiser.forward, penalty=quantiser.penalty, compressor=quantiser.compressor
        ),
        params={**found.params, **quantiser.extra},
        batches=_Counted(found.batches),
    )


def formats_of(task: train.Task | None, accelerator: str) -> Formats | None:
    """The formats of a task that is on an accelerator of this name."""
    inner = task.task if isinstance(task, QuantisedTask) else task
    if isinstance(inner, IntegerTask) and inner.accelerator.name == accelerator:
        return inner.formats
    return None


class _Counted:
    """Batches that say at which step they are, for what changes in the course of the training."""

    def __init__(self, inner: train.Batches):
        self._inner, self._step = inner, 0

    def __next__(self) -> Any:
        batch = {**next(self._inner), "step": np.int32(self._step)}
        self._step += 1
        return batch

    def get_state(self) -> Any:
        return {"step": self._step, "batches": self._inner.get_state()}

    def set_state(self, state: Any) -> None:
        self._step = state["step"]
        self._inner.set_state(state["batches"])
