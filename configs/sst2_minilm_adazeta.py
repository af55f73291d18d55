"""AdaZeta on SST-2: tensor-train adapters in every layer of MiniLM, probed more often as the epochs go by.

Bottleneck 64, rank 5, eps 1e-3, batch 16 and the query schedule are those of arXiv 2406.18060; 1,000 training
sentences are the usual few-shot protocol; the learning rate is ours. 4,225 steps with the schedule are 24,000 forwards,
2.8 probes a step in the mean.

    python -m launch.train --config=configs/sst2_minilm_adazeta.py --workdir=runs/sst2_minilm_adazeta

The same forwards with 1 probe, or with the mean of the schedule, in every step:

    --config.method.queries=constant --config.method.num_samples=1 --config.train.steps=12000
    --config.method.queries=constant --config.method.num_samples=3 --config.train.steps=4000
"""

from typing import Any

import ml_collections

from configs.base import get_base


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_adazeta.py:reviews."""
    c: Any = get_base(source)  # a type checker does not know a ConfigDict's fields
    c.trainable = (r"layers/\w+_adapter/",)
    c.data.train_examples = 1000 if source == "sst2" else 0
    c.adapter.kind = "tensor_train"
    c.adapter.rank = 5
    c.method.direction = "gaussian"
    c.method.queries = "adaptive"
    c.method.num_samples = 15
    c.optimizer.learning_rate = 1e-4
    c.train.steps = 4225
    c.train.eval_every = 325
    c.train.checkpoint_every = 325
    return c
