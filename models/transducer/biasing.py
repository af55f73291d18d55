"""Contextual biasing: adapters that lead a frozen transducer to the phrases of a catalogue.

After "Robust acoustic and semantic contextual biasing", arXiv 2305.05271: cross-attention of the encoder's frames and
of the predictor's outputs over a catalogue. Phrases are read as subwords; as characters too, which are near to how a
phrase sounds (acoustic biasing); and by a frozen language model, which knows what a phrase means (semantic biasing).
The paper's body is not public. The following is ours:

- Frames look for what a phrase is like to hear, subwords and characters; the predictor for how it goes on and what
  would make sense, subwords and meanings. Biases are added to both sides where they have the joint width.
- The semantic query is the predictor's output and a vector of the decoded prefix, mixed. A text encoder cannot run
  inside a search; so a prefix is the decaying mean of its labels' vectors, each embedded once.
- With `positions`, each label of a phrase has a key of its own, that says what stands before it and what comes next;
  beside it stand the same of the character at which it starts, and the phrase's meaning. The predictor attends to the
  first of each phrase, and to the one that goes on with what was written of it: the branches of a prefix tree, as a
  pointer generator's (arXiv 2109.00627).
- What attention ought to find is known where labels are: see `models.transducer.guidance`.
- The gate, and that the no-bias key has no value, so that an empty catalogue leaves the base model as it is, bit for
  bit.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from models.language.config import check_sizes
from models.layers import LayerNorm, Linear
from models.transducer.biasing_attention import BiasingAttention, Memory
from models.transducer.guidance import missed_by_frames, missed_by_symbols
from models.transducer.layers import NORM_EPS
from models.transducer.phrases import CHARACTERS, HISTORY, Catalogue, PhraseEncoder, furthest, recent, said

__all__ = ["Biasing", "BiasingConfig", "Memories"]

DECAY = 0.8
"""Of the prefix's mean, a label: a word of a few pieces ago still counts."""

BEGUN = 32
"""Phrases that a text may have begun at a time; of more, those of which most is written count."""


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
      written: for the predictor's outputs; with positions, the first of each phrase.
      further: with positions, all of them, for the predictor's outputs; else none.
      units: vectors of the labels, for the decoded prefix; of width 0 without semantic biasing.
      listed: labels of each list's phrases, 0 behind them; of none without positions.
    """

    heard: Memory
    written: Memory
    further: Memory
    units: Float[Array, "classes m"]
    listed: Int[Array, "b k l"]


class Written(NamedTuple):
    """What biasing remembers of labels.

    Attributes:
      prefix: decaying mean of their vectors.
      recent: the last ones, the latest first, 0 where there are none.
    """

    prefix: Float[Array, "b *v m"]
    recent: Int[Array, "b *v h"]


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
      >>> mask, counts = jnp.ones((2, 7), bool), jnp.array([2, 1])
      >>> variables = jax.jit(model.init)(jax.random.key(0), catalogue, x, mask, x[:, :3], labels, counts)
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
            heard += self.character.d_out
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
        mask: Bool[Array, "b t"],
        symbols: Float[Array, "b v j"],
        labels: Int[Array, "b u"],
        counts: Int[Array, "b"],
    ) -> tuple[Float[Array, "b t j"], Float[Array, "b v j"], Float[Array, "b"]]:
        """Both sides of a transducer, biased, and by how many nats the attentions miss what is said."""
        memories = self.remember(catalogue)
        written = self._written(labels, memories)
        begun = None
        right = said(labels, jnp.asarray(catalogue["pieces"]), jnp.asarray(catalogue["rows"]))
        if self.config.positions:
            begun, place = self._begun(written, memories)
            heard = right.reshape(*right.shape[:2], -1)
            going_on = jnp.take_along_axis(heard, place, axis=2) & begun.mask
            right = jnp.concatenate([right[..., 0], going_on], axis=2)
        else:  # a phrase is written for as long as it lasts, and heard once
            heard, right = right[..., 0], jnp.any(right, axis=-1)
        query = self._query(symbols, written.prefix)
        biases, log_alpha = self.written.watched(query, memories.written, begun)
        nats = missed_by_symbols(log_alpha, right, counts)
        led, log_alpha = self.heard.watched(frames, memories.heard)
        return frames + led, symbols + biases, nats + missed_by_frames(log_alpha, mask, heard, counts)

    def remember(self, catalogue: Catalogue) -> Memories:
        """What is kept of catalogues: each phrase is encoded once, whichever lists it stands in.

        Args:
          catalogue: see `models.transducer.phrases`; fields that nothing here reads may be missing.

        Returns:
          What the other methods take.
        """
        c, rows, pieces = self.config, jnp.asarray(catalogue["rows"]), jnp.asarray(catalogue["pieces"])
        vectors, units = self._read(self.subword, pieces), jnp.zeros((self.classes, 0))
        real = pieces > 0 if c.positions else jnp.ones((len(pieces), 1), bool)
        heard = written = vectors
        if c.acoustic:
            others = self._read(self.character, jnp.asarray(catalogue["characters"]))
            if c.positions:
                others = jnp.take_along_axis(others, jnp.asarray(catalogue["starts"])[..., None], axis=1)
            heard = jnp.concatenate([vectors, others], axis=2)
        if c.semantic:
            meaning = self.meaning_norm(self.meaning(_unit(jnp.asarray(catalogue["meaning"]))))
            beside = jnp.broadcast_to(meaning[:, None], (*real.shape, meaning.shape[1]))
            written, units = jnp.concatenate([vectors, beside], axis=2), _unit(jnp.asarray(catalogue["unit_meaning"]))
        listed = jnp.where(rows[..., None] >= 0, pieces[rows], 0)[..., : None if c.positions else 0]
        further = _listed(self.written, written, real, rows)
        first = Memory(*(x[:, :: real.shape[1]] for x in further))
        if not c.positions:
            further = Memory(*(x[:, :0] for x in further))
        return Memories(_listed(self.heard, heard, real, rows), first, further, units, listed)

    def _read(self, encoder: PhraseEncoder, symbols: Int[Array, "p l"]) -> Float[Array, "p l2 d"]:
        """The vectors of each phrase; a single one but with positions."""
        return encoder(symbols) if self.config.positions else encoder(symbols)[:, None]

    def frames(self, frames: Float[Array, "b *t j"], memories: Memories) -> Float[Array, "b *t j"]:
        """Frames of the joint width with what the catalogues say to them."""
        return frames + self.heard.bias(frames, memories.heard)

    @nn.nowrap
    def _written(self, labels: Int[Array, "b u"], memories: Memories) -> Written:
        """After 0, 1, .. u labels."""

        def read(prefix: Array, label: Array) -> tuple[Array, Array]:
            prefix = _behind(prefix, label, memories)
            return prefix, prefix

        start = jnp.zeros((len(labels), memories.units.shape[1]))
        _, prefixes = lax.scan(read, start, labels.T)
        return Written(jnp.concatenate([start[None], prefixes]).swapaxes(0, 1), recent(labels))

    @nn.nowrap
    def _begun(self, written: Written, memories: Memories) -> tuple[Memory, Int[Array, "b *v a"]]:
        """Of phrases that were begun, the keys of what goes on with the text, and where they stand."""
        last, listed = written.recent, memories.listed
        # Rows of a search share catalogues: an axis of its own.
        reached = furthest(last.reshape(len(listed), -1, HISTORY), listed)
        position, phrase = lax.top_k(reached, min(BEGUN, listed.shape[1]))
        place = phrase * listed.shape[2] + position

        def taken(x: Array) -> Array:
            each = jax.vmap(lambda own, at: own[at])(x, place)
            return each.reshape(*last.shape[:-1], *each.shape[2:])

        keys, values, mask = map(taken, memories.further)
        place, position = (x.reshape(*last.shape[:-1], -1) for x in (place, position))
        return Memory(keys, values, mask & (position > 0)), place

    @nn.nowrap
    def initial_state(self, batch: int) -> Written:
        """The state before the start: nothing was written."""
        meaning = self.config.meaning if self.config.semantic else 0
        return Written(jnp.zeros((batch, meaning)), jnp.zeros((batch, HISTORY), jnp.int32))

    def symbol_step(
        self, symbol: Float[Array, "b j"], label: Int[Array, "b"], state: Written, memories: Memories
    ) -> tuple[Float[Array, "b j"], Written]:
        """The predictor's output after one more label, with what the catalogues say to it.

        Args:
          symbol: the predictor's output.
          label: the label; the first is the blank, for the start.
          state: of the step before.
          memories: of as many catalogues as there are rows, or of a divisor, see `BiasingAttention.bias`.

        Returns:
          (output, state).
        """
        later = Written(
            _behind(state.prefix, label, memories), jnp.concatenate([label[:, None], state.recent[:, :-1]], axis=1)
        )
        state = Written(*(jnp.where(label[:, None] > 0, *both) for both in zip(later, state, strict=True)))
        begun = self._begun(state, memories)[0] if self.config.positions else None
        return symbol + self.written.bias(self._query(symbol, state.prefix), memories.written, begun), state

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
