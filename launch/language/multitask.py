"""From the `multitask` and `mask` fields of a config to several tasks in one run, and to the weights that it moves."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.common.schema import Config
from models.language import hub, probe
from models.language.multitask import MultiTask, TaskHead
from zojax import importance
from zojax.data import mixture
from zojax.data.tokenize import Tokenizer
from zojax.trees import merge

Params = Any


class Loaded(NamedTuple):
    """What `build` needs of a run of several tasks, beside the method.

    Attributes:
      task: the tasks.
      params: weights before step 1, as floats, with the heads of the linear probes.
      zero_head: the heads before, or None if training starts from them.
      batches: training batches.
      evaluation: evaluation batches by split.
      steps_per_epoch: batches in which the task of the most batches is seen once.
      calibration: training batches by task, for the masks.
    """

    task: MultiTask
    params: Params
    zero_head: Params
    batches: mixture.MixtureBatches
    evaluation: dict[str, list[Any]]
    steps_per_epoch: int
    calibration: list[list[Any]]


def load(config: Config, key: jax.Array) -> Loaded:
    """Loads the data and the model of a config that names tasks.

    Raises:
      ValueError: if an example is malformed, or there are too few.
      FileNotFoundError: if a data set or a model is missing.
    """
    fields, data = config.multitask, config.data
    tokenizer = Tokenizer.from_folder(hub.resolve(config.model.source))
    splits = {
        name: mixture.load_task(
            name,
            tokenizer,
            max_length=data.max_length,
            source=None if data.source == "text" else data.source,
            train_examples=data.train_examples,
            dev_examples=fields.dev_examples,
            test_examples=fields.test_examples,
        )
        for name in fields.tasks
    }
    sizes = {"max_length": data.max_length, "buckets": tuple(data.buckets) or None}
    evaluation = {
        split: mixture.eval_batches(
            {name: getattr(own, split) for name, own in splits.items()}, batch_size=data.eval_batch_size, **sizes
        )
        for split in ("train", "dev", "test")
    }
    bert_config, encoder = hub.load(config.model.source, dtype=config.model.dtype)
    heads = tuple(
        TaskHead(name=name, num_classes=mixture.TASKS[name].num_classes, is_pair=len(mixture.TASKS[name].fields) > 1)
        for name in fields.tasks
    )
    task = MultiTask(
        config=bert_config, heads=heads, weights=weights(config), pretrained=encoder, dtype=config.model.dtype
    )
    params, zero_head = task.init(key), None
    if config.model.head == "probe":
        zero_head = params["head"]
        few = {name: own.train[: config.model.head_examples or None] for name, own in splits.items()}
        fitted = mixture.eval_batches(few, batch_size=data.eval_batch_size, **sizes)
        params = params | {"head": _probes(task, params, {"train": fitted, "dev": evaluation["dev"]})}
    trains = {name: own.train for name, own in splits.items()}
    calibration = [
        mixture.eval_batches({name: own[: config.mask.examples]}, batch_size=data.eval_batch_size, **sizes)
        for name, own in trains.items()
    ]
    # The number of a task in a batch of its own is 0.
    calibration = [[{**b, "task": np.full_like(b["task"], t)} for b in own] for t, own in enumerate(calibration)]
    return Loaded(
        task=task,
        params=params,
        zero_head=zero_head,
        batches=mixture.MixtureBatches(trains, quotas=tuple(fields.quotas), seed=config.seed, **sizes),
        evaluation=evaluation,
        steps_per_epoch=max(len(own) // quota for own, quota in zip(trains.values(), fields.quotas, strict=True)),
        calibration=calibration,
    )


def weights(config: Config) -> tuple[float, ...]:
    """The weights of the tasks; without any in the config all are one over their number."""
    count = len(config.multitask.tasks)
    return tuple(float(weight) for weight in config.multitask.weights) or (1 / count,) * count


def _probes(task: MultiTask, params: Params, batches: dict[str, list[Any]]) -> Params:
    features = jax.jit(task.features)
    found: dict[str, tuple[np.ndarray, ...]] = {}
    for split in ("train", "dev"):
        parts = [(np.asarray(features(params, b)), b["label"], b["task"], b["weight"] > 0) for b in batches[split]]
        x, label, number, real = (np.concatenate(column) for column in zip(*parts, strict=True))
        found[split] = (x[real], label[real], number[real])
    heads = {}
    for number, own in enumerate(task.heads):
        width = None if own.is_pair else task.config.hidden_size
        pairs = [(x[of == number][:, :width], y[of == number]) for x, y, of in found.values()]
        if len(np.unique(pairs[0][1])) < own.num_classes:
            raise ValueError(
                f"config.model.head_examples: among the first {len(pairs[0][1])} examples of {own.name} not every one "
                f"of the {own.num_classes} classes is to be found: it must be larger"
            )
        head = probe.choose_l2(*pairs[0], *pairs[1], num_classes=own.num_classes)[1]
        heads[own.name] = jax.tree.map(jnp.asarray, head)
    return heads


def make_masks(
    config: Config,
    task: MultiTask,
    trainable: Params,
    frozen: Params,
    calibration: list[list[Any]],
    stacked: tuple[str, ...],
    key: jax.Array,
) -> Params:
    """The masks of the config's kind, one bit a weight, for all that is trained; None for none.

    Raises:
      ValueError: if a leaf that is trained is no matrix, or enters no product.
    """
    options = config.mask
    common = {"keep": float(options.keep), "stacked": stacked}
    # All of the tree: what is trained without a mask would hide what the mask does.
    everything = (".*",)

    def mazo() -> Params:
        def loss_of(number: int) -> Callable[[Params, Params, Any], jax.Array]:
            return lambda part, rest, batch: task.losses(merge(part, rest), batch)[number]

        scores = importance.importance_scores(
            [loss_of(number) for number in range(len(task.heads))],
            trainable,
            frozen,
            calibration,
            everything,
            importance.Importance(
                alpha=float(options.alpha),
                beta=float(options.beta),
                learning_rate=float(options.learning_rate),
                damping=float(options.damping),
            ),
            key=key,
            gradient=options.gradient,
            num_probes=options.num_probes,
            tokens=lambda batch: batch["mask"],
        )
        return importance.score_masks(scores, trainable, **common)

    kinds: dict[str, Callable[[], Params]] = {
        "none": lambda: None,
        "random": lambda: importance.random_masks(trainable, everything, key=key, **common),
        "magnitude": lambda: importance.magnitude_masks(trainable, everything, **common),
        "mazo": mazo,
    }
    return kinds[options.kind]()


def digest(masks: Params) -> str:
    """What a log says of the masks: their SHA-256, or that there are none."""
    if masks is None:
        return "none"
    found = hashlib.sha256()
    for words in jax.tree.leaves(masks):
        found.update(np.asarray(words).astype("<u4").tobytes())
    return found.hexdigest()


def metrics(config: Config) -> Callable[[Any], dict[str, jax.Array]]:
    """Optimiser state -> the last step's loss of each task; nothing for a run of one."""

    def read(opt_state: Any) -> dict[str, jax.Array]:
        if not config.multitask.tasks:
            return {}
        chain = getattr(opt_state, "inner", opt_state)  # of quantised weights
        losses = chain[0].last.losses
        return {f"loss/{name}": jnp.mean(own) for name, own in zip(config.multitask.tasks, losses, strict=True)}

    return read


def columns(config: Config, values: dict[str, float]) -> str:
    """Each task's accuracy and the least of them, for a row of a table; nothing for a single task's run."""
    by_task = {name: values[f"accuracy/{name}"] for name in config.multitask.tasks}
    if not by_task:
        return ""
    cells = [f"{name} {value:.4f}" for name, value in by_task.items()]
    return "  ".join(["", *cells, f"worst {min(by_task.values()):.4f}"])
