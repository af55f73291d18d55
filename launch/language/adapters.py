"""From the `adapter` fields of a config to weights beside those of a model."""

from typing import Any

import jax
import numpy as np

from launch.common.schema import Config
from models.language import bert, llama, opt
from models.language.adapters import add_adapters, add_prefix
from models.language.prefixes import prefix_of
from zojax import random, train
from zojax.adapters import Bottleneck, add_lora, add_prompt, prepend_prompt

Params = Any

# Where each model has its bottlenecks.
PLACES: dict[type, tuple[str, ...]] = {
    bert.Bert: bert.ADAPTERS,
    llama.Llama: llama.ADAPTERS,
    opt.Opt: opt.ADAPTERS,
}


def add(config: Config, task: Any, params: Params, key: jax.Array) -> Params:
    """The weights with the adapters that the config asks for.

    Args:
      config: a config that `schema.check` has passed.
      task: whose weights these are.
      params: weights, of any leaf type.
      key: key of the adapters' start.

    Returns:
      The weights.

    Raises:
      ValueError: if a pattern matches no leaf.
    """
    adapter, size = config.adapter, config.adapter.rank
    if not size:
        return params
    if adapter.kind == "lora":
        return add_lora(params, tuple(adapter.where), rank=size, alpha=float(adapter.alpha), key=key)
    model = model_of(task)
    own = params.get("encoder", params)
    table = own["embeddings"]["word"]
    if adapter.kind == "tensor_train":
        own = add_adapters(own, PLACES[type(model)], Bottleneck(rank=size), key=key)
    elif adapter.kind == "prefix":
        words = (random.uniform(key, (size,)) * table.shape[0]).astype(np.int32)
        own = add_prefix(own, *prefix_of(model, own, words))
    else:
        own = own | {"embeddings": own["embeddings"] | {"word": add_prompt(table, size, key=key)}}
    return params | {"encoder": own} if "encoder" in params else own


def model_of(task: Any) -> Any:
    """The Linen module of a task: its own, or the encoder of a classifier."""
    return task.model if hasattr(task, "model") else bert.Bert(task.config)


def prompt_length(config: Config) -> int:
    """Tokens of the prompt in front of every text."""
    return config.adapter.rank if config.adapter.kind == "prompt" else 0


def with_prompt(
    config: Config, task: Any, batches: train.Batches, evaluation: dict[str, list[Any]]
) -> tuple[train.Batches, dict[str, list[Any]]]:
    """Batches to train and to evaluate on, with the tokens of the config's prompt in front.

    Raises:
      ValueError: if the model cannot read as many tokens.
    """
    length = prompt_length(config)
    if not length:
        return batches, evaluation
    model = model_of(task).config
    most = model.max_position_embeddings - getattr(model, "position_offset", 0)
    if config.data.max_length + length > most:
        raise ValueError(
            f"config.adapter.rank is {length} and config.data.max_length {config.data.max_length}; together they must "
            f"be at most {most}, which the model reads"
        )
    longer = {name: [prepend_prompt(b, model.vocab_size, length) for b in own] for name, own in evaluation.items()}
    return _Prompted(batches, model.vocab_size, length), longer


class _Prompted:
    """Training batches with the tokens of a prompt in front."""

    def __init__(self, batches: train.Batches, words: int, length: int):
        self._batches, self._words, self._length = batches, words, length

    def __next__(self) -> Any:
        return prepend_prompt(next(self._batches), self._words, self._length)

    def get_state(self) -> Any:
        return self._batches.get_state()

    def set_state(self, state: Any) -> None:
        self._batches.set_state(state)
