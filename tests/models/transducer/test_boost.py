"""Shallow fusion with phrases: the automaton's sums against the definition, and a search that follows them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.transducer.decode import Greedy, ModifiedBeam, decode, decode_step, hypotheses, phrase_boost, start
from models.transducer.decode.example import transducer


def defined(labels, phrases):
    """The formula of the docstring, read literally."""
    phrases = {tuple(p) for p in phrases}
    begins = {p[:n] for p in phrases for n in range(1, len(p))}
    at = [tuple(labels[i:j]) for j in range(1, len(labels) + 1) for i in range(j)]
    ends = [n for n in range(len(labels) + 1) if tuple(labels[len(labels) - n :]) in begins]
    return sum(len(part) for part in at if part in phrases) + max(ends, default=0)


@pytest.fixture(scope="module")
def scores():
    """The scores of all prefixes of rows of labels, by one program: [rows, labels + 1]."""

    @jax.jit
    def run(boost, rows):
        hints, state = boost.scores(jnp.zeros(len(rows), jnp.int32), boost.initial_state(len(rows)))

        def step(now, label):
            total, hints, state = now
            total = total + jnp.take_along_axis(hints, label[:, None], axis=1)[:, 0]
            hints, state = boost.scores(label, state)
            return (total, hints, state), total

        zeros = jnp.zeros(len(rows))
        return jnp.concatenate([zeros[None], jax.lax.scan(step, (zeros, hints, state), rows.T)[1]]).T

    return run


@pytest.mark.parametrize("seed", range(6))
def test_the_sums_are_those_of_the_definition(scores, seed):
    """Phrases over three labels, so that they begin and end within each other in all ways."""
    rng = np.random.default_rng(seed)
    phrases = [rng.integers(1, 4, rng.integers(1, 6)).tolist() for _ in range(seed * 2)]
    rows = rng.integers(1, 4, (40, 12))
    found = scores(phrase_boost(phrases, 4, reward=0.5), jnp.asarray(rows, jnp.int32))
    wanted = [[0.5 * defined(row[:n], phrases) for n in range(13)] for row in rows.tolist()]
    np.testing.assert_array_equal(found, wanted)  # multiples of 1/2


def test_what_is_no_phrase_is_paid_back(scores):
    boost = phrase_boost([[1, 2, 3, 1], [2, 3, 2]], 4, reward=1.0)
    rows = jnp.array([[1, 2, 3, 2, 1], [1, 2, 1, 1, 1]], jnp.int32)
    # 1 2 3 is on its way to the first phrase until 2 ends the second, of which "2" begins another; then all is paid.
    assert scores(boost, rows).tolist() == [[0, 1, 2, 3, 4, 4], [0, 1, 2, 1, 1, 1]]


@pytest.mark.parametrize("search", [Greedy(max_labels=4, max_symbols=1), ModifiedBeam(max_labels=4, beam=3)])
def test_a_search_is_led_to_a_phrase(search):
    heard = jnp.array([[[0.0, 2.0, 1.8], [2.0, 0.0, 0.0], [0.0, 2.0, 1.8]]])

    def best(phrases):
        boost = phrase_boost(phrases, 3, reward=0.5)
        return decode(search, transducer(), heard, jnp.ones((1, 3), bool), fusion=boost).tokens[0, 0, :2].tolist()

    assert best([[2, 1]])[0] == 2
    assert best([]) == decode(search, transducer(), heard, jnp.ones((1, 3), bool)).tokens[0, 0, :2].tolist()


def test_an_utterance_that_ends_within_a_phrase_pays_back():
    heard, mask = jnp.array([[[0.0, 2.0, 1.8]]]), jnp.ones((1, 1), bool)
    search, boost = ModifiedBeam(max_labels=4, beam=3), phrase_boost([[2, 1]], 3, reward=0.5)
    state = start(search, transducer(), 1, fusion=boost)
    state = decode_step(search, transducer(), heard, mask, state, fusion=boost)
    assert hypotheses(state).tokens[0, 0, 0] == 2  # 1 may follow
    over = decode(search, transducer(), heard, mask, fusion=boost)
    assert over.tokens[0, 0, 0] == 1
    np.testing.assert_allclose(over.scores, over.log_probs, rtol=1e-6)  # no phrase is whole
    whole = phrase_boost([[2]], 3, reward=0.5)
    assert decode(search, transducer(), heard, mask, fusion=whole).tokens[0, 0, 0] == 2


def test_many_phrases_are_a_small_automaton():
    rng = np.random.default_rng(0)
    phrases = [rng.integers(1, 200, 6).tolist() for _ in range(2000)]
    boost = phrase_boost(phrases, 200, reward=1.0)
    # Two tables of all nodes and labels would have 6 million.
    assert sum(leaf.size for leaf in jax.tree.leaves(boost)) < 1_200_000
    other = phrase_boost(phrases[:1950], 200, reward=2.0)
    assert jax.tree.map(jnp.shape, boost) == jax.tree.map(jnp.shape, other)  # one program


@pytest.mark.parametrize("wrong", [[[]], [[1, 0]], [[4]]])
def test_a_phrase_that_no_search_could_write_is_refused(wrong):
    with pytest.raises(ValueError, match=r"phrases: .* in 1 to 3"):
        phrase_boost([[1], *wrong], 4, reward=1.0)
    with pytest.raises(ValueError, match=r"reward: -1\.0"):
        phrase_boost([[1]], 4, reward=-1.0)
