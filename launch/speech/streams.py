"""Utterances that are heard piece by piece: from samples to labels, as the samples come."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int16

from models.transducer.decode import Fusion, Hypotheses, Search, decode_step, hypotheses, start
from models.transducer.model import transducer
from models.transducer.task import TransducerTask
from zojax.data.audio.features import FilterBank, num_frames

__all__ = ["Stream", "piece_frames"]

Params = Any

# Frames of a piece: 160 ms, or the least multiple of the encoder's block above.
PIECE = 16


def piece_frames(task: TransducerTask) -> int:
    """Frames that are worked on together: a whole number of the encoder's blocks."""
    block = transducer(task.config).encoder.block
    return block * -(-PIECE // block)


class Stream:
    """Rows of utterances that advance together. What is found are the labels that the whole utterances would give.

    A piece of samples goes through features, encoder and search in one program. (Neighbouring pieces share the samples
    of a window less a hop, so that each has all frames of its own; `stream_log_mel` carries the same samples.)

    Args:
      task: the transducer; its encoder must stream.
      params: all of its weights.
      bank: the features.
      search: how frames are searched; it has room for the labels of the whole stream.
      frame_lengths: frames of each row, where they are known; None: one row, that ends when `finish` is called.
      fusion: scores from outside, for the search.

    Raises:
      ValueError: if the encoder sees whole utterances.

    Example:
      >>> from models.transducer.decode import Greedy
      >>> from models.transducer.lstm import LstmConfig
      >>> from models.transducer.model import TransducerConfig
      >>> from models.transducer.predictor import StatelessConfig
      >>> from zojax.data.audio.features import log_mel
      >>> words = StatelessConfig(vocab_size=5, embedding=4)
      >>> config = TransducerConfig(encoder=LstmConfig(d_in=8, layers=1, hidden=8), predictor=words, joint=8)
      >>> bank = FilterBank(bins=8)
      >>> task = TransducerTask(config=config, front_end=lambda pcm: log_mel(pcm / jnp.float32(32768), bank))
      >>> stream = Stream(task, task.init(jax.random.key(0)), bank, Greedy(max_labels=8, max_symbols=2))
      >>> stream.push(np.zeros((1, 5000), np.int16)), stream.found().tokens.shape
      (1, (1, 1, 8))
    """

    def __init__(
        self,
        task: TransducerTask,
        params: Params,
        bank: FilterBank,
        search: Search,
        *,
        frame_lengths: np.ndarray | None = None,
        fusion: Fusion | None = None,
    ):
        self._bank, self._lengths, self._params, self._fusion = bank, frame_lengths, params, fusion
        self._size = piece_frames(task)
        rows = 1 if frame_lengths is None else len(frame_lengths)
        self._advance, self._flush, first = _programs(task, search)
        self._state = first(params, rows, fusion)
        several = () if task.config.fusion is None else (task.config.fusion.signals,)
        self._waiting = np.zeros((rows, 0, *several), np.int16)
        self._done, self._over = 0, False

    def push(self, pcm: Int16[np.ndarray, "rows samples *signals"]) -> int:
        """Takes the next samples of each row, any number, and works on the pieces that they complete.

        Returns:
          How many pieces those were.
        """
        self._waiting = np.concatenate([self._waiting, pcm], axis=1)
        hop, before = self._bank.hop, self._done
        whole = self._size * hop + self._bank.window - hop
        while self._waiting.shape[1] >= whole:
            self._step(self._waiting[:, :whole], self._size)
            self._waiting = self._waiting[:, self._size * hop :]
        return (self._done - before) // self._size

    def finish(self) -> None:
        """Works on what waits, and on what the encoder has held back: the streams end here."""
        if count := num_frames(self._waiting.shape[1], self._bank):
            whole = self._size * self._bank.hop + self._bank.window - self._bank.hop
            held = self._waiting.shape
            fill = np.zeros((held[0], whole - held[1], *held[2:]), np.int16)
            self._step(np.concatenate([self._waiting, fill], axis=1), count)
        self._waiting = self._waiting[:, :0]
        self._state = self._flush(self._params, self._state, self._fusion)
        self._over = True

    def found(self) -> Hypotheses:
        """What has been found so far, best first."""
        return hypotheses(self._state[1], fusion=self._fusion if self._over else None)

    @property
    def encoder(self) -> Any:
        """The encoder's state, and what the task keeps beside it."""
        return self._state[0]

    @property
    def frames(self) -> int:
        """Frames that the encoder has let out, of the first row."""
        return int(self._state[1].clock[0])

    def _step(self, pcm: np.ndarray, count: int) -> None:
        frames = np.arange(self._size)
        mask = np.broadcast_to(frames < count, (len(pcm), self._size))
        if self._lengths is not None:
            mask = mask & (self._done + frames < self._lengths[:, None])
        self._state = self._advance(self._params, pcm, mask, self._state, self._fusion)
        self._done += self._size


@functools.lru_cache(maxsize=16)
def _programs(task: TransducerTask, search: Search) -> tuple[Callable, Callable, Callable]:
    """(work on a piece, end, the first state): each compiled once for all streams of so many rows."""
    if task.front_end is None:
        raise ValueError("task.front_end is None; a stream of samples needs one")
    front_end = task.front_end

    @functools.partial(jax.jit, donate_argnums=3)
    def advance(params, pcm, mask, state, fusion):
        x = front_end(pcm)
        frames, mask, encoder = task.encode_step(params, x, mask, state[0])
        return encoder, decode_step(search, task.decodable(params), frames, mask, state[1], fusion=fusion)

    @jax.jit
    def flush(params, state, fusion):
        frames, mask = task.encode_flush(params, state[0])
        return state[0], decode_step(search, task.decodable(params), frames, mask, state[1], fusion=fusion)

    def first(params, rows, fusion):
        searching = start(search, task.decodable(params), rows, fusion=fusion)
        # In buffers of their own: a state is donated to the step behind it.
        return jax.tree.map(lambda x: jnp.array(x, copy=True), (task.stream_state(params, rows), searching))

    return advance, flush, first
