"""QuZO on SST-2 with weights and activations in int8: codes of two layers move, along directions of 4 bits.

Weights lie on int8 grids (one scale a column), activations are quantised a token, every product is one of codes. Where
it probes (layers, sentences) is as in configs/sst2_minilm_layers.py.

    python -m launch.train --config=configs/sst2_minilm_quzo_int8.py --workdir=runs/sst2_minilm_quzo_int8
"""

import ml_collections

from configs.base import get_base


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_quzo_int8.py:reviews."""
    c = get_base(source)
    c.trainable = ("encoder/layers/value/kernel",)
    c.data.sampling = "importance"
    c.data.batch_size = 32
    c.data.packed_rows = 16
    c.data.length_grouped = False
    c.quant.profile = "w8a8_int"
    c.method.name = "quzo"
    c.method.bits = 4
    c.method.num_samples = 8
    c.method.layers = (2, 3)
    c.method.eps = 1e-2
    c.optimizer.learning_rate = 1e-3
    c.optimizer.schedule = "linear"
    c.train.steps = 1500
    c.train.eval_every = 125
    c.train.checkpoint_every = 125
    return c
