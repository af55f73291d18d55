"""AN4 by the LSTM transducer as integers below 8 bits: S8BQAT (arXiv 2206.15408), on top of accelerator-aware training.

python -m launch.train --config=configs/an4_rnnt_s8bqat.py:runs/an4_rnnt:best --workdir=runs/an4_rnnt_s8bqat6
"""

from typing import Any

import ml_collections

from configs import an4_rnnt_aat


def get_config(weights: str = "runs/an4_rnnt:best") -> ml_collections.ConfigDict:
    """The config; `weights` names the float run to start from, and which of its weights."""
    c: Any = an4_rnnt_aat.get_config(weights)
    c.integer.weights = "s8bqat"
    c.integer.bits = 6
    c.integer.every = 50
    c.train.steps = 900
    return c
