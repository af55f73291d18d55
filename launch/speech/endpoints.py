"""When words are said, and when they are recognised."""

from typing import Any

import jax
import numpy as np

from launch.speech.recogniser import Recogniser
from models.transducer.joiner import join
from models.transducer.model import BLANK, transducer
from zojax.data.audio.features import num_frames
from zojax.data.audio.units import Units
from zojax.data.audio.waves import RATE
from zojax.losses.transducer import STANDARD, best_alignment, joined_log_probs
from zojax.metrics import align

__all__ = ["Aligner", "emission_delays", "speech_bounds", "word_ends"]

# A hundredth of a second whose energy is so many dB below the loudest of an utterance is silent (ours).
SILENT, STEP = 30.0, RATE // 100

# Padding of what is aligned: samples, and labels.
PADDED, ROOM = 4 * RATE, 32


def speech_bounds(pcm: np.ndarray) -> tuple[float, float]:
    """Seconds from the start of a sound to the start and to the end of speech, by energy.

    Args:
      pcm: int16 samples; of several signals the first counts.

    Returns:
      (start, end) of all that is not `SILENT`.

    Example:
      >>> x = np.zeros(RATE, np.int16)
      >>> x[RATE // 4 : RATE // 2] = 1000
      >>> speech_bounds(x)
      (0.25, 0.5)
    """
    whole = len(pcm) // STEP * STEP
    first = pcm.reshape(len(pcm), -1)[:whole, 0]
    energy = np.square(first.astype(np.float64)).reshape(-1, STEP).mean(1)
    loud = np.flatnonzero(energy > energy.max(initial=0.0) * 10 ** (-SILENT / 10))
    return (int(loud[0]) * STEP / RATE, int(loud[-1] + 1) * STEP / RATE) if len(loud) else (0.0, len(pcm) / RATE)


def word_ends(labels: np.ndarray, times: np.ndarray, units: Units) -> list[float]:
    """When each word is complete: the time of the first label with which it reads as it does in the end.

    Args:
      labels: of an utterance.
      times: of each label, in seconds.
      units: what they stand for.

    Returns:
      A time for each word.

    Example:
      >>> from zojax.data.audio.units import CharacterUnits
      >>> letters = CharacterUnits(characters=" GNO")
      >>> word_ends(letters.encode("GO ON"), np.arange(5.0), letters)
      [1.0, 4.0]
    """
    words = units.decode(labels).split()
    prefixes = [units.decode(labels[: k + 1]).split() for k in range(len(labels))]
    return [
        next(float(t) for t, prefix in zip(times, prefixes, strict=True) if prefix[: n + 1] == words[: n + 1])
        for n in range(len(words))
    ]


class Aligner:
    """Says when the words of a reference are said, by the likeliest path of a run that sees whole utterances.

    Args:
      found: the run, of the same units as what is judged by it.
    """

    def __init__(self, found: Recogniser):
        self._found = found
        model, task = transducer(found.task.config), found.task

        def apply(method: str, params: Any, *arguments: Any) -> Any:
            return model.apply({"params": params}, *arguments, method=method)

        @jax.jit
        def program(params, pcm, frames, labels, count):
            x, mask = task.features({"pcm": pcm, "frame_lengths": frames})
            encoded, mask = apply("encode", params, x, mask)
            symbols = apply("predict", params, labels)
            lengths = mask.sum(1)
            output = params["joiner"]["output"]
            weights = joined_log_probs(
                join, output, encoded, symbols, labels, lengths, count, blank=BLANK, chunk=task.chunk
            )
            return best_alignment(weights, lengths, count, STANDARD).frames

        self._program = program

    def __call__(self, pcm: np.ndarray, said: str) -> list[float]:
        """Seconds from the start of the sound to the end of each word; none if the words do not fit the sound."""
        found = self._found
        labels = found.units.encode(said)
        wave = np.zeros((1, -(-max(len(pcm), 1) // PADDED) * PADDED, *pcm.shape[1:]), np.int16)
        wave[0, : len(pcm)] = pcm
        row = np.full((1, -(-max(len(labels), 1) // ROOM) * ROOM), BLANK, np.int32)
        row[0, : len(labels)] = labels
        frames = np.array([num_frames(len(pcm), found.bank)], np.int32)
        at = np.asarray(self._program(found.params, wave, frames, row, np.array([len(labels)], np.int32)))[0]
        at = at[: len(labels)]
        if (at < 0).any():
            return []
        step = transducer(found.task.config).encoder.stride * found.bank.hop / RATE
        return word_ends(labels, (at + 1) * step, found.units)


def emission_delays(one: Any, aligned: Aligner, units: Units) -> list[float]:
    """Seconds from the end of each word that was recognised rightly to where its last label was emitted.

    Args:
      one: an `Utterance`.
      aligned: when the words are said.
      units: of the labels.

    Returns:
      A delay for each such word.
    """
    ends = aligned(one.pcm, one.said)
    said, heard = one.said.split(), one.heard.split()
    times = word_ends(one.labels, one.times, units)
    if not ends:
        return []
    pairs = [(i, j) for i, j in align(said, heard) if i is not None and j is not None]
    return [times[j] - ends[i] for i, j in pairs if said[i] == heard[j]]
