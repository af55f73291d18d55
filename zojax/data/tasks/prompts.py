"""The published prompts: how a row of each task is put to a language model, and which words answer it.

Sources: the causal prompts are those of MeZO's runs (arXiv:2305.17333), the masked ones and their words LM-BFF's
(arXiv:2012.15723), which MeZO's runs on RoBERTa use. Numbered differences, all ours:

1. MNLI, SNLI, QNLI, TREC and SST-5 have no published causal prompt; theirs are in the manner of CB, RTE and SST-2.
2. SQuAD rows without a title have no line for it.
3. Where LM-BFF cuts the last character off a first sentence, whatever it is, only punctuation is cut off.
4. CB's masked prompt is that of MNLI.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["CAUSAL", "MASK", "MASKED", "TASKS", "PromptedTask", "Row", "get_task"]

Row = Mapping[str, Any]

MASK = "<mask>"
"""Stands for the tokenizer's mask token in a masked prompt."""

KINDS = ("classification", "multiple_choice", "generation")
METRICS = ("accuracy", "f1", "exact_match")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedTask:
    """A task in the words of a prompt.

    Args:
      name: the name of the task.
      kind: "classification": the answer is one of a few words, and training is cross-entropy over the
        length-normalised log-likelihoods of all of them; "multiple_choice": the row brings its candidates, training
        is teacher-forced on the right one, and all are scored; "generation": training is teacher-forced, and answers
        are decoded greedily.
      metric: "accuracy", "f1" (of words) or "exact_match".
      prompt: row -> what stands before the answer.
      classes: names of the classes, in the order of the rows' `label`.
      words: the answer of each class.
      choices: row -> the answers to choose from, for rows that bring their own.
      separator: what stands between prompt and answer.
      end: what ends a generated answer.
      masked: row -> a text with `MASK` in it, for masked models; None if there is none.
      masked_words: the word of each class that is to stand there.

    Raises:
      ValueError: if kind or metric is unknown, or there is not a word for each class.

    Example:
      >>> task = get_task("sst2")
      >>> task.text({"text": "a fine film", "label": 1}, "great")
      'a fine film It was great'
      >>> task.masked({"text": "a fine film", "label": 1})
      'a fine film It was <mask> .'
    """

    name: str
    kind: str
    metric: str = "accuracy"
    prompt: Callable[[Row], str]
    classes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    choices: Callable[[Row], tuple[str, ...]] | None = None
    separator: str = ""
    end: str = ""
    masked: Callable[[Row], str] | None = None
    masked_words: tuple[str, ...] = ()

    def __post_init__(self):
        for name, right in (("kind", KINDS), ("metric", METRICS)):
            if getattr(self, name) not in right:
                raise ValueError(f"PromptedTask.{name} is {getattr(self, name)!r}; it must be one of {right}")
        sizes = {"words": self.kind == "classification", "masked_words": self.masked is not None}
        for name, needed in sizes.items():
            if needed and not len(getattr(self, name)) == len(self.classes) > 1:
                raise ValueError(
                    f"PromptedTask.{name} is {getattr(self, name)}; it must hold one word for each of "
                    f"classes={self.classes}, at least two"
                )
        if self.kind == "multiple_choice" and self.choices is None:
            raise ValueError("PromptedTask.choices is None; a multiple_choice task must have it")

    def candidates(self, row: Row) -> tuple[str, ...]:
        """The answers to choose from: the words of the classes, or the row's own; of a generation, the first right one.

        Args:
          row: a row of the task.

        Returns:
          The answers, without the separator.
        """
        if self.choices is not None:
            return self.choices(row)
        return self.words if self.kind == "classification" else tuple(row["answers"][:1])

    def correct(self, row: Row) -> tuple[int, ...]:
        """Which candidates are right, at least one.

        Args:
          row: a row of the task.

        Returns:
          Indices into `candidates(row)`.
        """
        if self.kind == "generation":
            return (0,)
        if "label" in row:
            return (row["label"],)
        return tuple(i for i, entity in enumerate(row["entities"]) if entity in row["answers"])

    def text(self, row: Row, candidate: str) -> str:
        """Prompt and answer.

        Args:
          row: a row of the task.
          candidate: one of its candidates.

        Returns:
          The whole text.
        """
        return f"{self.prompt(row)}{self.separator}{candidate}{self.end}"

    def demonstration(self, row: Row) -> str:
        """The row with its (first) right answer, as it is shown before a prompt.

        Args:
          row: a row of the task.

        Returns:
          The text, without blanks around it.
        """
        return self.text(row, self.candidates(row)[self.correct(row)[0]]).strip()


def _copa_prompt(row: Row) -> str:
    premise = row["premise"].rstrip().removesuffix(".")
    return f"{premise} {'so' if row['question'] == 'effect' else 'because'}"


def _copa_choices(row: Row) -> tuple[str, ...]:
    def lowered(choice: str) -> str:
        first, *rest = choice.split(" ")
        return " ".join([first if first == "I" else first.lower(), *rest])

    return lowered(row["choice1"]), lowered(row["choice2"])


def _boolq_prompt(row: Row) -> str:
    question = row["question"] if row["question"].endswith("?") else row["question"] + "?"
    return f"{row['passage']} {question[0].upper()}{question[1:]}\n"


def _wsc_prompt(row: Row) -> str:
    asked = f'In the previous sentence, does the pronoun "{row["span2"].lower()}" refer to {row["span1"]}? Yes or No?'
    return f"{row['text']}\n{asked}\n"


def _wic_prompt(row: Row) -> str:
    asked = f'Does the word "{row["word"]}" have the same meaning in these two sentences? Yes, No?'
    return f"{asked}\n{row['sentence1']}\n{row['sentence2']}\n"


def _multirc_prompt(row: Row) -> str:
    asked = f'I found this answer "{row["answer"]}". Is that correct? Yes or No?'
    return f"{row['paragraph']}\nQuestion: {row['question']}\n{asked}\n"


def _squad_prompt(row: Row) -> str:
    title = f"Title: {row['title']}\n" if row.get("title") else ""
    return f"{title}Context: {row['context']}\nQuestion: {row['question'].strip()}\nAnswer:"


def _infer_prompt(row: Row) -> str:
    asked = f'Can we infer that "{row["hypothesis"]}"? Yes, No, or Maybe?'
    return f"Suppose {row['premise']} {asked}\n"


def _rte_prompt(row: Row) -> str:
    return f'{row["premise"]}\nDoes this mean that "{row["hypothesis"]}" is true? Yes or No?\n'


def _sentiment(row: Row) -> str:
    return f"{row['text'].strip()} It was"


def _masked_sentiment(row: Row) -> str:
    return f"{row['text'].strip()} It was {MASK} ."


def _masked_pair(first: str, second: str) -> Callable[[Row], str]:
    def pattern(row: Row) -> str:
        one, two = row[first].strip(), row[second].strip()
        one = one[:-1] if one[-1] in ".?!,;:" else one
        return f"{one}? {MASK}, {two[0].lower()}{two[1:]}"

    return pattern


def _of_words(
    name: str,
    prompt: Callable[[Row], str],
    words: Mapping[str, str],
    *,
    separator: str = "",
    masked: Callable[[Row], str] | None = None,
) -> PromptedTask:
    """A classification task whose classes have the same words with and without a mask."""
    return PromptedTask(
        name=name,
        kind="classification",
        prompt=prompt,
        classes=tuple(words),
        words=tuple(words.values()),
        separator=separator,
        masked=masked,
        masked_words=() if masked is None else tuple(words.values()),
    )


_BOOLEAN = {"False": "No", "True": "Yes"}
_TWO_WAY = {"entailment": "Yes", "not_entailment": "No"}
_THREE_WAY = {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"}
_POLES = {"negative": "terrible", "positive": "great"}
_GRADES = {
    "very negative": "terrible",
    "negative": "bad",
    "neutral": "okay",
    "positive": "good",
    "very positive": "great",
}
_QUESTIONS = {
    "DESC": "Description",
    "ENTY": "Entity",
    "ABBR": "Expression",
    "HUM": "Human",
    "LOC": "Location",
    "NUM": "Number",
}
_CB_WAY = {name: _THREE_WAY[name] for name in ("entailment", "contradiction", "neutral")}
_PAIR = _masked_pair("premise", "hypothesis")

_ALL = (
    _of_words("sst2", _sentiment, _POLES, separator=" ", masked=_masked_sentiment),
    _of_words("rte", _rte_prompt, _TWO_WAY, masked=_PAIR),
    _of_words("cb", _infer_prompt, _CB_WAY, masked=_PAIR),
    _of_words("boolq", _boolq_prompt, {"True": "Yes", "False": "No"}),
    _of_words("wsc", _wsc_prompt, _BOOLEAN),
    _of_words("wic", _wic_prompt, _BOOLEAN),
    _of_words("multirc", _multirc_prompt, _BOOLEAN),
    PromptedTask(
        name="copa",
        kind="multiple_choice",
        prompt=_copa_prompt,
        classes=("choice1", "choice2"),
        choices=_copa_choices,
        separator=" ",
    ),
    PromptedTask(
        name="record",
        kind="multiple_choice",
        prompt=lambda row: row["passage"].replace("@highlight\n", "- ") + "\n-",
        choices=lambda row: tuple(row["query"].replace("@placeholder", entity) for entity in row["entities"]),
        separator=" ",
    ),
    PromptedTask(name="squad", kind="generation", metric="f1", prompt=_squad_prompt, separator=" ", end="\n"),
    PromptedTask(
        name="drop",
        kind="generation",
        metric="f1",
        prompt=lambda row: f"Passage: {row['context']}\nQuestion: {row['question'].strip()}\nAnswer:",
        separator=" ",
        end="\n",
    ),
    _of_words("mnli", _infer_prompt, _THREE_WAY, masked=_PAIR),
    _of_words("snli", _infer_prompt, _THREE_WAY, masked=_PAIR),
    _of_words(
        "qnli",
        lambda row: f'{row["sentence"]}\nDoes this answer the question "{row["question"]}" Yes or No?\n',
        _TWO_WAY,
        masked=_masked_pair("question", "sentence"),
    ),
    _of_words("sst5", _sentiment, _GRADES, separator=" ", masked=_masked_sentiment),
    _of_words(
        "trec",
        lambda row: f"Question: {row['text'].strip()}\nType:",
        _QUESTIONS,
        separator=" ",
        masked=lambda row: f"{MASK}: {row['text'].strip()}",
    ),
)

TASKS: dict[str, PromptedTask] = {task.name: task for task in _ALL}
"""Every task by its name."""

CAUSAL = tuple(TASKS)[:11]
"""The eleven tasks of MeZO's runs on causal models."""

MASKED = tuple(name for name, task in TASKS.items() if task.masked is not None)
"""The tasks that have a prompt for masked models."""


def get_task(name: str) -> PromptedTask:
    """A task by its name.

    Args:
      name: one of `TASKS`.

    Returns:
      The task.

    Raises:
      ValueError: if there is no such task.

    Example:
      >>> get_task("sst3")
      Traceback (most recent call last):
      ...
      ValueError: there is no task 'sst3'; the tasks are boolq, cb, copa, drop, ..., wic, wsc
    """
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; the tasks are {', '.join(sorted(TASKS))}")
    return TASKS[name]
