"""BERT's encoder in Flax Linen; every weight is touched through `zojax.ops` alone.

Numbered differences from the reference implementation (Hugging Face's `BertModel`):

1. There is no dropout. A zeroth-order probe compares two forwards of one batch; noise in the activations
   would have to be the same in both, and then regularises little.
2. Layers run under `nn.scan`: the leaves under "layers" carry a leading axis of num_hidden_layers. Scanning
   was also the fastest form on two CPU cores (MiniLM's layers at 16x64: 155 ms scanned, 173 ms unrolled).
3. Kernels are [d_in, d_out], and query, key and value stay three leaves, so that a direction or an adapter
   may treat each by itself. One fused product for the three was no faster on CPU.
4. Masked scores get -1e9 instead of the smallest float32: exp() is 0 for both, and a row in which everything
   is masked stays finite.
"""

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zojax import ops

__all__ = ["ACTIVATIONS", "KERNELS", "STACKED", "TABLES", "Bert", "BertConfig", "cast_matrices"]

STACKED: tuple[str, ...] = (r"(^|/)layers/",)
"""Patterns of the leaves that the model scans over, for `PerturbSpec.stacked`."""

KERNELS = r"(layers/\w+|pooler)/kernel$"
TABLES = r"embeddings/(word|position|type)$"
"""Patterns of the matrices and of the tables, for rules that quantise."""

MASKED = -1e9


def _gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes and constants of a BERT encoder, under the names of Hugging Face's config.json.

    Args:
      vocab_size: rows of the word table.
      hidden_size: width d of the residual stream.
      num_hidden_layers: layers L.
      num_attention_heads: heads; divides hidden_size.
      intermediate_size: width of the MLP.
      hidden_act: "gelu" (exact), "gelu_new" (tanh approximation) or "relu".
      max_position_embeddings: longest sequence, in tokens.
      type_vocab_size: rows of the token-type table.
      layer_norm_eps: constant under the root of LayerNorm.
      initializer_range: standard deviation of randomly initialised matrices.

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

    def __post_init__(self):
        for field in dataclasses.fields(self):
            size = getattr(self, field.name)
            if field.type is int and size < 1:
                raise ValueError(f"BertConfig.{field.name} is {size}; it must be positive")
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
          ValueError: if a size is missing, or the file describes something other than a BERT encoder with
            absolute positions.

        Example:
          >>> BertConfig.from_dict({"model_type": "gpt2"})
          Traceback (most recent call last):
          ...
          ValueError: config.json: model_type is 'gpt2'; it must be 'bert'
        """
        for key, right in (
            ("model_type", "bert"),
            ("position_embedding_type", "absolute"),
            ("is_decoder", False),
        ):
            if values.get(key, right) != right:
                raise ValueError(f"config.json: {key} is {values[key]!r}; it must be {right!r}")
        fields = dataclasses.fields(cls)
        missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        types, given = typing.get_type_hints(cls), {}
        for name in (f.name for f in fields if f.name in values):
            # JSON writes the float 1.0 as 1, too.
            allowed = (int, float) if types[name] is float else types[name]
            if not isinstance(values[name], allowed) or isinstance(values[name], bool):
                kind = types[name].__name__
                raise ValueError(f"config.json: {name} is {values[name]!r}; it must be of type {kind}")
            given[name] = types[name](values[name])
        return cls(**given)

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
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds a JSON {type(values).__name__}; it must hold an object")
        return cls.from_dict(values)


def cast_matrices(params: Any, dtype: str) -> Any:
    """Casts kernels and tables to `dtype` and leaves vectors (biases, gains; [L, d] when stacked) in float32.

    A half precision gain of 1 does not move under a perturbation of 1e-3, and vectors cost no memory.

    Args:
      params: the encoder's tree, or a tree that holds it.
      dtype: "float32", "bfloat16" or "float16".

    Returns:
      A tree of the same structure.

    Raises:
      ValueError: if dtype is none of the three.

    Example:
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> jax.tree.map(lambda x: str(x.dtype), cast_matrices(params, "bfloat16"))
      {'bias': 'float32', 'kernel': 'bfloat16'}
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is {dtype!r}; it must be 'float32', 'bfloat16' or 'float16'")

    def cast(path, leaf):
        # "kernel" and the tables are matrices by name: a stacked bias has two axes as well.
        vector = path[-1].key in ("bias", "scale")
        return leaf.astype(jnp.float32 if vector else jnp.dtype(dtype))

    return jax.tree_util.tree_map_with_path(cast, params)


class Linear(nn.Module):
    """Affine map y = x W + b, with W [d_in, d_out]."""

    features: int
    stddev: float

    @nn.compact
    def __call__(self, x: Float[Array, "*b d_in"]) -> Float[Array, "*b d_out"]:
        """Applies the map to the last axis."""
        kernel = self.param("kernel", nn.initializers.normal(self.stddev), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return ops.dot(x, kernel) + ops.value(bias)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, its statistics in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Normalises, then applies gain and bias."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + self.eps) * ops.value(scale) + ops.value(bias)


class Embeddings(nn.Module):
    """Sum of word, position and token-type embeddings, normalised."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b s"], token_types: Int[Array, "b s"] | None = None
    ) -> Float[Array, "b s d"]:
        """Embeds token ids; without token types every token is of type 0."""
        c = self.config
        init = nn.initializers.normal(c.initializer_range)
        word = self.param("word", init, (c.vocab_size, c.hidden_size))
        position = self.param("position", init, (c.max_position_embeddings, c.hidden_size))
        kind = self.param("type", init, (c.type_vocab_size, c.hidden_size))
        if token_types is None:
            token_types = jnp.zeros((1, 1), jnp.int32)
        x = ops.embed(word, tokens) + ops.embed(kind, token_types)
        x = x + ops.embed(position, jnp.arange(tokens.shape[1]))
        return LayerNorm(c.layer_norm_eps, name="norm")(x)


class Layer(nn.Module):
    """One layer: self-attention and an MLP, each added to its input and normalised after (post-LN)."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"], bias: Float[Array, "b 1 1 s"]) -> tuple[Float[Array, "b s d"], None]:
        """Maps hidden states; `bias` is added to the attention scores. Returns (carry, None) for scan."""
        c = self.config
        batch, length, _ = x.shape

        def linear(name, features=c.hidden_size):
            return Linear(features, c.initializer_range, name=name)

        def heads(y):
            return y.reshape(batch, length, c.num_attention_heads, c.head_size)

        # [b, h, s, d], the keys transposed beforehand: the fastest on CPU of the five layouts that were timed.
        query = heads(linear("query")(x)).transpose(0, 2, 1, 3) * c.head_size**-0.5
        key = heads(linear("key")(x)).transpose(0, 2, 3, 1)
        value = heads(linear("value")(x)).transpose(0, 2, 1, 3)
        mixed = jax.nn.softmax(query @ key + bias, axis=-1) @ value
        mixed = mixed.transpose(0, 2, 1, 3).reshape(batch, length, c.hidden_size)
        x = LayerNorm(c.layer_norm_eps, name="attention_norm")(x + linear("output")(mixed))
        wide = ACTIVATIONS[c.hidden_act](linear("up", c.intermediate_size)(x))
        return LayerNorm(c.layer_norm_eps, name="mlp_norm")(x + linear("down")(wide)), None


class Bert(nn.Module):
    """BERT's encoder (BERT: Pre-training of Deep Bidirectional Transformers, arXiv:1810.04805).

    Parameters: "embeddings" {word, position, type, norm}; "layers" {query, key, value, output, attention_norm,
    up, down, mlp_norm}, stacked over layers; "pooler" {kernel, bias} where `pooled` is used.

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

    def __call__(
        self,
        tokens: Int[Array, "b s"],
        mask: Bool[Array, "b s"],
        token_types: Int[Array, "b s"] | None = None,
    ) -> Float[Array, "b s d"]:
        """Hidden states of the last layer.

        Args:
          tokens: token ids in [0, vocab_size).
          mask: True where there is a token, False at padding.
          token_types: ids in [0, type_vocab_size); all 0 if absent.

        Returns:
          float32 [b, s, hidden_size].

        Raises:
          ValueError: if the sequence is longer than the position table.
        """
        if tokens.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"tokens has length {tokens.shape[1]}; it must be at most max_position_embeddings = "
                f"{self.config.max_position_embeddings}"
            )
        bias = jnp.where(mask, 0.0, MASKED)[:, None, None, :]
        hidden, _ = self.layers(self.embeddings(tokens, token_types), bias)
        return hidden

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
