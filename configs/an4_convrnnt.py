"""AN4 by ConvRNN-T (arXiv 2209.14868): convolutions before fewer LSTM layers, as many weights as `an4_rnnt`.

The data, their augmentation and the schedule are those of `configs/an4_rnnt.py`.

    python -m launch.train --config=configs/an4_convrnnt.py --workdir=runs/an4_convrnnt
"""

from typing import Any

import ml_collections

from configs import an4_rnnt


def get_config(source: str = "an4") -> ml_collections.ConfigDict:
    """The config; `source` is "an4", or the folder of a corpus."""
    c: Any = an4_rnnt.get_config(source)
    c.speech.encoder = "conv_rnnt"
    c.speech.channels = (100, 100, 64, 64)
    c.speech.context = 256
    c.speech.layers = 3
    c.speech.width = 528
    return c
