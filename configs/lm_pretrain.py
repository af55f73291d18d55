"""A small LLaMA from scratch: public-domain books, and MNLI, SNLI, QNLI, BoolQ and SQuAD as prompts.

    python -m launch.corpus --out=runs/lm_data
    python -m launch.train --config=configs/lm_pretrain.py --workdir=runs/lm
    python -m launch.export_lm --workdir=runs/lm --out=runs/lm_model

11 M weights, back-propagation. `launch.corpus` says what the model reads and what it never does: no row of SST-2, RTE,
CB, COPA or WSC, and no dev or test row of any task.
"""

from typing import Any

from configs.base import get_base


def get_config(source: str = "runs/lm_data") -> Any:
    """The config; `source` is the folder of `launch.corpus`."""
    config = get_base(source or "runs/lm_data")
    config.model.name = "causal_lm"
    config.model.source = "llama"
    config.model.head = "zero"
    config.data.max_length = 512
    config.data.batch_size = 64
    config.data.eval_batch_size = 64
    config.data.buckets = ()
    config.data.length_grouped = False
    config.method.name = "first_order"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 150
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.train.steps = 3000
    config.train.eval_every = 250
    config.train.checkpoint_every = 1000
    config.train.log_every = 25
    return config
