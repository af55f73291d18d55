"""Spoken commands in simulated rooms, heard by a beam and two microphones: a way of fusion (arXiv 2303.00692).

The utterances of `configs/commands_rnnt.py` in rooms of their own (`zojax.data.audio.scenes`): noise from another
place, diffuse noise, the rest of an echo, and a beam that misses the speaker in half of the utterances. The argument
names what is heard: "beam", the front end alone; "microphone_1", "microphone_2"; or all three by "average",
"concatenation", "flstm" or "cnn". What the rooms make of the utterances is made once and kept, a fifth of a second of
work for each. Speech and rooms are synthetic.

    for way in beam microphone_1 microphone_2 average concatenation flstm cnn; do
      python -m launch.train --config=configs/commands_fusion.py:$way --workdir=runs/commands_$way
      python -m launch.eval --workdir=runs/commands_$way --weights=best
    done
    python -m launch.compare_speech --runs=runs/commands_cnn --baseline=runs/commands_beam --beam=wrong

`launch.eval` tells the errors by right and wrong steering apart, and the share of the fusion's weights.
"""

from typing import Any

import ml_collections

from configs import commands_rnnt

WAYS = {
    "beam": ((0,), "none"),
    "microphone_1": ((1,), "none"),
    "microphone_2": ((2,), "none"),
    "average": ((0, 1, 2), "average"),
    "concatenation": ((0, 1, 2), "concatenation"),
    "flstm": ((0, 1, 2), "flstm"),
    "cnn": ((0, 1, 2), "cnn"),
}
ARGUMENTS = tuple(WAYS)


def get_config(way: str = "cnn") -> ml_collections.ConfigDict:
    """The config; `way` is one of `ARGUMENTS`."""
    c: Any = commands_rnnt.get_config()
    if way not in ARGUMENTS:
        raise ValueError(f"argument {way!r}; one of {', '.join(ARGUMENTS)} is needed")
    c.speech.signals, c.speech.fusion = WAYS[way]
    c.speech.wrong = 0.5
    c.speech.fusion_width = 16
    c.speech.channel_dropout = 0.1 if c.speech.fusion in ("concatenation", "flstm", "cnn") else 0.0
    return c
