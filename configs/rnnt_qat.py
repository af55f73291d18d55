"""An LSTM transducer as integers: 8-bit quantisation-aware training of the weights, the rest in float.

Scales are those of the largest magnitudes, or trained: --config.integer.weights=learned_step.

    python -m launch.train --config=configs/rnnt_qat.py:an4 --workdir=runs/an4_qat
"""

from typing import Any

import ml_collections

from configs import rnnt_aat
from configs.rnnt_aat import ARGUMENTS, FLOATS

__all__ = ["ARGUMENTS", "get_config"]


def get_config(data: str = "an4") -> ml_collections.ConfigDict:
    """The config; `data` is one of `ARGUMENTS`."""
    c: Any = rnnt_aat.get_config(data)
    c.integer.forward = "float"
    c.speech.dropout = FLOATS[data].get_config().speech.dropout
    return c
