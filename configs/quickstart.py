"""Zeroth-order fine-tuning of MiniLM on short reviews that ship with the library; minutes on two cores.

Training begins at a linear probe: a head fitted to the frozen features. Trained are the norms and the head.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

import ml_collections


def get_config(source: str = "reviews") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/quickstart.py:reviews."""
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.trainable = ("norm/", "^head/")
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
            "name": "spsa",
            "eps": 1e-3,
            "auto_eps": False,
            "num_samples": 4,
            "direction": "rademacher",
            "rank": 1,
            "probes": "turn",
            "clip_projected": 0.0,
            "skip_nonfinite": False,
        }
    )
    c.optimizer = ml_collections.ConfigDict(
        {
            "name": "adam",
            "learning_rate": 1e-3,
            "schedule": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "rounding": "none",
        }
    )
    c.train = ml_collections.ConfigDict(
        {
            "steps": 100,
            "eval_every": 20,
            "checkpoint_every": 50,
            "log_every": 10,
            "microbatches": 1,
            "keep_best": True,
        }
    )
    return c
