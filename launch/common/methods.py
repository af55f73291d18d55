"""From a config to how a step is taken. Names become optimisers, directions and estimators here, and nowhere else."""

import functools
import json
import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from launch.common import protocols, quantization
from launch.common.schema import Config
from launch.language import multitask
from models.language import bert
from models.transducer import combine
from zojax import directions, estimators, masks, precision, schedules, train
from zojax.diagnostics import AutoEps
from zojax.perturb import PerturbSpec
from zojax.trees import leaf_paths

Params = Any

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
    described = {name: config[name].to_dict() for name in ("method", "quant", "integer", "optimizer")}
    described |= {"mask": multitask.digest(chosen)} if chosen is not None else {}
    description = json.dumps(described | {"steps": config.train.steps}, sort_keys=True)
    if config.method.name == "first_order":
        if config.optimizer.clip_norm:
            optimizer = optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), optimizer)
        optimizer = quantization.compress(task, optimizer)
        method = train.first_order(task, optimizer, description=description, microbatches=config.train.microbatches)
        return method, optimizer

    options = config.method
    auto = AutoEps()
    stacked = stacked_patterns(trainable)
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

    method = train.zeroth_order(
        protocols.wrap_task(config, task),
        tx,
        forwards=forwards,
        description=description,
        queries=queries(config, steps_per_epoch),
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


def queries(config: Config, steps_per_epoch: int) -> Callable[[int], int] | None:
    """Steps taken before -> probes of a step; None where all steps have the config's number."""
    if config.method.queries != "adaptive":
        return None
    return schedules.adaptive_queries(max_queries=config.method.num_samples, steps_per_epoch=steps_per_epoch)


def stacked_patterns(trainable: Params) -> tuple[str, ...]:
    """Of the model's patterns those that matter to the trainable leaves: one without a leaf is an error."""
    paths = jax.tree.leaves(leaf_paths(trainable))
    patterns = (*bert.STACKED, *combine.STACKED)
    return tuple(pattern for pattern in patterns if any(re.search(pattern, path) for path in paths))
