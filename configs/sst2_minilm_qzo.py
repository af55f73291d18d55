"""QZO on SST-2: the scales of int8 weights move, their codes never do (arXiv 2505.13430).

Two-point probes of the scales of the kernels of all layers, with a bound on the projected gradient.

    python -m launch.train --config=configs/sst2_minilm_qzo.py --workdir=runs/sst2_minilm_qzo
"""

from typing import Any

import ml_collections

from configs.sst2_minilm_quzo_int8 import get_config as quzo_int8


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_qzo.py:reviews."""
    c: Any = quzo_int8(source)  # a type checker does not know a ConfigDict's fields
    c.trainable = (r"encoder/layers/\w+/kernel/scale$",)
    c.method.name = "spsa"
    c.method.layers = ()
    c.method.eps = 1e-5
    c.method.clip_projected = 1e4
    c.optimizer.learning_rate = 1e-9
    return c
