"""What the tests of estimators share: the list of estimators, directions, and small losses."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from zojax import estimators, ops, per_example
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
    "eggroll": estimators.eggroll,
    "eggroll_one_sided": functools.partial(estimators.eggroll, antithetic=False, shaping="none"),
    "lozo": functools.partial(estimators.lozo, every=3),
    "lozo_momentum": functools.partial(estimators.lozo, every=3, momentum=0.5),
    "subzero": functools.partial(estimators.subzero, every=3),
    "hizoo": functools.partial(estimators.hizoo, smoothing=1e-3),
    "kerzoo": estimators.kerzoo,
    "multi_task": functools.partial(estimators.multi_task, weights=(0.25, 0.75)),
    "mezo_svrg": functools.partial(estimators.mezo_svrg, every=3),
    "per_example": lambda eps, spec, *, num_samples, **o: estimators.per_example(
        eps, spec, batch_size=num_samples, **o
    ),
    "grzo": lambda eps, spec, *, num_samples, **o: estimators.per_example(
        eps, spec, batch_size=num_samples, normalize="std", **o
    ),
}
PROBES = {
    "spsa": ("turn", "pair", "batch"),
    "forward": ("turn", "batch"),
    "fzoo": ("turn", "batch"),
    "quzo": ("turn", "pair", "batch"),
    "quzo_shared": ("turn",),
    "quzo_1_bit": ("turn",),
    "eggroll": ("turn", "pair", "batch"),
    "eggroll_one_sided": ("turn", "batch"),
    "lozo": ("turn", "pair", "batch"),
    "lozo_momentum": ("turn",),
    "subzero": ("turn", "pair"),
    "hizoo": ("turn", "batch"),
    "kerzoo": ("turn", "batch"),
    "multi_task": ("turn", "pair", "batch"),
    "mezo_svrg": ("turn", "pair"),
    "per_example": ("turn", "pair"),
    "grzo": ("turn",),
}
MODES = [(name, probes) for name, modes in PROBES.items() for probes in modes]
DIRECTIONS = {
    "gaussian": Gaussian(),
    "rademacher": Rademacher(),
    "sphere": Sphere(),
    "low_rank": LowRank(rank=2),
    "sparse": Sparse(fraction=0.5),
}
# Those that have directions of their own kind.
LOW_RANK = ("eggroll", "eggroll_one_sided", "lozo", "lozo_momentum", "subzero")
OWN = {**dict.fromkeys(LOW_RANK, DIRECTIONS["low_rank"]), "hizoo": DIRECTIONS["gaussian"]}
# Those whose steps have a length that does not shrink with the gradient.
NORMALIZED = ("fzoo", "eggroll", "grzo")
# Every estimator with the cheapest direction, and every direction with one estimator: to compile is what a test costs.
PAIRS = [(name, OWN.get(name, DIRECTIONS["rademacher"])) for name in ESTIMATORS]
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


def protocol(name, loss, batch=2):
    """The loss as an estimator's value_fn: the scalar itself, where the method does not ask for more."""
    if name in ("per_example", "grzo"):  # a batch of examples that are all alike
        return lambda params: per_example.map_examples(lambda p, row: loss(p), params, jnp.zeros(batch))
    if name == "mezo_svrg":  # the whole set as the batch
        return lambda params: (loss(params), loss(params))
    if name == "multi_task":  # two tasks that are alike
        return lambda params: jnp.stack([loss(params)] * 2, axis=-1)
    return loss


def largest_intermediate(function, *args):
    """Elements of the largest array in the jaxpr of a function, inner jaxprs included."""
    sizes = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(math.prod(v.aval.shape) for v in equation.outvars)
            for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    walk(inner)

    walk(jax.make_jaxpr(function)(*args).jaxpr)
    assert len(sizes) > 100
    return max(sizes)
