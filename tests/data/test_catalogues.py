"""Catalogues: phrases found in texts, lists as published, distractors, and arrays of lists of every kind."""

import re

import numpy as np
import pytest

from zojax.data.audio.names import Names, names
from zojax.data.audio.units import CharacterUnits, PieceUnits
from zojax.data.catalogues import Lexicon, alike, arrays, clean, read_lists, read_phrases

UNITS = CharacterUnits(characters=" abcdefghijklmnopqrstuvwxyz'é")


def test_phrases_are_cleaned_and_a_line_that_is_none_is_named(tmp_path):
    assert clean(["", "  ", "a"]) == ("a",)
    assert clean(["x" * 200]) == ("x" * 200,)
    with pytest.raises(ValueError, match=r"phrases, line 2: 201 characters; at most 200"):
        clean(["a", "x" * 201])
    with pytest.raises(ValueError, match="control characters"):
        clean(["a\x00b"])
    (tmp_path / "latin").write_bytes("josé".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_phrases(tmp_path / "latin")


def test_own_phrases_are_whole_words_the_longest_first():
    lexicon = Lexicon(phrases=("new", "new york", "york minster", "ann"))
    assert lexicon.own("new york minster") == ("new york",)
    assert lexicon.own("anna in new hats and new york") == ("new", "new york")
    assert Lexicon(phrases=()).own("anna") == ()


@pytest.mark.parametrize("count", [0, 3, 90, 98])
def test_distractors_are_distinct_others_and_the_same_again(count):
    lexicon = Lexicon(phrases=tuple(f"p{i}" for i in range(100)))
    drawn = lexicon.distractors(("p5", "p7"), count, seed=1, number=2)
    assert len(set(drawn)) == count
    assert not {"p5", "p7"} & set(drawn)
    assert drawn == lexicon.distractors(("p5", "p7"), count, seed=1, number=2)
    assert count == 0 or drawn != lexicon.distractors(("p5", "p7"), count, seed=1, number=3)
    with pytest.raises(ValueError, match="99 distractors of 100 phrases, 2 of them its own"):
        lexicon.distractors(("p5", "p7", "none"), 99, seed=1, number=2)


def test_what_sounds_alike_differs_by_few_letters():
    found = alike("marek novak", 60, seed=0, number=0)
    assert len(found) == len(set(found)) == 60
    distances = [sum(a != b for a, b in zip("marek novak", other, strict=True)) for other in found]
    assert distances == sorted(distances)
    assert set(distances) == {1, 2}
    assert alike("12", 5, seed=0, number=0) == ()
    assert all(len(other) == 2 and other[0].isupper() for other in alike("Bo", 9, seed=0, number=0))


def test_lists_of_every_kind_become_arrays():
    """2,000 phrases, none, one, the same ones in two lists, 200 characters, letters beyond ASCII."""
    many = [f"{a}{b}{c}" for a in "abcdefghijklm" for b in "abcdefghijklm" for c in "abcdefghijklm"][:2000]
    long = "x" * 200
    lists = [many, [], ["josé"], ["josé", many[0], long]]
    made = arrays(lists, UNITS)
    assert made["rows"].shape == (4, 2048)
    assert made["pieces"].shape == (2048, 200)
    spelled = [[UNITS.decode(made["pieces"][i][made["pieces"][i] > 0]) for i in row if i >= 0] for row in made["rows"]]
    assert spelled == lists
    heard = [
        [bytes((c - 1) for c in made["characters"][i] if c).decode() for i in row if i >= 0] for row in made["rows"]
    ]
    assert heard == lists
    # A label starts at its first byte: "évaé" has four labels and six bytes.
    assert arrays([["évaé"]], UNITS)["starts"][0, :5].tolist() == [0, 2, 3, 4, 0]
    units = PieceUnits.train(["anna bell", "bell anna", "anna", "bell"], size=11)
    for phrase in ("anna bell", "bell"):
        cut = arrays([[phrase]], units)
        labels, starts = (cut[name][0] for name in ("pieces", "starts"))
        ends = [*starts[1 : np.sum(labels > 0)], len(phrase)]
        for label, start, end in zip(labels, starts, ends, strict=False):
            assert phrase[start:end].strip() == units.decode([int(label)])
    assert arrays([[]], UNITS)["rows"].tolist() == [[-1]]
    with pytest.raises(ValueError, match=r"phrase 'søren': the model cannot write it: character 'ø'"):
        arrays([["anna", "søren"]], UNITS)


def test_meanings_are_made_once_for_each_phrase():
    asked = []

    def meaning(phrases):
        asked.extend(phrases)
        return np.array([[len(phrase), 1] for phrase in phrases], np.float32)

    units = np.ones((UNITS.size, 2), np.float32)
    made = arrays([["anna", "bo"], ["bo"]], UNITS, meaning=meaning, unit_meaning=units)
    assert asked == ["anna", "bo"]
    assert made["meaning"].tolist() == [[4, 1], [2, 1]]
    assert arrays([[]], UNITS, meaning=meaning, unit_meaning=units)["meaning"].tolist() == [[0, 0]]


def test_no_name_of_a_split_is_in_another():
    words = {split: {word for phrase in names(split) for word in phrase.split()} for split in ("train", "dev", "test")}
    shared = words["train"] & words["test"], words["train"] & words["dev"], words["dev"] & words["test"]
    # Adjectives alone.
    assert shared[0] == shared[1] == shared[2]
    assert len(shared[0]) == 21
    assert len(set(names("test"))) == len(names("test")) > 2000


def test_spoken_names_are_found_in_their_catalogue_and_voices_are_held_out():
    source = Names(seed=0, train=8, dev=4, test=8)
    said = {split: list(source.utterances(split)) for split in ("train", "test")}
    lexicon = Lexicon(phrases=names("test"))
    assert sum(bool(lexicon.own(one["text"])) for one in said["test"]) >= 5
    assert not any(Lexicon(phrases=names("train")).own(one["text"]) for one in said["test"])
    voices = {split: {re.sub(r".*\+", "", one["speaker"]) for one in found} for split, found in said.items()}
    assert not voices["train"] & voices["test"]
    assert all(len(one["samples"]) > 8000 for one in said["test"])
    again = list(Names(seed=0, train=8, dev=4, test=8).utterances("test"))
    assert all(np.array_equal(a["samples"], b["samples"]) for a, b in zip(said["test"], again, strict=True))
    assert source.fingerprint() != Names(seed=1, train=8, dev=4, test=8).fingerprint()


def test_pieces_write_names():
    units = PieceUnits.train([Names(seed=0)._text("train", i) for i in range(400)], size=100)
    assert arrays([names("test")[:50]], units)["pieces"].shape[0] == 64


@pytest.mark.parametrize("split", ["test-clean", "test-other"])
def test_published_lists_hold_what_the_lexicon_finds(zojax_data, split):
    folder = zojax_data / "lexicon" / "fbai_is21_deep_bias"
    if not folder.is_dir():
        pytest.skip(f"no optional data: {folder} does not exist")
    lists = read_lists(folder / "ref" / f"{split}.biasing_100.tsv")
    lexicon = Lexicon(phrases=read_phrases(folder / "words" / "all_rare_words.txt"))
    assert len(lists) == {"test-clean": 2620, "test-other": 2939}[split]
    for one in lists.values():
        assert set(one.own) <= set(one.phrases)
        assert 98 <= len(one.phrases) <= 100 + len(one.own)  # a distractor may be drawn again, or be its own
    common = frozenset(read_phrases(folder / "words" / "common_words_5k.txt"))
    for one in list(lists.values())[:300]:
        assert set(one.own) == set(one.text.split()) - common
        # Words that no training text has are rare, and in no lexicon.
        assert set(lexicon.own(one.text)) == set(one.own) & lexicon._known
