"""AN4 by the LSTM transducer as integers, trained through the integers: probes of codes, no gradient anywhere.

Codes are moved along stochastically rounded directions, the loss is that of the integer network, and updates are whole
codes. From a float run that is a stage after post-training quantisation; from runs/an4_rnnt_aat one after
accelerator-aware training, in the formats of that run.

    python -m launch.train --config=configs/an4_rnnt_zo_integer.py:runs/an4_rnnt:best --workdir=runs/an4_rnnt_zo_integer
"""

from typing import Any

import ml_collections

from configs import an4_rnnt_aat


def get_config(weights: str = "runs/an4_rnnt:best") -> ml_collections.ConfigDict:
    """The config; `weights` names the run to start from, and which of its weights."""
    c: Any = an4_rnnt_aat.get_config(weights)
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
