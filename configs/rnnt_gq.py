"""An LSTM transducer as integers below 8 bits: GQ (arXiv 2210.09188), on top of accelerator-aware training.

Four bits a weight; `python -m launch.allocate` finds a depth for each matrix, for `config.integer.allocation`.

    python -m launch.train --config=configs/rnnt_gq.py:an4 --workdir=runs/an4_gq4
    python -m launch.train --config=configs/rnnt_gq.py:an4 --workdir=runs/an4_gq1 \
        --config.integer.allocation="('lstm_3=1', 'predictor/table=8')"
"""

from typing import Any

import ml_collections

from configs import rnnt_aat
from configs.rnnt_aat import ARGUMENTS

__all__ = ["ARGUMENTS", "get_config"]


def get_config(data: str = "an4") -> ml_collections.ConfigDict:
    """The config; `data` is one of `ARGUMENTS`."""
    c: Any = rnnt_aat.get_config(data)
    c.integer.weights = "gq"
    c.integer.bits = 4
    c.integer.centroids = "lloyd_max"
    c.integer.soft_steps = 300
    c.train.steps = 900
    return c
