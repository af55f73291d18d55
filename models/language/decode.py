"""Text from a causal language model: prefill and cached decoding, sampling, and the likelihood of candidates.

A model is `Llama`, `Opt`, or any Linen module with their methods `hidden`, `logits` and `empty_cache`. Rows may be
padded on either side: what is generated for a row depends neither on its padding nor on the rows beside it (but for
the last bits of float32 sums, which are taken over other shapes).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

__all__ = ["Generated", "Sampling", "generate", "log_likelihoods", "pad", "scores"]


class Generated(NamedTuple):
    """What `generate` returns.

    Attributes:
      tokens: the new tokens of each row, 0 behind its length.
      length: how many there are, the stop token not among them.
    """

    tokens: Int[Array, "b n"]
    length: Int[Array, " b"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Args:
      temperature: divides the logits; positive.
      top_p: the least likely tokens are left out as long as the others' probability stays at least this (nucleus
        sampling, arXiv:1904.09751); in (0, 1].

    Raises:
      ValueError: if a field is out of its range.

    Example:
      >>> Sampling(temperature=0.0)
      Traceback (most recent call last):
      ...
      ValueError: Sampling.temperature is 0.0; it must be positive (greedy decoding takes no Sampling)
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(
                f"Sampling.temperature is {self.temperature}; it must be positive (greedy decoding takes no Sampling)"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Sampling.top_p is {self.top_p}; it must be in (0, 1]")

    def kept(self, logits: Float[Array, "b vocab"]) -> Float[Array, "b vocab"]:
        """The logits over the temperature, -inf where a token is left out.

        Args:
          logits: of the next token.

        Returns:
          Array of their shape.

        Example:
          >>> Sampling(top_p=0.8).kept(jnp.array([[4.0, 1.0, 3.0]])).tolist()  # 0.71, 0.04, 0.26
          [[4.0, -inf, 3.0]]
        """
        logits = logits / self.temperature
        if self.top_p == 1:
            return logits
        order = jnp.argsort(-logits, axis=-1)
        probability = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        # A token stays while those before it do not yet come to top_p; so the first always does.
        stays = jnp.cumsum(probability, axis=-1) - probability < self.top_p
        stays = jnp.put_along_axis(jnp.zeros_like(stays), order, stays, axis=-1, inplace=False)
        return jnp.where(stays, logits, -jnp.inf)


def generate(
    model: Any,
    params: Any,
    tokens: Int[Array, "b s"],
    mask: Bool[Array, "b s"],
    *,
    max_new_tokens: int,
    stop: Sequence[int] = (),
    sampling: Sampling | None = None,
    key: Key[Array, ""] | None = None,
    ids: Int[Array, " b"] | None = None,
) -> Generated:
    """Continues every row, greedily or by sampling.

    The n-th new token of a row is drawn with the key fold_in(fold_in(key, id), n), so that it depends on no other row.

    Args:
      model: the Linen module.
      params: its tree, of arrays or leaf types.
      tokens: prompts, at least one token a row.
      mask: True where there is a token.
      max_new_tokens: n, the most tokens a row is given.
      stop: tokens at which a row ends.
      sampling: how tokens are drawn; None: the likeliest, the first of equals.
      key: typed key; needed for sampling.
      ids: numbers of the rows for their keys; None: 0 to b - 1.

    Returns:
      The continuations.

    Raises:
      ValueError: if max_new_tokens is not positive, or a key is missing or of no use.

    Example:
      >>> from models.language.llama import Llama, LlamaConfig
      >>> config = LlamaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                      num_key_value_heads=1, head_dim=2, intermediate_size=8)
      >>> tokens, mask = pad([[1, 2, 3], [4]], side="left")
      >>> params = Llama(config).init(jax.random.key(0), tokens, mask)["params"]
      >>> generate(Llama(config), params, tokens, mask, max_new_tokens=2).tokens.shape
      (2, 2)
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be positive")
    if (key is None) != (sampling is None):
        raise ValueError("sampling and key: give both, or neither for greedy decoding")
    ids = jnp.arange(tokens.shape[0], dtype=jnp.int32) if ids is None else ids
    return _generate(model, params, tokens, mask, key, ids, max_new_tokens, tuple(stop), sampling)


@functools.partial(jax.jit, static_argnames=("model", "count", "stop", "sampling"))
def _generate(model, params, tokens, mask, key, ids, count: int, stop: tuple[int, ...], sampling) -> Generated:
    batch, length = tokens.shape
    apply = functools.partial(model.apply, {"params": params})
    keys = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, ids)

    def choose(hidden: Float[Array, "b 1 d"], n: Int[Array, ""]) -> Int[Array, " b"]:
        logits = apply(hidden, method="logits")[:, 0]
        if sampling is not None:
            noise = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, n), logits.shape[1:]))(keys)
            logits = sampling.kept(logits) + noise
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def is_stop(token: Int[Array, " b"]) -> Bool[Array, " b"]:
        return jnp.isin(token, jnp.asarray(stop, jnp.int32)) if stop else jnp.zeros(batch, bool)

    # The last token's column is the last True of the mask, wherever the padding is.
    cache = apply(batch, length + count - 1, method="empty_cache")
    hidden, cache = apply(tokens, mask, cache, method="hidden")
    last = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    token = choose(hidden, jnp.int32(0))

    def more(state):
        n, _, ended, *_ = state
        return (n < count) & ~jnp.all(ended)

    def step(state):
        n, token, ended, out, cache = state
        hidden, cache = apply(token[:, None], ~ended[:, None], cache, method="hidden")
        token = choose(hidden, n)
        ended = ended | is_stop(token)
        return n + 1, token, ended, out.at[:, n].set(jnp.where(ended, -1, token)), cache

    ended = is_stop(token)
    out = jnp.full((batch, count), -1, jnp.int32).at[:, 0].set(jnp.where(ended, -1, token))
    *_, out, _ = jax.lax.while_loop(more, step, (jnp.int32(1), token, ended, out, cache))
    return Generated(jnp.maximum(out, 0), jnp.sum(out >= 0, axis=1, dtype=jnp.int32))


def log_likelihoods(
    model: Any, params: Any, tokens: Int[Array, "b s"], mask: Bool[Array, "b s"]
) -> Float[Array, "b s"]:
    """log p(token | the tokens before it) of every token, in nats.

    Args:
      model: the Linen module.
      params: its tree, of arrays or leaf types.
      tokens: token ids.
      mask: True where there is a token.

    Returns:
      float32 [b, s]; NaN at padding and at the first token of a row, before which there is nothing.

    Example:
      >>> from models.language.llama import Llama, LlamaConfig
      >>> config = LlamaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                      num_key_value_heads=1, head_dim=2, intermediate_size=8, initializer_range=0.0)
      >>> tokens, mask = pad([[1, 2, 3]], side="left")
      >>> params = Llama(config).init(jax.random.key(0), tokens, mask)["params"]
      >>> [f"{x:.2f}" for x in log_likelihoods(Llama(config), params, tokens, mask)[0]]  # -log 8
      ['nan', '-2.08', '-2.08']
    """
    logits = model.apply({"params": params}, tokens, mask)[:, :-1]
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    log_p = chosen - jax.nn.logsumexp(logits, axis=-1)
    log_p = jnp.where(mask[:, 1:] & mask[:, :-1], log_p, jnp.nan)
    return jnp.pad(log_p, ((0, 0), (1, 0)), constant_values=jnp.nan)


def scores(
    model: Any, params: Any, tokens: Int[Array, "b s"], mask: Bool[Array, "b s"], candidate: Bool[Array, "b s"]
) -> Float[Array, " b"]:
    """Length-normalised log-likelihood of candidates: the mean of log p(token | before) over a candidate's tokens.

    Args:
      model: the Linen module.
      params: its tree, of arrays or leaf types.
      tokens: prompt and candidate in each row.
      mask: True where there is a token.
      candidate: True at the candidate's tokens.

    Returns:
      float32 [b], nats a token; NaN for a row without candidate or whose candidate begins the row.

    Example:
      >>> from models.language.llama import Llama, LlamaConfig
      >>> config = LlamaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                      num_key_value_heads=1, head_dim=2, intermediate_size=8, initializer_range=0.0)
      >>> tokens, mask = pad([[1, 2, 3]], side="right")
      >>> params = Llama(config).init(jax.random.key(0), tokens, mask)["params"]
      >>> f"{scores(Llama(config), params, tokens, mask, jnp.array([[False, True, True]]))[0]:.2f}"
      '-2.08'
    """
    log_p = log_likelihoods(model, params, tokens, mask)
    return jnp.sum(jnp.where(candidate, log_p, 0.0), axis=1) / jnp.sum(candidate, axis=1)


def pad(rows: Sequence[Sequence[int]], *, side: str, length: int | None = None) -> tuple[Array, Array]:
    """Rows of token ids as one array, and the mask that says where they are.

    Args:
      rows: token ids, at least one a row.
      side: "left" or "right", where the padding goes.
      length: columns; None: those of the longest row.

    Returns:
      (tokens int32 [b, s], mask bool [b, s]).

    Raises:
      ValueError: if side is neither, a row is empty, or a row is longer than length.

    Example:
      >>> pad([[5], [6, 7]], side="left")[0].tolist()
      [[0, 5], [6, 7]]
    """
    if side not in ("left", "right"):
        raise ValueError(f"side is {side!r}; it must be 'left' or 'right'")
    sizes = [len(row) for row in rows]
    length = max(sizes) if length is None else length
    if min(sizes) < 1 or max(sizes) > length:
        raise ValueError(f"rows have {min(sizes)} to {max(sizes)} tokens; each must have 1 to {length}")
    tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        tokens[i, place], mask[i, place] = row, True
    return jnp.asarray(tokens), jnp.asarray(mask)
