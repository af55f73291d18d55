"""FZOO on SST-2: eight one-sided sign probes a step of every weight, divided by the spread of their losses.

python -m launch.train --config=configs/sst2_minilm_fzoo.py --workdir=runs/sst2_minilm_fzoo
"""

import ml_collections

from configs.base import get_base


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_fzoo.py:reviews."""
    c = get_base(source)
    c.method.name = "fzoo"
    c.method.num_samples = 8
    c.optimizer.learning_rate = 1e-5
    c.optimizer.schedule = "linear"
    c.train.steps = 2666
    c.train.eval_every = 222
    c.train.checkpoint_every = 222
    return c
