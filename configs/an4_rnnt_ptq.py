"""AN4 by the LSTM transducer as integers: post-training quantisation of a float run, nothing trained.

python -m launch.train --config=configs/an4_rnnt_ptq.py:runs/an4_rnnt:best --workdir=runs/an4_rnnt_ptq
"""

from typing import Any

import ml_collections

from configs import an4_rnnt_aat


def get_config(weights: str = "runs/an4_rnnt:best") -> ml_collections.ConfigDict:
    """The config; `weights` names the float run, and which of its weights."""
    c: Any = an4_rnnt_aat.get_config(weights)
    c.optimizer.warmup_steps = 0
    c.train.steps = 0
    c.train.eval_every = 0
    c.train.keep_best = "none"
    return c
