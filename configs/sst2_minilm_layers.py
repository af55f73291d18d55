"""Many one-sided sign probes of the value kernels of two middle layers on SST-2: where a probe has the most signal.

The gradient at the linear probe, averaged over the training set, stands out of the noise of a batch most in layers 2
and 3 (counted from 0), there most in the value kernels, and one-sided probes of one batch cost half as many forwards a
direction as two-sided ones. Sentences that the probe classifies well add noise alone, so they are drawn less often.
Packed, 16 rows of 64 tokens hold twice the sentences that they hold one a row.

    python -m launch.train --config=configs/sst2_minilm_layers.py --workdir=runs/sst2_minilm_layers
"""

import ml_collections

from configs.base import get_base


def get_config(source: str = "sst2") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/sst2_minilm_layers.py:reviews."""
    c = get_base(source)
    c.trainable = ("encoder/layers/value/kernel",)
    c.data.sampling = "importance"
    c.data.batch_size = 32
    c.data.packed_rows = 16
    c.data.length_grouped = False
    c.method.name = "forward"
    c.method.num_samples = 15
    c.method.layers = (2, 3)
    c.optimizer.learning_rate = 5e-3
    c.optimizer.schedule = "linear"
    c.train.steps = 1500
    c.train.eval_every = 125
    c.train.checkpoint_every = 125
    return c
