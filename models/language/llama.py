"""LLaMA's decoder and those built like it (Mistral, Qwen2, Qwen3) in Flax Linen, over `zojax.ops` alone.

Numbered differences from the reference implementations (Hugging Face's `LlamaForCausalLM` and its relatives):

1. There is no dropout, for the reason given in bert.py; layers run under `nn.scan`, and kernels are [d_in, d_out].
2. Activations, attention scores and the cache are float32 whatever the weights are.
3. A sliding window is a mask: the cache keeps all keys, also those that no later query may see.
4. Of the ways to scale rotary frequencies "llama3" alone is there.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.language import attention
from models.language.adapters import adapted, with_prefix
from models.language.attention import Cache, Frame
from models.language.layers import ACTIVATIONS, Linear, RMSNorm
from models.language.llama_config import LlamaConfig
from models.language.sharding import constrain
from zojax import ops

__all__ = ["ADAPTERS", "KERNELS", "STACKED", "TABLES", "Llama", "LlamaConfig"]

STACKED: tuple[str, ...] = (r"(^|/)layers/",)
"""Patterns of the leaves that the model scans over, for `PerturbSpec.stacked`."""

KERNELS = r"(layers/\w+|(^|/)head)/kernel$"
TABLES = r"embeddings/word$"
"""Patterns of the matrices and of the tables, for rules that quantise."""

ADAPTERS = ("gate_adapter", "up_adapter", "down_adapter")
"""Places for `add_adapters`: before the gate and the up projection, each its own, and after the down projection."""


class Embeddings(nn.Module):
    """The word table."""

    config: LlamaConfig

    def setup(self):
        c = self.config
        self.word = self.param("word", nn.initializers.normal(c.initializer_range), (c.vocab_size, c.hidden_size))

    def __call__(self, tokens: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        """Embeds token ids."""
        return ops.embed(self.word, tokens)

    def attend(self, x: Float[Array, "b s d"]) -> Float[Array, "b s vocab"]:
        """Products with the table: a tied output layer."""
        return ops.einsum("bsd,vd->bsv", x, self.word)


class Layer(nn.Module):
    """One layer: attention and a gated MLP, each on normalised input and added to the stream (pre-norm)."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, carry: tuple[Float[Array, "b s d"], Any], which: tuple[Int[Array, ""], Any], frame: Frame
    ) -> tuple[tuple[Float[Array, "b s d"], Any], None]:
        """Maps (stream, cache); `which` is the layer's number and its window, if there are windows."""
        c = self.config
        x, kept = carry
        number, window = which
        x = constrain(x, "batch", None, None)

        def linear(name, features, use_bias=False):
            return Linear(features, c.initializer_range, use_bias, name=name)

        def heads(name, count):
            y = linear(name, count * c.head_dim, c.qkv_bias)(normed)
            y = y.reshape(*x.shape[:-1], count, c.head_dim)
            return RMSNorm(c.rms_norm_eps, name=f"{name}_norm")(y) if c.qk_norm and name != "value" else y

        normed = RMSNorm(c.rms_norm_eps, name="attention_norm")(x)
        frequency = c.frequencies()
        query = attention.rotate(heads("query", c.num_attention_heads), frame.position, frequency)
        key = attention.rotate(heads("key", c.num_key_value_heads), frame.position, frequency)
        value = heads("value", c.num_key_value_heads)
        kept, key, value = attention.remember(kept, number, frame.start, key, value)
        allowed = frame.allowed
        if window is not None:
            allowed &= (frame.distance < window) | (window == 0)
        key, value, allowed = with_prefix(self, key, value, allowed, True)
        mixed = attention.attend(query, key, value, allowed)
        x = x + linear("output", c.hidden_size, c.attention_bias)(mixed)
        normed = RMSNorm(c.rms_norm_eps, name="mlp_norm")(x)
        gate = linear("gate", c.intermediate_size)(adapted(self, "gate_adapter", normed))
        up = linear("up", c.intermediate_size)(adapted(self, "up_adapter", normed))
        down = linear("down", c.hidden_size)(ACTIVATIONS[c.hidden_act](gate) * up)
        return (x + adapted(self, "down_adapter", down), kept), None


class Llama(nn.Module):
    """A causal language model: LLaMA (arXiv:2302.13971), Mistral (arXiv:2310.06825), Qwen2 (arXiv:2407.10671), Qwen3.

    Parameters: "embeddings" {word}; "layers" {query, key, value, output, gate, up, down, attention_norm, mlp_norm; in
    Qwen3 query_norm, key_norm}, stacked over layers; "norm"; "head" {kernel} unless tied.

    Args:
      config: sizes and constants.

    Example:
      >>> import jax
      >>> config = LlamaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=2, num_attention_heads=2,
      ...                      num_key_value_heads=1, head_dim=2, intermediate_size=8)
      >>> tokens, mask = jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool)
      >>> params = jax.jit(Llama(config).init)(jax.random.key(0), tokens, mask)["params"]
      >>> params["layers"]["key"]["kernel"].shape
      (2, 4, 2)
      >>> Llama(config).apply({"params": params}, tokens, mask).shape
      (1, 3, 8)
    """

    config: LlamaConfig

    def setup(self):
        c = self.config
        self.embeddings = Embeddings(c)
        scanned = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=c.num_hidden_layers,
        )
        self.layers = scanned(c)
        self.norm = RMSNorm(c.rms_norm_eps)
        if not c.tie_word_embeddings:
            self.head = Linear(c.vocab_size, c.initializer_range, use_bias=False)

    def __call__(self, tokens: Int[Array, "b s"], mask: Bool[Array, "b s"]) -> Float[Array, "b s vocab"]:
        """Logits of the token after each token.

        Args:
          tokens: token ids in [0, vocab_size).
          mask: True where there is a token, False at padding, which may stand on either side.

        Returns:
          float32 [b, s, vocab_size]; of no meaning at padding.
        """
        return self.logits(self.hidden(tokens, mask)[0])

    def hidden(
        self,
        tokens: Int[Array, "b s"],
        mask: Bool[Array, "b s"],
        cache: Cache | None = None,
        segment: Int[Array, "b s"] | None = None,
    ) -> tuple[Float[Array, "b s d"], Cache | None]:
        """Normalised hidden states of the last layer, from the tokens alone or from those before them in a cache.

        Args:
          tokens: token ids.
          mask: True where there is a token.
          cache: the tokens before, as `empty_cache` or this method returned it; None for a whole sequence.
          segment: which of the texts that share its row a token belongs to, or None; only without a cache.

        Returns:
          (float32 [b, s, hidden_size], the cache with these tokens added, or None).
        """
        c = self.config
        shared, cache = attention.frame(mask, cache, segment)
        windows = jnp.asarray(c.windows, jnp.int32) if any(c.windows) else None
        which = (jnp.arange(c.num_hidden_layers, dtype=jnp.int32), windows)
        carry = (self.embeddings(tokens), None if cache is None else (cache.key, cache.value))
        (x, kept), _ = self.layers(carry, which, shared)
        if cache is not None:
            cache = cache._replace(key=kept[0], value=kept[1])
        return self.norm(x), cache

    def logits(self, hidden: Float[Array, "b s d"]) -> Float[Array, "b s vocab"]:
        """Logits from the hidden states of some tokens.

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
        """
        c = self.config
        return attention.empty_cache(
            layers=c.num_hidden_layers, batch=batch, slots=slots, kv_heads=c.num_key_value_heads, head_dim=c.head_dim
        )
