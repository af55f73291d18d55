"""The task of a config and the shapes of all that its step is given, without a weight or a row of data.

Of runs of BERT and of several tasks, which are small and begin at probes of their data, the shapes are those of the run
itself.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from launch.common import quantization
from launch.common.build import build, prepared
from launch.common.schema import Config
from launch.speech import shapes
from models.language import config as configs
from models.language import hub
from models.language.families import FAMILIES, abstract, family_of
from models.language.layers import cast_matrices
from models.language.llama_config import LlamaConfig
from models.language.prompted import PromptedLM
from zojax.trees import split

__all__ = ["NAMED", "Problem", "describe"]

Shapes = Any

SECONDS, LABELS = 16.0, 80
"""Of the longest utterance of a batch of speech, as in LibriSpeech."""


def _llama2(width: int, layers: int, heads: int, kv_heads: int, mlp: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        intermediate_size=mlp,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )


NAMED: dict[str, LlamaConfig] = {
    "meta-llama/Llama-2-7b-hf": _llama2(4096, 32, 32, 32, 11008),
    "meta-llama/Llama-2-13b-hf": _llama2(5120, 40, 40, 40, 13824),
    "meta-llama/Llama-2-70b-hf": _llama2(8192, 80, 64, 8, 28672),
}
"""Sizes by hub id, so that a plan needs no hub."""


class Problem(NamedTuple):
    """A step's task, and the shapes of what it is given.

    Attributes:
      task: loss and metrics.
      trainable: shapes of the trained weights.
      frozen: shapes of the others.
      batch: shapes of a batch.
      steps_per_epoch: training batches of an epoch; 1 where only shapes are known.
    """

    task: Any
    trainable: Shapes
    frozen: Shapes
    batch: Shapes
    steps_per_epoch: int


def describe(config: Config) -> Problem:
    """The task of a config and its shapes.

    A prompted model's sizes are those of `NAMED` or of its config.json; a batch is one of a task of two answers of one
    token. A batch of speech is of `SECONDS` and `LABELS`.

    Raises:
      ValueError: if a pattern matches no leaf, a file is malformed, or the config trains a prompt.
      FileNotFoundError: if a model's config.json, or what a small run needs, is missing.
    """
    patterns = tuple(config.trainable)
    if config.model.name == "transducer":
        found = shapes.shapes(config, seconds=SECONDS, labels=LABELS)
        return Problem(found.task, *split(found.params, patterns), found.batch, 1)
    if config.model.name != "prompted_lm":
        run = build(config, splits=("dev",))
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
        batch = jax.tree.map(jnp.asarray, next(run.batches))
        trainable, frozen, batch = jax.tree.map(shape, (run.params, run.frozen, batch))
        return Problem(run.task, trainable, frozen, batch, run.steps_per_epoch)
    if config.adapter.kind == "prompt" and config.adapter.rank:
        raise ValueError("config.adapter.kind is 'prompt'; of a plan it must be another")
    sizes = NAMED.get(config.model.source)
    if sizes is None:
        read = configs.read(hub.resolve(config.model.source) / "config.json")
        sizes = FAMILIES[read.get("model_type", "bert")].config.from_dict(read)
    task = PromptedLM(model=family_of(sizes).model(sizes), objective="classification", dtype=config.model.dtype)
    params = jax.eval_shape(
        lambda tree, key: prepared(config, task, cast_matrices(tree, config.model.dtype), key),
        abstract(sizes),
        jax.random.key(0),
    )
    b, s, of = config.data.batch_size, config.data.max_length, jax.ShapeDtypeStruct
    batch = {
        "tokens": of((b, 1, s), jnp.int32),
        "mask": of((b, 1, s), bool),
        "at": of((b, 1, 1), jnp.int32),
        "answer": of((b, 2, 1), jnp.int32),
        "answer_mask": of((b, 2, 1), bool),
        "correct": of((b, 2), bool),
        "weight": of((b,), jnp.float32),
    }
    return Problem(quantization.wrap_task(config, task), *split(params, patterns), batch, 1)
