"""The transducer: an encoder, a predictor and a joiner under named methods."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int

from models.layers import Linear
from models.transducer.ancat import Ancat, AncatConfig, ancat_encoder
from models.transducer.conformer import ConformerConfig, conformer_encoder
from models.transducer.conv_rnnt import ConvRnntConfig, conv_rnnt_encoder
from models.transducer.decode import Decodable
from models.transducer.fusion import FusionConfig, fusion
from models.transducer.joiner import Joiner, join
from models.transducer.lstm import LstmConfig, lstm_encoder
from models.transducer.predictor import LstmPredictor, LstmPredictorConfig, StatelessConfig, StatelessPredictor
from models.transducer.streaming import Layer, Serial, serial, silence

__all__ = ["BLANK", "Transducer", "TransducerConfig", "decodable", "encoder", "transducer"]

BLANK = 0
"""The blank's class, in every model here; the predictor reads it as the start."""

ENCODERS = {
    LstmConfig: lstm_encoder,
    ConformerConfig: conformer_encoder,
    ConvRnntConfig: conv_rnnt_encoder,
    AncatConfig: ancat_encoder,
}
PREDICTORS = {LstmPredictorConfig: LstmPredictor, StatelessConfig: StatelessPredictor}

State = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransducerConfig:
    """A transducer (arXiv 1211.3711).

    Attributes:
      encoder: an `LstmConfig`, `ConformerConfig`, `ConvRnntConfig` or `AncatConfig`.
      predictor: an `LstmPredictorConfig` or `StatelessConfig`; its vocab_size is the number of classes.
      joint: width of the joiner.
      simple: whether there are the two projections that the pruned loss takes for its simple joiner.
      acoustic: whether there is the projection that an acoustic loss takes (see `task.TransducerTask`).
      fusion: what makes one signal of several before the encoder, which then takes frames of `fusion.join_signals`;
        None: there is one signal.

    Raises:
      ValueError: if a part is of another type, the width is not positive, or the fusion has other bins.

    Example:
      >>> TransducerConfig(encoder=LstmConfig(), predictor=StatelessConfig(vocab_size=28), joint=0)
      Traceback (most recent call last):
      ...
      ValueError: TransducerConfig.joint is 0; it must be positive
    """

    encoder: LstmConfig | ConformerConfig | ConvRnntConfig | AncatConfig
    predictor: LstmPredictorConfig | StatelessConfig
    joint: int = 512
    simple: bool = False
    acoustic: bool = False
    fusion: FusionConfig | None = None

    def __post_init__(self):
        for name, kinds in (("encoder", ENCODERS), ("predictor", PREDICTORS)):
            if type(getattr(self, name)) not in kinds:
                known = ", ".join(kind.__name__ for kind in kinds)
                raise ValueError(
                    f"TransducerConfig.{name} is a {type(getattr(self, name)).__name__}; it must be one of {known}"
                )
        if self.joint < 1:
            raise ValueError(f"TransducerConfig.joint is {self.joint}; it must be positive")
        if self.fusion is not None and self.fusion.bins != self.encoder.d_in:
            needed = f"those of the encoder, {self.encoder.d_in}, are needed"
            raise ValueError(f"TransducerConfig.fusion has {self.fusion.bins} bins; {needed}")

    @property
    def classes(self) -> int:
        """Classes, the blank among them."""
        return self.predictor.vocab_size


class Transducer(nn.Module):
    """An encoder, a predictor and a joiner; made by `transducer`.

    What `encode` and `predict` return is projected to the joint width already, once for each frame and label; `join`
    adds the two. Methods run through `apply(..., method=...)`.

    Parameters: "encoder", "predictor", "joiner"; "simple_encoded", "simple_predicted" for the pruned loss; "acoustic"
    for the acoustic one.

    Args:
      encoder: any streaming layer.
      predictor: the predictor.
      joiner: the joiner.
      simple: whether there are projections for the pruned loss.
      with_acoustic: whether there is one for the acoustic loss.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> predictor = StatelessConfig(vocab_size=5, embedding=4)
      >>> model = transducer(TransducerConfig(encoder=LstmConfig(d_in=4, layers=1, hidden=8), predictor=predictor))
      >>> x, mask, labels = jnp.ones((2, 9, 4)), jnp.ones((2, 9), bool), jnp.ones((2, 3), jnp.int32)
      >>> variables = jax.jit(model.init)(jax.random.key(0), x, mask, labels)
      >>> frames, _ = model.apply(variables, x, mask, method="encode")
      >>> symbols = model.apply(variables, labels, method="predict")
      >>> model.apply(variables, frames[:, :, None], symbols[:, None], method="join").shape
      (2, 3, 4, 5)
    """

    encoder: Layer
    predictor: LstmPredictor | StatelessPredictor
    joiner: Joiner
    simple: bool = False
    with_acoustic: bool = False

    def setup(self):
        if self.with_acoustic:
            self.acoustic = Linear(self.joiner.classes, self.joiner.joint**-0.5)
        if self.simple:
            classes, width = self.joiner.classes, self.joiner.joint
            self.simple_encoded = Linear(classes, width**-0.5)
            self.simple_predicted = Linear(classes, width**-0.5, use_bias=False)

    def __call__(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "b t"], labels: Int[Array, "b u"]
    ) -> Float[Array, "b t2 u+1 classes"]:
        """All logits: for models so small that they may be held, and to make the parameters."""
        frames, _ = self.encode(x, mask)
        symbols = self.predict(labels)
        if self.simple:
            self.simple_logits(frames, symbols)
        if self.with_acoustic:
            self.acoustic_logits(frames)
        return self.join(frames[:, :, None], symbols[:, None])

    def encode(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "b t"]
    ) -> tuple[Float[Array, "b t2 j"], Bool[Array, "b t2"]]:
        """Whole utterances to frames of the joint width.

        Args:
          x: features; where the mask is False, anything.
          mask: True from the first frame of a row to its last.

        Returns:
          (frames, their mask).
        """
        y, mask = self.encoder(silence(x, mask), mask)
        return self.joiner.project_encoded(y), mask

    def look(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "b t"], temperature: Any = None
    ) -> tuple[Float[Array, "b t2 j"], Bool[Array, "b t2"], Float[Array, "b layers t2"]]:
        """`encode` by an encoder that chooses its look-ahead, and its spans; see `ancat.Ancat.look`."""
        assert isinstance(self.encoder, Ancat)
        y, mask, spans = self.encoder.look(silence(x, mask), mask, temperature)
        return self.joiner.project_encoded(y), mask, spans

    def encode_step(
        self, x: Float[Array, "b c d"], mask: Bool[Array, "b c"], state: State
    ) -> tuple[Float[Array, "b c2 j"], Bool[Array, "b c2"], State]:
        """The next frames of streams, a multiple of `encoder.block`; see `encode`."""
        y, mask, state = self.encoder.step(silence(x, mask), mask, state)
        return self.joiner.project_encoded(y), mask, state

    def encode_flush(self, state: State) -> tuple[Float[Array, "b t2 j"], Bool[Array, "b t2"]]:
        """The frames that a stream still holds at its end."""
        y, mask = self.encoder.flush(state)
        return self.joiner.project_encoded(y), mask

    @nn.nowrap
    def encoder_state(self, batch: int) -> State:
        """The encoder's state before the first frame."""
        return self.encoder.initial_state(batch)

    def predict(self, labels: Int[Array, "b u"]) -> Float[Array, "b u+1 j"]:
        """Outputs of the joint width after 0, 1, .. u labels."""
        return self.joiner.project_predicted(self.predictor(labels))

    def predict_step(self, label: Int[Array, "b"], state: State) -> tuple[Float[Array, "b j"], State]:
        """The output after one more label; the first label is `BLANK`, for the start."""
        y, state = self.predictor.step(label, state)
        return self.joiner.project_predicted(y), state

    @nn.nowrap
    def predictor_state(self, batch: int) -> State:
        """The predictor's state before the start."""
        return self.predictor.initial_state(batch)

    def join(self, frames: Float[Array, "*#b j"], symbols: Float[Array, "*#b j"]) -> Float[Array, "*c classes"]:
        """Logits of frames and symbols of the joint width, which broadcast against each other."""
        return self.joiner.join(frames, symbols)

    def simple_logits(
        self, frames: Float[Array, "b t2 j"], symbols: Float[Array, "b u j"]
    ) -> tuple[Float[Array, "b t2 classes"], Float[Array, "b u classes"]]:
        """The two terms of the pruned loss's simple joiner."""
        return self.simple_encoded(frames), self.simple_predicted(symbols)

    def acoustic_logits(self, frames: Float[Array, "b t2 j"]) -> Float[Array, "b t2 classes"]:
        """What the frames say without a predictor."""
        return self.acoustic(frames)


def encoder(config: LstmConfig | ConformerConfig | ConvRnntConfig | AncatConfig) -> Serial:
    """The encoder of a configuration.

    Args:
      config: sizes of one of the encoders.

    Returns:
      The encoder.

    Example:
      >>> encoder(LstmConfig(d_in=64)).d_in
      64
    """
    return ENCODERS[type(config)](config)


def transducer(config: TransducerConfig) -> Transducer:
    """The model of a configuration.

    Args:
      config: sizes.

    Returns:
      The model.

    Example:
      >>> config = TransducerConfig(encoder=LstmConfig(), predictor=StatelessConfig(vocab_size=28))
      >>> transducer(config).encoder.block
      3
    """
    acoustic, words = encoder(config.encoder), PREDICTORS[type(config.predictor)](config.predictor)
    if config.fusion is not None:  # its weights stand beside those of the encoder's layers, whose names stay
        whole = serial(fusion(config.fusion, name="fusion"), *acoustic.layers)
        acoustic = type(acoustic)(whole.d_in, whole.layers)
    joiner = Joiner(acoustic.d_out, words.d_out, config.joint, config.classes)
    return Transducer(acoustic, words, joiner, config.simple, config.acoustic)


def decodable(config: TransducerConfig, params: Any) -> Decodable:
    """What a search needs of a transducer.

    Args:
      config: sizes.
      params: the tree of `Transducer`, of arrays or leaf types.

    Returns:
      Predictor and joiner; equal configurations have the same functions, so that a search compiles once.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> predictor = StatelessConfig(vocab_size=5, embedding=4)
      >>> config = TransducerConfig(encoder=LstmConfig(d_in=4, layers=1, hidden=8), predictor=predictor, joint=6)
      >>> x, mask, labels = jnp.ones((1, 3, 4)), jnp.ones((1, 3), bool), jnp.ones((1, 2), jnp.int32)
      >>> variables = jax.jit(transducer(config).init)(jax.random.key(0), x, mask, labels)
      >>> model = decodable(config, variables["params"])
      >>> symbol, state = model.predict(jnp.array([BLANK]), model.initial_state(1))
      >>> model.join(jnp.ones((1, 6)), symbol).shape
      (1, 5)
    """
    start, step, joiner = _functions(config)
    params = {name: params[name] for name in ("predictor", "joiner")}
    return Decodable(params=params, start=start, step=step, joiner=joiner)


@functools.lru_cache(maxsize=16)
def _functions(config: TransducerConfig) -> tuple[Callable, Callable, Callable]:
    model = transducer(config)

    def start(params, batch):
        del params
        return model.predictor_state(batch)

    def step(params, labels, state):
        return model.apply({"params": params}, labels, state, method="predict_step")

    def joiner(params, frames, symbols):
        return join(params["joiner"]["output"], frames, symbols)

    return start, step, joiner
