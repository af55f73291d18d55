"""Spoken commands by a small LSTM transducer that streams; voices of its own for test, minutes on two cores.

The utterances are made by espeak-ng's voices in noise when they are first asked for, and kept: see
`zojax.data.audio.commands`. Words of few voices in a fixed grammar: a demonstration, and no measure of a recogniser.

    python -m launch.train --config=configs/commands_rnnt.py --workdir=runs/commands_rnnt
    python -m launch.transcribe FILE.wav --workdir=runs/commands_rnnt --stream
"""

from typing import Any

import ml_collections

from configs.base import get_base


def get_config(source: str = "commands") -> ml_collections.ConfigDict:
    """The config; `source` names other speech, a folder or "an4"."""
    c: Any = get_base(source)
    c.data.batch_size = 16
    c.data.eval_batch_size = 50
    c.model.name = "transducer"
    c.model.source = "random"
    c.model.head = "zero"
    c.speech.bins = 40
    c.speech.speeds = (90, 100, 110)
    c.speech.gain = 6.0
    c.speech.seconds = 64
    c.speech.stack = 4
    c.speech.layers = 2
    c.speech.width = 192
    c.speech.predictor = "stateless"
    c.speech.embedding = 96
    c.speech.joint = 128
    c.speech.acoustic = 0.5
    c.speech.alone = 300
    c.speech.frequency_masks = 1
    c.speech.frequency_width = 8
    c.speech.time_masks = 1
    c.method.name = "first_order"
    c.optimizer.name = "adam"
    c.optimizer.learning_rate = 2e-3
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_steps = 100
    c.optimizer.clip_norm = 5.0
    c.train.steps = 2400
    c.train.eval_every = 800
    c.train.checkpoint_every = 800
    c.train.log_every = 50
    c.train.keep_best = "wer"
    return c
