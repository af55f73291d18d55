"""Wake words in running speech: what is said, by whom, and that the spans are where the words are."""

import itertools

import numpy as np
import pytest

from zojax.data.audio import wake
from zojax.data.audio.commands import VARIANTS
from zojax.data.audio.wake import WakeWords, names, span, wake_words


def take(source, split, count):
    return list(itertools.islice(source.utterances(split), count))


@pytest.fixture(scope="module")
def spoken():
    return take(WakeWords(seed=5, low_snr=60, high_snr=60), "train", 24)


def test_a_span_stands_where_the_text_has_a_wake_word(spoken):
    for one in spoken:
        said = any(f" {word} " in f" {one['text']} " for word in wake_words("train"))
        assert (span(one["id"]) is not None) == said
    shares = np.mean([span(one["id"]) is not None for one in spoken])
    assert 0.4 < shares < 0.8  # three of five; 24 draws have a standard deviation of 0.1


def test_a_span_is_the_word_to_the_sample(spoken):
    found = [(one["samples"].astype(np.float64), span(one["id"])) for one in spoken]
    for x, at in ((x, at) for x, at in found if at is not None):
        start, end = at
        quiet = wake._SILENCE / 2 * np.abs(x).max()
        # 40 ms of pause or more stand before and behind, with noise at -60 dB alone; the word begins and ends loud.
        assert np.abs(np.concatenate([x[start - 600 : start], x[end : end + 600]])).max() < quiet
        assert min(abs(x[start]), abs(x[end - 1])) > 0
        assert np.abs(x[start : start + 800]).max() > quiet < np.abs(x[end - 800 : end]).max()
        assert 0.2 < (end - start) / 16000 < 1.2


def test_similar_words_are_said_where_no_wake_word_is():
    source = WakeWords(seed=0, train=80)
    texts = [one["text"] for one in take(source, "train", 80) if span(one["id"]) is None]
    similar = [text for text in texts if any(f" {s} " in f" {text} " for s in itertools.chain(*wake.SIMILAR.values()))]
    assert 0.2 < len(similar) / len(texts) < 0.8  # half of them


def test_voices_names_and_words_are_held_out():
    source = WakeWords(seed=0)
    for one, other in itertools.combinations(source.splits, 2):
        assert not set(names(one)) & set(names(other))
    assert not set(wake_words("unseen")) & set(wake_words("train"))
    for split, voices in (("dev", "dev"), ("test", "test"), ("unseen", "test")):
        for one in take(source, split, 3):
            assert one["speaker"].split("+")[1] in VARIANTS[voices]
    said = set(" ".join(one["text"] for one in take(source, "unseen", 3)).split())
    assert said & set(names("unseen"))
    # Golden: a catalogue must not change.
    assert names("train")[:3] == ("drotril", "mizal", "kezistis")
    assert [len(set(names(split))) for split in source.splits] == [600, 100, 300, 100]


def test_an_utterance_is_a_function_of_seed_split_and_number():
    first = take(WakeWords(seed=3), "test", 3)
    again = take(WakeWords(seed=3, test=9, train=1), "test", 3)
    for a, b in zip(first, again, strict=True):
        assert (a["id"], a["text"], a["samples"].tobytes()) == (b["id"], b["text"], b["samples"].tobytes())
    others = take(WakeWords(seed=4), "test", 3) + take(WakeWords(seed=3), "dev", 3)
    assert len({one["samples"].tobytes() for one in first + others}) == 9


def test_fields_are_checked_and_name_the_corpus():
    for change, message in [
        ({"seed": -1}, "seed: -1"),
        ({"unseen": 0}, "unseen: 0 utterances"),
        ({"low_snr": 9, "high_snr": 8}, "low_snr, high_snr: 9 and 8 dB"),
    ]:
        with pytest.raises(ValueError, match=message):
            WakeWords(**({"seed": 0} | change))
    prints = {WakeWords(**fields).fingerprint() for fields in ({"seed": 0}, {"seed": 1}, {"seed": 0, "dev": 9})}
    assert len(prints) == 3


@pytest.mark.parametrize(("name", "want"), [("a@0-5", (0, 5)), ("a", None), ("a@5", None), ("a@1-2b", None)])
def test_spans_are_read_from_names(name, want):
    assert span(name) == want
