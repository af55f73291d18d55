"""Where a prefix starts: the keys and values of real tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.language.bert import Bert, Layer
from zojax import ops

__all__ = ["prefix_of"]


def prefix_of(
    model: Any, params: Any, tokens: Int[Array, " p"]
) -> tuple[Float[Array, "layers p kv d"], Float[Array, "layers p kv d"]]:
    """The keys and values that each layer has for a text, for `add_prefix`.

    Args:
      model: `Bert`, `Llama` or `Opt`.
      params: its tree, without a prefix.
      tokens: the text.

    Returns:
      (keys, values), float32.

    Example:
      >>> from models.language.llama import Llama, LlamaConfig
      >>> config = LlamaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=3, num_attention_heads=2,
      ...                      num_key_value_heads=1, head_dim=2, intermediate_size=8)
      >>> tokens = jnp.array([1, 2])
      >>> params = Llama(config).init(jax.random.key(0), tokens[None], jnp.ones((1, 2), bool))["params"]
      >>> prefix_of(Llama(config), params, tokens)[0].shape
      (3, 2, 1, 2)

    References:
      MeZO, arXiv 2305.17333, starts prefixes at the activations of random words.
    """
    mask = jnp.ones((1, len(tokens)), bool)
    if not isinstance(model, Bert):
        cache = model.apply({}, 1, len(tokens), method="empty_cache")
        _, cache = model.apply({"params": params}, tokens[None], mask, cache, method="hidden")
        return cache.key[:, 0], cache.value[:, 0]
    config = model.config
    x = model.apply({"params": params}, tokens[None], mask, method=lambda m, t, k: m.embeddings(t, k))

    def layer(x: Any, own: Any) -> tuple[Any, tuple[Array, Array]]:
        def heads(name: str) -> Array:
            y = ops.dot(x[0], own[name]["kernel"]) + ops.value(own[name]["bias"])
            return y.reshape(len(tokens), config.num_attention_heads, config.head_size)

        return Layer(config).apply({"params": own}, x, jnp.zeros((1, 1, 1, len(tokens))))[0], (
            heads("key"),
            heads("value"),
        )

    return jax.lax.scan(layer, x, params["layers"])[1]
