"""Tensor trains against the dense matrix that they stand for, in float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zojax.adapters import (
    Bottleneck,
    TensorTrain,
    bottleneck,
    factorise,
    init_tensor_train,
    tensor_train_dot,
    train_shape,
)
from zojax.directions import Rademacher
from zojax.perturb import PerturbSpec
from zojax.trees import leaf_paths, merge, split

# Float32 sums of at most a few hundred products of numbers of order 1, against float64.
FLOAT32 = dict(rtol=2e-5, atol=2e-5)


def dense(train):
    """The matrix, an element at a time from its definition, in float64."""
    inputs, outputs = ([np.asarray(core, np.float64) for core in side] for side in train)
    rows = list(itertools.product(*(range(core.shape[1]) for core in inputs)))
    columns = list(itertools.product(*(range(core.shape[1]) for core in outputs)))
    matrix = np.zeros((len(rows), len(columns)))
    for (r, row), (c, column) in itertools.product(enumerate(rows), enumerate(columns)):
        product = np.eye(1)
        for core, index in zip([*inputs, *outputs], [*row, *column], strict=True):
            product = product @ core[:, index, :]
        matrix[r, c] = product[0, 0]
    return matrix


def random_train(seed, inputs, outputs, ranks):
    rng = np.random.default_rng(seed)
    sizes, borders = (*inputs, *outputs), (1, *ranks, 1)
    cores = tuple(
        jnp.asarray(rng.normal(size=(borders[k], size, borders[k + 1])), jnp.float32) for k, size in enumerate(sizes)
    )
    return TensorTrain(cores[: len(inputs)], cores[len(inputs) :])


@pytest.mark.parametrize(
    ("inputs", "outputs", "ranks"),
    [
        ((2, 3, 2), (3, 2), (2, 3, 4, 2)),
        ((5,), (3,), (2,)),
        ((2,), (2, 3, 2), (3, 1, 2)),
        ((3, 1), (1, 4), (2, 2, 2)),
    ],
)
def test_the_product_is_that_of_the_dense_matrix(inputs, outputs, ranks):
    train = random_train(0, inputs, outputs, ranks)
    x = np.random.default_rng(1).normal(size=(2, 3, math.prod(inputs))).astype(np.float32)
    np.testing.assert_allclose(jax.jit(tensor_train_dot)(x, train), x @ dense(train), **FLOAT32)


def test_the_matrix_is_never_formed():
    train = jax.eval_shape(lambda key: init_tensor_train(key, 4096, 64, rank=5), jax.random.key(0))
    x = jax.ShapeDtypeStruct((7, 4096), jnp.float32)
    jaxpr = jax.make_jaxpr(tensor_train_dot)(x, train)
    sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
    # The largest array is half of the train, 4096 x 5 in its making (its halves meet at rank 5), never 4096 x 64.
    assert max(sizes) <= 4096 * 5


def test_half_precision_activations_are_multiplied_in_float32():
    train = random_train(2, (2, 2), (3,), (2, 2))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(4, 4)), jnp.bfloat16)
    y = tensor_train_dot(x, train)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, np.asarray(x, np.float64) @ dense(train), **FLOAT32)


def test_the_wrong_width_is_refused():
    with pytest.raises(ValueError, match=r"input cores make 4 rows \(2, 2\); x has 5 columns"):
        tensor_train_dot(jnp.ones((1, 5)), random_train(0, (2, 2), (3,), (2, 2)))


@given(width=st.integers(1, 5000), count=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_factors_make_the_width_and_are_as_even_as_any(width, count):
    parts = factorise(width, count)
    assert math.prod(parts) == width
    assert len(parts) <= count
    assert list(parts) == sorted(parts)
    assert width == 1 or 1 not in parts
    # Brute force over all that could stand in front: no choice of first factors has a lesser sum.
    least = min(
        sum(front) + width // math.prod(front)
        for size in range(min(count, 3))
        for front in itertools.product([n for n in range(2, 18) if width % n == 0], repeat=size)
        if width % math.prod(front) == 0
    )
    assert sum(parts) <= least


def test_a_prime_stays_whole():
    assert factorise(4099, 3) == (4099,)
    assert train_shape(2 * 4099, 64) == ((2, 4099), (4, 4, 4))


@pytest.mark.parametrize(
    ("width", "inputs", "outputs", "cores"),
    [
        # The tables of arXiv 2406.18060, and the weights they come to at rank 5.
        (4096, (16, 16, 16), (4, 4, 4), 1100),
        (1024, (8, 8, 16), (8, 8), 880),
        # MiniLM's width stands in no table: 6 * 5 + (8 + 8 + 8) * 25 + 8 * 5 by hand.
        (384, (6, 8, 8), (8, 8), 670),
    ],
)
def test_published_shapes(width, inputs, outputs, cores):
    assert train_shape(width, 64) == (inputs, outputs)
    assert train_shape(64, width) == (outputs[::-1], inputs[::-1])
    for d_in, d_out in ((width, 64), (64, width)):
        train = jax.eval_shape(lambda d_in=d_in, d_out=d_out: init_tensor_train(KEY, d_in, d_out, rank=5))
        assert sum(core.size for core in jax.tree.leaves(train)) == cores


@pytest.mark.parametrize("call", [lambda: factorise(0, 2), lambda: factorise(4, 0), lambda: train_shape(4, 0)])
def test_widths_below_one_are_refused(call):
    with pytest.raises(ValueError, match="at least 1 is needed"):
        call()


KEY = jax.random.key(0)


def test_the_start_has_the_variance_of_the_released_code():
    keys = jax.vmap(lambda n: jax.random.fold_in(KEY, n))(jnp.arange(4000))
    # Three cores of rank 2: sums of 4 products, whose kurtosis is moderate.
    element = jax.jit(
        jax.vmap(lambda key: tensor_train_dot(jnp.eye(6)[:1], init_tensor_train(key, 6, 2, rank=2))[0, 0])
    )
    drawn = np.asarray(element(keys), np.float64)
    wanted = 1 / (6 + 2)
    # The fourth moment of the sample itself gives the standard error; 4 of them.
    error = np.std(drawn**2) / math.sqrt(drawn.size)
    assert abs(np.mean(drawn**2) - wanted) <= 4 * error
    assert error < 0.1 * wanted  # or the comparison says nothing


def test_cores_differ_and_so_do_layers():
    train = jax.jit(lambda key: init_tensor_train(key, 64, 64, rank=5, lead=(2,)))(KEY)
    assert train.inputs[1].shape == train.outputs[0].shape == (2, 5, 8, 5)
    flat = [np.asarray(core)[layer].ravel() for core in (train.inputs[1], train.outputs[0]) for layer in range(2)]
    for one, other in itertools.combinations(flat, 2):
        assert not np.intersect1d(one, other).size


def test_an_adapter_starts_as_the_identity_or_as_released():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 12)), jnp.float32)
    run = jax.jit(bottleneck)
    np.testing.assert_array_equal(run(x, Bottleneck(width=4).init(KEY, 12)), x)
    params = Bottleneck(width=4, identity=False).init(KEY, 12)
    assert np.abs(np.asarray(run(x, params) - x)).max() > 1e-3


def test_the_adapter_by_its_formula():
    rng = np.random.default_rng(5)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), Bottleneck(width=4, rank=2).init(KEY, 12)
    )
    x = rng.normal(size=(3, 12)).astype(np.float32)
    down, up = (dense(params[name]["kernel"]) for name in ("down", "up"))
    hidden = np.maximum(x @ down + np.asarray(params["down"]["bias"]), 0)
    assert 0 < np.mean(hidden == 0) < 1  # the activation does something
    wanted = x + hidden @ up + np.asarray(params["up"]["bias"])
    # Two products one after the other, of values up to some hundred.
    np.testing.assert_allclose(jax.jit(bottleneck)(jnp.asarray(x), params), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("options", [{"width": 0}, {"rank": 0}])
def test_sizes_below_one_are_refused(options):
    with pytest.raises(ValueError, match=f"Bottleneck.{next(iter(options))} is 0"):
        Bottleneck(**options)


def test_perturbed_cores_that_a_scan_slices():
    """A probe of stacked cores is the function at cores with their noise added, layer by layer."""
    adapter, depth = Bottleneck(width=4, rank=2, identity=False), 2
    params = {"layers": adapter.init(KEY, 12, lead=(depth,))}
    spec = PerturbSpec(direction=Rademacher(), stacked=("layers/",))
    key, scale = jax.random.key(1), jnp.float32(0.3)

    @jax.jit
    def scanned(tree):
        return jax.lax.scan(lambda x, own: (bottleneck(x, own), None), jnp.ones((2, 12)), tree["layers"])[0]

    probed = scanned(spec.perturb(params, key, scale))
    moved = jax.jit(lambda w: jax.tree.map(lambda w, z: w + scale * z, w, spec.noise(w, key)))(params)
    run, y = jax.jit(bottleneck), jnp.ones((2, 12))
    for layer in range(depth):
        y = run(y, jax.tree.map(lambda leaf, layer=layer: jnp.asarray(np.asarray(leaf)[layer]), moved["layers"]))
    np.testing.assert_allclose(probed, y, rtol=1e-4, atol=1e-4)  # two layers of the sums above
    assert np.abs(np.asarray(probed - scanned(params))).max() > 0.1


def test_each_core_is_a_leaf_of_its_own():
    params = {"kernel": jnp.ones((12, 12)), "up_adapter": Bottleneck(width=4, rank=2).init(KEY, 12)}
    trainable, frozen = split(params, ("_adapter/",))
    paths = [path for path in jax.tree.leaves(leaf_paths(trainable)) if "/down/" in path]
    assert paths == [
        "up_adapter/down/bias",
        "up_adapter/down/kernel/inputs/0",
        "up_adapter/down/kernel/outputs/0",
    ]
    assert jax.tree.structure(merge(trainable, frozen)) == jax.tree.structure(params)
