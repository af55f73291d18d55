"""AN4 in simulated rooms, heard by a beam and two microphones: a way of fusion (arXiv 2303.00692) before a Conformer.

Real speech in simulated rooms, see `configs/commands_fusion.py`, whose ways these are; the model is the streaming one
of `configs/an4_conformer_streaming.py`.

    for way in beam microphone_1 microphone_2 average concatenation flstm cnn; do
      python -m launch.train --config=configs/an4_fusion.py:$way --workdir=runs/an4_$way
      python -m launch.eval --workdir=runs/an4_$way --weights=best
    done
    python -m launch.compare_speech --runs=runs/an4_flstm --baseline=runs/an4_beam --beam=wrong

Three channels, or four microphones with a beam towards a place, are heard by

    python -m launch.transcribe FILE.flac --workdir=runs/an4_flstm --stream \
        --microphones="-0.05,-0.05,0 -0.05,0.05,0 0.05,-0.05,0 0.05,0.05,0" --look=-0.83,0.55,-0.08
"""

from typing import Any

import ml_collections

from configs import an4_conformer_streaming
from configs.commands_fusion import ARGUMENTS, WAYS


def get_config(way: str = "flstm") -> ml_collections.ConfigDict:
    """The config; `way` is one of `ARGUMENTS`."""
    c: Any = an4_conformer_streaming.get_config()
    if way not in ARGUMENTS:
        raise ValueError(f"argument {way!r}; one of {', '.join(ARGUMENTS)} is needed")
    c.speech.signals, c.speech.fusion = WAYS[way]
    c.speech.wrong = 0.5
    c.speech.fusion_width = 32
    c.speech.channel_dropout = 0.1 if c.speech.fusion in ("concatenation", "flstm", "cnn") else 0.0
    return c
