"""From the `speech` fields of a config to the sizes of a transducer."""

from collections.abc import Callable
from typing import Any

from launch.common.schema import Config
from launch.speech import signals
from models.transducer.ancat import AncatConfig
from models.transducer.conformer import ConformerConfig
from models.transducer.conv_rnnt import ConvRnntConfig
from models.transducer.lookahead import LookAheadLoss
from models.transducer.lstm import LstmConfig
from models.transducer.model import TransducerConfig
from models.transducer.predictor import LstmPredictorConfig, StatelessConfig

__all__ = ["look_ahead", "model_config"]


def _lstm(c: Config) -> LstmConfig:
    return LstmConfig(
        d_in=c.bins, stack=c.stack, layers=c.layers, hidden=c.width, projection=c.projection, dropout=c.dropout
    )


def _conv_rnnt(c: Config) -> ConvRnntConfig:
    return ConvRnntConfig(
        d_in=c.bins,
        stack=c.stack,
        channels=tuple(c.channels),
        local=c.context,
        width=c.context,
        project=c.joint,
        layers=c.layers,
        hidden=c.width,
        projection=c.projection,
        dropout=c.dropout,
    )


def _conformer(c: Config) -> ConformerConfig:
    return ConformerConfig(
        d_in=c.bins,
        channels=c.channels[0],
        width=c.width,
        layers=c.layers,
        heads=c.heads,
        kernel=c.kernel,
        chunk=c.chunk or None,
        left=c.left if c.chunk else None,
        ahead=c.lookahead,
        dropout=c.dropout,
    )


def _ancat(c: Config) -> AncatConfig:
    return AncatConfig(
        d_in=c.bins,
        channels=c.channels[0],
        width=c.width,
        layers=c.layers,
        heads=c.heads,
        kernel=c.kernel,
        left=c.left,
        reach=c.lookahead,
        dropout=c.dropout,
    )


ENCODERS: dict[str, Callable[[Config], Any]] = {
    "lstm": _lstm,
    "conv_rnnt": _conv_rnnt,
    "conformer": _conformer,
    "ancat": _ancat,
}

PREDICTORS: dict[str, Callable[[Config, int], Any]] = {
    "lstm": lambda c, classes: LstmPredictorConfig(
        vocab_size=classes, embedding=c.embedding, hidden=c.predictor_width, dropout=c.dropout
    ),
    "stateless": lambda c, classes: StatelessConfig(vocab_size=classes, embedding=c.embedding),
}


def look_ahead(config: Config) -> LookAheadLoss:
    """What looking ahead costs in a config with ANCAT."""
    c = config.speech
    return LookAheadLoss(
        kind=c.latency_kind, latency=float(c.latency_weight), compute=float(c.compute_weight), warmup=c.anneal
    )


def model_config(config: Config, classes: int) -> TransducerConfig:
    """The sizes of a config's model.

    Args:
      config: a config that `schema.check` has passed.
      classes: labels of its units, the blank among them.

    Returns:
      The sizes.

    Raises:
      ValueError: if they do not fit each other.
    """
    c = config.speech
    return TransducerConfig(
        encoder=ENCODERS[c.encoder](c),
        predictor=PREDICTORS[c.predictor](c, classes),
        joint=c.joint,
        simple=c.band > 0,
        acoustic=c.acoustic > 0,
        fusion=signals.fusion_config(config),
    )
