"""An LSTM transducer as integers, trained through the integers: probes of codes, no gradient anywhere.

Codes are moved along stochastically rounded directions, the loss is that of the integer network, and updates are whole
codes. From a float run that is a stage after post-training quantisation; from one of `configs/rnnt_aat.py`
(--config.model.weights=runs/an4_aat:best) one after accelerator-aware training, in the formats of that run.

    python -m launch.train --config=configs/rnnt_zo_integer.py:an4 --workdir=runs/an4_zo_integer

Norms and a bias alone, floats until they are deployed, in place of all codes:
--config.trainable="('encoder/lstm/norm_','joiner/encoded/bias')" --config.optimizer.name=adam
--config.optimizer.learning_rate=3e-4 --config.method.eps=1e-2
"""

from typing import Any

import ml_collections

from configs import rnnt_aat
from configs.rnnt_aat import ARGUMENTS

__all__ = ["ARGUMENTS", "get_config"]


def get_config(data: str = "an4") -> ml_collections.ConfigDict:
    """The config; `data` is one of `ARGUMENTS`."""
    c: Any = rnnt_aat.get_config(data)
    c.method.name = "spsa"
    c.method.probe = "codes"
    c.method.direction = "rademacher"
    c.method.eps = 1e-3
    c.method.num_samples = 4
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 1e-6
    c.optimizer.clip_norm = 0.0
    c.train.steps = 1000
    c.train.eval_every = 250
    return c
