"""QuZO on SST-2 through adapters: LoRA factors over frozen int8 weights, along directions of 4 bits.

Rank 8 and alpha 16 as in QuZO's LoRA variant (arXiv 2502.12346); on query and value of every layer is our choice.

    python -m launch.train --config=configs/sst2_minilm_lora_quzo.py --workdir=runs/sst2_minilm_lora_quzo
"""

from typing import Any

import ml_collections

from configs.sst2_minilm_quzo_int8 import get_config as quzo_int8


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_lora_quzo.py:reviews."""
    c: Any = quzo_int8(source)  # a type checker does not know a ConfigDict's fields
    c.trainable = (r"kernel/(a|b)$",)
    c.adapter.rank = 8
    c.method.layers = ()
    c.method.eps = 1e-3
    c.optimizer.learning_rate = 5e-4
    return c
