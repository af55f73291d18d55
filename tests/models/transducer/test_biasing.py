"""Biasing: what an attention over phrases says, against a plain loop, and that nothing is said of no phrases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.transducer.biasing import BiasingAttention

RNG = np.random.default_rng(0)
PHRASES = jnp.asarray(RNG.normal(size=(2, 5, 6)), jnp.float32)
MASK = jnp.asarray([[True] * 5, [True, False, True, False, False]])
X = jnp.asarray(RNG.normal(size=(2, 4, 8)), jnp.float32)
ATTENTION = BiasingAttention(8, 6, 4, 2)


@pytest.fixture(scope="module")
def attention():
    """Parameters all of which do something."""
    params = ATTENTION.init(jax.random.key(0), X, PHRASES, MASK)["params"]
    return jax.tree.map(lambda w: w + 0.3 * jnp.asarray(RNG.normal(size=w.shape), w.dtype), params)


def biased(params, x, phrases, mask):
    return ATTENTION.apply({"params": params}, x, phrases, mask)


def by_hand(params, x, phrases, mask):
    """The docstring's formula for one row and one frame, in float64."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    phrases = np.asarray(phrases, np.float64)[np.asarray(mask)]
    x = np.asarray(x, np.float64)
    query = x @ p["query"]["kernel"] + p["query"]["bias"]
    keys, values = (phrases @ p[name]["kernel"] + p[name]["bias"] for name in ("key", "value"))
    found = []
    for head, part in enumerate((slice(0, 2), slice(2, 4))):
        scores = np.array([query[part] @ k for k in (p["no_bias"][head], *keys[:, part])]) / np.sqrt(2)
        alpha = np.exp(scores) / np.exp(scores).sum()
        found.append(sum((a * v for a, v in zip(alpha[1:], values[:, part], strict=True)), np.zeros(2)))
    found = np.concatenate(found)
    gate = 1 / (1 + np.exp(-(np.concatenate([x, found]) @ p["gate"]["kernel"] + p["gate"]["bias"])))
    return gate * (found @ p["output"]["kernel"])


def test_the_bias_is_that_of_the_formula(attention):
    found = biased(attention, X, PHRASES, MASK)
    for row in range(2):
        for frame in range(4):
            wanted = by_hand(attention, X[row, frame], PHRASES[row], MASK[row])
            np.testing.assert_allclose(found[row, frame], wanted, rtol=1e-5, atol=1e-6)  # float32 against float64


def test_it_starts_from_nothing_and_says_nothing_of_no_phrases(attention):
    fresh = ATTENTION.init(jax.random.key(0), X, PHRASES, MASK)["params"]
    assert not np.any(biased(fresh, X, PHRASES, MASK))
    # Exactly nothing: of no phrase at all, and of phrases that are all masked.
    assert not np.any(biased(attention, X, PHRASES[:, :0], MASK[:, :0]))
    assert not np.any(biased(attention, X, PHRASES, jnp.zeros_like(MASK)))


def test_masked_phrases_may_hold_anything(attention):
    other = jnp.where(MASK[..., None], PHRASES, 1e3)
    np.testing.assert_array_equal(biased(attention, X, PHRASES, MASK), biased(attention, X, other, MASK))


def test_rows_share_catalogues_in_their_order(attention):
    """As hypotheses in a search: rows 0 and 1 have the first catalogue, rows 2 and 3 the second."""
    memory = ATTENTION.apply({"params": attention}, PHRASES, MASK, method="remember")
    flat = X[:, :2].reshape(4, 8)
    shared = ATTENTION.apply({"params": attention}, flat, memory, method="bias")
    np.testing.assert_allclose(shared.reshape(2, 2, 8), biased(attention, X[:, :2], PHRASES, MASK), rtol=1e-6)
    with pytest.raises(ValueError, match="2 catalogues for 3 rows"):
        ATTENTION.apply({"params": attention}, flat[:3], memory, method="bias")
