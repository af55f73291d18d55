"""Zeroth-order tuning of a few weights of MiniLM on SST-2: biases, a prefix, or a prompt.

The argument names what is trained: bitfit (all biases, arXiv 2106.10199), prefix (5 keys and values in every layer, as
in MeZO's runs, arXiv 2305.17333) or prompt (5 tokens in front of every text, arXiv 2104.08691; the number is ours).
Their neighbours are configs/sst2_minilm_mezo_lora.py and configs/sst2_minilm_adazeta.py, whose data and forwards these
have; the learning rates are ours.

    python -m launch.train --config=configs/sst2_minilm_peft.py:bitfit --workdir=runs/sst2_minilm_bitfit
"""

from typing import Any

import ml_collections

from configs.sst2_minilm_mezo_lora import get_config as mezo_lora

TRAINABLE = {"bitfit": r"(^|/)bias$", "prefix": r"layers/prefix/", "prompt": r"word/prompt$"}
RATES = {"bitfit": 1e-4, "prefix": 1e-3, "prompt": 1e-3}
ARGUMENTS = tuple(TRAINABLE)


def get_config(method: str = "bitfit") -> ml_collections.ConfigDict:
    """The config; `method` as in --config=configs/sst2_minilm_peft.py:prefix."""
    if method not in ARGUMENTS:
        raise ValueError(f"argument {method!r}; one of {', '.join(ARGUMENTS)} is needed")
    c: Any = mezo_lora()  # a type checker does not know a ConfigDict's fields
    c.trainable = (TRAINABLE[method],)
    c.adapter.rank = 0 if method == "bitfit" else 5
    if method != "bitfit":
        c.adapter.kind = method
    c.optimizer.learning_rate = RATES[method]
    return c
