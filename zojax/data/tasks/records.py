"""From the records of a data set, in whichever of its published forms, to the rows of a task.

Labels go by the names of classes, never by numbers of unknown order: SuperGLUE counts CB's contradiction as 1, most
others as 2; GLUE counts RTE's entailment as 0, many files as 1. Integers are understood where the source says what
they mean (TFDS, Parquet), and in JSON lines by `INTEGERS`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from zojax.data.tasks.prompts import PromptedTask

__all__ = ["INTEGERS", "rows"]

Record = Mapping[str, Any]

INTEGERS: dict[str, tuple[str, ...]] = {
    "rte": ("not_entailment", "entailment"),
    "qnli": ("not_entailment", "entailment"),
    "cb": ("entailment", "neutral", "contradiction"),
    "boolq": ("False", "True"),
}
"""What integer labels of JSON lines mean, where it is not the order of the task's classes."""

_PAIR = {"premise": ("premise", "sentence1"), "hypothesis": ("hypothesis", "sentence2")}

# Fields of a row, each by the names it goes by.
_TEXTS: dict[str, dict[str, tuple[str, ...]]] = {
    "sst2": {"text": ("text", "sentence")},
    "sst5": {"text": ("text", "sentence")},
    "trec": {"text": ("text",)},
    "boolq": {"passage": ("passage",), "question": ("question",)},
    "qnli": {"question": ("question",), "sentence": ("sentence",)},
    "wsc": {"text": ("text",), "span1": ("span1_text",), "span2": ("span2_text",)},
    "wic": {"word": ("word",), "sentence1": ("sentence1",), "sentence2": ("sentence2",)},
    "multirc": {"paragraph": ("paragraph",), "question": ("question",), "answer": ("answer",)},
    "copa": {"premise": ("premise",), "choice1": ("choice1",), "choice2": ("choice2",), "question": ("question",)},
    "record": {"passage": ("passage",), "query": ("query",)},
    "squad": {"context": ("context",), "question": ("question",)},
    "drop": {"context": ("context", "passage"), "question": ("question",)},
    "rte": _PAIR,
    "cb": _PAIR,
    "mnli": _PAIR,
    "snli": _PAIR,
}

_LABELS: dict[str, tuple[str, ...]] = {
    "boolq": ("label", "answer"),
    "trec": ("label", "label-coarse", "coarse_label"),
    **dict.fromkeys(("mnli", "snli"), ("label", "gold_label")),
}


def rows(task: PromptedTask, record: Record) -> Iterator[dict[str, Any]]:
    """The rows that a record stands for: one, none (an example whose annotators did not agree), or many.

    Args:
      task: the task.
      record: plain Python values, flat or nested as the data set was published.

    Returns:
      Rows without `id`.

    Raises:
      ValueError: naming the field, if one is missing or not what it should be.

    Example:
      >>> from zojax.data.tasks.prompts import get_task
      >>> list(rows(get_task("cb"), {"premise": "It rains.", "hypothesis": "it is dry", "label": "contradiction"}))
      [{'premise': 'It rains.', 'hypothesis': 'it is dry', 'label': 1}]
    """
    for flat in _FLATTEN.get(task.name, _itself)(record):
        row: dict[str, Any] = {name: _text(flat, names) for name, names in _TEXTS[task.name].items()}
        if task.classes:
            label = _label(task, flat)
            if label is None:
                continue
            row["label"] = label
        if task.name == "copa" and row["question"] not in ("cause", "effect"):
            raise ValueError(f"field 'question' must be 'cause' or 'effect', got {row['question']!r}")
        if task.name == "squad" and flat.get("title"):
            row["title"] = _text(flat, ("title",))
        if task.name in ("squad", "drop"):
            row["answers"] = _answers(flat)
        if task.name == "record":
            entities = _strings(flat, "entities")
            # A candidate given twice would be scored twice.
            row |= {"entities": list(dict.fromkeys(entities)), "answers": _strings(flat, "answers")}
            if not set(row["answers"]) & set(entities):
                raise ValueError(f"field 'answers' names none of the entities: {row['answers']}")
        yield row


def _itself(record: Record) -> Iterator[Record]:
    yield record


def _wsc(record: Record) -> Iterator[Record]:
    yield {**record, **record.get("target", {})}


def _multirc(record: Record) -> Iterator[Record]:
    passage = record.get("passage")
    if passage is None:
        yield record
        return
    nested = passage if isinstance(passage, Mapping) else {"text": passage, "questions": record.get("questions")}
    for question in _list(nested, "questions"):
        for answer in _list(question, "answers"):
            yield {
                "paragraph": nested.get("text"),
                "question": question.get("question"),
                "answer": answer.get("text"),
                "label": bool(answer["label"]) if "label" in answer else None,
            }


def _record(record: Record) -> Iterator[Record]:
    passage = record.get("passage")
    if not isinstance(passage, Mapping):
        yield record
        return
    text = passage["text"]
    entities = [text[place["start"] : place["end"] + 1] for place in _list(passage, "entities")]
    for query in _list(record, "qas"):
        answers = [answer["text"] for answer in _list(query, "answers")]
        yield {"passage": text, "entities": entities, "query": query.get("query"), "answers": answers}


def _squad(record: Record) -> Iterator[Record]:
    if "paragraphs" not in record:
        yield record
        return
    for paragraph in _list(record, "paragraphs"):
        for question in _list(paragraph, "qas"):
            yield {"title": record.get("title"), "context": paragraph.get("context"), **question}


def _drop(record: Record) -> Iterator[Record]:
    if "qa_pairs" not in record:
        yield record
        return
    for question in _list(record, "qa_pairs"):
        yield {"passage": record.get("passage"), **question}


_FLATTEN: dict[str, Callable[[Record], Iterator[Record]]] = {
    "wsc": _wsc,
    "multirc": _multirc,
    "record": _record,
    "squad": _squad,
    "drop": _drop,
}


def _list(record: Record, name: str) -> list[Any]:
    value = record.get(name)
    if not isinstance(value, list):
        raise ValueError(f"field {name!r} must be a list, got {value!r}")
    return value


def _strings(record: Record, name: str) -> list[str]:
    values = _list(record, name)
    if not values or not all(isinstance(value, str) and value.strip() for value in values):
        raise ValueError(f"field {name!r} must be a list of texts, at least one, got {values!r}")
    return values


def _text(record: Record, names: tuple[str, ...]) -> str:
    found = [record[name] for name in names if name in record]
    if not found:
        raise ValueError(f"field {' or '.join(map(repr, names))} is missing; the record has {sorted(record)}")
    if not isinstance(found[0], str) or not found[0].strip():
        raise ValueError(f"field {names[0]!r} must be a string with something in it, got {found[0]!r}")
    return found[0]


def _answers(record: Record) -> list[str]:
    """Right answers, in whichever form: texts, {"text": texts} (SQuAD), spans, numbers and dates (DROP)."""
    value = record.get("answers", record.get("answers_spans", record.get("answer")))
    if isinstance(value, Mapping):
        value = value.get("text", value.get("spans")) if "number" not in value else [_drop_answer(value)]
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        value = [answer.get("text") for answer in value]
    value = [value] if isinstance(value, str) else value
    more = record.get("validated_answers", [])
    value = [*(value or []), *(_drop_answer(a) if isinstance(a, Mapping) else a for a in more)]
    return list(dict.fromkeys(_strings({"answers": [answer for answer in value if answer]}, "answers")))


def _drop_answer(answer: Record) -> str:
    """DROP's answers have a number, or a date, or spans; the others are empty."""
    if answer.get("spans"):
        return ", ".join(answer["spans"])
    date = answer.get("date") or {}
    return str(answer.get("number") or " ".join(date[part] for part in ("day", "month", "year") if date.get(part)))


def _label(task: PromptedTask, record: Record) -> int | None:
    """The class's index; None where annotators did not agree."""
    names = _LABELS.get(task.name, ("label",))
    # A label in words, which some files have beside a number, says more than the number.
    found = [record[name] for name in ("label_text", *names) if record.get(name) is not None]
    if not found:
        raise ValueError(f"field {' or '.join(map(repr, names))} is missing; the record has {sorted(record)}")
    value = found[0]
    if task.name in ("mnli", "snli") and value in ("-", "", -1):
        return None
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    named = value
    if isinstance(value, bool):
        named = str(value)
    elif isinstance(value, int):
        order = INTEGERS.get(task.name, task.classes)
        named = order[value] if 0 <= value < len(order) else value
    elif isinstance(value, str) and value.lower() in ("true", "false"):
        named = value.capitalize()
    elif isinstance(value, str) and value == "not entailment":
        named = "not_entailment"
    if named not in task.classes:
        raise ValueError(
            f"field 'label' must be one of {', '.join(task.classes)} or an integer in 0..{len(task.classes) - 1}, "
            f"got {value!r}"
        )
    return task.classes.index(named)
