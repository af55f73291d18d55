"""Spoken commands by ANCAT: a small Conformer transducer whose frames choose how far to look ahead.

The data, synthetic speech, are those of `configs/commands_rnnt.py`; an encoder frame is 40 ms. The argument names the
encoder: ancat, or what it is compared with, of equal size: causal; ahead, of which each frame of each layer looks one
ahead; chunked, of which frames see their chunk of eight; full, which sees whole utterances and does not stream.

    python -m launch.train --config=configs/commands_ancat.py --workdir=runs/ancat --config.speech.latency_weight=0.03
    python -m launch.eval --workdir=runs/ancat --weights=best --split=dev

Word errors against latency, over prices of latency and seeds, and of what it is compared with:

    for seed in 0 1 2; do
        for price in 0.003 0.01 0.03 0.1; do
            python -m launch.train --config=configs/commands_ancat.py --workdir=runs/curve/ancat_${price}_$seed \
                --config.speech.latency_weight=$price --config.seed=$seed
        done
        for kind in causal ahead chunked full; do
            python -m launch.train --config=configs/commands_ancat.py:$kind --workdir=runs/curve/${kind}_$seed \
                --config.seed=$seed
        done
    done
    for run in runs/curve/*; do python -m launch.eval --workdir=$run --weights=best --split=test --beam=0; done
    python -m launch.latency_curve runs/curve/*
"""

from typing import Any

import ml_collections

from configs import commands_rnnt

# Fields of `speech`: who sees what.
ENCODERS = {
    "ancat": {"encoder": "ancat", "lookahead": 4, "latency_weight": 0.01, "anneal": 1500},
    "causal": {"encoder": "conformer", "chunk": 1},
    "ahead": {"encoder": "conformer", "chunk": 1, "lookahead": 1},
    "chunked": {"encoder": "conformer", "chunk": 8},
    "full": {"encoder": "conformer", "chunk": 0},
}
ARGUMENTS = tuple(ENCODERS)


def get_config(kind: str = "ancat") -> ml_collections.ConfigDict:
    """The config of one of the encoders."""
    if kind not in ARGUMENTS:
        raise ValueError(f"argument {kind!r}; one of {', '.join(ARGUMENTS)} is needed")
    c: Any = commands_rnnt.get_config()
    c.speech.channels = (16,)
    c.speech.layers = 4
    c.speech.width = 96
    c.speech.heads = 4
    c.speech.kernel = 9
    c.speech.left = 24
    c.speech.dropout = 0.1
    c.speech.update(ENCODERS[kind])
    c.optimizer.learning_rate = 1.5e-3
    c.optimizer.warmup_steps = 200
    return c
