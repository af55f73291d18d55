"""Decoding frame by frame: the state of a search, its steps over chunks, and what it has found.

All searches go through the frames in order and keep for each utterance a fixed number of hypotheses in arrays of fixed
sizes. A frame whose mask is False changes nothing of its row. So chunks of any size give what one call gives, and rows
know nothing of each other.
"""

import abc
import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from models.transducer.decode.decodable import Decodable, Fusion

__all__ = ["Beam", "Hypotheses", "Search", "SearchState", "decode", "decode_step", "hypotheses", "start"]


class Beam(NamedTuple):
    """Hypotheses in the making. One that does not exist has a log_prob of -inf.

    Attributes:
      tokens: labels, 0 behind the length.
      frames: the frame of each label, counted from 0; 0 behind the length.
      lengths: numbers of labels.
      log_probs: log-probability of a hypothesis so far (see the search for what it sums).
      external: sum of the scores of `Fusion`.
      predicted: the predictor's output after the labels.
      memory: the predictor's state.
      hints: scores of the next label, None without fusion.
      fused: the state of `Fusion`, None without.
    """

    tokens: Int[Array, "b w n"]
    frames: Int[Array, "b w n"]
    lengths: Int[Array, "b w"]
    log_probs: Float[Array, "b w"]
    external: Float[Array, "b w"]
    predicted: Float[Array, "b w p"]
    memory: Any
    hints: Any
    fused: Any

    @property
    def alive(self) -> Bool[Array, "b w"]:
        """Which hypotheses exist."""
        return self.log_probs > -jnp.inf

    @property
    def scores(self) -> Float[Array, "b w"]:
        """What they are ranked by."""
        return self.log_probs + self.external


class SearchState(NamedTuple):
    """Where a search stands between two chunks: a tree of arrays whose first axis is the batch.

    Attributes:
      beam: the hypotheses.
      clock: frames of each row seen so far.
    """

    beam: Beam
    clock: Int[Array, " b"]


class Hypotheses(NamedTuple):
    """What a search has found, best first.

    Attributes:
      tokens: labels, 0 behind the length.
      frames: the frame of each label, counted from 0 over a row's own frames; where a hypothesis has several
        alignments, that of the heavier branch at each merge.
      lengths: numbers of labels; 0 for hypotheses that do not exist. max_labels: it may have been cut off.
      log_probs: log-probability of the labels as far as the search has summed it; -inf if there is no hypothesis.
      scores: what they are ranked by: log_probs and the scores of `Fusion`.
    """

    tokens: Int[Array, "b w n"]
    frames: Int[Array, "b w n"]
    lengths: Int[Array, "b w"]
    log_probs: Float[Array, "b w"]
    scores: Float[Array, "b w"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(abc.ABC):
    """How a frame changes the hypotheses; the base of the searches.

    Args:
      max_labels: labels that a hypothesis has room for; a full one gets blanks only.
      blank: index of the blank among the classes.

    Raises:
      ValueError: if max_labels is not positive or blank is negative.

    Example:
      >>> from models.transducer.decode.greedy import Greedy
      >>> Greedy(max_labels=0, max_symbols=3)
      Traceback (most recent call last):
      ...
      ValueError: max_labels: 0; at least 1 is needed
    """

    max_labels: int
    blank: int = 0

    def __post_init__(self):
        if self.max_labels < 1:
            raise ValueError(f"max_labels: {self.max_labels}; at least 1 is needed")
        if self.blank < 0:
            raise ValueError(f"blank: {self.blank}; an index from 0 on is needed")

    @property
    def width(self) -> int:
        """Hypotheses of an utterance."""
        return 1

    @abc.abstractmethod
    def frame(
        self,
        decodable: Decodable,
        fusion: Fusion | None,
        encoded: Float[Array, "b d"],
        active: Bool[Array, " b"],
        clock: Int[Array, " b"],
        beam: Beam,
    ) -> Beam:
        """The hypotheses after one more frame; rows that are not active may get anything."""

    # What the searches share.

    def log_softmax(self, decodable: Decodable, encoded: Array, beam: Beam) -> Float[Array, "b w classes"]:
        """log P(class) at the node of each hypothesis, in float32 at least."""
        logits = decodable.join(encoded[:, None], beam.predicted)
        if self.blank >= logits.shape[-1]:
            raise ValueError(f"blank: {self.blank}; the index of one of the {logits.shape[-1]} classes is needed")
        return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)

    def extensions(self, log_p: Float[Array, "b w classes"], beam: Beam) -> Float[Array, "b w classes"]:
        """log-probability of each hypothesis with one more label; -inf for the blank and where there is no room."""
        never = (jnp.arange(log_p.shape[-1]) == self.blank) | (beam.lengths == self.max_labels)[..., None]
        return jnp.where(never, -jnp.inf, beam.log_probs[..., None] + log_p)

    def advance(
        self,
        decodable: Decodable,
        fusion: Fusion | None,
        beam: Beam,
        labels: Int[Array, "b w"],
        emits: Bool[Array, "b w"],
        clock: Int[Array, " b"],
    ) -> Beam:
        """The hypotheses that emit get their label; predictor and fusion take a step for them."""
        here = emits[..., None] & (jnp.arange(self.max_labels) == beam.lengths[..., None])
        external = beam.external
        if fusion is not None:
            hint = jnp.take_along_axis(beam.hints, labels[..., None], axis=-1)[..., 0]
            external = external + jnp.where(emits, hint, 0)

        def stepped(kept):
            return _choose(emits, _step(decodable, fusion, labels, kept[1], kept[3]), kept)

        kept = (beam.predicted, beam.memory, beam.hints, beam.fused)
        # Most frames of most utterances are blank: a predictor that has nothing to do is not run.
        predicted, memory, hints, fused = lax.cond(jnp.any(emits), stepped, lambda kept: kept, kept)
        return Beam(
            tokens=jnp.where(here, labels[..., None], beam.tokens),
            frames=jnp.where(here, clock[:, None, None], beam.frames),
            lengths=beam.lengths + emits,
            log_probs=beam.log_probs,
            external=external,
            predicted=predicted,
            memory=memory,
            hints=hints,
            fused=fused,
        )


def hinted(extensions: Float[Array, "b w classes"], beam: Beam) -> Float[Array, "b w classes"]:
    """What extensions are ranked by."""
    ranks = extensions + beam.external[..., None]
    return ranks if beam.hints is None else ranks + beam.hints


def gather(tree: Any, index: Int[Array, "b k"]) -> Any:
    """Of each leaf [b, w, ...] the rows that index names: [b, k, ...]."""
    row = jnp.arange(index.shape[0])[:, None]
    return jax.tree.map(lambda x: x[row, index], tree)


def same_prefix(a: Beam, b: Beam, lengths: Int[Array, "b w"]) -> Bool[Array, "b w v"]:
    """Whether the first `lengths` labels, of the hypotheses of b, are those of the hypotheses of a."""
    equal = a.tokens[:, :, None] == b.tokens[:, None]
    behind = jnp.arange(a.tokens.shape[-1]) >= lengths[:, None, :, None]
    return jnp.all(equal | behind, axis=-1)


def _choose(where: Bool[Array, "b *w"], new: Any, old: Any) -> Any:
    """Of each leaf the new rows or the old ones."""
    return jax.tree.map(
        lambda n, o: jnp.where(where.reshape(where.shape + (1,) * (n.ndim - where.ndim)), n, o), new, old
    )


def _step(decodable, fusion, labels, memory, fused):
    """Predictor and fusion after one more label, for labels [b, w] and states whose leaves begin with [b, w]."""
    shape = labels.shape
    flat = partial(jax.tree.map, lambda x: x.reshape(labels.size, *x.shape[2:]))
    back = partial(jax.tree.map, lambda x: x.reshape(*shape, *x.shape[1:]))
    predicted, memory = decodable.predict(labels.reshape(-1), flat(memory))
    hints = None
    if fusion is not None:
        hints, fused = fusion.scores(labels.reshape(-1), flat(fused))
    return back(predicted), back(memory), back(hints), back(fused)


def start(search: Search, decodable: Decodable, batch: int, *, fusion: Fusion | None = None) -> SearchState:
    """The state before the first frame: one empty hypothesis a row.

    Args:
      search: how to search.
      decodable: the transducer.
      batch: rows.
      fusion: scores from outside.

    Returns:
      The state.

    Example:
      >>> from models.transducer.decode.example import transducer
      >>> from models.transducer.decode.greedy import Greedy
      >>> start(Greedy(max_labels=5, max_symbols=3), transducer(), 2).beam.tokens.shape
      (2, 1, 5)
    """
    blanks = jnp.full((batch, 1), search.blank, jnp.int32)
    single = partial(jax.tree.map, lambda x: x[:, None])
    memory = single(decodable.initial_state(batch))
    fused = None if fusion is None else single(fusion.initial_state(batch))
    shape = (batch, search.width)
    rest = _step(decodable, fusion, blanks, memory, fused)
    predicted, memory, hints, fused = jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape[2:])), rest)
    zeros = jnp.zeros((*shape, search.max_labels), jnp.int32)
    log_probs = jnp.broadcast_to(jnp.where(jnp.arange(search.width) == 0, 0.0, -jnp.inf), shape)
    beam = Beam(
        tokens=zeros,
        frames=zeros,
        lengths=jnp.zeros(shape, jnp.int32),
        log_probs=log_probs,
        external=jnp.zeros_like(log_probs),
        predicted=predicted,
        memory=memory,
        hints=hints,
        fused=fused,
    )
    return SearchState(beam, jnp.zeros(batch, jnp.int32))


@partial(jax.jit, static_argnames="search")
def decode_step(
    search: Search,
    decodable: Decodable,
    encoded: Float[Array, "b c d"],
    mask: Bool[Array, "b c"],
    state: SearchState,
    *,
    fusion: Fusion | None = None,
) -> SearchState:
    """Goes on over a chunk of frames.

    Args:
      search: how to search.
      decodable: the transducer.
      encoded: the encoder's output; where the mask is False it may hold anything.
      mask: True where there is a frame.
      state: of `start` or of the chunk before.
      fusion: as given to `start`.

    Returns:
      The state after the chunk. What it has found so far: `hypotheses`.

    Raises:
      ValueError: if the blank is not a class.

    Example:
      >>> from models.transducer.decode.example import transducer
      >>> from models.transducer.decode.greedy import Greedy
      >>> search, model = Greedy(max_labels=5, max_symbols=3), transducer()
      >>> state = start(search, model, 1)
      >>> for heard in ([[[0.0, 9.0, 0.0]]], [[[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]]]):
      ...     chunk = jnp.array(heard)
      ...     state = decode_step(search, model, chunk, jnp.ones(chunk.shape[:2], bool), state)
      ...     hypotheses(state).tokens[0, 0].tolist()
      [1, 0, 0, 0, 0]
      [1, 2, 0, 0, 0]
    """

    def frame(state, now):
        x, active = now
        beam = search.frame(decodable, fusion, x, active, state.clock, state.beam)
        return SearchState(_choose(active, beam, state.beam), state.clock + active), None

    return lax.scan(frame, state, (encoded.transpose(1, 0, 2), mask.T))[0]


@jax.jit
def hypotheses(state: SearchState, *, fusion: Fusion | None = None) -> Hypotheses:
    """What a search has found so far, or in the end.

    Args:
      state: of `decode_step`.
      fusion: as given to `start`, where no frame will follow: the score of an end counts. None: more may follow.

    Returns:
      The hypotheses, best first.

    Example:
      >>> from models.transducer.decode.beam import ModifiedBeam
      >>> from models.transducer.decode.example import transducer
      >>> hypotheses(start(ModifiedBeam(max_labels=5, beam=2), transducer(), 1)).log_probs.tolist()
      [[0.0, -inf]]
    """
    beam, alive = state.beam, state.beam.alive
    if fusion is not None and fusion.end is not None:
        flat = jax.tree.map(lambda x: x.reshape(alive.size, *x.shape[2:]), beam.fused)
        ends = fusion.end(fusion.params, flat).reshape(alive.shape)
        beam = beam._replace(external=beam.external + ends)
    order = jnp.argsort(-beam.scores, axis=-1, stable=True)
    return gather(
        Hypotheses(
            tokens=jnp.where(alive[..., None], beam.tokens, 0),
            frames=jnp.where(alive[..., None], beam.frames, 0),
            lengths=jnp.where(alive, beam.lengths, 0),
            log_probs=beam.log_probs,
            scores=beam.scores,
        ),
        order,
    )


def decode(
    search: Search,
    decodable: Decodable,
    encoded: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    *,
    fusion: Fusion | None = None,
) -> Hypotheses:
    """Decodes whole utterances: `start`, one `decode_step`, `hypotheses`.

    Args:
      search: how to search.
      decodable: the transducer.
      encoded: the encoder's output.
      mask: True where there is a frame.
      fusion: scores from outside.

    Returns:
      The hypotheses, best first.

    Raises:
      ValueError: if the blank is not a class.

    Example:
      >>> from models.transducer.decode.beam import ModifiedBeam
      >>> from models.transducer.decode.example import transducer
      >>> heard = jnp.array([[[0.0, 3.0, 2.0], [3.0, 0.0, 0.0]]])
      >>> found = decode(ModifiedBeam(max_labels=5, beam=2), transducer(), heard, jnp.ones((1, 2), bool))
      >>> found.tokens[0, :, 0].tolist(), found.frames[0, :, 0].tolist()
      ([1, 2], [0, 0])
    """
    state = start(search, decodable, encoded.shape[0], fusion=fusion)
    return hypotheses(decode_step(search, decodable, encoded, mask, state, fusion=fusion), fusion=fusion)
