"""AN4 by ANCAT: a Conformer transducer whose frames choose how far to look ahead, 320 ms at most in each layer.

The data, their augmentation and the sizes are those of `configs/an4_conformer.py`. The argument names the encoder:
ancat, or what it is compared with: causal; ahead, of which each frame of each layer looks one frame of 40 ms ahead;
chunked, of which frames see their chunk of 640 ms; full, which sees whole utterances and does not stream.
`configs/commands_ancat.py` has the commands of a curve of word errors against latency.

    python -m launch.train --config=configs/an4_ancat.py --workdir=runs/an4_ancat --config.speech.latency_weight=0.01
    python -m launch.train --config=configs/an4_ancat.py:chunked --workdir=runs/an4_chunked
"""

from typing import Any

import ml_collections

from configs import an4_conformer

# Fields of `speech`: who sees what.
ENCODERS = {
    "ancat": {"encoder": "ancat", "lookahead": 8, "latency_weight": 0.01, "anneal": 1500},
    "causal": {"encoder": "conformer", "chunk": 1},
    "ahead": {"encoder": "conformer", "chunk": 1, "lookahead": 1},
    "chunked": {"encoder": "conformer", "chunk": 16},
    "full": {"encoder": "conformer", "chunk": 0},
}
ARGUMENTS = tuple(ENCODERS)


def get_config(kind: str = "ancat") -> ml_collections.ConfigDict:
    """The config of one of the encoders."""
    if kind not in ARGUMENTS:
        raise ValueError(f"argument {kind!r}; one of {', '.join(ARGUMENTS)} is needed")
    c: Any = an4_conformer.get_config()
    c.speech.left = 64
    c.speech.update(ENCODERS[kind])
    return c
