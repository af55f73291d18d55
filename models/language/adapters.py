"""Bottleneck adapters and prefixes in the language models: a layer has those that its parameter tree holds.

A model is built without them, and `add_adapters` or `add_prefix` puts their weights into its tree. They stand under
"layers", stacked as the layers are, so that training them alone is a pattern: "_adapter/" or "layers/prefix/".
"""

import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from zojax import ops
from zojax.adapters.bottleneck import Bottleneck, bottleneck

__all__ = ["adapted", "add_adapters", "add_prefix", "with_prefix"]

Params = dict[str, Any]


def adapted(layer: nn.Module, name: str, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """x through the adapter `name` of a layer, or x as it is where the layer has none.

    Args:
      layer: the module whose parameters may hold the adapter.
      name: the adapter's.
      x: activations.

    Returns:
      Activations of x's shape.

    Example:
      >>> adapted(nn.Dense(2).bind({"params": {}}), "up_adapter", jnp.ones(3)).tolist()
      [1.0, 1.0, 1.0]
    """
    return bottleneck(x, layer.get_variable("params", name)) if layer.has_variable("params", name) else x


def add_adapters(params: Params, names: tuple[str, ...], adapter: Bottleneck, *, key: Key[Array, ""]) -> Params:
    """Puts adapters into every layer of a model's tree; with `adapter.identity` its function stays the same.

    Args:
      params: the tree of `Bert`, `Llama` or `Opt`; its weights may be of any leaf type.
      names: the places, as the model's module lists them in ADAPTERS.
      adapter: sizes and start.
      key: typed key; an adapter folds in the crc32 of its name.

    Returns:
      The tree with adapters beside the layers' own weights.

    Raises:
      ValueError: if the layers have such adapters already.

    Example:
      >>> from models.language import bert, families
      >>> config = bert.BertConfig(vocab_size=8, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
      ...                          intermediate_size=4096)
      >>> shapes = jax.eval_shape(lambda p, k: add_adapters(p, bert.ADAPTERS, Bottleneck(), key=k),
      ...                         families.abstract(config), jax.random.key(0))
      >>> sum(leaf.size for name in bert.ADAPTERS for leaf in jax.tree.leaves(shapes["layers"][name]))
      136704
    """
    layers = params["layers"]
    depth, width, _ = layers["query"]["kernel"].shape
    present = [name for name in names if name in layers]
    if present:
        raise ValueError(f"params: the layers have adapters already: {', '.join(present)}")
    own = {
        name: adapter.init(jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode()))), width, lead=(depth,))
        for name in names
    }
    return {**params, "layers": {**layers, **own}}


def add_prefix(params: Params, key: Float[Array, "layers p kv d"], value: Float[Array, "layers p kv d"]) -> Params:
    """Gives every layer keys and values that each query sees beside those of the tokens (prefix tuning).

    `models.language.prefixes` has those of real tokens, at which MeZO starts.

    Args:
      params: the tree of `Bert`, `Llama` or `Opt`.
      key: p keys for each layer and head of keys; rotated already where positions are.
      value: p values.

    Returns:
      The tree with {"prefix": {"key", "value"}} beside the layers' own weights, in float32.

    Raises:
      ValueError: if there is a prefix already, or the shapes do not agree.

    Example:
      >>> params = {"layers": {"query": {"kernel": jnp.ones((2, 4, 4))}}}
      >>> add_prefix(params, jnp.ones((2, 5, 1, 4)), jnp.ones((2, 5, 1, 4)))["layers"]["prefix"]["key"].shape
      (2, 5, 1, 4)

    References:
      Prefix tuning, arXiv 2101.00190; under zeroth-order estimates, MeZO, arXiv 2305.17333.
    """
    layers = params["layers"]
    depth = layers["query"]["kernel"].shape[0]
    if "prefix" in layers:
        raise ValueError("params: the layers have a prefix already")
    if key.ndim != 4 or key.shape != value.shape or key.shape[0] != depth:
        raise ValueError(
            f"key, value: shapes {key.shape} and {value.shape}; both must be [{depth}, p, heads, head_dim]"
        )
    own = {"key": jnp.asarray(key, jnp.float32), "value": jnp.asarray(value, jnp.float32)}
    return {**params, "layers": {**layers, "prefix": own}}


def with_prefix(
    layer: nn.Module,
    key: Float[Array, "b t kv d"],
    value: Float[Array, "b t kv d"],
    seen: Shaped[Array, "*rows t"],
    visible: bool | float,
) -> tuple[Float[Array, "b pt kv d"], Float[Array, "b pt kv d"], Shaped[Array, "*rows pt"]]:
    """A layer's keys and values behind those of its prefix; without one all as they are.

    The tokens keep their positions (ours: caches of other libraries count the prefix as tokens).

    Args:
      layer: the module whose parameters may hold the prefix.
      key: keys of the tokens.
      value: values of the tokens.
      seen: which keys are seen, by a mask or a bias, over the last axis.
      visible: what stands in `seen` for a key that is.

    Returns:
      (keys, values, seen), each longer by the prefix.

    Example:
      >>> x = jnp.ones((3, 2, 1, 4))
      >>> layer = nn.Dense(2).bind({"params": {"prefix": {"key": x[0], "value": x[0]}}})
      >>> [part.shape for part in with_prefix(layer, x, x, jnp.ones((3, 7, 2), bool), True)]
      [(3, 4, 1, 4), (3, 4, 1, 4), (3, 7, 4)]
    """
    if not layer.has_variable("params", "prefix"):
        return key, value, seen
    own = layer.get_variable("params", "prefix")

    def behind(name: str, tokens: Array) -> Array:
        prefix = ops.value(own[name])
        return jnp.concatenate([jnp.broadcast_to(prefix, (tokens.shape[0], *prefix.shape)), tokens], axis=1)

    before = [(0, 0)] * (seen.ndim - 1) + [(own["key"].shape[0], 0)]
    return behind("key", key), behind("value", value), jnp.pad(seen, before, constant_values=visible)
