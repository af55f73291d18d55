"""QuZO on SST-2 with weights and activations in float8 (e4m3): ordinals of two layers move.

python -m launch.train --config=configs/sst2_minilm_quzo_fp8.py --workdir=runs/sst2_minilm_quzo_fp8
"""

from typing import Any

import ml_collections

from configs.sst2_minilm_quzo_int8 import get_config as quzo_int8


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_quzo_fp8.py:reviews."""
    c: Any = quzo_int8(source)  # a type checker does not know a ConfigDict's fields
    c.quant.profile = "w8a8_fp8"
    return c
