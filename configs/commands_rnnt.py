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
    c.data.batch_size = 32
    c.data.eval_batch_size = 50
    c.model.name = "transducer"
    c.model.source = "random"
    c.model.head = "zero"
    c.speech.bins = 40
    c.speech.pieces = 96
    c.speech.seconds = 96
    c.speech.stack = 4
    c.speech.layers = 2
    c.speech.width = 192
    c.speech.predictor = "stateless"
    c.speech.embedding = 96
    c.speech.joint = 128
    c.speech.acoustic = 0.5
    c.speech.frequency_width = 8
    c.method.name = "first_order"
    c.optimizer.name = "adam"
    c.optimizer.learning_rate = 2e-3
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_steps = 50
    c.optimizer.clip_norm = 5.0
    c.train.steps = 600
    c.train.eval_every = 150
    c.train.checkpoint_every = 300
    c.train.keep_best = "loss"
    return c
