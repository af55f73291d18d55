"""A record of every task as its publishers write it, and what it must become: worked out by hand from the papers."""

from typing import Any, NamedTuple

PASSAGE = "Tea -- Tea is a drink."


class Known(NamedTuple):
    """A record and what follows from it."""

    record: dict[str, Any]
    row: dict[str, Any]
    prompt: str
    candidates: tuple[str, ...]
    correct: tuple[int, ...]
    answered: str  # the end of the right demonstration


NLI = {"premise": "It rains.", "hypothesis": "It is wet."}
INFER = 'Suppose It rains. Can we infer that "It is wet."? Yes, No, or Maybe?\n'

KNOWN: dict[str, Known] = {
    "sst2": Known(
        {"sentence": "a fine film ", "label": "positive", "idx": 4},
        {"text": "a fine film ", "label": 1},
        "a fine film It was",
        ("terrible", "great"),
        (1,),
        " It was great",
    ),
    "rte": Known(
        {**NLI, "label": "not_entailment", "idx": 0},
        {**NLI, "label": 1},
        'It rains.\nDoes this mean that "It is wet." is true? Yes or No?\n',
        ("Yes", "No"),
        (1,),
        "Yes or No?\nNo",
    ),
    # SuperGLUE numbers contradiction 1 and neutral 2: Yes, No, Maybe in that order.
    "cb": Known({**NLI, "label": "contradiction"}, {**NLI, "label": 1}, INFER, ("Yes", "No", "Maybe"), (1,), "\nNo"),
    "boolq": Known(
        {"question": "is tea a drink", "passage": PASSAGE, "label": True, "idx": 1},
        {"question": "is tea a drink", "passage": PASSAGE, "label": 0},
        "Tea -- Tea is a drink. Is tea a drink?\n",
        ("Yes", "No"),
        (0,),
        "Is tea a drink?\nYes",
    ),
    "wsc": Known(
        {
            "text": "Ann told Bea that She won.",
            "target": {"span1_text": "Ann", "span1_index": 0, "span2_text": "She", "span2_index": 4},
            "label": True,
        },
        {"text": "Ann told Bea that She won.", "span1": "Ann", "span2": "She", "label": 1},
        'Ann told Bea that She won.\nIn the previous sentence, does the pronoun "she" refer to Ann? Yes or No?\n',
        ("No", "Yes"),
        (1,),
        "Yes or No?\nYes",
    ),
    "wic": Known(
        {
            "word": "place",
            "sentence1": "Do you want to come over to my place later?",
            "sentence2": "A political system with no place for the less prominent groups.",
            "start1": 31,
            "start2": 27,
            "end1": 36,
            "end2": 32,
            "version": 1.1,
            "label": False,
        },
        {
            "word": "place",
            "sentence1": "Do you want to come over to my place later?",
            "sentence2": "A political system with no place for the less prominent groups.",
            "label": 0,
        },
        'Does the word "place" have the same meaning in these two sentences? Yes, No?\n'
        "Do you want to come over to my place later?\n"
        "A political system with no place for the less prominent groups.\n",
        ("No", "Yes"),
        (0,),
        "groups.\nNo",
    ),
    "multirc": Known(
        {
            "passage": {
                "text": "Tea is hot.",
                "questions": [
                    {"question": "What is hot?", "answers": [{"text": "Tea", "idx": 0, "label": 1}], "idx": 0}
                ],
            }
        },
        {"paragraph": "Tea is hot.", "question": "What is hot?", "answer": "Tea", "label": 1},
        'Tea is hot.\nQuestion: What is hot?\nI found this answer "Tea". Is that correct? Yes or No?\n',
        ("No", "Yes"),
        (1,),
        "Yes or No?\nYes",
    ),
    "copa": Known(
        {
            "premise": "The man fell.",
            "choice1": "I pushed him.",
            "choice2": "He was Ill.",
            "question": "cause",
            "label": 1,
        },
        {
            "premise": "The man fell.",
            "choice1": "I pushed him.",
            "choice2": "He was Ill.",
            "question": "cause",
            "label": 1,
        },
        "The man fell because",
        ("I pushed him.", "he was Ill."),
        (1,),
        "The man fell because he was Ill.",
    ),
    "record": Known(
        {
            "passage": {
                "text": "Ann met Bea.\n@highlight\nThey spoke",
                "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}],
            },
            "qas": [
                {"query": "@placeholder greeted Ann.", "answers": [{"start": 8, "end": 10, "text": "Bea"}], "idx": 0}
            ],
        },
        {
            "passage": "Ann met Bea.\n@highlight\nThey spoke",
            "query": "@placeholder greeted Ann.",
            "entities": ["Ann", "Bea"],
            "answers": ["Bea"],
        },
        "Ann met Bea.\n- They spoke\n-",
        ("Ann greeted Ann.", "Bea greeted Ann."),
        (1,),
        "They spoke\n- Bea greeted Ann.",
    ),
    "squad": Known(
        {
            "id": "x1",
            "title": "Tea",
            "context": "Tea is hot.",
            "question": " What is hot? ",
            "answers": {"text": ["Tea", "tea", "Tea"], "answer_start": [0, 0, 0]},
        },
        {"title": "Tea", "context": "Tea is hot.", "question": " What is hot? ", "answers": ["Tea", "tea"]},
        "Title: Tea\nContext: Tea is hot.\nQuestion: What is hot?\nAnswer:",
        ("Tea",),
        (0,),
        "Answer: Tea",
    ),
    # As in TFDS; a number, a date and spans as in the official file stand in test_records.
    "drop": Known(
        {"passage": "Ann won 3-1.", "question": "Who won?", "answer": "Ann", "validated_answers": ["Ann", "Ann won"]},
        {"context": "Ann won 3-1.", "question": "Who won?", "answers": ["Ann", "Ann won"]},
        "Passage: Ann won 3-1.\nQuestion: Who won?\nAnswer:",
        ("Ann",),
        (0,),
        "Answer: Ann",
    ),
    "mnli": Known({**NLI, "label": "contradiction"}, {**NLI, "label": 2}, INFER, ("Yes", "Maybe", "No"), (2,), "\nNo"),
    "snli": Known(
        {"sentence1": "It rains.", "sentence2": "It is wet.", "gold_label": "neutral", "captionID": "1"},
        {**NLI, "label": 1},
        INFER,
        ("Yes", "Maybe", "No"),
        (1,),
        "\nMaybe",
    ),
    "qnli": Known(
        {"question": "What is hot?", "sentence": "Tea is hot.", "label": "entailment"},
        {"question": "What is hot?", "sentence": "Tea is hot.", "label": 0},
        'Tea is hot.\nDoes this answer the question "What is hot?" Yes or No?\n',
        ("Yes", "No"),
        (0,),
        "Yes or No?\nYes",
    ),
    "sst5": Known(
        {"text": "a fine film", "label": 3, "label_text": "positive"},
        {"text": "a fine film", "label": 3},
        "a fine film It was",
        ("terrible", "bad", "okay", "good", "great"),
        (3,),
        " It was good",
    ),
    "trec": Known(
        {"text": "Who wrote Emma ?", "label-coarse": "HUM", "label-fine": "HUM_ind"},
        {"text": "Who wrote Emma ?", "label": 3},
        "Question: Who wrote Emma ?\nType:",
        ("Description", "Entity", "Expression", "Human", "Location", "Number"),
        (3,),
        "Type: Human",
    ),
}

MASKED = {
    "sst2": ("a fine film It was <mask> .", ("terrible", "great")),
    "sst5": ("a fine film It was <mask> .", ("terrible", "bad", "okay", "good", "great")),
    "rte": ("It rains? <mask>, it is wet.", ("Yes", "No")),
    "cb": ("It rains? <mask>, it is wet.", ("Yes", "No", "Maybe")),
    "mnli": ("It rains? <mask>, it is wet.", ("Yes", "Maybe", "No")),
    "snli": ("It rains? <mask>, it is wet.", ("Yes", "Maybe", "No")),
    "qnli": ("What is hot? <mask>, tea is hot.", ("Yes", "No")),
    "trec": ("<mask>: Who wrote Emma ?", ("Description", "Entity", "Expression", "Human", "Location", "Number")),
}
