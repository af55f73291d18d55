"""AN4 by the LSTM transducer as integers: 8-bit quantisation-aware training of the weights, the rest in float.

Scales are those of the largest magnitudes, or trained: --config.integer.weights=learned_step.

    python -m launch.train --config=configs/an4_rnnt_qat.py:runs/an4_rnnt:best --workdir=runs/an4_rnnt_qat
"""

from typing import Any

import ml_collections

from configs import an4_rnnt_aat


def get_config(weights: str = "runs/an4_rnnt:best") -> ml_collections.ConfigDict:
    """The config; `weights` names the float run to start from, and which of its weights."""
    c: Any = an4_rnnt_aat.get_config(weights)
    c.integer.forward = "float"
    c.speech.dropout = 0.3
    return c
