"""LibriSpeech by an LSTM transducer, ConvRNN-T's baseline: 64 bins, 3 frames stacked, 2,500 word pieces.

The features, the stack and the pieces are the published recipe's; five layers of 1,024 cells are of the published
range, the rest is ours. For the folder see `configs/librispeech_conformer.py`.

    python -m launch.train --config=configs/librispeech_rnnt.py:/data/LibriSpeech --workdir=runs/librispeech_rnnt
"""

from typing import Any

import ml_collections

from configs.base import get_base


def get_config(source: str = "librispeech") -> ml_collections.ConfigDict:
    """The config; `source` is the folder of a corpus."""
    c: Any = get_base(source)
    c.data.batch_size = 512
    c.data.eval_batch_size = 64
    c.model.name = "transducer"
    c.model.source = "random"
    c.model.head = "zero"
    c.speech.bins = 64
    c.speech.pieces = 2500
    c.speech.seconds = 512 * 16
    c.speech.buckets = 4
    c.speech.frequency_masks = 2
    c.speech.frequency_width = 20
    c.speech.time_masks = 10
    c.speech.time_width = 80
    c.speech.encoder = "lstm"
    c.speech.stack = 3
    c.speech.layers = 5
    c.speech.width = 1024
    c.speech.dropout = 0.1
    c.speech.predictor = "lstm"
    c.speech.embedding = 512
    c.speech.predictor_width = 1024
    c.speech.joint = 512
    c.method.name = "first_order"
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.weight_decay = 1e-6
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_steps = 5_000
    c.optimizer.clip_norm = 5.0
    c.train.steps = 100_000
    c.train.eval_every = 5_000
    c.train.checkpoint_every = 5_000
    c.train.log_every = 100
    c.train.keep_best = "wer"
    return c
