"""From a config to the objects of a run: its data and its model. How a step is taken, `methods.py` beside it says."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from launch.common import protocols, quantization, schema, weights
from launch.common.methods import make_method, stacked_patterns
from launch.common.schema import Config
from launch.language import adapters, multitask, pretraining, prompted
from launch.speech import integers, recipe
from models.language import hub, probe
from models.language.classifier import TextClassifier
from zojax import train
from zojax.data import pipeline, sampling, text
from zojax.data.tokenize import Tokenizer
from zojax.trees import merge, split

Params = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that `zojax.train.fit` is given, and what is said about it.

    Attributes:
      task: loss and metrics.
      method: how a step is taken.
      params: trainable weights before step 1.
      frozen: the other weights.
      zero_head: the head before the linear probe, or None if training starts from it.
      batches: training batches.
      evaluation: evaluation batches by split.
      key: run key.
      tx: the float chain of `method`, without what keeps quantised weights on their grid.
      steps_per_epoch: training batches of an epoch.
    """

    task: train.Task
    method: train.Method
    params: Params
    frozen: Params
    zero_head: Params
    batches: train.Batches
    evaluation: dict[str, list[Any]]
    key: jax.Array
    tx: optax.GradientTransformation
    steps_per_epoch: int


def build(config: Config, *, splits: tuple[str, ...] = ("train", "dev", "test")) -> Run:
    """Loads data and model and makes the method.

    Args:
      config: a config that `schema.check` has passed.
      splits: evaluation splits to load beside the training data.

    Returns:
      The run.

    Raises:
      ValueError: if a pattern matches no leaf, a method refuses its options, or a file is malformed.
      FileNotFoundError: if a data set or a model is missing.
    """
    root = jax.random.key(config.seed)
    if config.multitask.tasks:
        return _assemble(config, root, **multitask.load(config, jax.random.fold_in(root, 0))._asdict())
    if config.model.name == "prompted_lm":
        return _assemble(config, root, **prompted.load(config, jax.random.fold_in(root, 0))._asdict())
    if config.model.name == "causal_lm":
        return _assemble(config, root, **pretraining.load(config, jax.random.fold_in(root, 0))._asdict())
    if config.model.name == "transducer":
        others: list[Run] = []

        def trained(like: Params) -> Params:
            params, other = _trained(config.model.weights, like)
            others.append(other)
            return params

        found = recipe.load(config, jax.random.fold_in(root, 0), splits=splits, trained=trained)
        found = integers.on_accelerator(config, found, others[0].task if others else None)
        return _assemble(config, root, **found._asdict())
    tokenizer = Tokenizer.from_folder(hub.resolve(config.model.source))
    rows = text.load(config.data.source, "train", num_classes=config.data.num_classes)
    if config.data.train_examples > len(rows):
        raise ValueError(
            f"config.data.train_examples is {config.data.train_examples}; {config.data.source} has {len(rows)}"
        )
    examples = {"train": _tokenized(rows[: config.data.train_examples or len(rows)], tokenizer, config)}
    for name in splits:
        if name != "train":
            loaded = text.load(config.data.source, name, num_classes=config.data.num_classes)
            examples[name] = _tokenized(loaded, tokenizer, config)
    evaluation = {
        name: pipeline.eval_batches(
            rows,
            batch_size=config.data.eval_batch_size,
            max_length=config.data.max_length,
            buckets=tuple(config.data.buckets) or None,
        )
        for name, rows in examples.items()
    }

    bert_config, encoder = hub.load(config.model.source, dtype=config.model.dtype)
    task = TextClassifier(
        config=bert_config,
        num_classes=config.data.num_classes,
        pretrained=encoder,
        dtype=config.model.dtype,
        shared_layers=min(config.method.layers, default=0),
    )
    params = task.init(jax.random.fold_in(root, 0))
    if config.model.weights:
        params |= {"encoder": _trained(config.model.weights, params)[0]["encoder"]}
    zero_head = None
    # Before anything costly: a pattern that matches nothing ends the program here.
    shapes = jax.eval_shape(lambda p, k: prepared(config, task, p, k), params, root)
    split(shapes, tuple(config.trainable))
    probabilities = None
    if config.model.head == "probe":
        zero_head = params["head"]
        features = {name: _features(task, params, evaluation[name]) for name in ("train", "dev") if name in evaluation}
        params = params | {"head": _probe(features, task.num_classes, config.model.head_examples)}
        if config.data.sampling == "importance":
            probabilities = _importance(features["train"], params["head"])
    batches = pipeline.train_batches(
        examples["train"],
        batch_size=config.data.batch_size,
        seed=config.seed,
        max_length=config.data.max_length,
        buckets=tuple(config.data.buckets) or None,
        length_grouped=config.data.length_grouped,
        packed_rows=config.data.packed_rows,
        probabilities=probabilities,
    )
    if config.method.name in protocols.ANCHORED:
        size, length = config.data.batch_size, config.data.max_length
        anchor = pipeline.eval_batches(examples["train"], batch_size=size, max_length=length)
        batches = protocols.with_anchor(batches, anchor)
    return _assemble(
        config,
        root,
        task=task,
        params=params,
        zero_head=zero_head,
        batches=batches,
        evaluation=evaluation,
        steps_per_epoch=max(len(examples["train"]) // config.data.batch_size, 1),
    )


def _assemble(
    config: Config,
    root: jax.Array,
    *,
    task: Any,
    params: Params,
    zero_head: Params,
    batches: train.Batches,
    evaluation: dict[str, list[Any]],
    steps_per_epoch: int,
    calibration: list[list[Any]] | None = None,
) -> Run:
    """Float weights and data made into a run."""
    params = prepared(config, task, params, jax.random.fold_in(root, 3))
    batches, evaluation = adapters.with_prompt(config, task, batches, evaluation)
    trainable, frozen = split(params, tuple(config.trainable))
    chosen = None
    if calibration is not None:
        chosen = multitask.make_masks(
            config, task, trainable, frozen, calibration, stacked_patterns(trainable), jax.random.fold_in(root, 4)
        )
    task = quantization.wrap_task(config, task)
    run_key = jax.random.fold_in(root, 1)
    method, tx = make_method(
        config,
        task,
        trainable,
        run_key,
        rounding_key=jax.random.fold_in(root, 2),
        steps_per_epoch=steps_per_epoch,
        chosen=chosen,
    )
    return Run(
        task=task,
        method=method,
        params=trainable,
        frozen=frozen,
        zero_head=zero_head,
        batches=batches,
        evaluation=evaluation,
        key=run_key,
        tx=tx,
        steps_per_epoch=steps_per_epoch,
    )


def prepared(config: Config, task: Any, params: Params, key: jax.Array) -> Params:
    """The weights from which a run starts: quantised, and with adapters, where the config asks for them."""
    return adapters.add(config, task, quantization.prepare(config, params), key)


def _trained(text: str, like: Params) -> tuple[Params, Run]:
    """Float weights that another run ended with, and the run. What it kept frozen is made as its config says."""
    folder, which = weights.parse(text)
    path = weights.find_weights(folder, which)
    other = build(schema.load(folder))
    params = merge(weights.load_weights(path, other), other.frozen)
    params = recipe.with_new_parts(params, like)
    if jax.tree.map(jax.numpy.shape, params) != jax.tree.map(jax.numpy.shape, like):
        raise ValueError(
            f"config.model.weights is {text!r}; that run has another model, or its weights are quantised or adapted: "
            "it must be one of the same model with plain weights"
        )
    return jax.tree.map(lambda x, own: x.astype(own.dtype), params, like), other


def _tokenized(rows: Any, tokenizer: Tokenizer, config: Config) -> Any:
    return pipeline.tokenized(rows, tokenizer, max_length=config.data.max_length)


class _Features(NamedTuple):
    """Features, labels and row numbers of the examples of a split."""

    x: np.ndarray
    y: np.ndarray
    id: np.ndarray


def _features(task: TextClassifier, params: Params, batches: list[Any]) -> _Features:
    features = jax.jit(task.features)
    keep = [batch["weight"] > 0 for batch in batches]
    rows = [np.asarray(features(params, b))[k] for b, k in zip(batches, keep, strict=True)]
    labels, ids = ([b[name][k] for b, k in zip(batches, keep, strict=True)] for name in ("label", "id"))
    return _Features(np.concatenate(rows), np.concatenate(labels), np.concatenate(ids))


def _probe(features: dict[str, _Features], num_classes: int, examples: int) -> Params:
    train = features["train"]
    if examples:  # an id is a row of the split
        train = _Features(*(part[train.id < examples] for part in train))
        if len(np.unique(train.y)) < num_classes:
            raise ValueError(
                f"config.model.head_examples is {examples}; among the first {examples} examples not every one of the "
                f"{num_classes} classes is to be found: it must be larger"
            )
    if "dev" in features:
        dev = features["dev"]
        _, head = probe.choose_l2(train.x, train.y, dev.x, dev.y, num_classes=num_classes)
    else:
        head = probe.fit_linear_probe(train.x, train.y, num_classes=num_classes, l2=0.01)
    return jax.tree.map(jax.numpy.asarray, head)


def _importance(features: _Features, head: Params) -> np.ndarray:
    """Probabilities of the training examples, by the logits of the head on features that its fit has needed anyway."""
    logits = features.x @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    probabilities = sampling.importance(logits, features.y)
    # Features come in the order of evaluation; an example's id is its row.
    return probabilities[np.argsort(features.id)]
