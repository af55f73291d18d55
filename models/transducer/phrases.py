"""What phrases are to a model: how they are spelled, how they are written, and what they mean, a vector of each.

A catalogue is a mapping of arrays. Each phrase of a batch stands in it once, whichever utterances list it:

  `pieces` int32 [p, l]: the transducer's labels of each phrase, 0 behind them;
  `characters` int32 [p, c]: its characters, in 1..256 (bytes of UTF-8, counted from 1), 0 behind them;
  `starts` int32 [p, l]: of each label, the position of the character at which it starts;
  `meaning` float32 [p, m]: vectors of a frozen text encoder, made once for each phrase; m is 0 where none reads them;
  `unit_meaning` float32 [classes, m]: the same of the transducer's labels;
  `rows` int32 [b, k]: the phrases of each utterance's list, as positions among the p; -1 for none. A single row is the
    list of all utterances.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.layers import LayerNorm
from models.transducer.layers import NORM_EPS
from models.transducer.lstm import Lstm
from zojax import ops

__all__ = ["CHARACTERS", "HISTORY", "Catalogue", "PhraseEncoder", "furthest", "recent", "said"]

Catalogue = Mapping[str, Any]

CHARACTERS = 257
"""Bytes, and the padding."""

HISTORY = 8
"""Labels by which a phrase that has begun is known; of those before, a longer one is believed."""


class PhraseEncoder(nn.Module):
    """Vectors of phrases: embedded symbols through an LSTM in either direction, normalised.

        phrase:      v   = norm([forward(e_1 .. e_n), backward(e_n .. e_1)])
        positions:   v_i = norm([forward(e_1 .. e_i-1), e_i-1, e_i, backward(e_n .. e_i)])

    A position's vector says what stands before it and what comes next: who attends to it by what was written so far
    finds what is to be written, as a pointer does. (Ours; one vector a phrase is what the family of arXiv 2305.05271
    has.)

    Parameters: "table" [symbols, embedding], "forward" and "backward" as of `Lstm`, "norm".

    Args:
      symbols: in [1, symbols); 0 is padding.
      embedding: width of the table.
      hidden: cells of each direction.
      positions: whether there is a vector of each position, instead of one of the phrase.

    Example:
      >>> import jax
      >>> encoder, phrases = PhraseEncoder(5, 4, 3), jnp.array([[1, 2, 4], [3, 0, 0]])
      >>> encoder.init_with_output(jax.random.key(0), phrases)[0].shape
      (2, 6)
      >>> encoder = PhraseEncoder(5, 4, 3, positions=True)
      >>> encoder.init_with_output(jax.random.key(0), phrases)[0].shape
      (2, 3, 14)
    """

    symbols: int
    embedding: int
    hidden: int
    positions: bool = False

    @property
    def d_out(self) -> int:
        """Width of a vector."""
        return 2 * self.hidden + 2 * self.embedding * self.positions

    def setup(self):
        self.table = self.param("table", nn.initializers.normal(1.0), (self.symbols, self.embedding))
        self.forward = Lstm(self.embedding, self.hidden)
        self.backward = Lstm(self.embedding, self.hidden)
        self.norm = LayerNorm(NORM_EPS)

    def __call__(self, phrases: Int[Array, "p l"]) -> Float[Array, "p *l d"]:
        """Vectors of phrases.

        Args:
          phrases: symbols, 0 behind them.

        Returns:
          float32 [p, d_out]; of no symbols, that of nothing read. With positions [p, l, d_out], where those behind the
          end hold anything.
        """
        x, mask = ops.embed(self.table, phrases), phrases > 0
        read = []
        # Turned around, padding comes first; a state does not move on it.
        for lstm, way in ((self.forward, 1), (self.backward, -1)):
            each, _, state = lstm.step(x[:, ::way], mask[:, ::way], lstm.initial_state(len(phrases)))
            read.append(each[:, ::way] if self.positions else state["output"])
        if self.positions:
            before, after = read
            read = [_later(before), _later(x), x, after]
        return self.norm(jnp.concatenate(read, axis=-1))


def _later(x: Float[Array, "p l d"]) -> Float[Array, "p l d"]:
    """What stood one position before; zeros at the first."""
    return jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]


def said(labels: Int[Array, "b u"], pieces: Int[Array, "p l"], rows: Int[Array, "b k"]) -> Bool[Array, "b v k l"]:
    """Where an utterance says the phrases of its list: after v labels, position i of phrase k comes next.

    Args:
      labels: of utterances.
      pieces: labels of phrases, 0 behind them.
      rows: the phrases of each utterance's list, -1 for none.

    Returns:
      True where it does, v from 0 to u.

    Example:
      >>> found = said(jnp.array([[5, 1, 2]]), jnp.array([[1, 2]]), jnp.array([[0]]))
      >>> found[0, :, 0].astype(int).tolist()
      [[0, 0], [1, 0], [0, 1], [0, 0]]
    """
    length = pieces.shape[1]
    listed = jnp.where(rows[..., None] >= 0, pieces[rows], 0)
    ahead = jnp.pad(labels, ((0, 0), (0, length)))
    ahead = jnp.stack([ahead[:, i : i + labels.shape[1] + 1] for i in range(length)], axis=-1)
    # A phrase begins after v labels if all of its own follow.
    same = (ahead[:, :, None] == listed[:, None]) | (listed == 0)[:, None]
    begins = jnp.all(same, axis=-1)
    began = jnp.stack([jnp.pad(begins, ((0, 0), (i, 0), (0, 0)))[:, : begins.shape[1]] for i in range(length)], axis=-1)
    return began & (listed > 0)[:, None]


def recent(labels: Int[Array, "b u"]) -> Int[Array, "b v h"]:
    """The last labels after each of 0 .. u of them, the latest first; 0 where there are none.

    Example:
      >>> recent(jnp.array([[5, 6]]))[0, :, :2].tolist()
      [[0, 0], [5, 0], [6, 5]]
    """
    count = labels.shape[1] + 1
    behind = jnp.pad(labels, ((0, 0), (HISTORY, 0)))
    return jnp.stack([behind[:, HISTORY - 1 - j : HISTORY - 1 - j + count] for j in range(HISTORY)], axis=-1)


def furthest(last: Int[Array, "b n h"], listed: Int[Array, "b k l"]) -> Int[Array, "b n k"]:
    """How far phrases have been written: the last position of each that goes on with the text, 0 of one not begun.

        max i:   last_j = phrase_i-1-j   for all j < min(i, h)

    Args:
      last: the last labels, the latest first, 0 where there are none.
      listed: labels of phrases, 0 behind them.

    Returns:
      Positions, in 0 .. l - 1.

    Example:
      >>> furthest(jnp.array([[[1, 5]]]), jnp.array([[[1, 2], [2, 1]]]))[0, 0].tolist()
      [1, 0]
    """
    phrases = listed[:, None]
    alive = phrases > 0
    for j in range(min(HISTORY, listed.shape[-1] - 1)):
        same = phrases[..., : -1 - j] == last[..., j, None, None]
        alive = alive & jnp.concatenate([jnp.ones((*same.shape[:-1], j + 1), bool), same], axis=-1)
    return jnp.max(jnp.where(alive, jnp.arange(listed.shape[-1]), 0), axis=-1)
