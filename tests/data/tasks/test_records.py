import pytest

from tests.data.tasks.examples import KNOWN, NLI
from zojax.data.tasks.prompts import TASKS
from zojax.data.tasks.records import rows


def only(name, record):
    (row,) = rows(TASKS[name], record)
    return row


@pytest.mark.parametrize("name", TASKS)
def test_a_published_record_becomes_its_row(name):
    assert only(name, KNOWN[name].record) == KNOWN[name].row


@pytest.mark.parametrize("name", TASKS)
def test_a_row_becomes_itself(name):
    row = KNOWN[name].row
    # Spans are called otherwise in files; labels are named, since integers have the meaning of JSON lines.
    record = {{"span1": "span1_text", "span2": "span2_text"}.get(key, key): value for key, value in row.items()}
    if "label" in row:
        record["label"] = TASKS[name].classes[row["label"]]
    assert only(name, record) == row


# The files of $ZOJAX_DATA: 1 is entailment in RTE and QNLI; neutral is 1 in CB and MNLI; 1 is true in BoolQ.
@pytest.mark.parametrize(
    ("name", "integer", "word"),
    [
        *[("rte", 1, "Yes"), ("rte", 0, "No"), ("cb", 1, "Maybe"), ("cb", 2, "No"), ("mnli", 1, "Maybe")],
        *[("mnli", 2, "No"), ("qnli", 1, "Yes"), ("boolq", 1, "Yes"), ("boolq", 0, "No"), ("sst2", 1, "great")],
        *[("wsc", 1, "Yes"), ("multirc", 0, "No"), ("sst5", 4, "great"), ("trec", 5, "Number")],
    ],
)
def test_integer_labels_mean_what_the_data_says(name, integer, word):
    record = {key: value for key, value in KNOWN[name].row.items() if key not in ("label", "span1", "span2")}
    record |= {"span1_text": "a", "span2_text": "b"}
    row = only(name, {**record, "label": integer})
    assert TASKS[name].words[row["label"]] == word
    assert only(name, {**record, "label": str(integer)}) == row


def test_a_label_in_words_outranks_its_number():
    assert only("rte", {**NLI, "label": 0, "label_text": "entailment"})["label"] == 0
    assert only("rte", {**NLI, "label": 1, "label_text": "not entailment"})["label"] == 1


def test_an_example_without_agreement_has_no_row():
    assert list(rows(TASKS["snli"], {**KNOWN["snli"].record, "gold_label": "-"})) == []
    assert list(rows(TASKS["mnli"], {**NLI, "label": -1})) == []


def test_nested_records_have_many_rows():
    record = {
        "passage": "P.",
        "questions": [
            {"question": "q1", "answers": [{"text": "a", "label": 0}, {"text": "b", "label": 1}]},
            {"question": "q2", "answers": [{"text": "c", "label": 1}]},
        ],
    }
    found = list(rows(TASKS["multirc"], record))
    assert [(row["question"], row["answer"], row["label"]) for row in found] == [
        ("q1", "a", 0),
        ("q1", "b", 1),
        ("q2", "c", 1),
    ]
    squad = {
        "title": "T",
        "paragraphs": [{"context": "C", "qas": [{"question": "q", "answers": [{"text": "a"}]}] * 2}] * 2,
    }
    assert len(list(rows(TASKS["squad"], squad))) == 4


def test_the_answers_of_drop():
    def answers(**fields):
        return only("drop", {"passage": "P", "question": "Q?", **fields})["answers"]

    nothing = {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": []}
    assert answers(answer={**nothing, "number": "3"}) == ["3"]
    assert answers(answer={**nothing, "spans": ["Ann", "Bea"]}) == ["Ann, Bea"]
    date = {"day": "8", "month": "May", "year": "1945"}
    assert answers(answer={**nothing, "date": date}, validated_answers=[{**nothing, "number": "4"}]) == [
        "8 May 1945",
        "4",
    ]
    assert answers(answers_spans={"spans": ["12", "12"], "types": ["number", "number"]}) == ["12"]
    nested = {"passage": "P", "qa_pairs": [{"question": "Q?", "answer": {**nothing, "number": "3"}}]}
    assert only("drop", nested)["answers"] == ["3"]


def test_entities_that_are_named_twice_are_one():
    row = {**KNOWN["record"].row, "entities": ["Ann", "Bea", "Ann"]}
    assert only("record", row)["entities"] == ["Ann", "Bea"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sst2", {"sentence": " "}, "field 'text' must be a string with something in it, got ' '"),
        ("sst2", {"sentence": 3}, "field 'text' must be a string"),
        (
            "sst2",
            {"label": "fine"},
            "field 'label' must be one of negative, positive or an integer in 0..1, got 'fine'",
        ),
        ("sst2", {"label": 2}, "got 2"),
        ("sst2", {"label": -1}, "got -1"),
        ("sst2", {"label": None}, "field 'label' is missing"),
        ("cb", {"premise": None}, "field 'premise' must be a string"),
        ("copa", {"question": "why"}, "field 'question' must be 'cause' or 'effect', got 'why'"),
        ("squad", {"answers": {"text": []}}, "field 'answers' must be a list of texts, at least one"),
        ("drop", {"answer": "", "validated_answers": []}, "field 'answers' must be a list"),
        ("record", {"qas": [{"query": "q @placeholder", "answers": [{"text": "Cid"}]}]}, "names none of the entities"),
        ("multirc", {"passage": {"text": "P"}}, "field 'questions' must be a list, got None"),
    ],
)
def test_a_faulty_record_names_its_field(name, change, message):
    with pytest.raises(ValueError, match="field") as error:
        list(rows(TASKS[name], {**KNOWN[name].record, **change}))
    assert message in str(error.value)
