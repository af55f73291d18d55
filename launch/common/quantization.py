"""From the `quant` fields of a config to quantised weights, and to updates that stay on their grid."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from launch.common.schema import Config
from models.language import bert
from zojax import quant, train
from zojax.estimators import Estimator
from zojax.quant.straight_through import straight_through

Params = Any


def rules(config: Config) -> tuple[quant.Rule, ...]:
    """The rules of the config's profile for the model's leaves."""
    profile = quant.PROFILES[config.quant.profile]
    return quant.profile_rules(profile, kernels=bert.KERNELS, tables=bert.TABLES, rest="")


def prepare(config: Config, params: Params) -> Params:
    """The weights from which a run starts: quantised, where the config asks for it.

    First-order training keeps float weights and quantises in its forward (`wrap_task`).

    Args:
      config: a config that `schema.check` has passed.
      params: float weights.

    Returns:
      The weights.

    Raises:
      ValueError: if a pattern matches no leaf.
    """
    if config.quant.profile == "none" or config.method.name == "first_order":
        return params
    return quant.quantize_tree(params, rules(config))


def keep_on_grid(config: Config, tx: Estimator, trainable: Params, key: jax.Array) -> Estimator:
    """The chain, with updates in whole codes where a leaf that is trained is quantised."""
    leaves = jax.tree.leaves(trainable, is_leaf=lambda node: isinstance(node, quant.QArray))
    if any(isinstance(leaf, quant.QArray) for leaf in leaves):
        return quant.on_grid(tx, key=key, feedback=config.quant.feedback)
    return tx


def wrap_task(config: Config, task: train.Task) -> train.Task:
    """The task, its weights quantised in the forward with straight-through gradients, for first-order training."""
    if config.quant.profile == "none" or config.method.name != "first_order":
        return task
    of_profile = rules(config)
    return QuantisedTask(task=task, forward=lambda params, step: straight_through(params, of_profile))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class QuantisedTask(train.Task):
    """A task whose weights are quantised in the forward, with gradients to float masters, for first-order training.

    Args:
      task: the task; it takes leaves that know their grid.
      forward: (params, step or None) -> the tree that the task is given; the step is that of the batch, and None is
        what the weights are in the end.
      penalty: params -> what is added to the loss; None: nothing.
      compressor: what ends the chain of the optimiser; None: nothing.
    """

    task: train.Task
    forward: Callable[[Params, Any], Params]
    penalty: Callable[[Params], Any] | None = None
    compressor: optax.GradientTransformation | None = None

    def init(self, key: Any) -> Params:
        return self.task.init(key)

    def loss(self, params: Params, batch: Any, *, key: Any = None) -> Any:
        value, metrics = self.task.loss(self.forward(params, batch.get("step")), batch, key=key)
        return (value if self.penalty is None else value + self.penalty(params)), metrics

    def evaluate(self, params: Params, batch: Any) -> Any:
        return self.task.evaluate(self.forward(params, None), batch)


def deployed(task: train.Task, params: Params) -> tuple[train.Task, Params]:
    """The task and the weights as they ship: on their grids, where they are trained towards them."""
    return (task.task, _deploy(task)(params)) if isinstance(task, QuantisedTask) else (task, params)


@functools.lru_cache(maxsize=8)
def _deploy(task: QuantisedTask) -> Callable[[Params], Params]:
    return jax.jit(lambda params: task.forward(params, None))


def compress(task: train.Task, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser, and behind it what its task ends the chain with."""
    if isinstance(task, QuantisedTask) and task.compressor is not None:
        return optax.chain(optimizer, task.compressor)
    return optimizer


def metrics(opt_state: Any) -> dict[str, jax.Array]:
    """What an optimiser's state says of the last update's codes."""
    if not isinstance(opt_state, quant.OnGridState):
        return {}
    return {"codes_moved": opt_state.moved, "codes_clipped": opt_state.clipped}


def noise_line(chain: Any, params: Params, opt_state: Any) -> str:
    """One line on the rounding noise of an update at the first learning rate, or nothing where none is rounded."""
    if not isinstance(opt_state, quant.OnGridState):
        return ""
    tx = quant.on_grid(chain, key=opt_state.key)
    # The last step's scalars at the state of the first step: a schedule may have ended at 0.
    state: Any = tx.init(params)
    noise = jax.jit(lambda p, scalars: quant.update_noise(tx, chain, p, state, scalars))
    update, predicted, measured = (float(x) for x in noise(params, opt_state.inner[0].last))
    return f"update at first, rms {update:.3g}; its rounding noise: predicted {predicted:.3g}, measured {measured:.3g}"
