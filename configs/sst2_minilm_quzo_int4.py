"""QuZO on SST-2 with 4-bit weights and int8 activations: codes of two layers move, along directions of 4 bits.

python -m launch.train --config=configs/sst2_minilm_quzo_int4.py --workdir=runs/sst2_minilm_quzo_int4
"""

from typing import Any

import ml_collections

from configs.sst2_minilm_quzo_int8 import get_config as quzo_int8


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_quzo_int4.py:reviews."""
    c: Any = quzo_int8(source)  # a type checker does not know a ConfigDict's fields
    c.quant.profile = "w4a8_int"
    return c
