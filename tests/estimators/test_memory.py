"""Memory as a contract: what XLA reserves for a compiled step, in bytes, on top of its arguments and results."""

import jax
import jax.numpy as jnp
import optax
import pytest

from zojax import estimators, ops
from zojax.directions import Gaussian, LowRank, Rademacher, Sparse
from zojax.per_example import map_examples
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


# ---------------------------------------------------------------- estimators with directions of their own

SPEC = PerturbSpec(direction=LowRank(rank=2), stacked=("^layers/",))
FACTORS = LAYERS * 4 * WIDTH * 2  # one factor of rank 2 of all layers
VECTORS = LAYERS * WIDTH * 4
FAMILY = {
    # (estimator, what `apply` may keep with sgd): the factors of all probes, and the noise of the vectors.
    "lozo": (lambda: estimators.lozo(1e-3, SPEC, key=jax.random.key(0)), 3 * FACTORS + 2 * VECTORS),
    "lozo_momentum": (
        lambda: estimators.lozo(1e-3, SPEC, momentum=0.9, key=jax.random.key(0)),
        8 * FACTORS + 4 * VECTORS,
    ),
    "eggroll": (
        lambda: estimators.eggroll(1e-3, SPEC, num_samples=8, key=jax.random.key(0)),
        5 * 8 * FACTORS + 4 * VECTORS,
    ),
    "kerzoo": (lambda: estimators.kerzoo(1e-3, PerturbSpec(stacked=("^layers/",)), key=jax.random.key(0)), 0),
}


@pytest.mark.parametrize("name", FAMILY)
def test_the_gradient_of_the_family_is_never_resident(name):
    make_one, kept = FAMILY[name]
    tx = estimators.chain(make_one(), optax.sgd(1e-3))
    state = tx.init(PARAMS)

    def apply(params, state, scalars):
        updates, state = tx.update(None, state, params, scalars=scalars)
        return optax.apply_updates(params, updates), state

    taken = temporaries(apply, PARAMS, state, state[0].last, donate=(0, 1))
    words = LAYERS * (LAYER_BYTES // 32 + WIDTH * 4)
    print(f"apply {name}: {taken} of {PARAM_BYTES} bytes, at most {kept + words + SMALL}")
    assert taken <= kept + words + SMALL
    assert kept + words + SMALL < PARAM_BYTES / 2


def test_hizoo_takes_one_array_of_the_weights_size():
    """The old diagonal, which the gradient and the new diagonal both read; neither the normals nor the gradient."""
    spec = PerturbSpec(direction=Gaussian(), stacked=("^layers/",))
    tx = estimators.chain(estimators.hizoo(1e-3, spec, key=jax.random.key(0)), optax.sgd(1e-3))
    state = tx.init(PARAMS)

    def apply(params, state, scalars):
        updates, state = tx.update(None, state, params, scalars=scalars)
        return optax.apply_updates(params, updates), state

    assert temporaries(apply, PARAMS, state, state[0].last, donate=(0, 1)) <= PARAM_BYTES + SMALL


def test_a_probe_for_each_example_takes_no_weight_for_each(forward_bytes):
    """Sixteen examples: measured in the memory of a forward and a layer, and applied without the gradient."""
    x = jnp.ones((16, WIDTH))
    estimator = estimators.per_example(1e-3, PerturbSpec(stacked=("^layers/",)), batch_size=16, key=jax.random.key(0))
    state = estimator.init(PARAMS)
    value_fn = lambda p, x: map_examples(lambda p, row: loss(p, row[None]), p, x)  # noqa: E731
    measured = temporaries(lambda p, s, x: estimator.measure(p, s, lambda t: value_fn(t, x)), PARAMS, state, x)
    plain = temporaries(loss, PARAMS, x)
    activations = 16 * WIDTH * 4
    print(f"measure per_example: {measured}, forward {plain} bytes")
    assert measured <= 2 * plain + 2 * LAYER_BYTES + 8 * activations + SMALL
    assert measured < 16 * LAYER_BYTES / 4

    def apply(params, state, scalars):
        updates, state = estimator.update(None, state, params, scalars=scalars)
        return jax.tree.map(lambda w, g: w - g, params, updates), state

    taken = temporaries(apply, PARAMS, state, state.last, donate=(0, 1))
    signs = LAYERS * 16 * WIDTH * 4  # r and s of 16 examples are vectors of a layer's width
    print(f"apply per_example: {taken} of {PARAM_BYTES} bytes")
    assert taken <= 5 * signs + LAYERS * LAYER_BYTES // 32 + 4 * VECTORS + SMALL
    assert taken < PARAM_BYTES / 2


def test_the_state_of_the_family_is_what_it_says():
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
    key = jax.random.key(0)
    assert size(estimators.lozo(1e-3, SPEC, key=key).init(PARAMS)) < 200
    assert size(estimators.lozo(1e-3, SPEC, momentum=0.9, key=key).init(PARAMS).momentum) == FACTORS + VECTORS
    assert size(estimators.subzero(1e-3, SPEC, key=key).init(PARAMS).factors) == 2 * FACTORS
    assert size(estimators.mezo_svrg(1e-3, PerturbSpec(), key=key).init(PARAMS).anchor) == PARAM_BYTES
