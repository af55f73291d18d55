"""Prompt tuning: a few rows of an embedding table that no word has, in front of every text."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key

from zojax import ops, random

__all__ = ["PromptTable", "add_prompt", "prepend_prompt"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTable:
    """The leaf "table, and p more rows behind it": tokens V to V + p - 1 are those of the prompt.

    Nothing but `embed` knows of them: the shape, and a tied output layer's products, are the table's.

    Attributes:
      base: the frozen table [V, d], an array or another leaf type; first, because Flax compares the first array's
        shape.
      prompt: the rows of the prompt [p, d], an array or a leaf type such as `Perturbed`.

    Example:
      >>> w = PromptTable(base=jnp.zeros((4, 2)), prompt=jnp.ones((1, 2)))
      >>> w.shape, ops.embed(w, jnp.array([4, 3])).tolist()
      ((4, 2), [[1.0, 1.0], [0.0, 0.0]])

    References:
      Prompt tuning, arXiv 2104.08691.
    """

    base: Any
    prompt: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.shape)

    @property
    def ndim(self) -> int:
        return len(self.base.shape)

    @property
    def dtype(self):
        return self.base.dtype

    def materialize(self) -> Float[Array, "V d"]:
        """The table without the prompt."""
        return ops.value_as_stored(self.base)

    def __jax_array__(self) -> Array:
        return self.materialize()

    def embed(self, ids: Integer[Array, "*batch"]) -> Float[Array, "*batch d"]:
        """Rows of the table, or of the prompt for ids of V and more."""
        words = self.shape[0]
        own = ids >= words
        table = ops.embed(self.base, jnp.where(own, 0, ids))
        return jnp.where(own[..., None], ops.embed(self.prompt, jnp.where(own, ids - words, 0)), table)

    def einsum(self, spec: str, x: Array) -> Array:
        """The contraction of x with the table."""
        return ops.einsum(spec, x, self.base)


def add_prompt(table: Any, length: int, *, key: Key[Array, ""]) -> PromptTable:
    """Puts the rows of a prompt behind a table. They start as the rows of random words.

    Args:
      table: [V, d], an array or a leaf type.
      length: p.
      key: typed key of the words.

    Returns:
      The leaf; the prompt is float32.

    Raises:
      ValueError: if the length is below 1, or there is a prompt already.

    Example:
      >>> add_prompt(jnp.ones((8, 4)), 3, key=jax.random.key(0)).prompt.shape
      (3, 4)

    References:
      Prompt tuning, arXiv 2104.08691, with the start from the vocabulary that it reports.
    """
    if length < 1:
        raise ValueError(f"length: {length}; at least 1 is needed")
    if isinstance(table, PromptTable):
        raise ValueError("table: it has a prompt already")
    words = table.shape[0]
    drawn = jnp.minimum((random.uniform(key, (length,)) * words).astype(jnp.int32), words - 1)
    return PromptTable(base=table, prompt=ops.embed(table, drawn))


def prepend_prompt(batch: Mapping[str, Any], words: int, length: int) -> dict[str, Any]:
    """A batch with the tokens of a prompt in front of every row, before all padding.

    Args:
      batch: with `tokens` and `mask` [..., s], and `at`, if it is there, columns of them; the rest stays.
      words: V, rows of the table.
      length: p.

    Returns:
      The batch, its tokens and mask [..., p + s].

    Example:
      >>> batch = {"tokens": np.array([[5, 6]]), "mask": np.ones((1, 2), bool), "at": np.array([[1]])}
      >>> found = prepend_prompt(batch, 100, 2)
      >>> found["tokens"].tolist(), found["at"].tolist()
      ([[100, 101, 5, 6]], [[3]])
    """
    tokens, mask = np.asarray(batch["tokens"]), np.asarray(batch["mask"])
    lead = (*tokens.shape[:-1], length)
    front = np.broadcast_to(np.arange(words, words + length, dtype=tokens.dtype), lead)
    out = {
        **batch,
        "tokens": np.concatenate([front, tokens], axis=-1),
        "mask": np.concatenate([np.ones(lead, bool), mask], axis=-1),
    }
    if "at" in batch:
        out["at"] = np.asarray(batch["at"]) + np.int32(length)
    return out
