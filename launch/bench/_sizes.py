"""Models for benchmarks that are known by their sizes alone: random weights, no checkpoint."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from models.language import bert, llama

__all__ = ["BERT_LARGE", "LLAMA_1B", "SCALES", "NextToken", "Scale", "chosen"]

BERT_LARGE = bert.BertConfig(
    vocab_size=30522,
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
)
LLAMA_1B = llama.LlamaConfig(  # the sizes of TinyLlama, arXiv 2401.02385: 1.1 billion weights
    vocab_size=32000,
    hidden_size=2048,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=64,
    intermediate_size=5632,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a benchmark is.

    Attributes:
      source: what `zo_step.classifier` takes.
      shapes: (rows, tokens) of the batches.
      samples: numbers of probes.
      orders: of the two sides of a single probe.
    """

    source: str | Path | bert.BertConfig = "minilm"
    shapes: Sequence[tuple[int, int]] = ((16, 64), (64, 64))
    samples: Sequence[int] = (1, 8)
    orders: Sequence[Literal["turn", "pair", "batch"]] = ("turn", "pair", "batch")


SCALES: dict[str, Scale] = {
    "minilm": Scale(),
    "large": Scale(source=BERT_LARGE, shapes=((64, 64), (16, 64)), samples=(1,), orders=("turn", "pair")),
}


def chosen(scale: str, scales: Mapping[str, Any] = SCALES) -> Any:
    """The entry of `scales`; a ValueError names the entries that there are."""
    if scale not in scales:
        raise ValueError(f"scale is {scale!r}; it must be one of {', '.join(scales)}")
    return scales[scale]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NextToken:
    """The mean loss of predicting each token of full rows.

    Args:
      config: the decoder's sizes.

    Example:
      >>> sizes = dict(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, head_dim=2)
      >>> config = llama.LlamaConfig(**sizes, num_key_value_heads=1, intermediate_size=8, initializer_range=0.0)
      >>> task = NextToken(config=config)
      >>> f"{task.loss(task.init(jax.random.key(0)), task.batch(2, 5))[0]:.4f}"  # log 8
      '2.0794'
    """

    config: llama.LlamaConfig

    def init(self, key: Any) -> Any:
        """Random parameters in float32."""
        tokens, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
        return jax.jit(llama.Llama(self.config).init)(key, tokens, mask)["params"]

    def batch(self, rows: int, length: int) -> dict[str, np.ndarray]:
        """Random tokens int32 [rows, length]."""
        return {"tokens": np.random.default_rng(0).integers(0, self.config.vocab_size, (rows, length), np.int32)}

    def loss(self, params: Any, batch: Mapping[str, Any], *, key: Any = None) -> tuple[jax.Array, dict[str, Any]]:
        """(mean loss in nats, no metrics)."""
        del key
        tokens = jnp.asarray(batch["tokens"])
        logits = llama.Llama(self.config).apply({"params": params}, tokens, jnp.ones(tokens.shape, bool))
        entropy = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits)[:, :-1], tokens[:, 1:])
        return entropy.mean(), {}

    def evaluate(self, params: Any, batch: Mapping[str, Any]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The loss alone."""
        return {"loss": (self.loss(params, batch)[0], jnp.float32(1))}
