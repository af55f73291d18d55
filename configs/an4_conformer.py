"""AN4 by a Conformer transducer (arXiv 2005.08100) that sees whole utterances; it does not stream.

The data and their augmentation are those of `configs/an4_rnnt.py`.

    python -m launch.train --config=configs/an4_conformer.py --workdir=runs/an4_conformer
"""

from typing import Any

import ml_collections

from configs import an4_rnnt


def get_config(source: str = "an4") -> ml_collections.ConfigDict:
    """The config; `source` is "an4", or the folder of a corpus."""
    c: Any = an4_rnnt.get_config(source)
    c.speech.encoder = "conformer"
    c.speech.channels = (32,)
    c.speech.layers = 10
    c.speech.width = 176
    c.speech.heads = 4
    c.speech.kernel = 15
    c.speech.chunk = 0
    c.speech.dropout = 0.15
    c.speech.predictor = "stateless"
    c.speech.embedding = 128
    c.optimizer.learning_rate = 1.5e-3
    c.optimizer.warmup_steps = 400
    c.train.steps = 2500
    c.train.eval_every = 250
    return c
