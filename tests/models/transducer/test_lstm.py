"""LSTM layers: against the cell in float64, and their gradient against a plain scan's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from models.transducer.lstm import LstmConfig, lstm_stack, recurrence
from tests.models.transducer import oracles
from tests.models.transducer.streams import Run, lengths_mask

# float32 against float64 over ten steps of numbers near 1.
TOLERANCE = 2e-6


@pytest.mark.parametrize("projection", [0, 3])
def test_a_stack_is_the_cell_with_norms_behind(projection):
    run = Run(lstm_stack(4, layers=2, hidden=5, projection=projection, dropout=0.3), 9, seed=projection)
    got = run.whole(run.x, lengths_mask(9, [9, 6]))
    params = oracles.float64(run.variables["params"])
    for row, length in enumerate((9, 6)):
        want = oracles.lstm_stack(run.x[row, :length].astype(np.float64), params, 2)
        np.testing.assert_allclose(got[row], want, atol=TOLERANCE, rtol=TOLERANCE)


def plain(gates, recurrent, projection, mask, cell, output):
    """`recurrence` left to autodiff."""

    def step(carry, now):
        (c_old, r_old), (x, real) = carry, now
        i, f, g, o = jnp.split(x + r_old @ recurrent, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c_old + jax.nn.sigmoid(i) * jnp.tanh(g)
        r = jax.nn.sigmoid(o) * jnp.tanh(c)
        r = r if projection is None else r @ projection
        c, r = (jnp.where(real[:, None], new, old) for new, old in ((c, c_old), (r, r_old)))
        return (c, r), r

    (cell, output), outputs = lax.scan(step, (cell, output), (gates, mask))
    return outputs, cell, output


@pytest.mark.parametrize("p", [None, 3])
def test_the_gradient_is_that_of_a_plain_scan(p):
    t, b, h = 6, 2, 4
    rng = np.random.default_rng(0)
    shapes = [(t, b, 4 * h), (p or h, 4 * h), (h, p or h), (b, h), (b, p or h)]
    gates, recurrent, projection, cell, output = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
    weights = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((t, b, p or h), (b, h), (b, p or h))]
    # A row that begins late, one that ends early.
    mask = jnp.asarray(np.array([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], bool).T)
    if p is None:
        projection = None

    def total(function, floats):
        gates, recurrent, projection, cell, output = floats
        found = function(gates, recurrent, projection, mask, cell, output)
        return sum(jnp.sum(w * y) for w, y in zip(weights, found, strict=True))

    floats = (gates, recurrent, projection, cell, output)
    got = jax.jit(jax.value_and_grad(lambda f: total(recurrence, f)))(floats)
    want = jax.jit(jax.value_and_grad(lambda f: total(plain, f)))(floats)
    # float32, sums over t and b in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), got, want)


def test_a_new_cell_remembers():
    layer = lstm_stack(4, layers=1, hidden=3, projection=0, dropout=0.0)
    params = layer.init(jax.random.key(0), jnp.ones((1, 1, 4)), jnp.ones((1, 1), bool))["params"]
    assert params["lstm_0"]["bias"].tolist() == [0.0] * 3 + [1.0] * 3 + [0.0] * 6


def test_sizes_are_checked():
    with pytest.raises(ValueError, match=r"LstmConfig\.layers is 0"):
        LstmConfig(layers=0)
    with pytest.raises(ValueError, match=r"LstmConfig\.dropout is 1.0"):
        LstmConfig(dropout=1.0)
