"""Relative attention against float64 loops, and the Conformer's sizes."""

import jax.numpy as jnp
import numpy as np
import pytest

from models.transducer import attention
from models.transducer.attention import Attention
from models.transducer.conformer import ConformerConfig, conformer_encoder
from tests.models.transducer import oracles
from tests.models.transducer.streams import Run, lengths_mask

# float32 against float64: two softmaxes of scores near 1, sums of eight products.
TOLERANCE = 5e-6


@pytest.mark.parametrize(
    ("chunk", "left", "right", "sees"),
    [
        (None, None, 0, lambda i, j: True),
        (1, None, 0, lambda i, j: j <= i),
        (1, 2, 0, lambda i, j: i - 2 <= j <= i),
        (1, 2, 3, lambda i, j: i - 2 <= j <= i + 3),
        (3, 2, 0, lambda i, j: i // 3 * 3 - 2 <= j < i // 3 * 3 + 3),
    ],
)
def test_attention(chunk, left, right, sees):
    run = Run(Attention(8, 2, chunk=chunk, left=left, right=right), 9)
    params = oracles.float64(run.variables["params"])
    for length in (9, 5):
        got = run.whole(run.x, lengths_mask(9, [9, length]))[1]
        want = oracles.attention(run.x[1, :length].astype(np.float64), params, 2, sees)
        np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 5), (3, 5), (4, 4), (2, 3000)])
def test_products_with_the_sinusoids_of_each_distance(queries, keys):
    n = 3
    asked = np.random.default_rng(0).normal(size=(2, queries, 2, n)).astype(np.float32)
    distance = (np.arange(queries) + keys - queries)[:, None] - np.arange(keys)
    angle = distance[..., None] * 10000.0 ** (-np.arange(n) / n)
    want = np.einsum("bqn,qkn->bqk", asked[:, :, 0], np.sin(angle))
    want += np.einsum("bqn,qkn->bqk", asked[:, :, 1], np.cos(angle))
    # Sums of 12 products below 10 in float32; the tables are rounded from float64, however far the distance.
    np.testing.assert_allclose(attention.by_distance(jnp.asarray(asked), keys), want, atol=3e-6)


def test_latency_and_stride():
    encoder = conformer_encoder(ConformerConfig(width=8, heads=2, layers=3, kernel=9, chunk=2, left=4, right=4))
    # 3 blocks hold 4 frames back, each in chunks of 2, at 4 input frames each.
    assert (encoder.stride, encoder.block, encoder.delay) == (4, 8, 12)
    assert encoder.latency == 4 * (1 + 3 * 4) + 3


def test_sizes_are_checked():
    for options, message in (
        ({"width": 10, "heads": 4}, r"ConformerConfig\.width is 10"),
        ({"left": 4}, r"ConformerConfig\.left is 4 without a chunk"),
        ({"chunk": 2, "left": 4, "right": 3}, r"ConformerConfig\.right is 3; it must be a multiple of chunk = 2"),
        ({"right": 31}, r"ConformerConfig\.right is 31; it must be 0 to kernel - 1 = 30"),
        ({"chunk": 0}, r"ConformerConfig\.chunk is 0"),
        ({"chunk": 2, "ahead": 2}, r"ConformerConfig\.ahead is 2 with chunk 2"),
    ):
        with pytest.raises(ValueError, match=message):
            ConformerConfig(**options)
    with pytest.raises(ValueError, match=r"Attention\.heads is 3"):
        Attention(8, 3)
    with pytest.raises(ValueError, match=r"Attention\.left is 2 without a chunk"):
        Attention(8, 2, left=2)
    with pytest.raises(ValueError, match=r"Attention\.right is 1 with chunk 2"):
        Attention(8, 2, chunk=2, left=2, right=1)
