"""An LSTM transducer as integers: accelerator-aware training (AAT, arXiv 2305.07778) from a float run.

Forwards compute what the accelerator computes, bit for bit, with straight-through gradients; word error rates are those
of the integers. The argument names the data and the float run to start from: "an4" is runs/an4_rnnt:best, a run of
`configs/an4_rnnt.py`; "commands" likewise. Another run of that kind: --config.model.weights=RUN:best.

    python -m launch.train --config=configs/rnnt_aat.py:an4 --workdir=runs/an4_aat
    python -m launch.train --config=configs/rnnt_aat.py:an4 --workdir=runs/an4_aat_narrow \
        --config.integer.accelerator=narrow
"""

from typing import Any

import ml_collections

from configs import an4_rnnt, commands_rnnt

FLOATS = {"an4": an4_rnnt, "commands": commands_rnnt}
ARGUMENTS = tuple(FLOATS)


def get_config(data: str = "an4") -> ml_collections.ConfigDict:
    """The config; `data` is one of `ARGUMENTS`."""
    if data not in ARGUMENTS:
        raise ValueError(f"argument {data!r}; one of {', '.join(ARGUMENTS)} is needed")
    c: Any = FLOATS[data].get_config()
    c.model.weights = f"runs/{data}_rnnt:best"
    c.speech.dropout = 0.0
    c.speech.alone = 0
    c.integer.accelerator = "tflite"
    c.integer.forward = "emulation"
    c.optimizer.name = "adam"
    c.optimizer.weight_decay = 0.0
    c.optimizer.learning_rate = 2e-4
    c.optimizer.warmup_steps = 20
    c.train.steps = 600
    c.train.eval_every = 100
    c.train.checkpoint_every = 0
    return c
