"""MeZO on SST-2 through LoRA: the baseline of AdaZeta, on its data and with its forwards.

Rank 8, alpha 16 and eps 1e-3 as in arXiv 2305.17333; on query and value of every layer; the learning rate is ours.

    python -m launch.train --config=configs/sst2_minilm_mezo_lora.py --workdir=runs/sst2_minilm_mezo_lora
"""

from typing import Any

import ml_collections

from configs.sst2_minilm_adazeta import get_config as adazeta


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_mezo_lora.py:reviews."""
    c: Any = adazeta(source)
    c.trainable = (r"kernel/(a|b)$",)
    c.adapter.kind = "lora"
    c.adapter.rank = 8
    c.method.queries = "constant"
    c.method.num_samples = 1
    c.train.steps = 12000
    c.train.eval_every = 1000
    c.train.checkpoint_every = 1000
    return c
