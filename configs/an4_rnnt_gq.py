"""AN4 by the LSTM transducer as integers below 8 bits: GQ (arXiv 2210.09188), on top of accelerator-aware training.

Four bits a weight; `python -m launch.allocate` finds a depth for each matrix, for `config.integer.allocation`.

    python -m launch.train --config=configs/an4_rnnt_gq.py:runs/an4_rnnt:best --workdir=runs/an4_rnnt_gq4
    python -m launch.train --config=configs/an4_rnnt_gq.py:runs/an4_rnnt:best --workdir=runs/an4_rnnt_gq1 \
        --config.integer.allocation="('lstm_3=1', 'predictor/table=8')"
"""

from typing import Any

import ml_collections

from configs import an4_rnnt_aat


def get_config(weights: str = "runs/an4_rnnt:best") -> ml_collections.ConfigDict:
    """The config; `weights` names the float run to start from, and which of its weights."""
    c: Any = an4_rnnt_aat.get_config(weights)
    c.integer.weights = "gq"
    c.integer.bits = 4
    c.integer.centroids = "lloyd_max"
    c.integer.soft_steps = 300
    c.train.steps = 900
    return c
