"""LibriSpeech by ConvRNN-T (arXiv 2209.14868), with as many weights as `librispeech_rnnt`.

Channels, kernels and blocks of the convolutions are the paper's, see `models.transducer.conv_rnnt`; the width of the
LSTM layers makes the number of weights equal to 1 %.

    python -m launch.train --config=configs/librispeech_convrnnt.py:/data/LibriSpeech --workdir=runs/convrnnt
"""

from typing import Any

import ml_collections

from configs import librispeech_rnnt


def get_config(source: str = "librispeech") -> ml_collections.ConfigDict:
    """The config; `source` is the folder of a corpus."""
    c: Any = librispeech_rnnt.get_config(source)
    c.speech.encoder = "conv_rnnt"
    c.speech.channels = (100, 100, 64, 64)
    c.speech.context = 512
    c.speech.layers = 5
    c.speech.width = 944
    return c
