"""Zeroth-order fine-tuning of MiniLM on short reviews that ship with the library; minutes on two cores.

Training begins at a linear probe, a head fitted to the frozen features, and moves the norms and biases of the encoder.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

import ml_collections

from configs.base import get_base


def get_config(source: str = "reviews") -> ml_collections.ConfigDict:
    """The config; `source` names another data set, as in --config=configs/quickstart.py:sst2."""
    c = get_base(source)
    c.data.buckets = (32,)  # one shape, one compilation
    c.data.length_grouped = False
    c.trainable = ("norm/", "layers/.*bias$")
    c.method.name = "forward"
    c.method.num_samples = 15
    c.optimizer.name = "adam"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.schedule = "cosine"
    c.train.steps = 60
    c.train.eval_every = 15
    c.train.checkpoint_every = 30
    return c
