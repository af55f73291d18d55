"""MeZO on LLaMA 2 with a prompted task, at the published hyperparameters (arXiv 2305.17333): weights from the hub.

The argument is the size: 7b, 13b or 70b. bfloat16 weights are rounded stochastically, since most updates of 1e-6 are
smaller than half a step of theirs (ours; the runs of the paper are in float16).

    python -m launch.train --config=configs/lm_llama.py:7b --workdir=runs/lm_llama
    python -m launch.plan --config=configs/lm_llama.py:70b --mesh=fsdp:64,tensor:8
"""

from typing import Any

import ml_collections

from configs.base import get_base

ARGUMENTS = ("7b", "13b", "70b")


def get_config(size: str = "7b") -> ml_collections.ConfigDict:
    """The config; `size` as in --config=configs/lm_llama.py:13b."""
    if size not in ARGUMENTS:
        raise ValueError(f"argument {size!r}; one of {', '.join(ARGUMENTS)} is needed")
    c: Any = get_base("sst2")  # a type checker does not know a ConfigDict's fields
    c.model.name = "prompted_lm"
    c.model.source = f"meta-llama/Llama-2-{size}-hf"
    c.model.dtype = "bfloat16"
    c.model.head = "zero"
    c.data.max_length = 256
    c.data.buckets = ()
    c.method.direction = "gaussian"
    c.optimizer.rounding = "stochastic"
    c.train.steps = 20000
    c.train.eval_every = 4000
    c.train.checkpoint_every = 4000
    return c
