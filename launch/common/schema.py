"""What a config may hold: every field, its type and its range. A config that passes can be built."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from configs.base import get_base
from launch.common.checks import check_together
from launch.common.integer_schema import depth

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
    # "reviews", "sst2" or a folder of JSON lines; of several tasks "text" or a folder with one folder a task
    "data.source": _text(),
    "data.num_classes": _integer(2),
    "data.train_examples": _integer(0),  # the first so many; 0 for all
    "data.shots": _integer(0),  # of prompted_lm: so many of a class to train on and for dev; 0 for train_examples
    "data.max_length": _integer(4),  # tokens
    "data.buckets": _Field(
        (tuple, list), lambda v: all(type(b) is int and b > 0 for b in v), "a tuple of padded lengths, or ()"
    ),
    "data.length_grouped": _flag(),  # batches of texts of like length
    "data.packed_rows": _integer(0),  # a batch's texts side by side in so many rows of max_length; 0: a text a row
    "data.sampling": _choice("uniform", "importance"),  # importance: by the probe's error on each example
    "data.batch_size": _integer(1),
    "data.eval_batch_size": _integer(1),
    # prompted_lm: data.source is a task of zojax.data.tasks; transducer: "commands", "wake", "names", "an4" or a folder
    # causal_lm: from scratch, data.source is a folder of launch.corpus
    "model.name": _choice("bert_classifier", "prompted_lm", "transducer", "causal_lm"),
    "model.objective": _choice("loss", "accuracy", "f1"),  # of prompted_lm; the last two have no gradient
    "model.source": _text(),  # "minilm", a folder or a hub id
    # A run whose weights take the place of the source's, but for the head: "" or "runs/x" or "runs/x:best".
    "model.weights": _Field((str,), lambda v: True, "the folder of a run, or nothing"),
    "model.dtype": _choice("float32", "bfloat16", "float16"),
    "model.head": _choice("zero", "probe"),
    "model.head_examples": _integer(0),  # the probe is fitted to the first so many; 0 for all
    "method.name": _choice(
        "spsa",
        "forward",
        "fzoo",
        "quzo",
        "eggroll",
        "lozo",
        "lozo_m",  # with momentum in the factor
        "subzero",
        "per_example",
        "grzo",  # per_example over the deviation of its differences
        "hizoo",
        "kerzoo",
        "mezo_svrg",
        "multi_task",  # spsa of several tasks
        "first_order",
    ),
    "method.eps": _number(),
    "method.auto_eps": _flag(),  # measure eps; `eps` is not used then
    "method.num_samples": _integer(1),
    "method.queries": _choice("constant", "adaptive"),  # adaptive: grows with the epoch up to num_samples (AdaZeta)
    "method.direction": _choice("gaussian", "rademacher", "sphere", "low_rank", "sparse"),
    "method.rank": _integer(1),  # of low_rank
    "method.bits": _Field((int,), lambda v: 1 <= v <= 8, "a number of bits, 1 to 8"),  # of quzo's directions
    "method.independent": _flag(),  # of quzo: a rounding of its own for the update
    "method.every": _integer(1),  # steps for which lozo and subzero keep a factor and mezo_svrg an anchor
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
    "integer.accelerator": _choice("none", "tflite", "narrow"),  # that a transducer is judged on, or trained on
    "integer.forward": _choice("float", "emulation"),  # of first_order: the float network, or the integers in float
    "integer.weights": _choice("absmax", "learned_step", "gq", "s8bqat"),
    "integer.scales": _choice("column", "gate"),  # of the LSTM's kernels: of each column or gate
    "integer.bits": _Field((int,), lambda v: 1 <= v <= 8, "a number of bits, 1 to 8"),  # of gq and s8bqat
    "integer.allocation": _Field(
        (tuple, list), lambda v: all(type(t) is str and depth(t) for t in v), 'a tuple of "PATTERN=BITS" of leaves'
    ),
    "integer.soft_steps": _integer(0),  # of gq: before each weight has one centroid
    "integer.centroids": _choice("uniform", "lloyd_max"),  # of gq: from where they start
    "integer.every": _integer(1),  # steps from one quantisation in gq's soft phase, or one compression of s8bqat, on
    "integer.strength": _number(inclusive=True),  # of s8bqat's regulariser
    "multitask.tasks": _Field(
        (tuple, list),
        lambda v: all(type(n) is str for n in v) and len(set(v)) == len(v),
        "a tuple of names of tasks, each once, or () for the data set of data.source",
    ),
    "multitask.quotas": _Field(
        (tuple, list), lambda v: all(type(n) is int and n > 0 for n in v), "a tuple, rows of each task in a batch"
    ),
    "multitask.weights": _Field(
        (tuple, list),
        lambda v: all(isinstance(n, float | int) and 0 <= n < math.inf for n in v) and (not v or any(v)),
        "a tuple, the weight of each task, or () for equal ones",
    ),
    "multitask.dev_examples": _integer(1),  # of each task, cut from its train rows
    "multitask.test_examples": _integer(0),  # of each task; 0 for all
    "mask.kind": _choice("none", "mazo", "random", "magnitude"),  # of the weights that move
    "mask.keep": _Field((float, int), lambda v: 0 < v <= 1, "a share of each row, in (0, 1]"),
    "mask.gradient": _choice("outputs", "backward"),  # of mazo: from probes of the layers' outputs, or a backward pass
    "mask.num_probes": _integer(1),  # a batch, of "outputs"
    "mask.examples": _integer(1),  # of each task, to calibrate on
    "mask.alpha": _number(inclusive=True),  # share of the greedy score
    "mask.beta": _number(inclusive=True),  # share of the magnitudes
    "mask.learning_rate": _number(),  # of the greedy score's step
    "mask.damping": _number(),  # share of the Hessian's mean diagonal
    "lm.width": _integer(2),  # of causal_lm, as all of lm
    "lm.layers": _integer(1),
    "lm.heads": _integer(1),
    "lm.kv_heads": _integer(1),
    "lm.mlp": _integer(1),
    "lm.compute": _choice("float32", "bfloat16"),  # of products; the weights are float32
    "lm.answer_weight": _number(),  # of a token of an answer; the others weigh 1
    "lm.word_dropout": _Field((float, int), lambda v: 0 <= v < 1, "a rate, in [0, 1)"),
    "lm.prompt_share": _number(),  # of the prompts in an epoch, which holds every running text once
    # tensor_train: AdaZeta's bottlenecks, in their own places; prefix: keys and values that every token sees, in every
    # layer; prompt: tokens in front of every text
    "speech.bins": _integer(1),  # of the log-Mel features
    "speech.pieces": _integer(0),  # of a sentencepiece model of the training texts; 0: characters
    "speech.speeds": _Field(
        (tuple, list), lambda v: len(v) > 0 and all(type(n) is int and 50 <= n <= 200 for n in v), "a tuple of percents"
    ),  # at which each training utterance is heard
    "speech.snr": _Field(
        (tuple, list), lambda v: len(v) == 2 and all(type(n) is int for n in v), "a pair of dB, least and greatest"
    ),  # of "commands", and of noise
    "speech.noise": _choice("none", "white", "pink", "brown"),  # under the utterances of all splits
    "speech.seconds": _integer(1),  # of a training batch, with padding
    "speech.buckets": _integer(1),  # shapes of training batches
    "speech.frequency_masks": _integer(0),
    "speech.frequency_width": _integer(0),  # bins
    "speech.time_masks": _integer(0),
    "speech.time_width": _integer(0),  # frames
    "speech.gain": _number(inclusive=True),  # dB by which a training utterance may be louder or softer
    "speech.encoder": _choice("lstm", "conv_rnnt", "conformer", "ancat"),
    "speech.stack": _integer(1),  # frames joined to one, of lstm and conv_rnnt
    "speech.layers": _integer(1),
    "speech.width": _integer(1),  # cells of the LSTM layers, width of the Conformer's
    "speech.projection": _integer(0),  # of the LSTM layers; 0 for none
    "speech.dropout": _Field((float, int), lambda v: 0 <= v < 1, "a rate, in [0, 1)"),
    # Channels of the convolutions: four of conv_rnnt, one number for both of conformer.
    "speech.channels": _Field(
        (tuple, list), lambda v: len(v) in (1, 4) and all(type(n) is int and n > 0 for n in v), "1 or 4 channels"
    ),
    "speech.context": _integer(1),  # width of conv_rnnt's local and global encoders
    "speech.heads": _integer(1),  # of conformer, as the three that follow
    "speech.kernel": _integer(1),
    "speech.chunk": _integer(0),  # encoder frames that see one another; 0: the whole utterance, which does not stream
    "speech.left": _integer(0),  # encoder frames before the chunk that a frame sees
    # Encoder frames by which a frame of each layer looks ahead: of conformer with chunk 1; at most so many of ancat.
    "speech.lookahead": _integer(0),
    "speech.latency_kind": _choice("additive", "path", "smooth"),  # of ancat, as the three that follow
    "speech.latency_weight": _number(inclusive=True),  # nats a label that an encoder frame of latency costs
    "speech.compute_weight": _number(inclusive=True),  # nats a label that a pair of frames ahead costs
    "speech.anneal": _integer(0),  # steps over which masks become hard and the costs grow
    "speech.predictor": _choice("lstm", "stateless"),
    "speech.embedding": _integer(1),
    "speech.predictor_width": _integer(1),  # of lstm
    "speech.joint": _integer(1),
    "speech.band": _integer(0),  # symbols a frame of the pruned loss; 0: the exact loss
    "speech.acoustic": _number(inclusive=True),  # weight of a loss by the frames alone
    "speech.alone": _integer(0),  # steps without the predictor
    "speech.fast_emit": _number(inclusive=True),  # first_order alone
    "speech.delay_penalty": _number(inclusive=True),
    "speech.signals": _Field(
        (tuple, list),
        lambda v: all(type(n) is int and 0 <= n <= 2 for n in v) and len(set(v)) == len(v),
        "a tuple of signals, each once: 0 the beam, 1 and 2 microphones; or () for utterances close to the mouth",
    ),
    "speech.wrong": _Field((float, int), lambda v: 0 <= v <= 1, "a share, 0 to 1"),  # of the beams, steered wrongly
    "speech.fusion": _choice("none", "average", "concatenation", "flstm", "cnn"),  # of several signals
    "speech.fusion_width": _integer(1),  # cells of flstm, planes of cnn
    "speech.channel_dropout": _Field((float, int), lambda v: 0 <= v < 1, "a rate, in [0, 1)"),  # of whole signals
    # wake words; none: frames attend to no phrases; single: to all at every frame; dual: a spotter says to which
    "wake.attention": _choice("none", "single", "dual"),
    "wake.small": _integer(1),  # width of the attention over wake words
    "wake.large": _integer(1),  # over the catalogue
    "wake.hidden": _integer(1),  # cells of the phrase encoder, each direction
    "wake.spotter": _integer(1),  # cells
    "wake.jitter": _integer(0),  # frames of the encoder by which each end of a wake word moves in training
    "wake.spotting": _number(inclusive=True),  # weight of the spotter's loss
    "wake.catalogue": _integer(1),  # phrases of a training batch
    # adapters to lists of phrases; phrases are read as subwords, and also as characters, by meaning, or in both ways
    "biasing.kind": _choice("none", "subword", "acoustic", "semantic", "both"),
    "biasing.phrases": _Field((str,), lambda v: True, "names, a file with a phrase a line, or nothing"),
    "biasing.size": _integer(1),  # at most so many distractors in a list to train on, and so many to evaluate with
    "biasing.keep": _Field((float, int), lambda v: 0 < v <= 1, "a share, in (0, 1]"),  # of utterances that are listed
    "biasing.positions": _flag(),  # keys of each position of a phrase, instead of one of the phrase
    "biasing.guidance": _number(inclusive=True),  # weight of the loss of what attention misses of what is said
    "biasing.width": _integer(1),  # of the attentions, a multiple of their 4 heads
    "biasing.hidden": _integer(1),  # cells of the phrase encoders, each direction, and width of their tables
    "biasing.source": _text(),  # of the text encoder that knows meanings: as model.source
    "adapter.kind": _choice("lora", "tensor_train", "prefix", "prompt"),
    "adapter.rank": _integer(0),  # of prefix and prompt the number of tokens; 0 for no adapters
    "adapter.alpha": _number(),  # of lora, as is `where`
    "adapter.where": _Field(
        (tuple, list), lambda v: len(v) > 0 and all(isinstance(p, str) for p in v), "a tuple of patterns, at least one"
    ),
    "optimizer.name": _choice("sgd", "momentum", "adam", "adamw", "sign"),
    "optimizer.learning_rate": _number(inclusive=True),
    "optimizer.schedule": _choice("constant", "linear", "cosine"),
    "optimizer.warmup_steps": _integer(0),
    "optimizer.weight_decay": _number(inclusive=True),  # of adamw
    "optimizer.clip_norm": _number(inclusive=True),  # of first_order's gradient; 0 for none
    "optimizer.rounding": _choice("none", "stochastic", "compensated"),
    "train.steps": _integer(0),
    "train.eval_every": _integer(0),  # 0 for none
    "train.checkpoint_every": _integer(0),  # 0 for the last step alone
    "train.log_every": _integer(1),
    "train.microbatches": _integer(1),
    "train.keep_best": _choice("accuracy", "loss", "wer", "none"),  # which weights are the best, on dev
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
    check_together(config)


def save(workdir: Path, config: Config) -> None:
    """Writes the config of a run into its folder."""
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
    temporary = workdir / (FILE + ".tmp")
    temporary.write_text(text)
    temporary.replace(workdir / FILE)


def load(workdir: Path) -> Config:
    """Reads the config of a run. Fields that were not there when it was written have the defaults of `configs/base.py`.

    Raises:
      FileNotFoundError: if the folder holds no run.
      ValueError: if the file is no config.
    """
    path = workdir / FILE
    if not path.is_file():
        raise FileNotFoundError(f"workdir: {workdir} holds no run (no {FILE})")
    try:
        saved = json.loads(path.read_text())
        fields = get_base("").to_dict()
        sections = {name: value | saved.get(name, {}) for name, value in fields.items() if isinstance(value, dict)}
        config = ml_collections.ConfigDict(saved | sections)
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
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
