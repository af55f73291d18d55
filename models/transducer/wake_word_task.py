"""The task of a transducer with dual attention: its spotter is trained beside it, and the spotter's errors with it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from models.transducer import wake_word
from models.transducer.model import transducer
from models.transducer.task import MEMORIES, Batch, TransducerTask
from models.transducer.wake_word import Memories, WakeWordConfig
from zojax.train.task import Metrics

__all__ = ["Hearing", "WakeWordTask"]

Params = Any

LARGE, SMALL, NONE = range(3)  # of `wake_word.branches`; a frame of padding has none

# Of NumPy: an import must not start JAX, which a program may first have to tell of its devices.
NOTHING: Mapping[str, Any] = {"wake": np.zeros((0, 1), np.int32), "catalogue": np.zeros((0, 1), np.int32)}


class Hearing(NamedTuple):
    """What a stream keeps beside the encoder's state.

    Attributes:
      spotter: its state; None without one.
      streak: frames in a row, up to now, that are of a wake word.
      said: wake words that were heard: streaks of `least` frames.
      memories: keys and values.
    """

    spotter: Any
    streak: Int[Array, "b"]
    said: Int[Array, "b"]
    memories: Memories


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WakeWordTask(TransducerTask):
    """A transducer whose frames attend to wake words where one is heard, and to a catalogue elsewhere.

        loss_b = transducer's, + spotting * mean_t BCE(p_t, t is of the wake word)

    In training the spans of the wake words choose the branch, and they are what the spotter learns; each end of a span
    is moved by up to `jitter` frames, so that both attentions know frames that are not theirs. Elsewhere the spotter
    chooses. With `wake.single` there is no spotter.

    Beside what `TransducerTask` takes, a batch has
      `phrases`: {"wake" int32 [w, l], "catalogue" int32 [k, m]}, labels of each phrase, 0 behind them; one list of each
        for all rows. Without it there are no phrases, unless the tree remembers some: see `with_catalogue`;
      `spans` int32 [b, 2], in frames of the features: where the wake word begins and ends; (0, 0): there is none.

    Args:
      wake: sizes; width and classes are those of `config`.
      jitter: in frames of the encoder.
      spotting: weight of the spotter's loss.

    Raises:
      ValueError: if a field does not fit.

    Example:
      >>> from models.transducer.lstm import LstmConfig
      >>> from models.transducer.model import TransducerConfig
      >>> from models.transducer.predictor import StatelessConfig
      >>> words = StatelessConfig(vocab_size=5, embedding=4)
      >>> config = TransducerConfig(encoder=LstmConfig(d_in=4, layers=1, hidden=8), predictor=words, joint=8)
      >>> task = WakeWordTask(config=config, wake=WakeWordConfig(width=8, classes=5, small=2, large=4, hidden=3))
      >>> sorted(jax.eval_shape(task.init, jax.random.key(0))["wake"])
      ['large', 'phrases', 'small', 'spotter']
    """

    wake: WakeWordConfig
    jitter: int = 0
    spotting: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        for name, own, needed in (
            ("wake.width", self.wake.width, self.config.joint),
            ("wake.classes", self.wake.classes, self.config.classes),
            ("look_ahead", self.look_ahead, None),
            ("biasing", self.biasing, None),
        ):
            if own != needed:
                raise ValueError(f"WakeWordTask.{name} is {own}; it must be {needed}")
        for name in ("jitter", "spotting"):
            if getattr(self, name) < 0:
                raise ValueError(f"WakeWordTask.{name} is {getattr(self, name)}; it must be 0 or more")

    def init(self, key: Any) -> dict[str, Any]:
        """The parameters to start from: those of `TransducerTask`, and "wake", which says nothing yet."""
        params = super().init(key)
        return {"wake": wake_word.init(self.wake, jax.random.fold_in(key, 2))} | params

    def evaluate(self, params: Params, batch: Batch) -> Metrics:
        """`TransducerTask.evaluate`, the spotter choosing; where the batch has spans, also its own loss.

        Returns:
          "spotter", nats over frames, and "inside", the share of frames that it takes for a wake word's.
        """
        frames, lengths, symbols, labels, logits, _ = self._sides(params, dict(batch) | {"spans": None}, None, None)
        metrics = self._metrics(self._exact(params, frames, lengths, symbols, labels, batch), batch)
        if logits is None or "spans" not in batch:
            return metrics
        real = (jnp.arange(frames.shape[1]) < lengths[:, None]) & (jnp.asarray(batch["weight"]) > 0)[:, None]
        count = jnp.sum(real, dtype=jnp.float32)
        nats = jnp.where(real, _cross_entropy(logits[0], self._inside(batch, frames.shape[1], None)), 0)
        heard = jnp.sum(real & self._hears(logits[0]), dtype=jnp.float32)
        return metrics | {"spotter": (jnp.sum(nats), count), "inside": (heard, count)}

    def encode(self, params: Params, batch: Batch) -> tuple[Float[Array, "b t2 j"], Bool[Array, "b t2"]]:
        frames, mask = super().encode(params, batch)
        choice, _ = self._choice(params, frames, mask)
        return self._biased(params, self._memories(params, batch), frames, choice), mask

    def stream_state(self, params: Params, rows: int) -> Any:
        spotter = None if self.wake.single else wake_word.spot_state(self.wake, rows)
        none = jnp.zeros(rows, jnp.int32)
        # The keys and values are made once, here.
        return super().stream_state(params, rows), Hearing(spotter, none, none, self._memories(params, {}))

    def encode_step(self, params: Params, x: Array, mask: Array, state: Any) -> tuple[Array, Array, Any]:
        frames, mask, inner = super().encode_step(params, x, mask, state[0])
        frames, hearing = self._step(params, frames, mask, state[1])
        return frames, mask, (inner, hearing)

    def encode_flush(self, params: Params, state: Any) -> tuple[Array, Array]:
        frames, mask = super().encode_flush(params, state[0])
        return self._step(params, frames, mask, state[1])[0] if frames.shape[1] else frames, mask

    def with_catalogue(self, params: Params, catalogue: Mapping[str, Any]) -> Params:
        """A tree that remembers phrases, as the class describes them; they come before those of a batch."""
        return params | {MEMORIES: self._memories({"wake": params["wake"]}, {"phrases": catalogue})}

    def hears(self, params: Params, batch: Batch) -> Bool[Array, "b t2"]:
        """Where the spotter hears a wake word.

        Args:
          params: the tree.
          batch: as the class describes it.

        Returns:
          True for such frames; with `wake.single` for none.
        """
        frames, mask = super().encode(params, batch)
        return self._choice(params, frames, mask)[0] == SMALL

    def _step(self, params, frames, mask, hearing: Hearing) -> tuple[Array, Hearing]:
        """The next frames of the encoder, biased, and what is heard with them."""
        choice, spotter = jnp.where(mask, LARGE, NONE), hearing.spotter
        if not self.wake.single:
            logits, spotter = wake_word.spot_step(self.wake, params["wake"], frames, mask, spotter)
            choice = jnp.where(mask & self._hears(logits), SMALL, choice)
        chosen = wake_word.branches(self.wake, params["wake"], hearing.memories)
        streak, said = hearing.streak, hearing.said
        for now in choice.T:
            streak = jnp.where(now == NONE, streak, jnp.where(now == SMALL, streak + 1, 0))
            said += (now == SMALL) & (streak == self.wake.least)
        frames = frames + wake_word.bias_step(chosen, frames, choice)
        return frames, Hearing(spotter, streak, said, hearing.memories)

    def _sides(self, params, batch, key, step) -> tuple[Array, Array, Array, Array, Any, Any]:
        """Those of `TransducerTask`, biased; then the spotter's logits and what they should be, where it is known."""
        frames, lengths, symbols, labels, _, astray = super()._sides(params, batch, key, step)
        mask = jnp.arange(frames.shape[1]) < lengths[:, None]
        choice, logits = self._choice(params, frames, mask)
        inside = None
        if batch.get("spans") is not None and logits is not None:
            inside = self._inside(batch, frames.shape[1], None if key is None else jax.random.fold_in(key, 2))
            choice = jnp.where(mask, jnp.where(inside, SMALL, LARGE), NONE)
        frames = self._biased(params, self._memories(params, batch), frames, choice)
        return frames, lengths, symbols, labels, None if logits is None else (logits, inside), astray

    def _price(self, spans: Any, lengths: Int[Array, "b"], batch: Batch) -> Float[Array, "b"] | None:
        if spans is None or spans[1] is None:
            return None
        logits, inside = spans
        real = jnp.arange(logits.shape[1]) < lengths[:, None]
        nats = jnp.sum(jnp.where(real, _cross_entropy(logits, inside), 0), axis=1)
        return self.spotting * nats / jnp.maximum(lengths, 1)

    def _choice(self, params, frames, mask) -> tuple[Int[Array, "b t"], Float[Array, "b t"] | None]:
        """The branch of each frame by the spotter, and its logits; None without one."""
        choice = jnp.where(mask, LARGE, NONE)
        if self.wake.single:
            return choice, None
        logits = wake_word.spot(self.wake, params["wake"], frames, mask)
        return jnp.where(mask & self._hears(logits), SMALL, choice), logits

    def _hears(self, logits: Float[Array, "b t"]) -> Bool[Array, "b t"]:
        return jax.nn.sigmoid(logits) > self.wake.threshold

    def _inside(self, batch: Batch, frames: int, key: Any) -> Bool[Array, "b t"]:
        spans = jnp.asarray(batch["spans"]) / transducer(self.config).encoder.stride
        return wake_word.jittered(spans, frames, key, jitter=self.jitter)

    def _memories(self, params: Params, batch: Batch) -> Memories:
        if MEMORIES in params:
            return params[MEMORIES]
        lists = batch.get("phrases", NOTHING)
        return wake_word.remember(
            self.wake, params["wake"], jnp.asarray(lists["wake"]), jnp.asarray(lists["catalogue"])
        )

    def _biased(self, params: Params, memories: Memories, frames: Array, choice: Array) -> Array:
        chosen = wake_word.branches(self.wake, params["wake"], memories)
        return frames + wake_word.bias(chosen, frames, choice, self.wake.block)


def _cross_entropy(logits: Float[Array, "b t"], inside: Bool[Array, "b t"]) -> Float[Array, "b t"]:
    return jax.nn.softplus(jnp.where(inside, -logits, logits))
