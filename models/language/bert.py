"""BERT's and RoBERTa's encoder and head for masked words, in Flax Linen over `zojax.ops` alone.

Numbered differences from the reference implementation (Hugging Face's `BertModel` and `RobertaModel`):

1. There is no dropout. A zeroth-order probe compares two forwards of one batch; noise in the activations
   would have to be the same in both, and then regularises little.
2. Layers run under `nn.scan`: the leaves under "layers" carry a leading axis of num_hidden_layers. Scanning
   was also the fastest form on two CPU cores (MiniLM's layers at 16x64: 155 ms scanned, 173 ms unrolled).
3. Kernels are [d_in, d_out], and query, key and value stay three leaves, so that a direction or an adapter
   may treat each by itself. One fused product for the three was no faster on CPU.
4. Masked scores get -1e9 instead of the smallest float32: exp() is 0 for both, and a row in which everything
   is masked stays finite.
5. RoBERTa's positions count the tokens of the mask; there, those that are not the padding token.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.language.adapters import adapted, with_prefix
from models.language.config import check_sizes, fill, read
from models.language.layers import ACTIVATIONS, MASKED, LayerNorm, Linear
from models.language.sharding import constrain
from zojax import ops

__all__ = ["ADAPTERS", "KERNELS", "STACKED", "TABLES", "Bert", "BertConfig"]

STACKED: tuple[str, ...] = (r"(^|/)layers/",)
"""Patterns of the leaves that the model scans over, for `PerturbSpec.stacked`."""

KERNELS = r"(layers/\w+|pooler|masked_head/dense)/kernel$"
TABLES = r"embeddings/(word|position|type)$"
"""Patterns of the matrices and of the tables, for rules that quantise."""

ADAPTERS = ("attention_adapter", "mlp_adapter")
"""Places for `add_adapters`: behind each half of a layer, before it is added and normalised."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes and constants of a BERT or RoBERTa encoder, under the names of Hugging Face's config.json.

    Args:
      vocab_size: rows of the word table.
      hidden_size: width d of the residual stream.
      num_hidden_layers: layers L.
      num_attention_heads: heads; divides hidden_size.
      intermediate_size: width of the MLP.
      hidden_act: "gelu" (exact), "gelu_new" (tanh approximation) or "relu".
      max_position_embeddings: rows of the position table.
      type_vocab_size: rows of the token-type table.
      layer_norm_eps: constant under the root of LayerNorm.
      initializer_range: standard deviation of randomly initialised matrices.
      position_offset: row of the first token's position. 0 is BERT: positions are columns of the batch. RoBERTa has 2
        (its padding token's number and one more), and its positions count tokens, wherever the padding is.

    Raises:
      ValueError: if a size is not positive, the heads do not divide the width, or hidden_act is unknown.

    Example:
      >>> BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...            intermediate_size=8).head_size
      2
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    position_offset: int = 0

    def __post_init__(self):
        check_sizes(self, may_be_zero=("position_offset",))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"BertConfig.num_attention_heads is {self.num_attention_heads}; it must divide "
                f"hidden_size, which is {self.hidden_size}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"BertConfig.hidden_act is {self.hidden_act!r}; it must be one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BertConfig":
        """Reads the mapping that a Hugging Face config.json holds; keys of no use here are passed over.

        Args:
          values: the parsed JSON object.

        Returns:
          The configuration.

        Raises:
          ValueError: if a size is missing, or the file describes something other than a BERT or RoBERTa encoder with
            absolute positions.

        Example:
          >>> BertConfig.from_dict({"model_type": "gpt2"})
          Traceback (most recent call last):
          ...
          ValueError: config.json: model_type is 'gpt2'; it must be 'bert' or 'roberta'
        """
        kind = values.get("model_type", "bert")
        if kind not in ("bert", "roberta"):
            raise ValueError(f"config.json: model_type is {kind!r}; it must be 'bert' or 'roberta'")
        for key, right in (("position_embedding_type", "absolute"), ("is_decoder", False)):
            if values.get(key, right) != right:
                raise ValueError(f"config.json: {key} is {values[key]!r}; it must be {right!r}")
        padding = values.get("pad_token_id")
        offset = 0 if kind == "bert" else (1 if padding is None else padding) + 1
        return fill(cls, {**values, "position_offset": offset})

    @classmethod
    def from_file(cls, path: Path | str) -> "BertConfig":
        """Reads a Hugging Face config.json.

        Args:
          path: the file.

        Returns:
          The configuration.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: as `from_dict`, or if the file is no JSON object.
        """
        return cls.from_dict(read(path))

    def to_dict(self) -> dict[str, Any]:
        """The mapping for a config.json that `transformers` reads.

        Returns:
          A JSON object.

        Example:
          >>> config = BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
          ...                     intermediate_size=8, position_offset=2)
          >>> BertConfig.from_dict(config.to_dict()) == config
          True
        """
        values = dataclasses.asdict(self)
        offset = values.pop("position_offset")
        kind = {"model_type": "roberta", "pad_token_id": offset - 1} if offset else {"model_type": "bert"}
        return {**values, **kind, "position_embedding_type": "absolute"}


class Embeddings(nn.Module):
    """Sum of word, position and token-type embeddings, normalised."""

    config: BertConfig

    def setup(self):
        c = self.config
        init = nn.initializers.normal(c.initializer_range)
        self.word = self.param("word", init, (c.vocab_size, c.hidden_size))
        self.position = self.param("position", init, (c.max_position_embeddings, c.hidden_size))
        self.type = self.param("type", init, (c.type_vocab_size, c.hidden_size))
        self.norm = LayerNorm(c.layer_norm_eps)

    def __call__(
        self,
        tokens: Int[Array, "b s"],
        mask: Bool[Array, "b s"],
        token_types: Int[Array, "b s"] | None = None,
        segments: Int[Array, "b s"] | None = None,
    ) -> Float[Array, "b s d"]:
        """Embeds token ids; without token types every token is of type 0. Positions count within a segment."""
        if token_types is None:
            token_types = jnp.zeros((1, 1), jnp.int32)
        x = ops.embed(self.word, tokens) + ops.embed(self.type, token_types)
        position = jnp.arange(tokens.shape[1])
        if self.config.position_offset:
            position = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0) + self.config.position_offset
        if segments is not None:
            starts = jnp.concatenate([jnp.ones_like(mask[:, :1]), segments[:, 1:] != segments[:, :-1]], axis=1)
            column = jnp.arange(tokens.shape[1])
            position = column - jax.lax.cummax(jnp.where(starts, column, 0), axis=1) + self.config.position_offset
        return self.norm(x + ops.embed(self.position, position))

    def attend(self, x: Float[Array, "b s d"]) -> Float[Array, "b s vocab"]:
        """Products with the word table: the tied output layer."""
        return ops.einsum("bsd,vd->bsv", x, self.word)


class MaskedHead(nn.Module):
    """What stands before the tied output layer: a linear layer, the activation, a LayerNorm; and the output's bias."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"]) -> tuple[Float[Array, "b s d"], Float[Array, " vocab"]]:
        """Returns (features, bias)."""
        c = self.config
        x = ACTIVATIONS[c.hidden_act](Linear(c.hidden_size, c.initializer_range, name="dense")(x))
        bias = self.param("bias", nn.initializers.zeros, (c.vocab_size,))
        return LayerNorm(c.layer_norm_eps, name="norm")(x), ops.value(bias)


class Layer(nn.Module):
    """One layer: self-attention and an MLP, each added to its input and normalised after (post-LN)."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"], bias: Float[Array, "b 1 #s s"]) -> tuple[Float[Array, "b s d"], None]:
        """Maps hidden states; `bias` is added to the attention scores. Returns (carry, None) for scan."""
        c = self.config
        batch, length, _ = x.shape
        x = constrain(x, "batch", None, None)

        def linear(name, features=c.hidden_size):
            return Linear(features, c.initializer_range, name=name)

        def heads(y):
            return y.reshape(batch, length, c.num_attention_heads, c.head_size)

        key, value, bias = with_prefix(self, heads(linear("key")(x)), heads(linear("value")(x)), bias, 0.0)
        # [b, h, s, d], the keys transposed beforehand: the fastest on CPU of the five layouts that were timed.
        query = heads(linear("query")(x)).transpose(0, 2, 1, 3) * c.head_size**-0.5
        key, value = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
        mixed = jax.nn.softmax(query @ key + bias, axis=-1) @ value
        mixed = mixed.transpose(0, 2, 1, 3).reshape(batch, length, c.hidden_size)
        mixed = adapted(self, "attention_adapter", linear("output")(mixed))
        x = LayerNorm(c.layer_norm_eps, name="attention_norm")(x + mixed)
        wide = ACTIVATIONS[c.hidden_act](linear("up", c.intermediate_size)(x))
        wide = adapted(self, "mlp_adapter", linear("down")(wide))
        return LayerNorm(c.layer_norm_eps, name="mlp_norm")(x + wide), None


class Bert(nn.Module):
    """BERT's encoder (arXiv:1810.04805) and RoBERTa's (arXiv:1907.11692).

    Parameters: "embeddings" {word, position, type, norm}; "layers" {query, key, value, output, attention_norm,
    up, down, mlp_norm}, stacked over layers; "pooler" {kernel, bias} where `pooled` is used; "masked_head" {dense,
    norm, bias} where `masked_logits` is used.

    Args:
      config: sizes and constants.

    Example:
      >>> config = BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=2, num_attention_heads=2,
      ...                     intermediate_size=8)
      >>> tokens, mask = jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool)
      >>> params = jax.jit(Bert(config).init)(jax.random.key(0), tokens, mask)["params"]
      >>> params["layers"]["query"]["kernel"].shape
      (2, 4, 4)
      >>> Bert(config).apply({"params": params}, tokens, mask).shape
      (1, 3, 4)
    """

    config: BertConfig

    def setup(self):
        c = self.config
        self.embeddings = Embeddings(c)
        scanned = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=c.num_hidden_layers,
        )
        self.layers = scanned(c)
        self.pooler = Linear(c.hidden_size, c.initializer_range)
        self.masked_head = MaskedHead(c)

    def __call__(
        self,
        tokens: Int[Array, "b s"],
        mask: Bool[Array, "b s"],
        token_types: Int[Array, "b s"] | None = None,
        segments: Int[Array, "b s"] | None = None,
    ) -> Float[Array, "b s d"]:
        """Hidden states of the last layer.

        Args:
          tokens: token ids in [0, vocab_size).
          mask: True where there is a token, False at padding.
          token_types: ids in [0, type_vocab_size); all 0 if absent.
          segments: numbers of the texts that stand side by side in a row, each without gaps and padding after them:
            a token sees its own text alone. None: one text a row.

        Returns:
          float32 [b, s, hidden_size].

        Raises:
          ValueError: if the sequence is longer than the position table.
        """
        c = self.config
        if tokens.shape[1] > c.max_position_embeddings - c.position_offset:
            offset = f" - {c.position_offset}" if c.position_offset else ""
            raise ValueError(
                f"tokens has length {tokens.shape[1]}; it must be at most max_position_embeddings{offset} = "
                f"{c.max_position_embeddings - c.position_offset}"
            )
        return self.continued(self.embeddings(tokens, mask, token_types, segments), mask, segments)

    def continued(
        self, x: Float[Array, "b s d"], mask: Bool[Array, "b s"], segments: Int[Array, "b s"] | None = None
    ) -> Float[Array, "b s d"]:
        """Hidden states of the last layer, from those that enter the first.

        Args:
          x: hidden states, such as the embeddings.
          mask: True where there is a token.
          segments: as for the whole call.

        Returns:
          float32 [b, s, hidden_size].
        """
        seen = mask[:, None, :]
        if segments is not None:
            seen = seen & (segments[:, :, None] == segments[:, None, :])
        return self.layers(x, jnp.where(seen, 0.0, MASKED)[:, None])[0]

    def pooled(
        self,
        tokens: Int[Array, "b s"],
        mask: Bool[Array, "b s"],
        token_types: Int[Array, "b s"] | None = None,
    ) -> Float[Array, "b d"]:
        """BERT's pooler: tanh(W h_0 + b) of the first token's last hidden state.

        Args:
          tokens: token ids.
          mask: True where there is a token.
          token_types: token-type ids, or None.

        Returns:
          float32 [b, hidden_size].
        """
        return jnp.tanh(self.pooler(self(tokens, mask, token_types)[:, 0]))

    def masked_logits(
        self,
        tokens: Int[Array, "b s"],
        mask: Bool[Array, "b s"],
        token_types: Int[Array, "b s"] | None = None,
        *,
        at: Int[Array, "b p"] | None = None,
    ) -> Float[Array, "b p vocab"]:
        """Logits of the words that stand at some columns: where [MASK] is, what was masked.

        Args:
          tokens: token ids.
          mask: True where there is a token.
          token_types: token-type ids, or None.
          at: columns to predict, p in each row; None: all of them, p = s.

        Returns:
          float32 [b, p, vocab_size].
        """
        hidden = self(tokens, mask, token_types)
        if at is not None:
            hidden = jnp.take_along_axis(hidden, at[:, :, None], axis=1)
        features, bias = self.masked_head(hidden)
        return constrain(self.embeddings.attend(features) + bias, "batch", None, "wide")
