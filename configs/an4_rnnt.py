"""AN4 (spelled words, numbers, commands) by an LSTM transducer that streams, from random weights.

100 utterances of 8 speakers are held out of training for dev, see `zojax.data.audio.sources.an4`. 38 minutes are
little: each utterance is heard at three speeds, at a level of its own, and behind masks. The data are looked for below
`ZOJAX_DATA`; a folder of AN4 may be named instead.

    python -m launch.train --config=configs/an4_rnnt.py --workdir=runs/an4_rnnt
    python -m launch.train --config=configs/an4_rnnt.py:/data/an4 --workdir=runs/an4_rnnt
"""

from typing import Any

import ml_collections

from configs.base import get_base


def get_config(source: str = "an4") -> ml_collections.ConfigDict:
    """The config; `source` is "an4", or the folder of a corpus."""
    c: Any = get_base(source)
    c.data.batch_size = 64
    c.data.eval_batch_size = 64
    c.model.name = "transducer"
    c.model.source = "random"
    c.model.head = "zero"
    c.speech.bins = 64
    c.speech.speeds = (90, 100, 110)
    c.speech.gain = 6.0
    c.speech.seconds = 450
    c.speech.frequency_masks = 2
    c.speech.frequency_width = 14
    c.speech.time_masks = 4
    c.speech.time_width = 12
    c.speech.encoder = "lstm"
    c.speech.stack = 4
    c.speech.layers = 4
    c.speech.width = 512
    c.speech.dropout = 0.3
    c.speech.predictor = "lstm"
    c.speech.embedding = 64
    c.speech.predictor_width = 128
    c.speech.joint = 256
    c.speech.acoustic = 0.5
    c.speech.alone = 300
    c.method.name = "first_order"
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.weight_decay = 0.05
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_steps = 200
    c.optimizer.clip_norm = 1.0
    c.train.steps = 2000
    c.train.eval_every = 200
    c.train.checkpoint_every = 0
    c.train.log_every = 20
    c.train.keep_best = "wer"
    return c
