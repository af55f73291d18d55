"""The linear probe alone on SST-2: no steps, a head fitted to the frozen features of MiniLM.

python -m launch.train --config=configs/sst2_minilm_linear_probe.py --workdir=runs/sst2_minilm_linear_probe
"""

import ml_collections


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_linear_probe.py:reviews."""
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.trainable = ("^head/",)
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
            "name": "sgd",
            "learning_rate": 1e-5,
            "schedule": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "rounding": "none",
        }
    )
    c.train = ml_collections.ConfigDict(
        {
            "steps": 0,
            "eval_every": 200,
            "checkpoint_every": 200,
            "log_every": 10,
            "microbatches": 1,
            "keep_best": True,
        }
    )
    return c
