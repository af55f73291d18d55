"""Spoken requests that name people and titles, by a small LSTM transducer that streams: the base of biasing.

The utterances are made by espeak-ng's voices in noise when they are first asked for, and kept: see
`zojax.data.audio.names`. Voices and names of dev and test are in no other split, so that a name is spelled by ear: the
words of lists are wrong more often than others. Synthetic speech: a demonstration, and no measure of a recogniser.

    python -m launch.train --config=configs/names_rnnt.py --workdir=runs/names_rnnt

Without lists, and with shallow fusion alone, the rows "none" and "shallow fusion" of the table of
`configs/names_biasing.py`; choose the reward on dev:

    python -m launch.eval --workdir=runs/names_rnnt --weights=best --beam=4 --sizes=0
    python -m launch.eval --workdir=runs/names_rnnt --weights=best --beam=4 --sizes=100,500,1000,2000 --boost=0.5
"""

from typing import Any

import ml_collections

from configs import commands_rnnt


def get_config(source: str = "names") -> ml_collections.ConfigDict:
    """The config; `source` names other speech, a folder or "an4"."""
    c: Any = commands_rnnt.get_config(source)
    # The other half of the names is new to it: adapters learn of lists where they are needed.
    c.data.train_examples = 4000 if source == "names" else 0
    c.speech.pieces = 100
    c.speech.layers = 3
    c.speech.width = 256
    c.speech.joint = 192
    c.biasing.phrases = "names" if source == "names" else ""
    c.train.steps = 8000
    c.train.eval_every = 2000
    c.train.checkpoint_every = 2000
    return c
