"""The defaults that every config starts from; `launch/schema.py` says what each field may hold."""

from typing import Any

import ml_collections


def get_base(source: str) -> Any:  # a type checker does not know a ConfigDict's fields
    """Two-point sign probes of all of MiniLM, begun at a linear probe of the data in `source`."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "trainable": (".*",),
            "data": {
                "source": source,
                "num_classes": 2,
                "train_examples": 0,
                "max_length": 64,
                "buckets": (16, 24, 32, 48, 64),
                "length_grouped": True,
                "packed_rows": 0,
                "sampling": "uniform",
                "batch_size": 16,
                "eval_batch_size": 64,
            },
            "model": {
                "name": "bert_classifier",
                "source": "minilm",
                "weights": "",
                "dtype": "float32",
                "head": "probe",
                "head_examples": 0,
                "objective": "loss",
            },
            "method": {
                "name": "spsa",
                "eps": 1e-3,
                "auto_eps": False,
                "num_samples": 1,
                "queries": "constant",
                "direction": "rademacher",
                "bits": 4,
                "independent": True,
                "every": 50,
                "probe": "beside",
                "rank": 1,
                "layers": (),
                "probes": "turn",
                "clip_projected": 0.0,
                "skip_nonfinite": False,
            },
            "quant": {"profile": "none", "feedback": 0},
            "multitask": {"tasks": (), "quotas": (), "weights": (), "dev_examples": 500, "test_examples": 0},
            "mask": {
                "kind": "none",
                "keep": 0.5,
                "gradient": "outputs",
                "num_probes": 8,
                "examples": 128,
                "alpha": 1.0,
                "beta": 0.0,
                "learning_rate": 1e-2,
                "damping": 1e-2,
            },
            "adapter": {"kind": "lora", "rank": 0, "alpha": 16.0, "where": (r"layers/(query|value)/kernel$",)},
            "optimizer": {
                "name": "sgd",
                "learning_rate": 1e-6,
                "schedule": "constant",
                "warmup_steps": 0,
                "weight_decay": 0.0,
                "rounding": "none",
            },
            "train": {
                "steps": 1000,
                "eval_every": 200,
                "checkpoint_every": 200,
                "log_every": 10,
                "microbatches": 1,
                "keep_best": "accuracy",
            },
        }
    )
