"""The linear probe alone on SST-2: no steps, a head fitted to the frozen features of MiniLM.

python -m launch.train --config=configs/sst2_minilm_linear_probe.py --workdir=runs/sst2_minilm_linear_probe
"""

import ml_collections

from configs.base import get_base


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_linear_probe.py:reviews."""
    c = get_base(source)
    c.trainable = ("^head/",)
    c.method.name = "first_order"
    c.train.steps = 0
    return c
