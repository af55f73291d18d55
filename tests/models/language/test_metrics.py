import pytest

from models.language.metrics import exact_match, normalize, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Eiffel Tower.", "eiffel tower"),
        ("  a  b\tthe\nc ", "b c"),
        ("theatre an-other AN", "theatre another"),  # articles are whole words, punctuation goes first
        ("«Élan» 1,000", "«élan» 1000"),  # ASCII punctuation only
        ("the", ""),
    ],
)
def test_normalisation(text, expected):
    assert normalize(text) == expected


def test_exact_match_takes_any_reference():
    assert exact_match("Denver Broncos!", ["Carolina Panthers", "the Denver broncos"]) == 1.0
    assert exact_match("Denver", ["Denver Broncos"]) == 0.0
    assert exact_match("the", [""]) == 1.0


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("in the year 1867", ["1867"], 2 * 1 / (3 + 1)),
        ("blue blue red", ["green blue blue"], 2 * 2 / 6),  # as often as in both
        ("blue", ["red"], 0.0),
        ("", ["red"], 0.0),
        ("", [""], 0.0),  # SQuAD 1.1's script: without a common word, 0
        ("x y", ["x", "x y z", "y w v"], 0.8),  # the best reference
    ],
)
def test_f1_by_hand(answer, references, expected):
    assert token_f1(answer, references) == pytest.approx(expected)


@pytest.mark.parametrize("references", [[], "red"])
def test_references_must_be_a_sequence_of_answers(references):
    with pytest.raises(ValueError, match="references is"):
        token_f1("red", references)
