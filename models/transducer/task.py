"""Transducers as a task: what the training loop and the estimators see."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.transducer.ancat import AncatConfig
from models.transducer.biased import bias, bias_frames, biased_decodable, remember, start_biasing
from models.transducer.biasing import BiasingConfig
from models.transducer.decode import Decodable
from models.transducer.joiner import join
from models.transducer.lookahead import LookAheadLoss, waits_for
from models.transducer.model import BLANK, TransducerConfig, decodable, transducer
from zojax.losses.transducer import (
    TransducerSpec,
    fused_transducer_loss,
    loss_of_log_probs,
    pruned_scales,
    pruned_transducer_loss,
)
from zojax.train.task import Metrics

__all__ = ["Pruning", "TransducerTask"]

Batch = Mapping[str, Any]

MEMORIES = "memories"  # what a tree for recognition remembers of a catalogue


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruning:
    """Training by the pruned loss (arXiv 2206.13236).

    Attributes:
      band: symbols a frame for which the full joiner is evaluated; 2 or more.
      warmup: steps over which the simple loss hands over; they are counted by `step` of the batch.

    Raises:
      ValueError: if a number is too small.

    Example:
      >>> Pruning(band=5).warmup
      2000
    """

    band: int
    warmup: int = 2000

    def __post_init__(self):
        for name, least in (("band", 2), ("warmup", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"Pruning.{name} is {getattr(self, name)}; it must be {least} or more")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TransducerTask:
    """The task of recognising speech with a transducer.

        loss = sum_b w_b l_b / #{b: w_b > 0},    l_b = -ln P(labels_b | features_b) / max(labels of b, 1)

    An utterance counts by its nats a label, so that a long one weighs no more than a short one. One that has no path at
    all (more labels than a monotonic lattice or a band has room for) is left out and counted as `impossible`.

    With `acoustic`, its weight, the loss has a second term, l_b of a transducer without predictor: a linear map of the
    frames alone says the labels, one symbol a frame. A predictor that knows the sentences well is a local optimum in
    which the frames are not listened to; this leads out of it. (Recipes add the loss of CTC for that, which differs in
    that it merges repeated labels; this term, of the same lattice code, is ours.) It is no part of the evaluation.

    With `alone`, the joiner is given zeros in place of the predictor for as many steps: frames learn to say labels
    where they are heard, before a predictor can say the first word by guess at the first frame. (Ours.)

    With `guidance`, its weight, attention to catalogues pays for what it does not give to what is said: see
    `models.transducer.guidance`.

    With `look_ahead`, for an encoder that chooses its look-ahead, an utterance pays for that, too. The evaluation
    counts the exact latency.

    A batch is a mapping of
      `features` float [b, t, bins], or `pcm` float [b, samples] where there is a front end;
      `frame_lengths` int32 [b]: frames of the features;
      `labels` int32 [b, u] in [1, classes) (0 is the blank) and `label_lengths` int32 [b];
      `weight` float32 [b], 0 for rows that only fill a batch up;
      `step` int32 (), for the warm-ups of the pruned loss and of `look_ahead`, and for `alone`; without it all are
        over;
      `catalogue`, a mapping of `models.transducer.phrases`, where there is biasing; without it nothing is biased.
    Padding, in frames or labels, may hold anything.

    Args:
      config: the model.
      chunk: frames of which logits exist at a time.
      spec: variant of the loss; with `fast_emit` it is no loss for zeroth-order estimators (`spec.is_true_loss`).
      acoustic: weight of the acoustic loss; needs `config.acoustic`.
      alone: steps without the predictor.
      look_ahead: what look-ahead costs; needed by an encoder of `AncatConfig`, and by no other.
      pruning: train by the pruned loss; needs `config.simple`. Evaluation is by the exact loss in any case.
      front_end: from pcm to features, whole batch at once.
      augment: (features [t, bins], frames, key) -> features, for each utterance when `loss` is given a key.
      statistics: (mean, standard deviation) of each bin over the training data, from which the encoder's first affine
        map starts; None: it starts as the identity.
      pretrained: the whole tree to start from, in place of a random one.
      biasing: adapters to catalogues, "biasing" in the tree; they start as if they were not there.
      guidance: weight of the guidance of `biasing`.

    Raises:
      ValueError: if a field does not fit.

    Example:
      >>> from models.transducer.lstm import LstmConfig
      >>> from models.transducer.predictor import StatelessConfig
      >>> words = StatelessConfig(vocab_size=5, embedding=4)
      >>> config = TransducerConfig(encoder=LstmConfig(d_in=4, layers=1, hidden=8), predictor=words, joint=8)
      >>> task = TransducerTask(config=config)
      >>> batch = {"features": jnp.ones((2, 9, 4)), "frame_lengths": jnp.array([9, 6]), "weight": jnp.ones(2),
      ...          "labels": jnp.array([[1, 2], [3, 0]]), "label_lengths": jnp.array([2, 1])}
      >>> loss, metrics = task.loss(task.init(jax.random.key(0)), batch)
      >>> bool(loss > 0), float(metrics["nats_per_label"][1])
      (True, 3.0)
    """

    config: TransducerConfig
    chunk: int = 16
    spec: TransducerSpec = TransducerSpec()
    acoustic: float = 0.0
    alone: int = 0
    look_ahead: LookAheadLoss | None = None
    pruning: Pruning | None = None
    front_end: Callable[[Array], Array] | None = None
    augment: Callable[[Array, Array, Array], Array] | None = None
    statistics: tuple[Any, Any] | None = None
    pretrained: Any = None
    biasing: BiasingConfig | None = None
    guidance: float = 0.0

    def __post_init__(self):
        if self.chunk < 1:
            raise ValueError(f"TransducerTask.chunk is {self.chunk}; it must be positive")
        if (self.pruning is not None) != self.config.simple:
            wanted = "True for the pruned loss" if self.pruning else "False: nothing trains its projections"
            raise ValueError(f"TransducerConfig.simple is {self.config.simple}; it must be {wanted}")
        if self.acoustic < 0 or (self.acoustic > 0) != self.config.acoustic:
            raise ValueError(
                f"TransducerTask.acoustic is {self.acoustic} and TransducerConfig.acoustic {self.config.acoustic}; "
                "a weight above 0 and True, or 0 and False are needed"
            )
        if self.guidance < 0 or (self.guidance and self.biasing is None):
            raise ValueError(f"TransducerTask.guidance is {self.guidance}; 0, or more with biasing is needed")
        if self.alone < 0:
            raise ValueError(f"TransducerTask.alone is {self.alone}; it must be 0 or more")
        if (self.look_ahead is not None) != isinstance(self.config.encoder, AncatConfig):
            encoder = type(self.config.encoder).__name__
            raise ValueError(
                f"TransducerTask.look_ahead is {self.look_ahead} with an encoder of {encoder}; one is needed with "
                "AncatConfig, and None with another"
            )
        bins = self.config.encoder.d_in
        for name, value in zip(("mean", "standard deviation"), self.statistics or (), strict=False):
            if jnp.shape(value) != (bins,):
                raise ValueError(f"TransducerTask.statistics: {name} of shape {jnp.shape(value)}; ({bins},) is needed")

    def init(self, key: Any) -> dict[str, Any]:
        """The parameters to start from.

        Args:
          key: typed key; used only without pretrained weights.

        Returns:
          The tree of `Transducer`, in buffers of its own, so that a loop may donate them.
        """
        if self.pretrained is not None:
            return jax.tree.map(lambda x: jnp.array(x, copy=True), self.pretrained)
        model = transducer(self.config)
        frames = 2 * model.encoder.stride
        x, mask = jnp.zeros((1, frames, model.encoder.d_in)), jnp.ones((1, frames), bool)
        params = jax.jit(model.init)(key, x, mask, jnp.zeros((1, 1), jnp.int32))["params"]
        if self.statistics is not None:
            mean, deviation = (jnp.asarray(value, jnp.float32) for value in self.statistics)
            # A bin that never varies is left alone.
            scale = 1 / jnp.where(deviation > 0, deviation, 1)
            first = {"scale": scale, "bias": -mean * scale}
            if self.config.fusion is None:
                params["encoder"]["input"] = first
            else:  # the fusion normalises, and the encoder's own map begins as the identity
                params["encoder"]["fusion"]["signals"] = first
        if self.biasing is not None:
            params["biasing"] = start_biasing(self.config, self.biasing, jax.random.fold_in(key, 1))
        return params

    def loss(self, params: Any, batch: Batch, *, key: Any = None) -> tuple[Float[Array, ""], Metrics]:
        """The loss of the class's docstring, by the pruned loss where that is asked for.

        Args:
          params: the tree, of arrays or leaf types.
          batch: as the class describes it.
          key: of augmentation and dropout; None: neither.

        Returns:
          (loss in nats a label, float32; the metrics of `evaluate`, of what was trained on).
        """
        frames, lengths, symbols, labels, spans, missed = self._sides(params, batch, key, batch.get("step"))
        if self.alone:
            symbols = jnp.where(batch.get("step", self.alone) >= self.alone, symbols, 0)
        if self.pruning is None:
            nats = self._exact(params, frames, lengths, symbols, labels, batch)
        else:
            nats = self._pruned(params, frames, lengths, symbols, labels, batch)
        if self.acoustic:
            nats = nats + self.acoustic * self._acoustic(params, frames, lengths, labels, batch)
        if self.guidance and missed is not None:
            nats = nats + self.guidance * missed
        if (price := self._price(spans, lengths, batch)) is not None:
            nats = nats + price * jnp.maximum(jnp.asarray(batch["label_lengths"]), 1)
        metrics = self._metrics(nats, batch)
        rows = jnp.sum(jnp.asarray(batch["weight"]) > 0)
        return metrics["loss"][0] / jnp.maximum(rows, 1).astype(jnp.float32), metrics

    def evaluate(self, params: Any, batch: Batch) -> Metrics:
        """Sums of the exact loss.

        Args:
          params: the tree.
          batch: as the class describes it.

        Returns:
          {"loss": l_b over utterances, "nats_per_label": nats over labels, "impossible": share of utterances without a
          path}, each (sum, weight), float32 scalars. With `look_ahead` also "latency", encoder's frames that a frame
          waits for behind its own.
        """
        frames, lengths, symbols, labels, spans, _ = self._sides(params, batch, None, None)
        metrics = self._metrics(self._exact(params, frames, lengths, symbols, labels, batch), batch)
        if self.look_ahead is None:
            return metrics
        place = jnp.arange(frames.shape[1])
        real = (place < lengths[:, None]) & (jnp.asarray(batch["weight"]) > 0)[:, None]
        late = jnp.where(real, waits_for(spans, lengths) - place, 0)
        return metrics | {"latency": (jnp.sum(late, dtype=jnp.float32), jnp.sum(real, dtype=jnp.float32))}

    def features(self, batch: Batch) -> tuple[Float[Array, "b t bins"], Bool[Array, "b t"]]:
        """The features of a batch, by the front end where it holds pcm, and their mask.

        Args:
          batch: as the class describes it.

        Returns:
          (features, mask).

        Raises:
          ValueError: if there are neither features nor a front end for pcm.
        """
        if "features" in batch:
            x = jnp.asarray(batch["features"])
        elif "pcm" in batch and self.front_end is not None:
            x = self.front_end(jnp.asarray(batch["pcm"]))
        else:
            raise ValueError(f"batch has {', '.join(batch)}; it must have features, or pcm for a task with a front_end")
        mask = jnp.arange(x.shape[1]) < jnp.asarray(batch["frame_lengths"])[:, None]
        # A gradient of 0 times what stands in padding, or in a row without weight, must be 0 whatever stands there.
        real = mask if "weight" not in batch else mask & (jnp.asarray(batch["weight"]) > 0)[:, None]
        return jnp.where(real[..., None], x, 0), mask

    def encode(self, params: Any, batch: Batch) -> tuple[Float[Array, "b t2 j"], Bool[Array, "b t2"]]:
        """Frames of the joint width, as a search takes them, and their mask."""
        frames, mask = self._apply("encode", params, *self.features(batch))
        return self._led(params, frames), mask

    def stream_state(self, params: Any, rows: int) -> Any:
        """The encoder's state before the first frame of streams, and what a task keeps beside it."""
        del params  # for tasks that keep something made of them
        return transducer(self.config).encoder_state(rows)

    def encode_step(self, params: Any, x: Array, mask: Array, state: Any) -> tuple[Array, Array, Any]:
        """`encode` of the next frames of streams: (frames, their mask, state)."""
        frames, mask, state = self._apply("encode_step", params, x, mask, state)
        return self._led(params, frames), mask, state

    def encode_flush(self, params: Any, state: Any) -> tuple[Array, Array]:
        """The frames that streams still hold at their end."""
        frames, mask = self._apply("encode_flush", params, state)
        return self._led(params, frames), mask

    def decodable(self, params: Any) -> Decodable:
        """Predictor and joiner, for a search."""
        if self.biasing is not None and MEMORIES in params:
            return biased_decodable(self.config, self.biasing, params, params[MEMORIES])
        return decodable(self.config, params)

    def with_catalogue(self, params: Any, catalogue: Any) -> Any:
        """A tree for recognition that remembers its catalogue: keys and values are made here, once.

        Args:
          params: the tree.
          catalogue: a list for each utterance of a batch, or one for all; see `models.transducer.phrases`.

        Returns:
          A tree for `encode`, `encode_step`, `encode_flush` and `decodable`.

        Raises:
          ValueError: if the task has no biasing.
        """
        if self.biasing is None:
            raise ValueError("TransducerTask.biasing is None; a catalogue needs adapters")
        return params | {MEMORIES: remember(self.config, self.biasing, params, catalogue)}

    def _led(self, params: Any, frames: Array) -> Array:
        if self.biasing is None or MEMORIES not in params:
            return frames
        return bias_frames(self.config, self.biasing, params, frames, params[MEMORIES])

    def _apply(self, method: str, params: Any, *args: Any, **options: Any) -> Any:
        return transducer(self.config).apply({"params": params}, *args, method=method, **options)

    def _sides(self, params, batch, key, step) -> tuple[Array, Array, Array, Array, Any, Any]:
        """Frames with their lengths, and symbols with the labels, both of the joint width; the spans of look-ahead; by
        how many nats attention misses what is said."""
        x, mask = self.features(batch)
        rngs = {}
        if key is not None:
            of_augment, rngs["dropout"] = (jax.random.fold_in(key, n) for n in range(2))
            if self.augment is not None:
                keys = jax.random.split(of_augment, x.shape[0])
                x = jax.vmap(self.augment)(x, jnp.asarray(batch["frame_lengths"]), keys)
        labels, counts = jnp.asarray(batch["labels"]), jnp.asarray(batch["label_lengths"])
        real = jnp.arange(labels.shape[1]) < counts[:, None]
        labels = jnp.where(real, labels, BLANK)
        spans = None
        if self.look_ahead is None:
            frames, mask = self._apply("encode", params, x, mask, rngs=rngs)
        else:
            frames, mask, spans = self._apply("look", params, x, mask, self.look_ahead.temperature(step), rngs=rngs)
        symbols = self._apply("predict", params, labels, rngs=rngs)
        missed = None
        if self.biasing is not None and "catalogue" in batch:
            frames, symbols, missed = bias(
                self.config, self.biasing, params, batch["catalogue"], frames, mask, symbols, labels, counts
            )
        return frames, jnp.sum(mask, axis=1, dtype=jnp.int32), symbols, labels, spans, missed

    def _price(self, spans: Any, lengths: Int[Array, "b"], batch: Batch) -> Float[Array, "b"] | None:
        """What each utterance pays beside its labels, in nats a label."""
        if self.look_ahead is None:
            return None
        assert isinstance(self.config.encoder, AncatConfig)
        return self.look_ahead(spans, lengths, self.config.encoder.reach, batch.get("step"))

    def _exact(self, params, frames, lengths: Int[Array, "b"], symbols, labels, batch) -> Float[Array, "b"]:
        counts = jnp.asarray(batch["label_lengths"])
        output = params["joiner"]["output"]
        return fused_transducer_loss(
            join, output, frames, symbols, labels, lengths, counts, blank=BLANK, chunk=self.chunk, spec=self.spec
        )

    def _acoustic(self, params, frames, lengths: Int[Array, "b"], labels, batch) -> Float[Array, "b"]:
        log_p = jax.nn.log_softmax(self._apply("acoustic_logits", params, frames), axis=-1)
        next_labels = jnp.pad(labels, ((0, 0), (0, 1)))[:, None]
        log_label = jnp.take_along_axis(log_p, next_labels, axis=-1)
        log_blank = jnp.broadcast_to(log_p[..., BLANK, None], log_label.shape)
        counts = jnp.asarray(batch["label_lengths"])
        nats = loss_of_log_probs(log_blank, log_label, lengths, counts, spec=TransducerSpec(monotonic=True))
        # More labels than frames have no path of one symbol a frame, but one in the lattice of the loss proper.
        return jnp.where(counts > lengths, 0, nats)

    def _pruned(self, params, frames, lengths: Int[Array, "b"], symbols, labels, batch) -> Float[Array, "b"]:
        assert self.pruning is not None
        of_frames, of_symbols = self._apply("simple_logits", params, frames, symbols)
        both = pruned_transducer_loss(
            join,
            params["joiner"]["output"],
            frames,
            symbols,
            of_frames,
            of_symbols,
            labels,
            lengths,
            jnp.asarray(batch["label_lengths"]),
            blank=BLANK,
            band=self.pruning.band,
            chunk=self.chunk,
            spec=self.spec,
        )
        warmup = self.pruning.warmup
        of_simple, of_pruned = pruned_scales(batch.get("step", warmup), warmup=warmup)
        return of_simple * both.simple + of_pruned * both.pruned

    def _metrics(self, nats: Float[Array, "b"], batch: Batch) -> Metrics:
        weight = jnp.asarray(batch["weight"], jnp.float32)
        counts = jnp.asarray(batch["label_lengths"]).astype(jnp.float32)
        # No number takes part in a product with weight 0: inf and NaN would come through.
        used = weight > 0
        lost = used & jnp.isposinf(nats)
        kept = jnp.where(used & ~lost, weight, 0)
        nats = jnp.where(kept > 0, nats, 0)
        return {
            "loss": (jnp.sum(kept * nats / jnp.maximum(counts, 1)), jnp.sum(kept)),
            "nats_per_label": (jnp.sum(kept * nats), jnp.sum(kept * counts)),
            "impossible": (jnp.sum(jnp.where(lost, weight, 0)), jnp.sum(weight)),
        }
