"""A model, a data set and a config that are so small that a run takes seconds."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

WORDS = {0: "dull slow bad weak", 1: "good warm bright fine"}

CONFIG = """
import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({config})
"""


def write_model(folder: Path) -> None:
    rng = np.random.default_rng(0)
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(WORDS.values()).split(), "film"]
    sizes = {"vocab_size": len(vocab), "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 16, "type_vocab_size": 2}
    tensors = {
        "embeddings.word_embeddings.weight": (len(vocab), 8),
        "embeddings.position_embeddings.weight": (16, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
        "embeddings.LayerNorm.weight": (8,),
        "embeddings.LayerNorm.bias": (8,),
    }
    layer = {
        "attention.self.query": (8, 8),
        "attention.self.key": (8, 8),
        "attention.self.value": (8, 8),
        "attention.output.dense": (8, 8),
        "attention.output.LayerNorm": (8,),
        "intermediate.dense": (16, 8),
        "output.dense": (8, 16),
        "output.LayerNorm": (8,),
    }
    for name, shape in layer.items():
        tensors[f"encoder.layer.0.{name}.weight"] = shape
        tensors[f"encoder.layer.0.{name}.bias"] = shape[:1]
    folder.mkdir()
    weights = {
        name: (rng.normal(size=shape) * 0.3 + ("LayerNorm.weight" in name)).astype(np.float32)
        for name, shape in tensors.items()
    }
    save_file(weights, folder / "model.safetensors")
    (folder / "vocab.txt").write_text("\n".join(vocab))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12} | sizes)
    )


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(1)
    folder.mkdir()
    for split, count in (("train", 24), ("dev", 10), ("test", 12)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for i in range(count):
                words = [*rng.choice(WORDS[i % 2].split(), 2), "film", rng.choice(WORDS[1 - i % 2].split())]
                file.write(json.dumps({"text": " ".join(words[: 3 + i % 2]), "label": i % 2}) + "\n")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> dict:
    """The fields of a config of a tiny run; `config_file` writes them."""
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder / "model")
    write_data(folder / "data")
    return {
        "seed": 0,
        "trainable": ("norm/", "^head/"),
        "data": {
            "source": str(folder / "data"),
            "num_classes": 2,
            "train_examples": 0,
            "shots": 0,
            "max_length": 8,
            "buckets": (),
            "length_grouped": False,
            "packed_rows": 0,
            "sampling": "uniform",
            "batch_size": 4,
            "eval_batch_size": 8,
        },
        "model": {
            "name": "bert_classifier",
            "source": str(folder / "model"),
            "weights": "",
            "dtype": "float32",
            "head": "probe",
            "head_examples": 0,
            "objective": "loss",
        },
        "method": {
            "name": "spsa",
            "eps": 1e-2,
            "auto_eps": False,
            "num_samples": 2,
            "queries": "constant",
            "layers": (),
            "direction": "gaussian",
            "rank": 1,
            "bits": 4,
            "independent": True,
            "every": 2,
            "probe": "beside",
            "probes": "turn",
            "clip_projected": 0.0,
            "skip_nonfinite": False,
        },
        "quant": {"profile": "none", "feedback": 0},
        "integer": {
            "accelerator": "none",
            "forward": "emulation",
            "weights": "absmax",
            "bits": 8,
            "allocation": (),
            "scales": "column",
            "soft_steps": 0,
            "centroids": "uniform",
            "every": 1,
            "strength": 1.0,
        },
        "multitask": {"tasks": (), "quotas": (), "weights": (), "dev_examples": 4, "test_examples": 0},
        "mask": {
            "kind": "none",
            "keep": 0.5,
            "gradient": "outputs",
            "num_probes": 2,
            "examples": 8,
            "alpha": 1.0,
            "beta": 0.0,
            "learning_rate": 1e-2,
            "damping": 1e-2,
        },
        "speech": {
            "bins": 8,
            "pieces": 0,
            "speeds": (100,),
            "snr": (10, 40),
            "noise": "none",
            "seconds": 8,
            "buckets": 1,
            "frequency_masks": 1,
            "frequency_width": 2,
            "time_masks": 1,
            "time_width": 4,
            "gain": 0.0,
            "encoder": "lstm",
            "stack": 3,
            "layers": 1,
            "width": 8,
            "projection": 0,
            "dropout": 0.0,
            "channels": (2,),
            "context": 8,
            "heads": 2,
            "kernel": 3,
            "chunk": 2,
            "left": 4,
            "lookahead": 0,
            "latency_kind": "path",
            "latency_weight": 0.0,
            "compute_weight": 0.0,
            "anneal": 0,
            "predictor": "stateless",
            "embedding": 4,
            "predictor_width": 8,
            "joint": 8,
            "band": 0,
            "acoustic": 0.0,
            "alone": 0,
            "fast_emit": 0.0,
            "delay_penalty": 0.0,
            "signals": (),
            "wrong": 0.5,
            "fusion": "none",
            "fusion_width": 2,
            "channel_dropout": 0.0,
        },
        "wake": {
            "attention": "none",
            "small": 2,
            "large": 4,
            "hidden": 3,
            "spotter": 3,
            "jitter": 1,
            "spotting": 1.0,
            "catalogue": 3,
        },
        "biasing": {
            "kind": "none",
            "phrases": "",
            "size": 4,
            "keep": 0.8,
            "positions": False,
            "guidance": 0.0,
            "width": 8,
            "hidden": 4,
            "source": "minilm",
        },
        "lm": {
            "width": 8,
            "layers": 2,
            "heads": 2,
            "kv_heads": 1,
            "mlp": 16,
            "compute": "float32",
            "answer_weight": 2.0,
            "word_dropout": 0.1,
            "prompt_share": 1.0,
        },
        "adapter": {"kind": "lora", "rank": 0, "alpha": 16.0, "where": ("query/kernel$",)},
        "optimizer": {
            "name": "adam",
            "learning_rate": 1e-2,
            "schedule": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "clip_norm": 0.0,
            "rounding": "none",
        },
        "train": {
            "steps": 6,
            "eval_every": 3,
            "checkpoint_every": 4,
            "log_every": 1,
            "microbatches": 1,
            "keep_best": "accuracy",
        },
    }


@pytest.fixture
def config_file(tiny, tmp_path) -> str:
    path = tmp_path / "tiny_config.py"
    path.write_text(CONFIG.format(config=repr(tiny)))
    return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Prepared data sets stay out of the user's cache."""
    monkeypatch.setenv("ZOJAX_CACHE", str(tmp_path_factory.getbasetemp() / "zojax_cache"))
