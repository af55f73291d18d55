"""The task of predicting the next token: a causal language model trained from scratch on packed documents."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from models.language.layers import cast_matrices

__all__ = ["CausalPretraining"]

UNKNOWN = 2
"""The token that stands for a word that is dropped."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CausalPretraining:
    """Next-token prediction, in which the answers of prompts weigh more.

        loss = sum_t w_t (-log p(token_t | tokens before t in its segment)) / sum_t w_t

    with w_t = answer_weight at tokens of an answer, else 1. In training a share of the tokens that the model reads is
    replaced by `UNKNOWN` (word dropout, arXiv:1511.06349): a small model sees the same few rows many times, and has no
    other dropout.

    A batch is `zojax.data.documents.DocumentBatch`. Parameters: the model's own, float32.

    Args:
      model: a `Llama`.
      answer_weight: how much a token of an answer weighs.
      word_dropout: share of the tokens that are hidden in training.
      compute: type of the kernels and tables in products, "float32" or "bfloat16"; the weights stay float32.

    Example:
      >>> from models.language.llama import Llama, LlamaConfig
      >>> config = LlamaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                      num_key_value_heads=1, head_dim=2, intermediate_size=8, initializer_range=0.0)
      >>> task = CausalPretraining(model=Llama(config), answer_weight=2.0, word_dropout=0.0, compute="float32")
      >>> batch = {"tokens": jnp.ones((2, 5), jnp.int32), "segment": jnp.zeros((2, 5), jnp.int32),
      ...          "answer": jnp.zeros((2, 5), bool)}
      >>> f"{task.loss(task.init(jax.random.key(0)), batch)[0]:.4f}"  # log 8
      '2.0794'
    """

    model: Any
    answer_weight: float
    word_dropout: float
    compute: str

    def init(self, key: Any) -> Any:
        """Random parameters."""
        tokens, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
        return jax.jit(self.model.init)(key, tokens, mask)["params"]

    def loss(
        self, params: Any, batch: Mapping[str, Any], *, key: Any = None
    ) -> tuple[Float[Array, ""], dict[str, tuple[Array, Array]]]:
        """The weighted mean of the tokens' losses.

        Args:
          params: the model's tree, of arrays.
          batch: rows of documents.
          key: typed key of the word dropout; None for none.

        Returns:
          (loss in float32, no metrics).
        """
        tokens = jnp.asarray(batch["tokens"])
        if key is not None and self.word_dropout:
            hidden = jax.random.uniform(key, tokens.shape) < self.word_dropout
            tokens = jnp.where(hidden, UNKNOWN, tokens)
        entropy, _, predicted, answer = self._entropy(params, tokens, batch)
        weight = jnp.where(answer, self.answer_weight, 1.0) * predicted
        return jnp.sum(entropy * weight) / jnp.maximum(jnp.sum(weight), 1.0), {}

    def evaluate(self, params: Any, batch: Mapping[str, Any]) -> dict[str, tuple[Array, Array]]:
        """Sums over tokens, without dropout.

        Args:
          params: the model's tree.
          batch: rows of documents.

        Returns:
          {"loss": over all tokens alike, "answer_loss": over those of answers, "accuracy": how many of the latter are
          the likeliest token}, each (sum, weight).
        """
        entropy, hit, predicted, answer = self._entropy(params, jnp.asarray(batch["tokens"]), batch)
        of_answers = predicted & answer
        return {
            "loss": (jnp.sum(entropy * predicted), jnp.sum(predicted, dtype=jnp.float32)),
            "answer_loss": (jnp.sum(entropy * of_answers), jnp.sum(of_answers, dtype=jnp.float32)),
            "accuracy": (jnp.sum(hit & of_answers, dtype=jnp.float32), jnp.sum(of_answers, dtype=jnp.float32)),
        }

    def _entropy(
        self, params: Any, read: Int[Array, "b s"], batch: Mapping[str, Any]
    ) -> tuple[Array, Array, Array, Array]:
        """Of columns 1 to s - 1: -log p of the token, whether it is the likeliest, is predicted, and is an answer's."""
        segment = jnp.asarray(batch["segment"])
        target = jnp.asarray(batch["tokens"])[:, 1:]
        variables = {"params": cast_matrices(params, self.compute)}
        hidden, _ = self.model.apply(variables, read, segment >= 0, segment=segment, method="hidden")
        logits = self.model.apply(variables, hidden[:, :-1], method="logits")
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        predicted = (segment[:, 1:] >= 0) & (segment[:, 1:] == segment[:, :-1])
        return entropy, jnp.argmax(logits, axis=-1) == target, predicted, jnp.asarray(batch["answer"])[:, 1:]
