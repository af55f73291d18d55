"""From a config to the objects of a run. Names become objects here, by explicit dictionaries, and nowhere else."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from launch import adapters, multitask, pretraining, prompted, protocols, quantization, schema, speech, weights
from launch.schema import Config
from models.language import bert, hub, probe
from models.language.classifier import TextClassifier
from models.transducer import combine
from zojax import directions, estimators, masks, precision, schedules, train
from zojax.data import pipeline, sampling, text
from zojax.data.tokenize import Tokenizer
from zojax.diagnostics import AutoEps
from zojax.perturb import PerturbSpec
from zojax.trees import leaf_paths, merge, split

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


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": lambda rate, c: optax.sgd(rate),
    "momentum": lambda rate, c: optax.sgd(rate, momentum=0.9),
    "adam": lambda rate, c: optax.adam(rate),
    "adamw": lambda rate, c: optax.adamw(rate, weight_decay=c.weight_decay),
    "sign": lambda rate, c: optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(rate)),
}

SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "linear": lambda rate, steps: optax.linear_schedule(rate, 0.0, max(steps, 1)),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, max(steps, 1)),
}

DIRECTIONS: dict[str, Callable[..., directions.Direction]] = {
    "gaussian": lambda c: directions.Gaussian(),
    "rademacher": lambda c: directions.Rademacher(),
    "sphere": lambda c: directions.Sphere(),
    "low_rank": lambda c: directions.LowRank(rank=c.rank),
    "sparse": lambda c: directions.Sparse(),
}

ESTIMATORS: dict[str, Callable[..., estimators.Estimator]] = {
    "spsa": estimators.spsa,
    "forward": estimators.forward,
    "fzoo": estimators.fzoo,
    "quzo": estimators.quzo,
    "eggroll": estimators.eggroll,
    "lozo": estimators.lozo,
    "lozo_m": functools.partial(estimators.lozo, momentum=0.9),
    "subzero": estimators.subzero,
    "per_example": lambda *arguments, num_samples, **options: estimators.per_example(*arguments, **options),
    "grzo": lambda *arguments, num_samples, **options: estimators.per_example(*arguments, normalize="std", **options),
    "hizoo": estimators.hizoo,
    "kerzoo": estimators.kerzoo,
    "mezo_svrg": estimators.mezo_svrg,
    "multi_task": estimators.multi_task,
}

# What else an estimator is given.
OPTIONS: dict[str, Callable[[Config], dict[str, Any]]] = {
    "quzo": lambda c: {"bits": c.method.bits, "independent": c.method.independent},
    **dict.fromkeys(("lozo", "lozo_m", "subzero", "mezo_svrg"), lambda c: {"every": c.method.every}),
    **dict.fromkeys(protocols.PER_EXAMPLE, lambda c: {"batch_size": c.data.batch_size}),
    "multi_task": lambda c: {"weights": multitask.weights(c)},
}

# Forward passes of a step with q probes; the steps of mezo_svrg that take an anchor run 2 q of the whole training set.
FORWARDS: dict[str, Callable[[int], int]] = {
    "spsa": lambda q: 2 * q,
    "forward": lambda q: q + 1,
    "fzoo": lambda q: q + 1,
    "quzo": lambda q: 2 * q,
    **dict.fromkeys(("eggroll", "lozo", "lozo_m", "subzero", "kerzoo", "multi_task"), lambda q: 2 * q),
    **dict.fromkeys(protocols.PER_EXAMPLE, lambda q: 2),
    "hizoo": lambda q: 2 * q + 1,
    "mezo_svrg": lambda q: 4 * q,
}

ROUNDINGS: dict[str, Callable[[jax.Array], optax.GradientTransformation | None]] = {
    "none": lambda key: None,
    "stochastic": lambda key: precision.stochastic_rounding(key),
    "compensated": lambda key: precision.compensated(),
}


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
        trained = functools.partial(_trained, config.model.weights)
        found = speech.load(config, jax.random.fold_in(root, 0), splits=splits, trained=trained)
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
        config=bert_config, num_classes=config.data.num_classes, pretrained=encoder, dtype=config.model.dtype
    )
    params = task.init(jax.random.fold_in(root, 0))
    if config.model.weights:
        params |= {"encoder": _trained(config.model.weights, params)["encoder"]}
    zero_head = None
    # Before anything costly: a pattern that matches nothing ends the program here.
    shapes = jax.eval_shape(lambda p, k: _prepared(config, task, p, k), params, root)
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
    params = _prepared(config, task, params, jax.random.fold_in(root, 3))
    batches, evaluation = adapters.with_prompt(config, task, batches, evaluation)
    trainable, frozen = split(params, tuple(config.trainable))
    chosen = None
    if calibration is not None:
        chosen = multitask.make_masks(
            config, task, trainable, frozen, calibration, _stacked(trainable), jax.random.fold_in(root, 4)
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
    )


def _prepared(config: Config, task: Any, params: Params, key: jax.Array) -> Params:
    """The weights from which a run starts: quantised, and with adapters, where the config asks for them."""
    return adapters.add(config, task, quantization.prepare(config, params), key)


def _trained(text: str, like: Params) -> Params:
    """Float weights that another run ended with. What it kept frozen is made as its config says, not read."""
    folder, which = weights.parse(text)
    path = weights.find_weights(folder, which)
    other = build(schema.load(folder))
    params = merge(weights.load_weights(path, other), other.frozen)
    if jax.tree.map(jax.numpy.shape, params) != jax.tree.map(jax.numpy.shape, like):
        raise ValueError(
            f"config.model.weights is {text!r}; that run has another model, or its weights are quantised or adapted: "
            "it must be one of the same model with plain weights"
        )
    return jax.tree.map(lambda x, own: x.astype(own.dtype), params, like)


def _stacked(trainable: Params) -> tuple[str, ...]:
    """Of the model's patterns those that matter to the trainable leaves: one without a leaf is an error."""
    paths = jax.tree.leaves(leaf_paths(trainable))
    patterns = (*bert.STACKED, *combine.STACKED)
    return tuple(pattern for pattern in patterns if any(re.search(pattern, path) for path in paths))


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


def make_method(
    config: Config,
    task: train.Task,
    trainable: Params,
    key: jax.Array,
    *,
    rounding_key: jax.Array,
    steps_per_epoch: int,
    chosen: Params = None,
) -> tuple[train.Method, optax.GradientTransformation]:
    """The method of a config, for these trainable weights, and its float chain; `chosen`: masks of what moves."""
    optimizer = OPTIMIZERS[config.optimizer.name](_learning_rate(config), config.optimizer)
    described = {name: config[name].to_dict() for name in ("method", "quant", "optimizer")}
    described |= {"mask": multitask.digest(chosen)} if chosen is not None else {}
    description = json.dumps(described | {"steps": config.train.steps}, sort_keys=True)
    if config.method.name == "first_order":
        if config.optimizer.clip_norm:
            optimizer = optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), optimizer)
        method = train.first_order(task, optimizer, description=description, microbatches=config.train.microbatches)
        return method, optimizer

    options = config.method
    auto = AutoEps()
    stacked = _stacked(trainable)
    direction, mask_fn = DIRECTIONS[options.direction](options), None
    if options.layers:
        paths = jax.tree.leaves(leaf_paths(trainable))
        loose = [path for path in paths if not any(re.search(pattern, path) for pattern in stacked)]
        if loose or options.direction in ("sparse", "sphere"):
            problem = f"trains {loose[0]!r}, which has none" if loose else f"has direction {options.direction!r}"
            raise ValueError(f"config.method.layers is {tuple(options.layers)}, but the run {problem}")
        direction, mask_fn = directions.Sparse(inner=direction), masks.layer_masks(tuple(options.layers))
    elif chosen is not None:
        direction, mask_fn = directions.Sparse(inner=direction), lambda _: chosen
    spec = PerturbSpec(direction=direction, stacked=stacked, probe=options.probe, masks=mask_fn)
    own = OPTIONS[options.name](config) if options.name in OPTIONS else {}
    estimator = ESTIMATORS[options.name](
        auto if options.auto_eps else options.eps,
        spec,
        num_samples=options.num_samples,
        key=key,
        probes=options.probes,
        **own,
    )
    if options.clip_projected:
        estimator = estimators.clip_projected(estimator, options.clip_projected)
    if options.skip_nonfinite:
        estimator = estimators.skip_nonfinite(estimator)
    rounding = ROUNDINGS[config.optimizer.rounding](rounding_key)
    inner = estimators.chain(estimator, optimizer, rounding=rounding)
    tx = quantization.keep_on_grid(config, inner, trainable, rounding_key)
    search = 2 * auto.num_directions * len(auto.grid()) if options.auto_eps else 0

    def forwards(probes: int, step: int) -> int:
        if options.name in protocols.ANCHORED and (step - 1) % options.every == 0:
            return 2 * probes * steps_per_epoch
        return FORWARDS[options.name](probes) + (search if (step - 1) % auto.every == 0 else 0)

    queries = None
    if options.queries == "adaptive":
        queries = schedules.adaptive_queries(max_queries=options.num_samples, steps_per_epoch=steps_per_epoch)
    method = train.zeroth_order(
        protocols.wrap_task(config, task),
        tx,
        forwards=forwards,
        description=description,
        queries=queries,
        microbatches=config.train.microbatches,
        metrics=lambda opt_state: quantization.metrics(opt_state) | multitask.metrics(config)(opt_state),
    )

    def scalars_like(trainable: Params, opt_state: Any) -> Any:
        value = protocols.constant(config)
        return jax.eval_shape(lambda t, s: tx.measure(t, s, lambda _: value), trainable, opt_state)

    return method._replace(scalars_like=scalars_like), inner


def _learning_rate(config: Config) -> optax.Schedule:
    rate, warmup = config.optimizer.learning_rate, config.optimizer.warmup_steps
    schedule = SCHEDULES[config.optimizer.schedule](rate, config.train.steps - warmup)
    if not warmup:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), schedule], [warmup])
