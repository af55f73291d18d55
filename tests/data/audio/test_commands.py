"""The embedded corpus: its grammar, its voices, and that it is a function of the seed."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest

from zojax.data.audio.commands import ACCENTS, VARIANTS, Commands, number_words, sentences
from zojax.data.audio.espeak import _loader, accents, variants


def test_numbers():
    known = {0: "zero", 9: "nine", 13: "thirteen", 20: "twenty", 21: "twenty one", 99: "ninety nine"}
    assert {n: number_words(n) for n in known} == known
    assert len({number_words(n) for n in range(101)}) == 101
    for number in (-1, 101):
        with pytest.raises(ValueError, match=f"number: {number}; 0 to 100"):
            number_words(number)


def test_the_grammar_has_several_hundred_sentences_of_plain_words():
    made = sentences()
    assert len(set(made)) == len(made) > 400
    assert all(set(sentence) <= set("abcdefghijklmnopqrstuvwxyz ") for sentence in made)
    assert all(sentence == " ".join(sentence.split()) for sentence in made)
    assert {"turn the garden fan on", "call anna", "set the kitchen to twenty one degrees"} <= set(made)
    assert max(map(len, made)) <= 45


def test_voices_exist_and_are_held_out():
    assert set(ACCENTS) <= set(accents())
    assert set(itertools.chain(*VARIANTS.values())) <= set(variants())
    for one, other in itertools.combinations(VARIANTS, 2):
        assert not set(VARIANTS[one]) & set(VARIANTS[other])
    # and no two names stand for one timbre
    folder = Path(_loader().get_data_path()) / "voices" / "!v"

    def definition(name):
        lines = (folder / name).read_text(errors="replace").splitlines()
        return tuple(
            line.split("//")[0].strip() for line in lines if not line.startswith(("name", "language", "gender"))
        )

    names = list(itertools.chain(*VARIANTS.values()))
    assert len({definition(name) for name in names}) == len(names)


def take(source, split, count):
    return list(itertools.islice(source.utterances(split), count))


def digest(utterance):
    return hashlib.sha256(utterance["samples"].tobytes()).hexdigest(), utterance["text"], utterance["speaker"]


def test_an_utterance_is_a_function_of_seed_split_and_number():
    short, long = Commands(seed=3, train=4), Commands(seed=3, train=900)
    first = take(short, "train", 4)
    take(short, "dev", 2)
    again = take(long, "train", 4)
    assert [digest(u) for u in first] == [digest(u) for u in again]
    assert [u["id"] for u in first] == ["train-00000", "train-00001", "train-00002", "train-00003"]
    others = take(long, "dev", 2) + take(Commands(seed=4), "train", 4)
    assert len({digest(u) for u in first + others}) == 10
    # no split says the sentences of another in its order
    assert [u["text"] for u in others[:2]] != [u["text"] for u in first[:2]]
    # Golden: the words and voices of a corpus must not change (the sound is espeak-ng's).
    assert [(u["text"], u["speaker"]) for u in first[:2]] == [
        ("set the bathroom to nineteen degrees", "en-GB-x-rp+boris"),
        ("send a message to bob", "en-GB-x-rp+Alex"),
    ]


def test_speech_lies_in_noise_at_the_ratio_asked_for():
    source = Commands(seed=1, low_snr=20, high_snr=20)
    for utterance in take(source, "test", 6):
        x = utterance["samples"] / 32768
        assert utterance["samples"].dtype == np.int16
        assert 0.09 < np.abs(x).max() < 0.85  # -20 to -3 dB, and the noise
        assert utterance["text"] in sentences()
        assert utterance["speaker"].split("+")[1] in VARIANTS["test"]
        # 50 ms at least are noise alone, on both sides; its power is 20 dB under that of speech.
        noise = np.square(np.concatenate([x[:800], x[-800:]])).mean()
        ratio = 10 * np.log10(np.square(x[800:-800]).mean() / noise)
        # brown noise wanders in 50 ms; speech has louder and softer parts, but its power is over all of it
        assert 12 < ratio < 28


def test_fields_are_checked_and_name_the_corpus():
    for change, message in [
        ({"seed": -1}, "seed: -1"),
        ({"dev": 0}, "dev: 0 utterances"),
        ({"low_snr": 9, "high_snr": 8}, "low_snr, high_snr: 9 and 8 dB"),
    ]:
        with pytest.raises(ValueError, match=message):
            Commands(**({"seed": 0} | change))
    names = {Commands(**fields).fingerprint() for fields in ({"seed": 0}, {"seed": 1}, {"seed": 0, "test": 9})}
    assert len(names) == 3
    assert Commands(seed=0).fingerprint() in names
