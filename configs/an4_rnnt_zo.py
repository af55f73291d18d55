"""AN4 in a noise that the model has not met: the last stage of the encoder learns from forwards alone.

The weights are those of a run of `configs/an4_rnnt.py`, trained on clean speech. Here all splits lie in pink noise at 5
to 15 dB, drawn once for each utterance. The last LSTM layer's norm and the projection behind it follow, 132,352 of
8 million weights, by two-point sign probes; the task is that of training, less its dropout. Probes and rates are ours.

    python -m launch.train --config=configs/an4_rnnt_zo.py --workdir=runs/an4_rnnt_zo \
        --config.model.weights=runs/an4_rnnt:best

By back-propagation, for comparison: --config.method.name=first_order. The first evaluation, of step 0, is that of the
clean weights in noise. Fewer weights, the gains and biases of all layers: --config.trainable="('input/','norm_')".
"""

from typing import Any

import ml_collections

from configs import an4_rnnt


def get_config(source: str = "an4") -> ml_collections.ConfigDict:
    """The config; `source` is "an4", or the folder of a corpus."""
    c: Any = an4_rnnt.get_config(source)
    c.trainable = (r"encoder/lstm/norm_3/", r"joiner/encoded/")
    c.speech.noise = "pink"
    c.speech.snr = (5, 15)
    c.speech.speeds = (100,)
    c.speech.dropout = 0.0
    c.speech.alone = 0
    c.speech.time_masks = 0
    c.speech.frequency_masks = 0
    c.method.name = "spsa"
    c.method.eps = 1e-3
    c.method.direction = "rademacher"
    c.method.num_samples = 8
    c.optimizer.name = "adam"
    c.optimizer.learning_rate = 3e-4
    c.optimizer.weight_decay = 0.0
    c.optimizer.warmup_steps = 0
    c.optimizer.clip_norm = 0.0
    c.train.steps = 1000
    c.train.eval_every = 100
    c.train.checkpoint_every = 500
    return c
