"""LibriSpeech by a Conformer transducer of the paper's sizes (arXiv 2005.08100): "s", "m" or "l".

Layers, widths, heads, kernel, the predictor's width, masks, dropout and the peak of the learning rate are the paper's;
1,000 word pieces, norms of layers in place of batches (see `models.transducer.conformer`), the batch of 512 utterances
and the cosine behind the warm-up are ours. The folder holds train-clean-100 and so on, as the archives unpack; the
words of all folders train-* are trained on.

    python -m launch.train --config=configs/librispeech_conformer.py:s --workdir=runs/librispeech_conformer_s \
        --config.data.source=/data/LibriSpeech
"""

from typing import Any, NamedTuple

import ml_collections

from configs.base import get_base


class Size(NamedTuple):
    """Layers, width and heads of the encoder, and width of the predictor."""

    layers: int
    width: int
    heads: int
    predictor: int


SIZES = {"s": Size(16, 144, 4, 320), "m": Size(16, 256, 4, 640), "l": Size(17, 512, 8, 640)}
ARGUMENTS = tuple(SIZES)


def get_config(size: str = "s") -> ml_collections.ConfigDict:
    """The config of a size."""
    c: Any = get_base("librispeech")
    layers, width, heads, predictor = SIZES[size]
    c.data.batch_size = 512
    c.data.eval_batch_size = 64
    c.model.name = "transducer"
    c.model.source = "random"
    c.model.head = "zero"
    c.speech.bins = 80
    c.speech.pieces = 1000
    c.speech.seconds = 512 * 16
    c.speech.buckets = 4
    c.speech.frequency_masks = 2
    c.speech.frequency_width = 27
    c.speech.time_masks = 10
    c.speech.time_width = 80
    c.speech.encoder = "conformer"
    c.speech.channels = (width,)
    c.speech.layers = layers
    c.speech.width = width
    c.speech.heads = heads
    c.speech.kernel = 32
    c.speech.dropout = 0.1
    c.speech.predictor = "lstm"
    c.speech.embedding = predictor
    c.speech.predictor_width = predictor
    c.speech.joint = predictor
    c.method.name = "first_order"
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 0.05 / width**0.5
    c.optimizer.weight_decay = 1e-6
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_steps = 10_000
    c.optimizer.clip_norm = 5.0
    c.train.steps = 100_000
    c.train.eval_every = 5_000
    c.train.checkpoint_every = 5_000
    c.train.log_every = 100
    c.train.keep_best = "wer"
    return c
