"""AN4 by a Conformer transducer that streams: a frame sees its chunk of 320 ms and 1.28 s before that.

The data and their augmentation are those of `configs/an4_rnnt.py`.

    python -m launch.train --config=configs/an4_conformer_streaming.py --workdir=runs/an4_conformer_streaming
"""

from typing import Any

import ml_collections

from configs import an4_conformer


def get_config(source: str = "an4") -> ml_collections.ConfigDict:
    """The config; `source` is "an4", or the folder of a corpus."""
    c: Any = an4_conformer.get_config(source)
    c.speech.chunk = 8
    c.speech.left = 32
    return c
