"""Prompted tasks on the small language model that configs/lm_pretrain.py trains, which has seen no row of them.

1,000 rows to train on, 500 for dev, 1,000 to test, fewer where there are fewer (arXiv 2305.17333); eps 1e-3 and batch
16 as there, the learning rates ours. The argument names the method: mezo, lozo, layers (sign probes of two layers'
value kernels), accuracy (MeZO on the share of wrong answers), or adam, which has a third of the steps: equal forwards.

    python -m launch.train --config=configs/lm_prompted.py:mezo --config.data.source=rte --workdir=runs/lm_rte_mezo
"""

from typing import Any

import ml_collections

from configs.base import get_base

ARGUMENTS = ("mezo", "lozo", "layers", "accuracy", "adam")


def get_config(method: str = "mezo") -> ml_collections.ConfigDict:
    """The config; `method` as in --config=configs/lm_prompted.py:adam."""
    if method not in ARGUMENTS:
        raise ValueError(f"argument {method!r}; one of {', '.join(ARGUMENTS)} is needed")
    c: Any = get_base("rte")  # a type checker does not know a ConfigDict's fields
    c.model.name = "prompted_lm"
    c.model.source = "runs/lm_model"
    c.model.head = "zero"
    c.data.max_length = 320
    c.data.buckets = (64, 96, 128, 192, 256)
    c.method.direction = "gaussian"
    c.optimizer.schedule = "linear"
    c.optimizer.learning_rate = 1e-5
    c.train.steps = 3000
    c.train.eval_every = 300
    c.train.checkpoint_every = 3000
    c.train.keep_best = "loss"
    if method == "lozo":
        c.method.name, c.method.direction, c.method.rank = "lozo", "low_rank", 2
    if method == "layers":
        c.trainable = (r"layers/value/kernel$",)
        c.method.name, c.method.direction, c.method.layers = "spsa", "rademacher", (2, 3)
        c.optimizer.learning_rate = 1e-4
    if method == "accuracy":
        c.model.objective = "accuracy"
        c.train.keep_best = "accuracy"
    if method == "adam":
        c.method.name, c.optimizer.name, c.optimizer.learning_rate = "first_order", "adam", 2e-5
        c.train.steps, c.train.eval_every = 2000, 200
    return c
