"""How long the frames of an encoder wait for the frames that they see: its algorithmic latency."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.speech.recogniser import Recogniser
from models.transducer.ancat import Ancat
from models.transducer.lookahead import waits_for
from models.transducer.model import transducer
from models.transducer.task import TransducerTask
from zojax.data.audio.waves import RATE

__all__ = ["frame_latencies"]


def frame_latencies(found: Recogniser, batch: Any) -> list[np.ndarray]:
    """Seconds from the end of each encoder frame to the end of the last sound that it depends on.

    What the encoder's frames choose to see is read off the spans of this very sound; other encoders' frames wait for
    their chunk or look-ahead, or for the end of the utterance. None waits for what is behind the end.

    Args:
      found: what recognises.
      batch: an evaluation batch.

    Returns:
      For each row of the batch an array of its encoder's frames.
    """
    encoder = transducer(found.task.config).encoder
    lengths = np.asarray(batch["frame_lengths"])
    counts = lengths // encoder.stride
    place = np.arange(max(counts.max(initial=0), 1))
    if isinstance(encoder, Ancat):
        waits = np.asarray(_waits(found.task)(found.params, batch))
        last = encoder.stride * (waits[:, : len(place)] + 1) - 1
    else:
        try:
            encoder.latency  # noqa: B018, says whether the encoder streams
            reached = np.array([encoder.reach(int(frame)) for frame in place])
        except ValueError:
            reached = np.full(len(place), np.iinfo(np.int32).max)
        last = np.minimum(reached, lengths[:, None] - 1)
    own = encoder.stride * (place + 1) - 1
    late = (last - own) * (found.bank.hop / RATE)
    return [row[:count] for row, count in zip(late, counts, strict=True)]


@functools.lru_cache(maxsize=8)
def _waits(task: TransducerTask) -> Callable[[Any, Any], jax.Array]:
    """The program that says which frame each frame of a batch waits for: one for all evaluations of a run."""

    @jax.jit
    def program(params, batch):
        model = transducer(task.config)
        looked: Any = model.apply({"params": params}, *task.features(batch), method="look")
        _, mask, spans = looked
        return waits_for(spans, jnp.sum(mask, axis=1))

    return program
