"""MeZO on SST-2: two-point Gaussian probes of every weight of MiniLM, with SGD.

python -m launch.train --config=configs/sst2_minilm_mezo.py --workdir=runs/sst2_minilm_mezo
"""

import ml_collections

from configs.base import get_base


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_mezo.py:reviews."""
    c = get_base(source)
    c.method.direction = "gaussian"
    c.optimizer.learning_rate = 2e-6
    c.optimizer.schedule = "linear"
    c.train.steps = 12000
    c.train.eval_every = 1000
    c.train.checkpoint_every = 1000
    return c
