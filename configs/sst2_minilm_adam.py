"""Adam with back-propagation on SST-2: what the zeroth-order runs are compared with.

python -m launch.train --config=configs/sst2_minilm_adam.py --workdir=runs/sst2_minilm_adam
"""

import ml_collections


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_adam.py:reviews."""
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.trainable = (".*",)
    c.data = ml_collections.ConfigDict(
        {
            "source": source,
            "num_classes": 2,
            "train_examples": 0,
            "max_length": 64,
            "buckets": (32,),
            "batch_size": 16,
            "eval_batch_size": 64,
        }
    )
    c.model = ml_collections.ConfigDict(
        {"name": "bert_classifier", "source": "minilm", "dtype": "float32", "head": "probe"}
    )
    c.method = ml_collections.ConfigDict(
        {
            "name": "first_order",
            "eps": 1e-3,
            "auto_eps": False,
            "num_samples": 1,
            "direction": "gaussian",
            "rank": 1,
            "probes": "turn",
            "clip_projected": 0.0,
            "skip_nonfinite": False,
        }
    )
    c.optimizer = ml_collections.ConfigDict(
        {
            "name": "adam",
            "learning_rate": 2e-5,
            "schedule": "linear",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "rounding": "none",
        }
    )
    c.train = ml_collections.ConfigDict(
        {
            "steps": 400,
            "eval_every": 100,
            "checkpoint_every": 100,
            "log_every": 10,
            "microbatches": 1,
            "keep_best": True,
        }
    )
    return c
