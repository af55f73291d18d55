"""What the tests of estimators share: the list of estimators, directions, and small losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from zojax import estimators, ops
from zojax.directions import Gaussian, LowRank, Rademacher, Sparse, Sphere
from zojax.perturb import PerturbSpec

KEY = jax.random.key(404)

# A new estimator adds one line here and inherits the whole contract.
ESTIMATORS = {
    "spsa": estimators.spsa,
    "forward": estimators.forward,
    "fzoo": estimators.fzoo,
    "quzo": estimators.quzo,
    "quzo_shared": functools.partial(estimators.quzo, independent=False),
    "quzo_1_bit": functools.partial(estimators.quzo, bits=1),
}
PROBES = {
    "spsa": ("turn", "pair", "batch"),
    "forward": ("turn", "batch"),
    "fzoo": ("turn", "batch"),
    "quzo": ("turn", "pair", "batch"),
    "quzo_shared": ("turn",),
    "quzo_1_bit": ("turn",),
}
MODES = [(name, probes) for name, modes in PROBES.items() for probes in modes]
DIRECTIONS = {
    "gaussian": Gaussian(),
    "rademacher": Rademacher(),
    "sphere": Sphere(),
    "low_rank": LowRank(rank=2),
    "sparse": Sparse(fraction=0.5),
}
# Every estimator with the cheapest direction, and every direction with one estimator: to compile is what a test costs.
PAIRS = [(name, DIRECTIONS["rademacher"]) for name in ESTIMATORS]
PAIRS += [("spsa", direction) for name, direction in DIRECTIONS.items() if name != "rademacher"]


def make(name, *, direction=None, num_samples=2, eps=1e-2, key=KEY, **options):
    spec = None if direction is None else PerturbSpec(direction=direction)
    return ESTIMATORS[name](eps, spec, num_samples=num_samples, key=key, **options)


def weights(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {
        "matrix": jnp.asarray(rng.normal(size=(6, 4)), dtype),
        "gain": jnp.ones((4,), dtype),
    }


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def regression(params):
    """Mean squared error of a linear layer with a gain, about 12 at `weights()`; 0 at some weights."""
    rng = np.random.default_rng(1)
    x, target = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((32, 6), (6, 4)))
    y = ops.dot(x, params["matrix"]) * ops.value(params["gain"])
    return jnp.mean(jnp.square(y - x @ target))
