"""An LSTM transducer as integers below 8 bits: S8BQAT (arXiv 2206.15408), on top of accelerator-aware training.

python -m launch.train --config=configs/rnnt_s8bqat.py:an4 --workdir=runs/an4_s8bqat6
"""

from typing import Any

import ml_collections

from configs import rnnt_aat
from configs.rnnt_aat import ARGUMENTS

__all__ = ["ARGUMENTS", "get_config"]


def get_config(data: str = "an4") -> ml_collections.ConfigDict:
    """The config; `data` is one of `ARGUMENTS`."""
    c: Any = rnnt_aat.get_config(data)
    c.integer.weights = "s8bqat"
    c.integer.bits = 6
    c.integer.every = 50
    c.train.steps = 900
    return c
