"""Attention of a transducer's frames, or of its predictor's outputs, to the phrases of catalogues."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from models.language.layers import MASKED
from models.layers import Linear
from zojax import ops

__all__ = ["BiasingAttention", "Memory"]


class Memory(NamedTuple):
    """What an attention keeps of catalogues: a tree of arrays, whose first axis is that of catalogues.

    Attributes:
      keys: of the phrases, or of their positions.
      values: likewise.
      mask: True where there is one.
    """

    keys: Float[Array, "b k heads d"]
    values: Float[Array, "b k heads d"]
    mask: Bool[Array, "b k"]


class BiasingAttention(nn.Module):
    """What a catalogue says to a frame or to a predictor's output: a vector to be added to it.

        alpha = softmax_k(q . k_k / sqrt(d)) over the phrases and a no-bias key,    q = W_q x,  k_k = W_k c_k
        c = sum_k alpha_k W_v c_k,    bias = sigmoid(g . [x, c] + a) W_o c

    (The adapters of arXiv 2305.05271 and its family; the gate is ours.) The no-bias key is learned, and its value is 0:
    so a catalogue without phrases gives a bias of exactly 0, and so does W_o, which starts as 0.

    Keys and values depend on the catalogue alone: `remember` makes them, once for each catalogue.

    Parameters: "query", "key", "value", "gate" {kernel, bias}, "output" {kernel}, "no_bias" [heads, width / heads].

    Args:
      d_query: width of what is biased.
      d_phrase: width of a phrase's vector.
      width: of all heads together.
      heads: number of heads.

    Raises:
      ValueError: if a size is not positive, or the heads do not divide the width.

    Example:
      >>> attention, x = BiasingAttention(8, 6, 4, 2), jnp.ones((2, 5, 8))
      >>> phrases, mask = jnp.ones((2, 3, 6)), jnp.ones((2, 3), bool)
      >>> variables = attention.init(jax.random.key(0), x, phrases, mask)
      >>> memory = attention.apply(variables, phrases, mask, method="remember")
      >>> attention.apply(variables, x, memory, method="bias").shape
      (2, 5, 8)
    """

    d_query: int
    d_phrase: int
    width: int
    heads: int = 1

    def __post_init__(self):
        for name in ("d_query", "d_phrase", "width", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"BiasingAttention.{name} is {getattr(self, name)}; it must be positive")
        if self.width % self.heads:
            raise ValueError(f"BiasingAttention.heads is {self.heads}; it must divide the width, {self.width}")
        super().__post_init__()

    def setup(self):
        self.query = Linear(self.width, self.d_query**-0.5)
        self.key = Linear(self.width, self.d_phrase**-0.5)
        self.value = Linear(self.width, self.d_phrase**-0.5)
        self.gate = Linear(1, (self.d_query + self.width) ** -0.5)
        self.output = Linear(self.d_query, 0.0, use_bias=False)
        self.no_bias = self.param("no_bias", nn.initializers.zeros, (self.heads, self.width // self.heads))

    def __call__(
        self, x: Float[Array, "b *t d_query"], phrases: Float[Array, "b2 k d_phrase"], mask: Bool[Array, "b2 k"]
    ) -> Float[Array, "b *t d_query"]:
        """`bias` by phrases that are met once, as in training, and to make the parameters."""
        return self.bias(x, self.remember(phrases, mask))

    def remember(self, phrases: Float[Array, "b k d_phrase"], mask: Bool[Array, "b k"]) -> Memory:
        """Keys and values of catalogues.

        Args:
          phrases: vectors; where the mask is False, any finite ones.
          mask: True where there is a phrase.

        Returns:
          What `bias` takes.
        """
        shape = (*phrases.shape[:2], self.heads, self.width // self.heads)
        return Memory(self.key(phrases).reshape(shape), self.value(phrases).reshape(shape), mask)

    def bias(
        self, x: Float[Array, "b *t d_query"], memory: Memory, own: Memory | None = None
    ) -> Float[Array, "b *t d_query"]:
        """What is to be added to x.

        Args:
          x: frames, outputs of the predictor, or other queries; `t` may be any axes, or none.
          memory: of as many catalogues as x has rows; or of one, for all rows; or of a divisor of the rows, where
            consecutive rows share one, as the hypotheses of an utterance do in a search.
          own: further keys of each query alone, with the axes of x in front.

        Returns:
          The bias, as large as x.

        Raises:
          ValueError: if the rows are no multiple of the catalogues.
        """
        return self._say(x, memory, own, jax.nn.softmax(self._scores(x, memory, own), axis=-1))

    def watched(
        self, x: Float[Array, "b t d_query"], memory: Memory, own: Memory | None = None
    ) -> tuple[Float[Array, "b t d_query"], Float[Array, "b t k1"]]:
        """`bias`, and where attention is.

        Args:
          x: as for `bias`.
          memory: of as many catalogues as x has rows.
          own: as for `bias`.

        Returns:
          (bias, ln mean_heads alpha of the no-bias key, of those of the memory, and of the queries' own).
        """
        log_alpha = jax.nn.log_softmax(self._scores(x, memory, own), axis=-1)
        together = jax.nn.logsumexp(log_alpha, axis=1) - math.log(self.heads)
        return self._say(x, memory, own, jnp.exp(log_alpha)), together

    def _scores(
        self, x: Float[Array, "b *t d_query"], memory: Memory, own: Memory | None
    ) -> Float[Array, "b2 heads n k1"]:
        """Of the no-bias key, then of the memory's and of the queries' own."""
        catalogues = memory.keys.shape[0]
        if x.shape[0] % catalogues:
            raise ValueError(f"memory: {catalogues} catalogues for {x.shape[0]} rows; a divisor is needed")
        query = self._queries(self.query(x), catalogues, self.heads, self.width // self.heads)
        nothing = jnp.einsum("bthd,hd->bht", query, ops.value(self.no_bias))[..., None]
        scores = jnp.einsum("bthd,bkhd->bhtk", query, memory.keys)
        found = [nothing, jnp.where(memory.mask[:, None, None], scores, MASKED)]
        if own is not None:
            scores = jnp.einsum("bthd,btkhd->bhtk", query, self._queries(own.keys, catalogues, *own.keys.shape[-3:]))
            mask = self._queries(own.mask, catalogues, own.mask.shape[-1])
            found.append(jnp.where(mask[:, None], scores, MASKED))
        return jnp.concatenate(found, axis=-1) * (self.width // self.heads) ** -0.5

    def _say(
        self, x: Float[Array, "b *t d_query"], memory: Memory, own: Memory | None, alpha: Float[Array, "b2 heads n k1"]
    ) -> Float[Array, "b *t d_query"]:
        shared = 1 + memory.keys.shape[1]
        found = jnp.einsum("bhtk,bkhd->bthd", alpha[..., 1:shared], memory.values)
        if own is not None:
            values = self._queries(own.values, memory.keys.shape[0], *own.values.shape[-3:])
            found = found + jnp.einsum("bhtk,btkhd->bthd", alpha[..., shared:], values)
        found = found.reshape(*x.shape[:-1], self.width)
        gate = jax.nn.sigmoid(self.gate(jnp.concatenate([x, found], axis=-1)))
        return gate * self.output(found)

    @nn.nowrap
    def _queries(self, x: Array, catalogues: int, *last: int) -> Array:
        """An axis of catalogues and one of all queries to each, in front of those that a query has."""
        return x.reshape(catalogues, x.size // max(catalogues * math.prod(last), 1), *last)
