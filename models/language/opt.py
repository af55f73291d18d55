"""OPT's decoder in Flax Linen, over `zojax.ops` alone.

Numbered differences from the reference implementation (Hugging Face's `OPTForCausalLM`) are those 1 and 2 of llama.py.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.language import attention
from models.language.adapters import adapted, with_prefix
from models.language.attention import Cache, Frame
from models.language.config import check_sizes, fill, read
from models.language.layers import ACTIVATIONS, LayerNorm, Linear
from models.language.sharding import constrain
from zojax import ops

__all__ = ["ADAPTERS", "KERNELS", "STACKED", "TABLES", "Opt", "OptConfig"]

STACKED: tuple[str, ...] = (r"(^|/)layers/",)
"""Patterns of the leaves that the model scans over, for `PerturbSpec.stacked`."""

KERNELS = r"(layers/\w+|project_in|project_out|(^|/)head)/kernel$"
TABLES = r"embeddings/(word|position)$"
"""Patterns of the matrices and of the tables, for rules that quantise."""

ADAPTERS = ("up_adapter", "down_adapter")
"""Places for `add_adapters`, those of AdaZeta's code: before the MLP's first map and after its second."""

OFFSET = 2  # rows of the position table before the first token's
LAYER_NORM_EPS = 1e-5  # no field of config.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptConfig:
    """Sizes and constants of an OPT decoder, under the names of Hugging Face's config.json.

    Args:
      vocab_size: rows of the word table.
      hidden_size: width d of the residual stream.
      num_hidden_layers: layers L.
      num_attention_heads: heads; divides hidden_size.
      ffn_dim: width of the MLP.
      word_embed_proj_dim: width of the word table; a linear map on either side where it is not d.
      activation_function: of the MLP.
      max_position_embeddings: longest sequence, in tokens.
      do_layer_norm_before: whether layers normalise their input (pre-norm) or their output, as OPT-350m does.
      tie_word_embeddings: whether the word table is the output layer, too.
      init_std: standard deviation of randomly initialised matrices.

    Raises:
      ValueError: naming the field.

    Example:
      >>> OptConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8,
      ...           word_embed_proj_dim=4).head_dim
      2
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    ffn_dim: int
    word_embed_proj_dim: int
    activation_function: str = "relu"
    max_position_embeddings: int = 2048
    do_layer_norm_before: bool = True
    tie_word_embeddings: bool = True
    init_std: float = 0.02

    def __post_init__(self):
        check_sizes(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"OptConfig.num_attention_heads is {self.num_attention_heads}; it must divide hidden_size, which is "
                f"{self.hidden_size}"
            )
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"OptConfig.activation_function is {self.activation_function!r}; it must be one of "
                f"{', '.join(ACTIVATIONS)}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "OptConfig":
        """Reads the mapping that a Hugging Face config.json holds; keys of no use here are passed over.

        Args:
          values: the parsed JSON object.

        Returns:
          The configuration.

        Raises:
          ValueError: if a size is missing, or the file asks for what is not implemented.

        Example:
          >>> OptConfig.from_dict({"model_type": "opt", "enable_bias": False})
          Traceback (most recent call last):
          ...
          ValueError: config.json: enable_bias is False; it must be True
        """
        for key, right in (
            ("model_type", "opt"),
            ("enable_bias", True),
            ("layer_norm_elementwise_affine", True),
            ("_remove_final_layer_norm", False),
        ):
            if values.get(key, right) != right:
                raise ValueError(f"config.json: {key} is {values[key]!r}; it must be {right!r}")
        width = values.get("word_embed_proj_dim") or values.get("hidden_size")
        return fill(cls, {**values, "word_embed_proj_dim": width})

    @classmethod
    def from_file(cls, path: Path | str) -> "OptConfig":
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
          >>> config = OptConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8,
          ...                    word_embed_proj_dim=2)
          >>> OptConfig.from_dict(config.to_dict()) == config
          True
        """
        return {"model_type": "opt", **dataclasses.asdict(self)}


class Embeddings(nn.Module):
    """The word and the position table."""

    config: OptConfig

    def setup(self):
        c = self.config
        init = nn.initializers.normal(c.init_std)
        self.word = self.param("word", init, (c.vocab_size, c.word_embed_proj_dim))
        self.position = self.param("position", init, (c.max_position_embeddings + OFFSET, c.hidden_size))

    def words(self, tokens: Int[Array, "b s"]) -> Float[Array, "b s e"]:
        """Embeds token ids."""
        return ops.embed(self.word, tokens)

    def positions(self, position: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        """Embeds positions."""
        return ops.embed(self.position, position + OFFSET)

    def attend(self, x: Float[Array, "b s e"]) -> Float[Array, "b s vocab"]:
        """Products with the word table: a tied output layer."""
        return ops.einsum("bsd,vd->bsv", x, self.word)


class Layer(nn.Module):
    """One layer: attention and an MLP, each added to the stream and normalised before or after."""

    config: OptConfig

    @nn.compact
    def __call__(
        self, carry: tuple[Float[Array, "b s d"], Any], number: Int[Array, ""], frame: Frame
    ) -> tuple[tuple[Float[Array, "b s d"], Any], None]:
        """Maps (stream, cache)."""
        c = self.config
        x, kept = carry
        x = constrain(x, "batch", None, None)
        pre = c.do_layer_norm_before

        def linear(name, features=c.hidden_size):
            return Linear(features, c.init_std, name=name)

        def heads(y):
            return y.reshape(*x.shape[:-1], c.num_attention_heads, c.head_dim)

        norm = LayerNorm(LAYER_NORM_EPS, name="attention_norm")
        normed = norm(x) if pre else x
        query, key, value = (heads(linear(name)(normed)) for name in ("query", "key", "value"))
        kept, key, value = attention.remember(kept, number, frame.start, key, value)
        key, value, allowed = with_prefix(self, key, value, frame.allowed, True)
        x = x + linear("output")(attention.attend(query, key, value, allowed))
        x = x if pre else norm(x)
        norm = LayerNorm(LAYER_NORM_EPS, name="mlp_norm")
        normed = adapted(self, "up_adapter", norm(x) if pre else x)
        wide = ACTIVATIONS[c.activation_function](linear("up", c.ffn_dim)(normed))
        x = x + adapted(self, "down_adapter", linear("down")(wide))
        return (x if pre else norm(x), kept), None


class Opt(nn.Module):
    """A causal language model (OPT: Open Pre-trained Transformer Language Models, arXiv:2205.01068).

    Parameters: "embeddings" {word, position}; "project_in", "project_out" {kernel} where the word table has a width of
    its own; "layers" {query, key, value, output, up, down, attention_norm, mlp_norm}, stacked over layers; "norm" in
    pre-norm models; "head" {kernel} unless tied.

    Args:
      config: sizes and constants.

    Example:
      >>> import jax
      >>> config = OptConfig(vocab_size=8, hidden_size=4, num_hidden_layers=2, num_attention_heads=2, ffn_dim=8,
      ...                    word_embed_proj_dim=4)
      >>> tokens, mask = jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool)
      >>> params = jax.jit(Opt(config).init)(jax.random.key(0), tokens, mask)["params"]
      >>> Opt(config).apply({"params": params}, tokens, mask).shape
      (1, 3, 8)
    """

    config: OptConfig

    def setup(self):
        c = self.config
        self.embeddings = Embeddings(c)
        if c.word_embed_proj_dim != c.hidden_size:
            self.project_in = Linear(c.hidden_size, c.init_std, use_bias=False)
            self.project_out = Linear(c.word_embed_proj_dim, c.init_std, use_bias=False)
        scanned = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=c.num_hidden_layers,
        )
        self.layers = scanned(c)
        if c.do_layer_norm_before:
            self.norm = LayerNorm(LAYER_NORM_EPS)
        if not c.tie_word_embeddings:
            self.head = Linear(c.vocab_size, c.init_std, use_bias=False)

    def __call__(self, tokens: Int[Array, "b s"], mask: Bool[Array, "b s"]) -> Float[Array, "b s vocab"]:
        """Logits of the token after each token.

        Args:
          tokens: token ids in [0, vocab_size).
          mask: True where there is a token, False at padding, which may stand on either side.

        Returns:
          float32 [b, s, vocab_size]; of no meaning at padding.

        Raises:
          ValueError: if the sequence is longer than the position table.
        """
        return self.logits(self.hidden(tokens, mask)[0])

    def hidden(
        self, tokens: Int[Array, "b s"], mask: Bool[Array, "b s"], cache: Cache | None = None
    ) -> tuple[Float[Array, "b s e"], Cache | None]:
        """What the output layer takes, from the tokens alone or from those before them in a cache.

        Args:
          tokens: token ids.
          mask: True where there is a token.
          cache: the tokens before, as `empty_cache` or this method returned it; None for a whole sequence.

        Returns:
          (float32 [b, s, word_embed_proj_dim], the cache with these tokens added, or None).

        Raises:
          ValueError: if the sequence is longer than the position table.
        """
        c = self.config
        self._check(tokens.shape[1])
        shared, cache = attention.frame(mask, cache)
        x = self.embeddings.words(tokens)
        if c.word_embed_proj_dim != c.hidden_size:
            x = self.project_in(x)
        x = x + self.embeddings.positions(shared.position)
        carry = (x, None if cache is None else (cache.key, cache.value))
        (x, kept), _ = self.layers(carry, jnp.arange(c.num_hidden_layers, dtype=jnp.int32), shared)
        if cache is not None:
            cache = cache._replace(key=kept[0], value=kept[1])
        if c.do_layer_norm_before:
            x = self.norm(x)
        return self.project_out(x) if c.word_embed_proj_dim != c.hidden_size else x, cache

    def logits(self, hidden: Float[Array, "b s e"]) -> Float[Array, "b s vocab"]:
        """Logits from what `hidden` returned for some tokens.

        Args:
          hidden: what `hidden` returned, or some of its columns.

        Returns:
          float32 [b, s, vocab_size].
        """
        logits = self.embeddings.attend(hidden) if self.config.tie_word_embeddings else self.head(hidden)
        return constrain(logits, "batch", None, "wide")

    def empty_cache(self, batch: int, slots: int) -> Cache:
        """A cache without tokens.

        Args:
          batch: rows.
          slots: the most tokens and padding a row may come to.

        Returns:
          The cache.

        Raises:
          ValueError: if there are more slots than positions.
        """
        c = self.config
        self._check(slots)
        return attention.empty_cache(
            layers=c.num_hidden_layers, batch=batch, slots=slots, kv_heads=c.num_attention_heads, head_dim=c.head_dim
        )

    def _check(self, length: int) -> None:
        longest = self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"tokens has length {length}; it must be at most max_position_embeddings = {longest}")
