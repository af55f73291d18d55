"""Greedy search: at each node the likeliest class, and nothing else is kept."""

import dataclasses

import jax.numpy as jnp
from jax import lax

from models.transducer.decode.search import Search

__all__ = ["Greedy"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy(Search):
    """Follows one path; the first of equal classes.

    log_probs is that of the path, blanks included, and not of the labels.

    Args:
      max_symbols: labels at one frame; after so many the blank is taken. With 1 a label is followed by a blank at the
        same frame: this is no search for a model that emits one symbol a frame (`TransducerSpec.monotonic`), see
        `monotonic`.
      monotonic: a label takes its frame, as a blank does; max_symbols is 1 then.

    Raises:
      ValueError: if max_symbols is not positive, or not 1 where a label takes a frame.

    Example:
      >>> from models.transducer.decode.example import transducer
      >>> from models.transducer.decode.search import decode
      >>> heard = jnp.array([[[0.0, 3.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 3.0]]])
      >>> found = decode(Greedy(max_labels=5, max_symbols=3), transducer(), heard, jnp.ones((1, 3), bool))
      >>> found.tokens[0, 0].tolist(), found.frames[0, 0].tolist()
      ([1, 2, 0, 0, 0], [0, 2, 0, 0, 0])
    """

    max_symbols: int
    monotonic: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.max_symbols < 1 or (self.monotonic and self.max_symbols != 1):
            wanted = "1 is needed with monotonic" if self.monotonic else "at least 1 is needed"
            raise ValueError(f"max_symbols: {self.max_symbols}; {wanted}")

    def frame(self, decodable, fusion, encoded, active, clock, beam):
        def step(now):
            count, going, beam = now
            log_p = self.log_softmax(decodable, encoded, beam)
            is_blank = jnp.arange(log_p.shape[-1]) == self.blank
            # Not `hinted(extensions)`: what a long path has summed up would round away small differences.
            ranks = log_p if beam.hints is None else jnp.where(is_blank, log_p, log_p + beam.hints)
            best = jnp.argmax(ranks, axis=-1).astype(jnp.int32)
            emits = going & (best != self.blank) & (count < self.max_symbols) & (beam.lengths < self.max_labels)
            taken = jnp.take_along_axis(log_p, jnp.where(emits, best, self.blank)[..., None], axis=-1)[..., 0]
            beam = beam._replace(log_probs=beam.log_probs + jnp.where(going, taken, 0))
            beam = self.advance(decodable, fusion, beam, best, emits, clock)
            return count + 1, emits & (not self.monotonic), beam

        _, _, beam = lax.while_loop(lambda now: jnp.any(now[1]), step, (jnp.int32(0), active[:, None], beam))
        return beam
