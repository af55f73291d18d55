"""Adam with back-propagation on SST-2: what the zeroth-order runs are compared with.

python -m launch.train --config=configs/sst2_minilm_adam.py --workdir=runs/sst2_minilm_adam
"""

import ml_collections

from configs.base import get_base


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_adam.py:reviews."""
    c = get_base(source)
    c.method.name = "first_order"
    c.optimizer.name = "adam"
    c.optimizer.learning_rate = 2e-5
    c.optimizer.schedule = "linear"
    c.train.steps = 8000
    c.train.eval_every = 666
    c.train.checkpoint_every = 666
    return c
