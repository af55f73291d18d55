"""Four tasks on one MiniLM: SST-2, SNLI, QNLI and RTE, with MaZO's masks or without (arXiv 2502.11513).

Training begins at linear probes of each task and moves the kernels of all layers; the heads stay. The argument names
the method: mazo, mazo_backward (the scores' gradients by one offline backward pass), vanilla, random, magnitude, lora,
lora_mazo, adam, or single_TASK for one task alone.

    python -m launch.train --config=configs/multitask_minilm.py:mazo --workdir=runs/multitask_minilm_mazo
"""

from typing import Any

import ml_collections

from configs.base import get_base

TASKS = ("sst2", "snli", "qnli", "rte")
MASKED = ("mazo", "mazo_backward", "random", "magnitude", "lora_mazo")
ARGUMENTS = (*MASKED, "vanilla", "lora", "adam", *(f"single_{task}" for task in TASKS))


def get_config(method: str = "mazo") -> ml_collections.ConfigDict:
    """The config; `method` as in --config=configs/multitask_minilm.py:vanilla."""
    if method not in ARGUMENTS:
        raise ValueError(f"argument {method!r}; one of {', '.join(ARGUMENTS)} is needed")
    c: Any = get_base("text")  # a type checker does not know a ConfigDict's fields
    c.trainable = (r"encoder/layers/\w+/kernel$",)
    c.data.train_examples = 2000
    c.data.max_length = 48
    c.data.buckets = (32, 48)
    c.data.length_grouped = False
    c.multitask.tasks = TASKS
    c.multitask.quotas = (4, 4, 4, 4)
    c.multitask.dev_examples = 250
    c.multitask.test_examples = 277  # all that RTE has
    c.method.name = "multi_task"
    c.method.num_samples = 4
    c.optimizer.learning_rate = 1e-5
    c.optimizer.schedule = "linear"
    c.train.steps = 2000
    c.train.eval_every = 200
    c.train.checkpoint_every = 200
    c.train.keep_best = "loss"
    if method.startswith("single_"):
        c.multitask.tasks, c.multitask.quotas = (method.removeprefix("single_"),), (16,)
    if method.startswith("lora"):
        c.trainable = (r"kernel/(a|b)$",)
        c.adapter.rank = 8
        c.optimizer.learning_rate = 1e-3
    if method in MASKED:
        c.mask.kind = method if method in ("random", "magnitude") else "mazo"
        c.mask.gradient = "backward" if method == "mazo_backward" else "outputs"
        c.mask.keep = 0.2 if method == "lora_mazo" else 0.5
        c.mask.examples, c.mask.num_probes = 64, 4  # 208 forwards of 64 rows: those of 104 steps
    if method == "adam":
        c.method.name, c.method.num_samples = "first_order", 1
        c.optimizer.name, c.optimizer.learning_rate = "adam", 2e-5
    return c
