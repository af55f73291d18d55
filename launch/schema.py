"""What a config may hold: every field, its type and its range. A config that passes can be built."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

# An ml_collections.ConfigDict. `check` knows the type of every field; a type checker does not.
Config = Any

FILE = "config.json"


class _Field(NamedTuple):
    types: tuple[type, ...]
    holds: Callable[[Any], bool]
    needed: str


def _integer(least: int) -> _Field:
    return _Field((int,), lambda v: v >= least, f"an integer, {least} or more")


def _number(*, above: float = 0.0, inclusive: bool = False) -> _Field:
    def holds(v: float) -> bool:
        return math.isfinite(v) and (v >= above if inclusive else v > above)

    return _Field((float, int), holds, f"a number, {above:g} or more" if inclusive else f"a number above {above:g}")


def _choice(*names: str) -> _Field:
    return _Field((str,), lambda v: v in names, "one of " + ", ".join(names))


def _flag() -> _Field:
    return _Field((bool,), lambda v: True, "True or False")


def _text() -> _Field:
    return _Field((str,), lambda v: bool(v), "a name or a path")


FIELDS: dict[str, _Field] = {
    "seed": _integer(0),
    "trainable": _Field(
        (tuple, list), lambda v: len(v) > 0 and all(isinstance(p, str) for p in v), "a tuple of patterns, at least one"
    ),
    "data.source": _text(),  # "reviews", "sst2" or a folder of JSON lines
    "data.num_classes": _integer(2),
    "data.train_examples": _integer(0),  # the first so many; 0 for all
    "data.max_length": _integer(4),  # tokens
    "data.buckets": _Field(
        (tuple, list), lambda v: all(type(b) is int and b > 0 for b in v), "a tuple of padded lengths, or ()"
    ),
    "data.length_grouped": _flag(),  # batches of texts of like length
    "data.sampling": _choice("uniform", "importance"),  # importance: by the probe's error on each example
    "data.batch_size": _integer(1),
    "data.eval_batch_size": _integer(1),
    "model.name": _choice("bert_classifier"),
    "model.source": _text(),  # "minilm", a folder or a hub id
    "model.dtype": _choice("float32", "bfloat16", "float16"),
    "model.head": _choice("zero", "probe"),
    "method.name": _choice("spsa", "forward", "fzoo", "quzo", "first_order"),
    "method.eps": _number(),
    "method.auto_eps": _flag(),  # measure eps; `eps` is not used then
    "method.num_samples": _integer(1),
    "method.queries": _choice("constant", "adaptive"),  # adaptive: grows with the epoch up to num_samples (AdaZeta)
    "method.direction": _choice("gaussian", "rademacher", "sphere", "low_rank", "sparse"),
    "method.rank": _integer(1),  # of low_rank
    "method.bits": _Field((int,), lambda v: 1 <= v <= 8, "a number of bits, 1 to 8"),  # of quzo's directions
    "method.independent": _flag(),  # of quzo: a rounding of its own for the update
    "method.probe": _choice("beside", "codes"),  # of quantised weights
    "method.layers": _Field(
        (tuple, list), lambda v: all(type(n) is int and n >= 0 for n in v), "a tuple of layers that move, or () for all"
    ),
    "method.probes": _choice("turn", "pair", "batch"),
    "method.clip_projected": _number(inclusive=True),  # 0 for none
    "method.skip_nonfinite": _flag(),
    "quant.profile": _choice("none", "w8a8_int", "w8a8_fp8", "w4a8_int", "w4a8_fp8", "w4a4_int"),
    # Steps of a block of error feedback; 0 for none.
    "quant.feedback": _Field((int,), lambda v: v == 0 or v >= 2, "0, or an integer, 2 or more"),
    "adapter.rank": _integer(0),  # of LoRA; 0 for none
    "adapter.alpha": _number(),
    "adapter.where": _Field(
        (tuple, list), lambda v: len(v) > 0 and all(isinstance(p, str) for p in v), "a tuple of patterns, at least one"
    ),
    "optimizer.name": _choice("sgd", "momentum", "adam", "adamw", "sign"),
    "optimizer.learning_rate": _number(inclusive=True),
    "optimizer.schedule": _choice("constant", "linear", "cosine"),
    "optimizer.warmup_steps": _integer(0),
    "optimizer.weight_decay": _number(inclusive=True),  # of adamw
    "optimizer.rounding": _choice("none", "stochastic", "compensated"),
    "train.steps": _integer(0),
    "train.eval_every": _integer(0),  # 0 for none
    "train.checkpoint_every": _integer(0),  # 0 for the last step alone
    "train.log_every": _integer(1),
    "train.microbatches": _integer(1),
    "train.keep_best": _flag(),
}


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of a nested config: {"data.source": ..., ...}."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, dict | ml_collections.ConfigDict):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = list(value) if isinstance(value, tuple | list) else value
    return fields


def check(config: Config) -> None:
    """Says what is wrong with a config.

    Raises:
      ValueError: naming the field, its value and what would be right.
    """
    given = flat(config)
    for name in given.keys() - FIELDS.keys():
        raise ValueError(f"config.{name}: no such field; there are {', '.join(sorted(FIELDS))}")
    for name, field in FIELDS.items():
        if name not in given:
            raise ValueError(f"config.{name} is missing; it must be {field.needed}")
        value = given[name]
        wrong_type = not isinstance(value, field.types) or (isinstance(value, bool) and bool not in field.types)
        if wrong_type or not field.holds(value):
            raise ValueError(f"config.{name} is {value!r}; it must be {field.needed}")
    _check_together(config)


def _check_together(config: Config) -> None:
    if config.data.batch_size % config.train.microbatches:
        raise ValueError(
            f"config.train.microbatches is {config.train.microbatches}; it must divide "
            f"config.data.batch_size, {config.data.batch_size}"
        )
    if config.data.sampling == "importance" and config.train.microbatches > 1:
        # The loss divides by the weights of each part, which sum to another number in each.
        raise ValueError(
            f"config.train.microbatches is {config.train.microbatches}; it must be 1, or config.data.sampling uniform"
        )
    if config.data.sampling == "importance" and config.model.head != "probe":
        raise ValueError(
            f"config.data.sampling is 'importance', but config.model.head is {config.model.head!r}, which scores all "
            "examples alike; the head must be probe, or the sampling uniform"
        )
    if config.optimizer.warmup_steps > config.train.steps:
        raise ValueError(
            f"config.optimizer.warmup_steps is {config.optimizer.warmup_steps}; it must be at most "
            f"config.train.steps, {config.train.steps}"
        )
    if config.optimizer.weight_decay and config.optimizer.name != "adamw":
        raise ValueError(
            f"config.optimizer.weight_decay is {config.optimizer.weight_decay}; {config.optimizer.name} has "
            "none, so it must be 0, or the optimizer adamw"
        )
    _check_quantized(config)


def _check_quantized(config: Config) -> None:
    if config.quant.profile == "none":
        if config.quant.feedback:
            raise ValueError(f"config.quant.feedback is {config.quant.feedback}, but config.quant.profile is 'none'")
        return
    if config.model.dtype != "float32" or config.optimizer.rounding != "none":
        raise ValueError(
            f"config.quant.profile is {config.quant.profile!r}; then config.model.dtype must be float32 and "
            f"config.optimizer.rounding none, not {config.model.dtype!r} and {config.optimizer.rounding!r}"
        )
    if config.quant.feedback and (config.optimizer.name not in ("sgd", "sign") or config.quant.profile == "w8a8_fp8"):
        raise ValueError(
            f"config.quant.feedback is {config.quant.feedback}; it must be 0 with optimizer {config.optimizer.name!r} "
            f"and profile {config.quant.profile!r}: it needs sgd or sign, and an integer grid"
        )


def save(workdir: Path, config: Config) -> None:
    """Writes the config of a run into its folder."""
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
    temporary = workdir / (FILE + ".tmp")
    temporary.write_text(text)
    temporary.replace(workdir / FILE)


def load(workdir: Path) -> Config:
    """Reads the config of a run.

    Raises:
      FileNotFoundError: if the folder holds no run.
      ValueError: if the file is no config.
    """
    path = workdir / FILE
    if not path.is_file():
        raise FileNotFoundError(f"workdir: {workdir} holds no run (no {FILE})")
    try:
        config = ml_collections.ConfigDict(json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is no config: {error}") from error
    check(config)
    return config


def require_same(workdir: Path, config: Config) -> None:
    """Says where the run in a folder differs from a config; a folder without a run differs in nothing.

    Raises:
      ValueError: naming the first field that differs.
    """
    if not (workdir / FILE).is_file():
        if workdir.is_dir() and any(workdir.iterdir()):
            raise ValueError(f"workdir: {workdir} is not empty and holds no run (no {FILE}); name another folder")
        return
    old, new = flat(load(workdir)), flat(config)
    for name in FIELDS:
        if old[name] != new[name]:
            raise ValueError(
                f"workdir: {workdir} holds a run with config.{name}={old[name]!r}, not {new[name]!r}; "
                "name another folder, or the same config to continue it"
            )
