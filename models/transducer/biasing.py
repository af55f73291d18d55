"""Contextual biasing: adapters that lead a frozen transducer to the phrases of a catalogue.

After "Robust acoustic and semantic contextual biasing", arXiv 2305.05271: cross-attention of the encoder's frames and
of the predictor's outputs over a catalogue. Phrases are read as subwords; as characters too, which are near to how a
phrase sounds (acoustic biasing); and by a frozen language model, which knows what a phrase means (semantic biasing).
The paper's body is not public. The following is ours:

- Frames look for what a phrase is like to hear, subwords and characters; the predictor for how it goes on and what
  would make sense, subwords and meanings. Biases are added to both sides where they have the joint width.
- The semantic query is the predictor's output and a vector of the decoded prefix, mixed. A text encoder cannot run
  inside a search; so a prefix is the decaying mean of its labels' vectors, each embedded once.
- With `positions`, each label and each character of a phrase has a key of its own, that says what stands before it and
  what comes next; a phrase's meaning stands beside each of its labels.
- The gate, and that the no-bias key has no value, so that an empty catalogue leaves the base model as it is, bit for
  bit.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from models.language.config import check_sizes
from models.language.layers import MASKED
from models.layers import LayerNorm, Linear
from models.transducer.layers import NORM_EPS
from models.transducer.phrases import CHARACTERS, Catalogue, PhraseEncoder, said
from zojax import ops

__all__ = ["Biasing", "BiasingAttention", "BiasingConfig", "Memories", "Memory"]

DECAY = 0.8
"""Of the prefix's mean, a label: a word of a few pieces ago still counts."""


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

    def bias(self, x: Float[Array, "b *t d_query"], memory: Memory) -> Float[Array, "b *t d_query"]:
        """What is to be added to x.

        Args:
          x: frames, outputs of the predictor, or other queries; `t` may be any axes, or none.
          memory: of as many catalogues as x has rows; or of one, for all rows; or of a divisor of the rows, where
            consecutive rows share one, as the hypotheses of an utterance do in a search.

        Returns:
          The bias, as large as x.

        Raises:
          ValueError: if the rows are no multiple of the catalogues.
        """
        return self._say(x, memory, jax.nn.softmax(self._scores(x, memory), axis=-1))

    def guided(
        self, x: Float[Array, "b t d_query"], memory: Memory, right: Bool[Array, "b t k"]
    ) -> tuple[Float[Array, "b t d_query"], Float[Array, "b t"]]:
        """`bias`, and how far the attention is from where it should be.

            nats = -mean_heads ln sum_{k right} alpha_k,    of the no-bias key where no phrase is right

        Args:
          x: as for `bias`.
          memory: of as many catalogues as x has rows.
          right: which keys are right.

        Returns:
          (bias, nats).
        """
        log_alpha = jax.nn.log_softmax(self._scores(x, memory), axis=-1)
        right = jnp.concatenate([~jnp.any(right, axis=-1, keepdims=True), right], axis=-1)
        nats = -jax.nn.logsumexp(jnp.where(right[:, None], log_alpha, MASKED), axis=-1)
        return self._say(x, memory, jnp.exp(log_alpha)), jnp.mean(nats, axis=1)

    def _scores(self, x: Float[Array, "b *t d_query"], memory: Memory) -> Float[Array, "b2 heads n k"]:
        """Of the no-bias key, then of the phrases."""
        catalogues = memory.keys.shape[0]
        if x.shape[0] % catalogues:
            raise ValueError(f"memory: {catalogues} catalogues for {x.shape[0]} rows; a divisor is needed")
        each = x.shape[0] // catalogues
        split = (each * math.prod(x.shape[1:-1]), self.heads, self.width // self.heads)
        query = self.query(x).reshape(catalogues, *split)
        scores = jnp.einsum("bthd,bkhd->bhtk", query, memory.keys)
        scores = jnp.where(memory.mask[:, None, None], scores, MASKED)
        nothing = jnp.einsum("bthd,hd->bht", query, ops.value(self.no_bias))[..., None]
        return jnp.concatenate([nothing, scores], axis=-1) * (self.width // self.heads) ** -0.5

    def _say(
        self, x: Float[Array, "b *t d_query"], memory: Memory, alpha: Float[Array, "b2 heads n k"]
    ) -> Float[Array, "b *t d_query"]:
        found = jnp.einsum("bhtk,bkhd->bthd", alpha[..., 1:], memory.values).reshape(*x.shape[:-1], self.width)
        gate = jax.nn.sigmoid(self.gate(jnp.concatenate([x, found], axis=-1)))
        return gate * self.output(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiasingConfig:
    """Sizes of the adapters.

    Attributes:
      acoustic: whether phrases are read as characters, too.
      semantic: whether there are meanings of phrases and of the decoded prefix.
      positions: whether attentions have keys of each position of a phrase, instead of one of the phrase.
      embedding: width of the tables of subwords and characters.
      hidden: cells of the phrase encoders, each direction.
      width: of each attention.
      heads: of each attention.
      meaning: width of the text encoder's vectors; MiniLM has 384.

    Raises:
      ValueError: if a size is not positive, or the heads do not divide the width.

    Example:
      >>> BiasingConfig(width=64, heads=3)
      Traceback (most recent call last):
      ...
      ValueError: BiasingConfig.heads is 3; it must divide width, 64
    """

    acoustic: bool = False
    semantic: bool = False
    positions: bool = False
    embedding: int = 64
    hidden: int = 64
    width: int = 128
    heads: int = 4
    meaning: int = 384

    def __post_init__(self):
        check_sizes(self)
        if self.width % self.heads:
            raise ValueError(f"BiasingConfig.heads is {self.heads}; it must divide width, {self.width}")


class Memories(NamedTuple):
    """What biasing keeps of catalogues: a tree of arrays.

    Attributes:
      heard: for the encoder's frames.
      written: for the predictor's outputs.
      units: vectors of the labels, for the decoded prefix; of width 0 without semantic biasing.
    """

    heard: Memory
    written: Memory
    units: Float[Array, "classes m"]


class Biasing(nn.Module):
    """The adapters of a transducer.

    Parameters: "subword" and, with acoustic biasing, "character" as of `PhraseEncoder`; with semantic biasing
    "meaning", "meaning_norm" and "prefix"; "heard" and "written" as of `BiasingAttention`.

    Args:
      config: sizes.
      classes: labels of the transducer, the blank among them.
      joint: its joint width.

    Example:
      >>> model, x = Biasing(BiasingConfig(embedding=4, hidden=3, width=8), 5, 6), jnp.ones((2, 7, 6))
      >>> catalogue = {"pieces": jnp.array([[1, 2], [3, 0]]), "rows": jnp.array([[0, 1], [1, -1]])}
      >>> labels = jnp.array([[1, 2], [3, 0]])
      >>> variables = jax.jit(model.init)(jax.random.key(0), catalogue, x, x[:, :3], labels)
      >>> memories = model.apply(variables, catalogue, method="remember")
      >>> model.apply(variables, x, memories, method="frames").shape
      (2, 7, 6)
    """

    config: BiasingConfig
    classes: int
    joint: int

    def setup(self):
        c = self.config
        self.subword = PhraseEncoder(self.classes, c.embedding, c.hidden, c.positions)
        heard = written = self.subword.d_out
        if c.acoustic:
            self.character = PhraseEncoder(CHARACTERS, c.embedding, c.hidden, c.positions)
            # Labels and characters stand at other positions: keys beside each other, where phrases have one vector.
            heard += 0 if c.positions else self.character.d_out
        if c.semantic:
            self.meaning = Linear(self.subword.d_out, c.meaning**-0.5)
            self.meaning_norm = LayerNorm(NORM_EPS)
            self.prefix = Linear(self.joint, c.meaning**-0.5, use_bias=False)
            written += self.subword.d_out
        self.heard = BiasingAttention(self.joint, heard, c.width, c.heads)
        self.written = BiasingAttention(self.joint, written, c.width, c.heads)

    def __call__(
        self,
        catalogue: Catalogue,
        frames: Float[Array, "b t j"],
        symbols: Float[Array, "b v j"],
        labels: Int[Array, "b u"],
    ) -> tuple[Float[Array, "b t j"], Float[Array, "b v j"], Float[Array, "b v"]]:
        """Both sides of a transducer, biased: `remember`, `frames`, `symbols`; and the nats of `guided`.

        What is right to attend to is known where labels are: where a listed phrase is said, its position that comes
        next, or the phrase; and nothing elsewhere. (Guidance of this attention is ours.)
        """
        memories = self.remember(catalogue)
        right = said(labels, jnp.asarray(catalogue["pieces"]), jnp.asarray(catalogue["rows"]))
        right = right.reshape(*right.shape[:2], -1) if self.config.positions else jnp.any(right, axis=-1)
        query = self._query(symbols, self._prefixes(labels, memories))
        biases, nats = self.written.guided(query, memories.written, right)
        return self.frames(frames, memories), symbols + biases, nats

    def remember(self, catalogue: Catalogue) -> Memories:
        """What is kept of catalogues: each phrase is encoded once, whichever lists it stands in.

        Args:
          catalogue: see `models.transducer.phrases`; fields that nothing here reads may be missing.

        Returns:
          What the other methods take.
        """
        c, rows = self.config, jnp.asarray(catalogue["rows"])
        vectors, real = self._read(self.subword, catalogue["pieces"])
        heard, written, units = (vectors, real), vectors, jnp.zeros((self.classes, 0))
        if c.acoustic:
            others, exist = self._read(self.character, catalogue["characters"])
            if c.positions:
                heard = jnp.concatenate([vectors, others], axis=1), jnp.concatenate([real, exist], axis=1)
            else:
                heard = jnp.concatenate([vectors, others], axis=2), real
        if c.semantic:
            meaning = self.meaning_norm(self.meaning(_unit(jnp.asarray(catalogue["meaning"]))))
            beside = jnp.broadcast_to(meaning[:, None], (*real.shape, meaning.shape[1]))
            written, units = jnp.concatenate([vectors, beside], axis=2), _unit(jnp.asarray(catalogue["unit_meaning"]))
        return Memories(_listed(self.heard, *heard, rows), _listed(self.written, written, real, rows), units)

    def _read(self, encoder: PhraseEncoder, symbols: Any) -> tuple[Float[Array, "p l d"], Bool[Array, "p l"]]:
        """The vectors of each phrase, and which of them there are; a single one but with positions."""
        symbols = jnp.asarray(symbols)
        if self.config.positions:
            return encoder(symbols), symbols > 0
        return encoder(symbols)[:, None], jnp.ones((len(symbols), 1), bool)

    def frames(self, frames: Float[Array, "b *t j"], memories: Memories) -> Float[Array, "b *t j"]:
        """Frames of the joint width with what the catalogues say to them."""
        return frames + self.heard.bias(frames, memories.heard)

    def symbols(
        self, symbols: Float[Array, "b v j"], labels: Int[Array, "b u"], memories: Memories
    ) -> Float[Array, "b v j"]:
        """The predictor's outputs after 0, 1, .. u labels, with what the catalogues say to them."""
        return symbols + self.written.bias(self._query(symbols, self._prefixes(labels, memories)), memories.written)

    @nn.nowrap
    def _prefixes(self, labels: Int[Array, "b u"], memories: Memories) -> Float[Array, "b v m"]:
        def read(prefix: Array, label: Array) -> tuple[Array, Array]:
            prefix = _behind(prefix, label, memories)
            return prefix, prefix

        start = jnp.zeros((len(labels), memories.units.shape[1]))
        _, prefixes = lax.scan(read, start, labels.T)
        return jnp.concatenate([start[None], prefixes]).swapaxes(0, 1)

    @nn.nowrap
    def initial_state(self, batch: int) -> Float[Array, "b m"]:
        """The state before the start: a prefix of nothing."""
        return jnp.zeros((batch, self.config.meaning if self.config.semantic else 0))

    def symbol_step(
        self,
        symbol: Float[Array, "b j"],
        label: Int[Array, "b"],
        state: Float[Array, "b m"],
        memories: Memories,
    ) -> tuple[Float[Array, "b j"], Float[Array, "b m"]]:
        """The predictor's output after one more label, with what the catalogues say to it.

        Args:
          symbol: the predictor's output.
          label: the label; the first is the blank, for the start.
          state: of the step before.
          memories: of as many catalogues as there are rows, or of a divisor, see `BiasingAttention.bias`.

        Returns:
          (output, state).
        """
        state = jnp.where(label[:, None] > 0, _behind(state, label, memories), state)
        return symbol + self.written.bias(self._query(symbol, state), memories.written), state

    def _query(self, symbols: Array, prefixes: Array) -> Array:
        return symbols + self.prefix(prefixes) if self.config.semantic else symbols


def _unit(x: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """Vectors scaled to a mean square of 1; zeros stay zeros."""
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def _behind(prefix: Array, label: Array, memories: Memories) -> Array:
    return DECAY * prefix + (1 - DECAY) * memories.units[label]


def _listed(
    attention: BiasingAttention, vectors: Float[Array, "p l d"], real: Bool[Array, "p l"], rows: Int[Array, "b k"]
) -> Memory:
    """Keys and values of all phrases, then those of each list."""
    keys, values, mask = attention.remember(vectors, real)

    def listed(x: Array) -> Array:
        return x[rows].reshape(len(rows), -1, *x.shape[2:])

    return Memory(listed(keys), listed(values), listed(mask) & jnp.repeat(rows >= 0, real.shape[1], axis=1))
