"""What fields of a config must be together; `launch/common/schema.py` says what each may hold by itself."""

from typing import Any

from launch.common.integer_schema import check_integer

Config = Any  # as in `launch.common.schema`

__all__ = ["check_together"]


def check_together(config: Config) -> None:
    """Says what does not go together in a config whose fields are all in their ranges.

    Raises:
      ValueError: naming a field, its value and what would be right.
    """
    if config.data.batch_size % config.train.microbatches:
        raise ValueError(
            f"config.train.microbatches is {config.train.microbatches}; it must divide "
            f"config.data.batch_size, {config.data.batch_size}"
        )
    if config.data.sampling == "importance" and config.model.head != "probe":
        raise ValueError(
            f"config.data.sampling is 'importance', but config.model.head is {config.model.head!r}, which scores all "
            "examples alike; the head must be probe, or the sampling uniform"
        )
    if config.model.head_examples and config.model.head != "probe":
        raise ValueError(
            f"config.model.head_examples is {config.model.head_examples}, but config.model.head is "
            f"{config.model.head!r}: it must be 0, or the head probe"
        )
    if config.data.packed_rows:
        for name, value, needed in (
            ("data.length_grouped", config.data.length_grouped, False),
            ("train.microbatches", config.train.microbatches, 1),
        ):
            if value != needed:
                raise ValueError(
                    f"config.data.packed_rows is {config.data.packed_rows}; then config.{name} must be {needed}, "
                    f"not {value}"
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
    if config.adapter.kind == "prompt" and config.adapter.rank:
        if config.data.packed_rows:
            raise ValueError(f"config.data.packed_rows is {config.data.packed_rows}; with a prompt it must be 0")
        if config.method.name == "mezo_svrg":
            raise ValueError("config.method.name is 'mezo_svrg'; with a prompt it must be another")
    _check_per_example(config)
    _check_tasks(config)
    _check_quantized(config)
    _check_prompted(config)
    _check_causal(config)
    _check_speech(config)
    check_integer(config)


def _check_speech(config: Config) -> None:
    """What goes with a transducer."""
    method, speech = config.method, config.speech
    if config.optimizer.clip_norm and method.name != "first_order":
        raise ValueError(
            f"config.optimizer.clip_norm is {config.optimizer.clip_norm}; {method.name} has clip_projected, and it "
            "must be 0"
        )
    if config.wake.attention != "none":
        for name, value, needed in (
            ("model.name", config.model.name, "transducer"),
            ("integer.accelerator", config.integer.accelerator, "none"),
        ):
            if value != needed:
                raise ValueError(f"config.{name} is {value!r}; with wake.attention it must be {needed!r}")
    if config.biasing.kind != "none":
        for name, value, needed in (
            ("model.name", config.model.name, "transducer"),
            ("integer.accelerator", config.integer.accelerator, "none"),
            ("wake.attention", config.wake.attention, "none"),
        ):
            if value != needed:
                raise ValueError(f"config.{name} is {value!r}; with biasing.kind it must be {needed!r}")
        if not config.biasing.phrases or config.biasing.width % 4:
            raise ValueError(
                f"config.biasing.phrases is {config.biasing.phrases!r} and width {config.biasing.width}; with "
                "biasing.kind phrases must be named, and width must be a multiple of 4"
            )
    if config.model.name != "transducer":
        if config.train.keep_best == "wer":
            raise ValueError(f"config.train.keep_best is 'wer', which {config.model.name} has not; it must be another")
        return
    if method.name in ("per_example", "grzo", "mezo_svrg", "multi_task"):
        raise ValueError(f"config.method.name is {method.name!r}; with a transducer it must be another")
    if speech.fast_emit and method.name != "first_order":
        raise ValueError(
            f"config.speech.fast_emit is {speech.fast_emit}; it changes a gradient and no loss: with {method.name} it "
            "must be 0"
        )
    if speech.noise != "none" and config.data.source in ("commands", "wake", "names"):
        raise ValueError(f"config.speech.noise is {speech.noise!r}; {config.data.source} has its own: it must be none")
    if (speech.fusion == "none") != (len(speech.signals) < 2):
        needed = "one signal or none goes with none, and several with another"
        raise ValueError(f"config.speech.fusion is {speech.fusion!r}, speech.signals {tuple(speech.signals)}; {needed}")
    if speech.channel_dropout and speech.fusion == "none":
        raise ValueError(f"config.speech.channel_dropout is {speech.channel_dropout}; without fusion it must be 0")
    if speech.signals and speech.noise != "none":
        raise ValueError(f"config.speech.noise is {speech.noise!r}; signals have one of their own: it must be none")
    if len(speech.channels) != (4 if speech.encoder == "conv_rnnt" else 1):
        raise ValueError(
            f"config.speech.channels is {tuple(speech.channels)}; four numbers with conv_rnnt, else one, are needed"
        )
    _check_look_ahead(speech)
    for name, value, needed in (
        ("model.head", config.model.head, "zero"),
        ("data.packed_rows", config.data.packed_rows, 0),
        ("data.sampling", config.data.sampling, "uniform"),
        ("quant.profile", config.quant.profile, "none"),
        ("train.microbatches", config.train.microbatches, 1),
        ("multitask.tasks", tuple(config.multitask.tasks), ()),
    ):
        if value != needed:
            raise ValueError(f"config.{name} is {value!r}; with config.model.name='transducer' it must be {needed!r}")
    if config.train.keep_best == "accuracy":
        raise ValueError(
            "config.train.keep_best is 'accuracy', which a transducer has not; it must be loss, wer or none"
        )


def _check_look_ahead(speech: Config) -> None:
    """What goes with an encoder that looks ahead."""
    if speech.encoder == "ancat":
        if not speech.lookahead:
            raise ValueError("config.speech.lookahead is 0; with ancat it must be 1 or more")
        return
    if speech.lookahead and (speech.encoder, speech.chunk) != ("conformer", 1):
        raise ValueError(
            f"config.speech.lookahead is {speech.lookahead}; with encoder {speech.encoder} and chunk {speech.chunk} it "
            "must be 0: ancat has one, and conformer with chunk 1"
        )
    for name in ("latency_weight", "compute_weight", "anneal"):
        if speech[name]:
            raise ValueError(f"config.speech.{name} is {speech[name]}; with encoder {speech.encoder} it must be 0")


def _check_prompted(config: Config) -> None:
    """What goes with a language model that answers prompts."""
    model, method = config.model, config.method
    if model.name != "prompted_lm":
        for name, value, needed in (("model.objective", model.objective, "loss"), ("data.shots", config.data.shots, 0)):
            if value != needed:
                raise ValueError(f"config.{name} is {value!r}; with {model.name} it must be {needed!r}")
        return
    if config.data.shots and config.data.train_examples:
        raise ValueError(
            f"config.data.shots is {config.data.shots} and train_examples {config.data.train_examples}; one must be 0"
        )
    if model.objective != "loss" and method.name == "first_order":
        raise ValueError(
            f"config.model.objective is {model.objective!r}, which has no gradient; with first_order it must be 'loss'"
        )
    if method.name == "mezo_svrg":
        raise ValueError("config.method.name is 'mezo_svrg'; with config.model.name='prompted_lm' it must be another")
    for name, value, needed in (
        ("model.head", model.head, "zero"),
        ("model.weights", model.weights, ""),
        ("data.packed_rows", config.data.packed_rows, 0),
        ("data.sampling", config.data.sampling, "uniform"),
        ("quant.profile", config.quant.profile, "none"),
        ("multitask.tasks", tuple(config.multitask.tasks), ()),
    ):
        if value != needed:
            raise ValueError(f"config.{name} is {value!r}; with config.model.name='prompted_lm' it must be {needed!r}")


def _check_causal(config: Config) -> None:
    """What goes with a language model from scratch."""
    if config.model.name != "causal_lm":
        return
    for name, value, needed in (
        ("method.name", config.method.name, "first_order"),
        ("model.head", config.model.head, "zero"),
        ("model.weights", config.model.weights, ""),
        ("model.dtype", config.model.dtype, "float32"),
        ("data.packed_rows", config.data.packed_rows, 0),
        ("data.sampling", config.data.sampling, "uniform"),
        ("quant.profile", config.quant.profile, "none"),
        ("adapter.rank", config.adapter.rank, 0),
        ("multitask.tasks", tuple(config.multitask.tasks), ()),
    ):
        if value != needed:
            raise ValueError(f"config.{name} is {value!r}; with config.model.name='causal_lm' it must be {needed!r}")
    if config.lm.width % config.lm.heads or config.lm.heads % config.lm.kv_heads:
        raise ValueError(
            f"config.lm.heads is {config.lm.heads} and kv_heads {config.lm.kv_heads}; heads must divide "
            f"config.lm.width, {config.lm.width}, and kv_heads must divide heads"
        )


def _check_tasks(config: Config) -> None:
    """What goes with several tasks, and with masks."""
    tasks, method = config.multitask.tasks, config.method
    if (method.name == "multi_task") != bool(tasks) and method.name != "first_order":
        raise ValueError(
            f"config.method.name is {method.name!r} and config.multitask.tasks is {tuple(tasks)}; with tasks it "
            "must be multi_task or first_order, and multi_task needs tasks"
        )
    if config.mask.kind != "none" and (
        method.name != "multi_task" or method.layers or method.direction in ("sparse", "sphere")
    ):
        raise ValueError(
            f"config.mask.kind is {config.mask.kind!r}; it needs method multi_task, no layers and a direction other "
            f"than sparse and sphere, not {method.name!r}, {tuple(method.layers)} and {method.direction!r}"
        )
    if not tasks:
        return
    quotas, weights = tuple(config.multitask.quotas), tuple(config.multitask.weights)
    if len(quotas) != len(tasks) or sum(quotas) != config.data.batch_size:
        raise ValueError(
            f"config.multitask.quotas is {quotas}; it must be one for each of {len(tasks)} tasks, and sum to "
            f"config.data.batch_size, {config.data.batch_size}"
        )
    if len(weights) not in (0, len(tasks)):
        raise ValueError(f"config.multitask.weights is {weights}; it must be one for each of {len(tasks)} tasks, or ()")
    for name, value, needed in (
        ("model.weights", config.model.weights, ""),
        ("data.length_grouped", config.data.length_grouped, False),
        ("data.packed_rows", config.data.packed_rows, 0),
        ("data.sampling", config.data.sampling, "uniform"),
        ("train.microbatches", config.train.microbatches, 1),
        ("method.queries", method.queries, "constant"),
    ):
        if value != needed:
            raise ValueError(f"config.{name} is {value!r}; with config.multitask.tasks it must be {needed!r}")


def _check_per_example(config: Config) -> None:
    """What estimators whose loss is not one number a batch do not go with."""
    name = config.method.name
    if name in ("per_example", "grzo", "mezo_svrg") and config.train.microbatches > 1:
        raise ValueError(f"config.train.microbatches is {config.train.microbatches}; {name} needs 1")
    if name not in ("per_example", "grzo"):
        return
    if config.data.sampling != "uniform":
        raise ValueError(f"config.data.sampling is {config.data.sampling!r}; {name} weighs examples alike: uniform")
    if config.data.packed_rows:
        raise ValueError(f"config.data.packed_rows is {config.data.packed_rows}; {name} takes one example a row: 0")
    if config.method.num_samples > 1 or config.method.queries != "constant":
        raise ValueError(
            f"config.method.num_samples is {config.method.num_samples} and queries {config.method.queries!r}; {name} "
            "takes one direction an example: 1 and constant"
        )


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
