import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.language import decode, hub
from models.language.decode import Sampling
from models.language.families import family_of

# Logits are of order 1 to 10; the same float32 sums over other shapes differ by some units in the last place, 1e-6.
REORDERED = 5e-5
ROWS = ([5, 9, 23, 40, 7, 31, 12], [44, 3], [60, 17, 8, 30])


@functools.cache
def loaded(golden, name):
    config, params = hub.load(golden / "families" / name)
    return family_of(config).model(config), jax.tree.map(jnp.asarray, params)


@functools.partial(jax.jit, static_argnums=0)
def whole(model, params, tokens, mask):
    return model.apply({"params": params}, tokens, mask)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def in_pieces(model, params, tokens, mask, cuts, slots):
    """Logits of the sequence fed to the cache piece by piece, a piece ending at each cut."""
    apply = functools.partial(model.apply, {"params": params})
    cache, out = apply(tokens.shape[0], slots, method="empty_cache"), []
    for a, b in zip((0, *cuts), (*cuts, tokens.shape[1]), strict=True):
        hidden, cache = apply(tokens[:, a:b], mask[:, a:b], cache, method="hidden")
        out.append(apply(hidden, method="logits"))
    return jnp.concatenate(out, axis=1)


# Qwen's window of 5, in one of two layers, is shorter than the rows.
@pytest.mark.parametrize("name", ["qwen2", "opt"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_cache_and_the_whole_forward_agree(golden, name, side):
    model, params = loaded(golden, name)
    rows = [[*row, *np.random.default_rng(len(row)).integers(3, 64, 4).tolist()] for row in ROWS]
    tokens, mask = decode.pad(rows, side=side)
    expected = np.asarray(whole(model, params, tokens, mask))
    pieces = np.asarray(in_pieces(model, params, tokens, mask, (6, 7), 14))
    np.testing.assert_allclose(pieces[np.asarray(mask)], expected[np.asarray(mask)], atol=REORDERED, rtol=0)


def test_logits_do_not_depend_on_padding_or_neighbours(golden):
    model, params = loaded(golden, "mistral")
    alone = [np.asarray(whole(model, params, *decode.pad([row], side="left")))[0] for row in ROWS]
    for side, length in (("left", 9), ("right", 12)):
        tokens, mask = decode.pad(ROWS, side=side, length=length)
        # What stands at padding must not matter either.
        tokens = jnp.where(mask, tokens, 63)
        together = np.asarray(whole(model, params, tokens, mask))
        for i, row in enumerate(alone):
            np.testing.assert_allclose(together[i][np.asarray(mask[i])], row, atol=REORDERED, rtol=0)


def by_hand(model, params, row, count, stop=(), choose=lambda logits, n: int(np.argmax(logits))):
    """One token after the other, the whole forward each time, on a row of fixed length."""
    row, new = list(row), []
    for n in range(count):
        logits = np.asarray(whole(model, params, *decode.pad([row], side="right", length=16)))[0, len(row) - 1]
        token = choose(logits, n)
        if token in stop:
            break
        row, new = [*row, token], [*new, token]
    return new


def listed(generated):
    return [row[:n].tolist() for row, n in zip(np.asarray(generated.tokens), np.asarray(generated.length), strict=True)]


@pytest.mark.parametrize("name", ["mistral", "opt"])
def test_greedy_decoding_is_the_argmax_of_the_whole_forward(golden, name):
    model, params = loaded(golden, name)
    expected = [by_hand(model, params, row, 6) for row in ROWS]
    for side, length in (("left", None), ("right", 9)):
        given = decode.pad(ROWS, side=side, length=length)
        assert listed(decode.generate(model, params, *given, max_new_tokens=6)) == expected


def test_a_row_ends_at_its_stop_token_and_not_before_the_others(golden):
    model, params = loaded(golden, "mistral")
    free = [by_hand(model, params, row, 6) for row in ROWS]
    # The third token of the first row and the first of the second: rows end at different steps, one at once.
    stop = (free[0][2], free[1][0])
    expected = [by_hand(model, params, row, 6, stop) for row in ROWS]
    assert sorted({len(row) for row in expected})[0] == 0
    assert len(expected[0]) <= 2
    out = decode.generate(model, params, *decode.pad(ROWS, side="left"), max_new_tokens=6, stop=stop)
    assert listed(out) == expected
    behind = np.arange(6) >= np.asarray(out.length)[:, None]
    assert (np.asarray(out.tokens)[behind] == 0).all()


def test_sampling_is_the_gumbel_maximum_of_the_key_of_row_and_step(golden):
    model, params = loaded(golden, "mistral")
    sampling, key = Sampling(temperature=0.7, top_p=0.8), jax.random.key(5)

    def choose(row):
        def at(logits, n):
            noise = jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, row), n), (64,))
            p = np.exp(logits.astype(np.float64) / 0.7)
            p /= p.sum()
            order = np.argsort(-p)
            kept = order[: 1 + int(np.sum(np.cumsum(p[order]) < 0.8))]
            masked = np.full(64, -np.inf)
            masked[kept] = logits[kept] / 0.7
            return int(np.argmax(masked + np.asarray(noise)))

        return at

    ids = [11, 4, 7]
    expected = [by_hand(model, params, row, 6, choose=choose(i)) for row, i in zip(ROWS, ids, strict=True)]
    options = dict(max_new_tokens=6, sampling=sampling, key=key)
    out = decode.generate(model, params, *decode.pad(ROWS, side="left"), ids=jnp.array(ids), **options)
    assert listed(out) == expected
    # The order of the rows, their padding and their number change nothing.
    fewer = decode.pad([ROWS[2], ROWS[0]], side="right", length=8)
    out = decode.generate(model, params, *fewer, ids=jnp.array([7, 11]), **options)
    assert listed(out) == [expected[2], expected[0]]
    assert expected != [by_hand(model, params, row, 6) for row in ROWS]


def test_samples_follow_the_distribution():
    logits = jnp.log(jnp.array([[0.5, 0.1, 0.28, 0.12]]))
    sampling = Sampling(temperature=0.5, top_p=0.9)
    kept = np.exp(np.asarray(sampling.kept(logits), np.float64))[0]
    # At temperature 1/2 probabilities are squared: .25, .01, .0784, .0144 over .3528 = .709, .028, .222, .041; the
    # first two come to .931 >= .9.
    np.testing.assert_allclose(kept / kept.sum(), [0.25 / 0.3284, 0, 0.0784 / 0.3284, 0], rtol=1e-5)


def test_top_p_keeps_the_likeliest_however_likely():
    assert np.isfinite(np.asarray(Sampling(top_p=1e-6).kept(jnp.array([[1.0, 3.0, 2.0]])))).tolist() == [
        [False, True, False]
    ]
    everything = Sampling(top_p=1.0).kept(jnp.array([[1.0, 3.0, -50.0]]))
    assert np.isfinite(np.asarray(everything)).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_candidates_by_float64_oracle(golden, side):
    model, params = loaded(golden, "llama3")
    prompts, answers = [[5, 9, 23], [5, 9, 23], [44, 3, 8, 61, 12]], [[40, 7], [31], [9, 9, 30]]
    rows = [p + a for p, a in zip(prompts, answers, strict=True)]
    tokens, mask = decode.pad(rows, side=side)
    candidate, _ = decode.pad([[0] * len(p) + [1] * len(a) for p, a in zip(prompts, answers, strict=True)], side=side)
    expected = []
    for row, prompt in zip(rows, prompts, strict=True):
        logits = np.asarray(whole(model, params, *decode.pad([row], side="right")), np.float64)[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected.append(np.mean([log_p[i - 1, row[i]] for i in range(len(prompt), len(row))]))
    out = jax.jit(decode.scores, static_argnums=0)(model, params, tokens, mask, candidate.astype(bool))
    np.testing.assert_allclose(out, expected, atol=REORDERED, rtol=0)


def test_what_has_no_context_or_no_candidate_scores_nan(golden):
    model, params = loaded(golden, "llama3")
    tokens, mask = decode.pad([[5, 9, 23], [8, 1]], side="left")
    candidate = jnp.array([[True, True, False], [False, False, False]])
    assert np.isnan(np.asarray(jax.jit(decode.scores, static_argnums=0)(model, params, tokens, mask, candidate))).all()
    log_p = np.asarray(jax.jit(decode.log_likelihoods, static_argnums=0)(model, params, tokens, mask))
    np.testing.assert_array_equal(np.isnan(log_p), [[True, False, False], [True, True, False]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_new_tokens=0), "max_new_tokens is 0; it must be positive"),
        (dict(max_new_tokens=1, sampling=Sampling()), "give both, or neither"),
        (dict(max_new_tokens=1, key=jax.random.key(0)), "give both, or neither"),
    ],
)
def test_bad_arguments_of_generate(golden, options, message):
    model, params = loaded(golden, "llama3")
    with pytest.raises(ValueError, match=message):
        decode.generate(model, params, *decode.pad([[1]], side="left"), **options)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"top_p is 1\.5; it must be in \(0, 1\]"):
        Sampling(top_p=1.5)
    with pytest.raises(ValueError, match=r"temperature is nan"):
        Sampling(temperature=float("nan"))
    with pytest.raises(ValueError, match="side is 'middle'"):
        decode.pad([[1]], side="middle")
    with pytest.raises(ValueError, match="rows have 0 to 2 tokens; each must have 1 to 2"):
        decode.pad([[1, 2], []], side="left")
    with pytest.raises(ValueError, match="rows have 1 to 3 tokens; each must have 1 to 2"):
        decode.pad([[1, 2, 3], [1]], side="left", length=2)


def test_a_cache_that_is_too_small_is_refused(golden):
    model, params = loaded(golden, "opt")
    tokens, mask = decode.pad([[1] * 30], side="left")
    with pytest.raises(ValueError, match="length 35; it must be at most max_position_embeddings = 32"):
        decode.generate(model, params, tokens, mask, max_new_tokens=6)
    with pytest.raises(ValueError, match="length 14; the cache has 8 slots"):
        in_pieces(model, params, tokens[:, :14], mask[:, :14], (), 8)
