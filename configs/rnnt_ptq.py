"""An LSTM transducer as integers: post-training quantisation of a float run, nothing trained.

python -m launch.train --config=configs/rnnt_ptq.py:an4 --workdir=runs/an4_ptq
"""

from typing import Any

import ml_collections

from configs import rnnt_aat
from configs.rnnt_aat import ARGUMENTS

__all__ = ["ARGUMENTS", "get_config"]


def get_config(data: str = "an4") -> ml_collections.ConfigDict:
    """The config; `data` is one of `ARGUMENTS`."""
    c: Any = rnnt_aat.get_config(data)
    c.optimizer.warmup_steps = 0
    c.train.steps = 0
    c.train.eval_every = 0
    c.train.keep_best = "none"
    return c
