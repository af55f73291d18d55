"""Characters and sentence pieces: there and back, blank apart, faults named, files."""

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from zojax.data.audio.units import BLANK, CharacterUnits, PieceUnits, Units, load_units

TEXTS = ["turn the kitchen light on", "turn the bedroom light off", "call anna", "volume up", "set a timer"] * 5
CHARACTERS = CharacterUnits.of(TEXTS)
PIECES = PieceUnits.train(TEXTS, size=30)


@pytest.mark.parametrize("units", [CHARACTERS, PIECES])
def test_there_and_back(units):
    assert isinstance(units, Units)
    for text in [*TEXTS, "tell anna to call", ""]:
        labels = units.encode(text)
        assert labels.dtype == np.int32
        assert all(BLANK < label < units.size for label in labels)
        assert units.decode(labels) == text
        assert units.decode(labels.tolist()) == text


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1))
def test_any_text_has_characters(text):
    units = CharacterUnits.of([text])
    assert units.size == len(set(text)) + 1
    assert units.decode(units.encode(text)) == text


def test_known_labels():
    units = CharacterUnits(characters=" ab")
    np.testing.assert_array_equal(units.encode("ba a"), [3, 2, 1, 2], strict=False)
    processor = sentencepiece.SentencePieceProcessor(model_proto=PIECES.model)
    np.testing.assert_array_equal(PIECES.encode("call anna"), np.array(processor.encode("call anna")) + 1)
    assert PIECES.size == 31


@pytest.mark.parametrize(
    ("units", "text", "message"),
    [
        (CHARACTERS, "call Anna", r"character 'A' at 5 of 'call Anna' is none of ' abcd"),
        (PIECES, "call \u6771\u4eac", "character '\u6771' of 'call \u6771\u4eac' is in no piece"),
        (PIECES, "zoo", "character 'z' of 'zoo'"),
    ],
)
def test_a_character_without_a_label_is_named(units, text, message):
    with pytest.raises(ValueError, match=message):
        units.encode(text)


@pytest.mark.parametrize("units", [CHARACTERS, PIECES])
def test_a_label_out_of_range_is_named(units):
    for label in (BLANK, units.size, -1):
        with pytest.raises(ValueError, match=rf"label {label} is out of range: 1\.\.{units.size - 1} are"):
            units.decode([1, label])


@pytest.mark.parametrize(("units", "name"), [(CHARACTERS, "units.json"), (PIECES, "units.model")])
def test_files(tmp_path, units, name):
    units.save(tmp_path / name)
    assert load_units(tmp_path / name) == units
    with pytest.raises(ValueError, match="must end in"):
        units.save(tmp_path / "units.txt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "not JSON"),
        ("a.json", b"\xff", "not JSON"),
        ("a.json", b'["a"]', "expected"),
        ("a.json", b'{"characters": 3}', "expected"),
        ("a.json", b'{"characters": "aba"}', "'a' stands twice"),
        ("a.json", b'{"characters": ""}', "one or more is needed"),
        ("a.model", b"no model", "8 bytes that are no sentencepiece model"),
        ("a.txt", b"", r"must end in \.json or \.model"),
    ],
)
def test_files_that_are_no_units(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_units(tmp_path / name)


def test_training_is_deterministic_and_says_what_it_cannot():
    assert PieceUnits.train(iter(TEXTS), size=30).model == PIECES.model
    assert PieceUnits.train(TEXTS, size=30, kind="bpe").decode([20]) != ""
    with pytest.raises(ValueError, match="size: 9000 pieces cannot be made"):
        PieceUnits.train(TEXTS, size=9000)
    with pytest.raises(ValueError, match="kind: 'word'"):
        PieceUnits.train(TEXTS, size=30, kind="word")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_published_models(zojax_data, kind):
    units = load_units(zojax_data / "lm" / "sentencepiece" / f"librispeech_{kind}_1024.model")
    assert units.size == 1025
    assert units.decode(units.encode("HELLO THE WORLD")) == "HELLO THE WORLD"
    with pytest.raises(ValueError, match="character 'h' of 'hello'"):
        units.encode("hello")
