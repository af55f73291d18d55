"""AN4 by the LSTM transducer as integers: accelerator-aware training (AAT, arXiv 2305.07778) from a float run.

Forwards compute what the accelerator computes, bit for bit, with straight-through gradients; word error rates are those
of the integers.

    python -m launch.train --config=configs/an4_rnnt_aat.py:runs/an4_rnnt:best --workdir=runs/an4_rnnt_aat
    python -m launch.train --config=configs/an4_rnnt_aat.py:runs/an4_rnnt:best --workdir=runs/an4_rnnt_aat_narrow \
        --config.integer.accelerator=narrow
"""

from typing import Any

import ml_collections

from configs import an4_rnnt


def get_config(weights: str = "runs/an4_rnnt:best") -> ml_collections.ConfigDict:
    """The config; `weights` names the float run to start from, and which of its weights."""
    c: Any = an4_rnnt.get_config()
    c.model.weights = weights
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
    return c
