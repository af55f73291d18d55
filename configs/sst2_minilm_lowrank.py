"""Low-rank two-point probes on SST-2 (EGGROLL, LOZO): matrices move along A B^T of rank 1.

python -m launch.train --config=configs/sst2_minilm_lowrank.py --workdir=runs/sst2_minilm_lowrank
"""

import ml_collections

from configs.base import get_base


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_lowrank.py:reviews."""
    c = get_base(source)
    c.method.direction = "low_rank"
    c.optimizer.learning_rate = 2e-6
    c.optimizer.schedule = "linear"
    c.train.steps = 12000
    c.train.eval_every = 1000
    c.train.checkpoint_every = 1000
    return c
