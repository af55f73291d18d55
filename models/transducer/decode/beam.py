"""Beam searches that sum over alignments: hypotheses with the same labels are one hypothesis."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from models.transducer.decode.search import Beam, Search, gather, hinted, same_prefix

__all__ = ["ExpansionBeam", "ModifiedBeam"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BeamSearch(Search):
    beam: int

    def __post_init__(self):
        super().__post_init__()
        if self.beam < 1:
            raise ValueError(f"beam: {self.beam}; at least 1 is needed")

    @property
    def width(self) -> int:
        return self.beam


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModifiedBeam(_BeamSearch):
    """One symbol a frame: at each frame a hypothesis gets a blank or a label.

    The usual fast search, "modified" against that of arXiv 1211.3711. It sums over the paths of `MONOTONIC` lattices:
    with a beam that drops nothing, -log_probs is the loss under `TransducerSpec(monotonic=True)`. Models trained on the
    standard lattice are decoded with it, too, as they seldom emit two labels at a frame. Two ways to the same labels,
    by a blank or by the last label, are summed before any hypothesis is dropped.

    Args:
      beam: hypotheses of an utterance.

    Raises:
      ValueError: if beam is not positive.

    Example:
      >>> from models.transducer.decode.example import transducer
      >>> from models.transducer.decode.search import decode
      >>> heard = jnp.array([[[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]])
      >>> found = decode(ModifiedBeam(max_labels=5, beam=3), transducer(), heard, jnp.ones((1, 2), bool))
      >>> found.tokens[0, 0].tolist(), round(float(jnp.exp(found.log_probs[0, 0])), 3)  # at one frame or the other
      ([1, 0, 0, 0, 0], 0.41)
    """

    def frame(self, decodable, fusion, encoded, active, clock, beam):
        del active
        log_p = self.log_softmax(decodable, encoded, beam)
        longer = self.extensions(log_p, beam)
        stay, longer, frames = _merged(beam, beam.log_probs + log_p[..., self.blank], longer, clock)
        ranks = jnp.concatenate([stay + beam.external, hinted(longer, beam).reshape(len(stay), -1)], axis=1)
        _, chosen = lax.top_k(ranks, self.width)
        emits = chosen >= self.width
        extension = chosen - self.width
        classes = longer.shape[-1]
        parent = jnp.where(emits, extension // classes, chosen)
        log_probs = jnp.concatenate([stay, longer.reshape(len(stay), -1)], axis=1)
        log_probs = jnp.take_along_axis(log_probs, chosen, axis=1)
        new_frames = jnp.where(emits[..., None], gather(beam.frames, parent), gather(frames, parent))
        beam = gather(beam, parent)._replace(log_probs=log_probs, frames=new_frames)
        emits &= beam.alive
        labels = jnp.where(emits, extension % classes, self.blank).astype(jnp.int32)
        return self.advance(decodable, fusion, beam, labels, emits, clock)


def _merged(
    beam: Beam, stay: Float[Array, "b w"], longer: Float[Array, "b w classes"], clock: Int[Array, " b"]
) -> tuple[Float[Array, "b w"], Float[Array, "b w classes"], Int[Array, "b w n"]]:
    """Adds to each hypothesis what a shorter one brings by its last label, and takes it from the extensions.

    No two hypotheses of a beam are equal, so there is one such other at most. The frames are those of the greater part.
    """
    classes, alive = longer.shape[-1], beam.alive
    # grown[b, i, j]: hypothesis i is j and one label more.
    grown = (beam.lengths[:, :, None] == beam.lengths[:, None] + 1) & same_prefix(beam, beam, beam.lengths)
    grown &= alive[:, :, None] & alive[:, None]
    last = jnp.take_along_axis(beam.tokens, jnp.maximum(beam.lengths - 1, 0)[..., None], axis=-1)[..., 0]
    row, shorter = jnp.arange(len(stay))[:, None, None], jnp.arange(stay.shape[1])
    ways = jnp.where(grown, longer[row, shorter, last[..., None]], -jnp.inf)
    of, brought = jnp.argmax(ways, axis=-1), jnp.max(ways, axis=-1)
    # A label out of range is one that no scatter writes.
    longer = longer.at[row, shorter, jnp.where(grown, last[..., None], classes)].set(-jnp.inf, mode="drop")
    here = jnp.arange(beam.frames.shape[-1]) == beam.lengths[..., None] - 1
    frames = jnp.where(here, clock[:, None, None], gather(beam.frames, of))
    frames = jnp.where((brought > stay)[..., None], frames, beam.frames)
    return jnp.logaddexp(stay, brought), longer, frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpansionBeam(_BeamSearch):
    """Several labels a frame: within a frame, hypotheses are expanded label by label.

    Time-synchronous decoding (Saon et al., ICASSP 2020) with a threshold as in adaptive expansion search (Kim et al.,
    IEEE SPL 2020): an extension is dropped at once if its rank is more than gamma below the best hypothesis that has
    finished the frame. (Which one it is compared with is ours.) It sums over the paths of `STANDARD` lattices with up
    to max_symbols labels a frame: with a beam that drops nothing, -log_probs is the loss.

    Args:
      beam: hypotheses of an utterance.
      max_symbols: labels at one frame.
      gamma: in nats; inf: no threshold.

    Raises:
      ValueError: if beam or max_symbols is not positive or gamma is negative.

    Example:
      >>> from models.transducer.decode.example import transducer
      >>> from models.transducer.decode.search import decode
      >>> search = ExpansionBeam(max_labels=5, beam=3, max_symbols=2)
      >>> found = decode(search, transducer(), jnp.array([[[1.0, 5.0, 2.0]]]), jnp.ones((1, 1), bool))
      >>> found.tokens[0, 0].tolist(), found.frames[0, 0].tolist()
      ([1, 0, 0, 0, 0], [0, 0, 0, 0, 0])
    """

    max_symbols: int
    gamma: float = 2.3

    def __post_init__(self):
        super().__post_init__()
        if self.max_symbols < 1:
            raise ValueError(f"max_symbols: {self.max_symbols}; at least 1 is needed")
        if not self.gamma >= 0:
            raise ValueError(f"gamma: {self.gamma}; 0 or more is needed")

    def frame(self, decodable, fusion, encoded, active, clock, beam):
        def more(now):
            count, live, _ = now
            return (count <= self.max_symbols) & jnp.any(live.alive & active[:, None])

        def step(now):
            count, live, done = now
            log_p = self.log_softmax(decodable, encoded, live)
            done = self._finished(done, live._replace(log_probs=live.log_probs + log_p[..., self.blank]))
            longer = self.extensions(log_p, live)
            ranks = hinted(longer, live)
            best = jnp.max(done.scores, axis=1)[:, None, None]
            ranks = jnp.where((ranks >= best - self.gamma) & (count < self.max_symbols), ranks, -jnp.inf)
            ranks, chosen = lax.top_k(ranks.reshape(len(ranks), -1), self.width)
            classes, emits = longer.shape[-1], ranks > -jnp.inf
            log_probs = jnp.take_along_axis(longer.reshape(len(ranks), -1), chosen, axis=1)
            live = gather(live, chosen // classes)._replace(log_probs=jnp.where(emits, log_probs, -jnp.inf))
            labels = jnp.where(emits, chosen % classes, self.blank).astype(jnp.int32)
            return count + 1, self.advance(decodable, fusion, live, labels, emits, clock), done

        nothing = beam._replace(log_probs=jnp.full_like(beam.log_probs, -jnp.inf))
        return lax.while_loop(more, step, (jnp.int32(0), beam, nothing))[2]

    def _finished(self, done: Beam, new: Beam) -> Beam:
        """The best of those that had finished the frame and those that do so now, equal ones summed."""
        same: Bool[Array, "b w v"] = (done.lengths[:, :, None] == new.lengths[:, None]) & done.alive[:, :, None]
        same &= same_prefix(done, new, new.lengths) & new.alive[:, None]
        ways = jnp.where(same, new.log_probs[:, None], -jnp.inf)
        of, brought = jnp.argmax(ways, axis=-1), jnp.max(ways, axis=-1)
        frames = jnp.where((brought > done.log_probs)[..., None], gather(new.frames, of), done.frames)
        done = done._replace(log_probs=jnp.logaddexp(done.log_probs, brought), frames=frames)
        new = new._replace(log_probs=jnp.where(jnp.any(same, axis=1), -jnp.inf, new.log_probs))
        both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), done, new)
        return gather(both, lax.top_k(both.scores, self.width)[1])
