"""Memory as a contract: what XLA reserves for a compiled step, in bytes, on top of its arguments and results."""

import jax
import jax.numpy as jnp
import optax
import pytest

from zojax import estimators, ops
from zojax.directions import Gaussian, LowRank, Rademacher, Sparse
from zojax.perturb import PerturbSpec

LAYERS, WIDTH, BATCH = 4, 256, 8
LAYER_BYTES = WIDTH * WIDTH * 4
PARAM_BYTES = LAYERS * (LAYER_BYTES + WIDTH * 4)
# Loop counters, scalars, keys, and a few vectors of a layer's width.
SMALL = 16 * 1024

PARAMS = {
    "layers": {
        "kernel": jax.random.normal(jax.random.key(0), (LAYERS, WIDTH, WIDTH)) / 16,
        "bias": jnp.zeros((LAYERS, WIDTH)),
    }
}
X = jnp.ones((BATCH, WIDTH))
DIRECTIONS = {"gaussian": Gaussian(), "rademacher": Rademacher(), "low_rank": LowRank(rank=2), "sparse": Sparse()}


def loss(params, x):
    def layer(h, w):
        return jnp.tanh(ops.dot(h, w["kernel"]) + ops.value(w["bias"])), None

    return jnp.mean(jax.lax.scan(layer, x, params["layers"])[0] ** 2)


def temporaries(f, *args, donate=()):
    return jax.jit(f, donate_argnums=donate).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.fixture(scope="module")
def forward_bytes():
    return temporaries(loss, PARAMS, X)


def make(direction, q, name="spsa", **options):
    spec = PerturbSpec(direction=DIRECTIONS[direction], stacked=("^layers/",))
    return getattr(estimators, name)(1e-3, spec, num_samples=q, key=jax.random.key(0), **options)


def measure_bytes(estimator):
    state = estimator.init(PARAMS)
    return temporaries(lambda p, s, x: estimator.measure(p, s, lambda t: loss(t, x)), PARAMS, state, X)


@pytest.mark.parametrize(
    ("name", "direction"), [*(("spsa", direction) for direction in DIRECTIONS), ("forward", "rademacher")]
)
def test_measure_takes_a_forward_and_the_noise_of_one_layer(name, direction, forward_bytes):
    one = measure_bytes(make(direction, 1, name)) if direction == "gaussian" else None
    eight = measure_bytes(make(direction, 8, name))
    print(f"measure {name} {direction}: forward {forward_bytes}, q=1 {one}, q=8 {eight} bytes")
    assert eight <= forward_bytes + LAYER_BYTES + SMALL
    assert one is None or abs(eight - one) < SMALL  # probes take turns
    assert eight < PARAM_BYTES  # neither the noise nor the perturbed weights are ever there as a whole


def test_pairs_take_two_forwards(forward_bytes):
    pair = measure_bytes(make("rademacher", 8, probes="pair"))
    print(f"measure pairs of rademacher, q=8: {pair} bytes")
    assert pair <= 2 * (forward_bytes + LAYER_BYTES) + SMALL


OPTIMISERS = {
    "sgd": lambda: optax.sgd(1e-3),
    "decay": lambda: optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(1e-3)),
    "momentum": lambda: optax.sgd(1e-3, momentum=0.9),
    "adam": lambda: optax.adam(1e-3),
    "adamw": lambda: optax.adamw(1e-3),
}


def resident(direction, q):
    """What an update may keep: nothing of a Gaussian, a bit a sign, the factors of a low-rank direction."""
    words = LAYERS * (LAYER_BYTES // 32 + WIDTH * 4)
    factors = LAYERS * 4 * (2 * WIDTH * 2 + WIDTH)
    return q * {"gaussian": 0, "rademacher": words, "sparse": words, "low_rank": factors}[direction] + SMALL


@pytest.mark.parametrize(
    ("direction", "optimiser", "q"),
    [
        *(("rademacher", optimiser, 1) for optimiser in OPTIMISERS),
        ("rademacher", "adam", 8),
        ("gaussian", "sgd", 1),
        ("gaussian", "decay", 8),
        ("low_rank", "adam", 1),
        ("sparse", "adam", 1),
    ],
)
def test_the_gradient_is_never_resident(direction, optimiser, q):
    tx = estimators.chain(make(direction, q), OPTIMISERS[optimiser]())
    state = tx.init(PARAMS)

    def apply(params, state, scalars):
        updates, state = tx.update(None, state, params, scalars=scalars)
        return optax.apply_updates(params, updates), state

    taken = temporaries(apply, PARAMS, state, state[0].last, donate=(0, 1))
    print(f"apply {direction} {optimiser} q={q}: {taken} of {PARAM_BYTES} bytes")
    assert taken <= resident(direction, q)
    assert resident(direction, q) < PARAM_BYTES / 2  # the bound itself tells a resident gradient
