"""From rows to token numbers: prompts, the answers to score, and where a masked word stands.

An answer's tokens are predicted at the columns before them, so its last token is never fed to the model. Answers of one
token after one prompt, the usual case of classification, then need one sequence between them, not one each: the score
is the same, and costs a forward instead of as many as there are classes.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Int32

from zojax.data.tasks.prompts import MASK, PromptedTask, Row
from zojax.data.tasks.tokenizer import PromptTokenizer, TextTokenizer

__all__ = ["SEPARATOR", "PromptExample", "encode", "encode_masked", "encode_prompts"]

SEPARATOR = "\n\n"
"""Between demonstrations, as published."""


class PromptExample(TypedDict):
    """A tokenised row.

    `sequences` are fed to the model: one that all answers share, or one an answer. Column t of them predicts what
    comes after t: the last len(a) columns predict the answer a; in a masked example the one column `at` does.
    """

    sequences: list[Int32[np.ndarray, "_"]]
    answers: list[Int32[np.ndarray, "_"]]
    at: list[Int32[np.ndarray, "_"]]
    correct: tuple[int, ...]
    id: int


def encode(
    task: PromptedTask,
    rows: Sequence[Row],
    tokenizer: PromptTokenizer,
    *,
    max_length: int,
    demonstrations: Sequence[Row] = (),
    train: bool = False,
) -> list[PromptExample]:
    """Tokenises prompts with their answers.

    A text is tokenised as a whole, since a tokenizer may join its parts; the answer begins at the first token in which
    the whole differs from the prompt alone (ours; the published code counts the prompt's tokens, which is the same
    unless the two are joined). Texts that are too long lose their beginning, as published, but not what the tokenizer
    puts there.

    Args:
      task: the task.
      rows: rows of it.
      tokenizer: the tokenizer.
      max_length: the most tokens that are fed to the model.
      demonstrations: rows that stand with their answers before every prompt.
      train: whether to leave out the wrong answers of a multiple_choice task, which training does not use.

    Returns:
      An example for each row.

    Raises:
      ValueError: if an answer leaves no room for a prompt.

    Example:
      >>> from zojax.data.tasks.prompts import get_task
      >>> class Letters:
      ...     def encode(self, text):
      ...         return [1, *map(ord, text)]
      >>> row = {"premise": "It fell.", "question": "cause", "choice1": "No", "choice2": "a", "label": 1, "id": 0}
      >>> example, = encode(get_task("copa"), [row], Letters(), max_length=5)
      >>> [bytes(sequence[1:].tolist()) for sequence in example["sequences"]], example["answers"][1].tolist()
      ([b'se n', b'use '], [32, 97])
    """
    context = _context(task, demonstrations)
    return [_encode_row(task, row, tokenizer, max_length, context, train) for row in rows]


def encode_prompts(
    task: PromptedTask,
    rows: Sequence[Row],
    tokenizer: PromptTokenizer,
    *,
    max_length: int,
    demonstrations: Sequence[Row] = (),
) -> list[PromptExample]:
    """Tokenises prompts alone, to be continued.

    Args:
      task: the task.
      rows: rows of it.
      tokenizer: the tokenizer.
      max_length: the most tokens of a prompt; longer ones lose their beginning.
      demonstrations: as for `encode`.

    Returns:
      An example with one sequence and an empty answer for each row.

    Raises:
      ValueError: if max_length leaves no room.

    Example:
      >>> from zojax.data.tasks.prompts import get_task
      >>> class Letters:
      ...     def encode(self, text):
      ...         return [1, *map(ord, text)]
      >>> row = {"context": "a", "question": "b", "answers": ["c"], "id": 0}
      >>> bytes(encode_prompts(get_task("squad"), [row], Letters(), max_length=8)[0]["sequences"][0].tolist())
      b'\\x01Answer:'
    """
    bos, context, out = tokenizer.encode(""), _context(task, demonstrations), []
    for row in rows:
        tokens = tokenizer.encode((context + task.prompt(row)).strip(" "))
        sequence = _cut(tokens, len(bos), max_length, 1, row)
        out.append(_example([sequence], [np.empty(0, np.int32)], (0,), row))
    return out


def encode_masked(
    task: PromptedTask, rows: Sequence[Row], tokenizer: TextTokenizer, *, max_length: int
) -> list[PromptExample]:
    """Tokenises masked prompts; the answers are the tokens of the task's masked words.

    Texts that are too long are cut at whichever end is farther from the mask (ours; the published code cuts the first
    sentence).

    Args:
      task: the task.
      rows: rows of it.
      tokenizer: a tokenizer with a mask token.
      max_length: the most tokens, special ones included.

    Returns:
      An example with one sequence for each row.

    Raises:
      ValueError: if the task has no masked prompt, the tokenizer no mask token, or a word is not one token.

    Example:
      >>> import tempfile, pathlib
      >>> from zojax.data.tasks.prompts import get_task
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     vocab = "[PAD] [UNK] [CLS] [SEP] [MASK] it was . terrible great film"
      ...     _ = pathlib.Path(folder, "vocab.txt").write_text(vocab.replace(" ", "\\n"))
      ...     tokenizer = TextTokenizer.from_folder(folder)
      >>> example, = encode_masked(get_task("sst2"), [{"text": "film", "label": 1, "id": 0}], tokenizer, max_length=9)
      >>> example["sequences"][0].tolist(), example["at"][0].tolist(), [a.tolist() for a in example["answers"]]
      ([2, 10, 5, 6, 4, 7, 3], [4], [[8], [9]])
    """
    if task.masked is None:
        raise ValueError(f"task {task.name!r} has no prompt for masked models")
    mask = tokenizer.mask_token
    if mask is None:
        raise ValueError(f"task {task.name!r}: the tokenizer has no mask token, and so no masked prompt")
    words = [tokenizer.encode_plain(f" {word}") for word in task.masked_words]
    for word, tokens in zip(task.masked_words, words, strict=True):
        if len(tokens) != 1:
            raise ValueError(f"task {task.name!r}: the word {word!r} is {len(tokens)} tokens; it must be one")
    empty, out = tokenizer.encode(""), []
    for row in rows:
        tokens = tokenizer.encode_plain(task.masked(row).replace(MASK, mask))
        at = tokens.index(tokenizer.encode_plain(mask)[0])
        room = max_length - len(empty)
        if room < 1:
            raise ValueError(f"max_length is {max_length}; it must be over {len(empty)} (the special tokens)")
        before = min(at, max(room - 1 - (len(tokens) - 1 - at), (room - 1) // 2))
        after = min(len(tokens) - 1 - at, room - 1 - before)
        # The special tokens of an empty text: one on each side, as BERT and RoBERTa have them.
        sequence = np.array([*empty[:1], *tokens[at - before : at + 1 + after], *empty[1:]], np.int32)
        answers = [np.array(word, np.int32) for word in words]
        example = _example([sequence], answers, task.correct(row), row)
        out.append({**example, "at": [np.array([len(empty[:1]) + before], np.int32)]})
    return out


def _context(task: PromptedTask, demonstrations: Sequence[Row]) -> str:
    return "".join(task.demonstration(row) + SEPARATOR for row in demonstrations)


def _encode_row(task, row, tokenizer, max_length: int, context: str, train: bool) -> PromptExample:
    candidates, correct = task.candidates(row), task.correct(row)
    if train and task.kind == "multiple_choice":
        candidates, correct = (candidates[correct[0]],), (0,)
    bos = tokenizer.encode("")
    prompt = tokenizer.encode((context + task.prompt(row)).strip(" "))
    sequences, answers = [], []
    for candidate in candidates:
        tokens = tokenizer.encode((context + task.text(row, candidate)).strip(" "))
        same = next((i for i, (a, b) in enumerate(zip(tokens, prompt, strict=False)) if a != b), len(prompt))
        begin = max(min(same, len(tokens) - 1), 1)
        answers.append(np.array(tokens[begin:], np.int32))
        sequences.append(_cut(tokens[:-1], len(bos), max_length, len(tokens) - begin, row))
    if all(np.array_equal(sequence, sequences[0]) for sequence in sequences):
        sequences = sequences[:1]
    return _example(sequences, answers, correct, row)


def _example(sequences, answers, correct, row: Row) -> PromptExample:
    if len(sequences) == len(answers):
        pairs = list(zip(sequences, answers, strict=True))
    else:
        pairs = [(sequences[0], answers[0])]
    at = [np.arange(len(sequence) - len(answer), len(sequence), dtype=np.int32) for sequence, answer in pairs]
    return {"sequences": sequences, "answers": answers, "at": at, "correct": correct, "id": row["id"]}


def _cut(tokens: list[int], front: int, max_length: int, needed: int, row: Row) -> Int32[np.ndarray, "_"]:
    """The end of a sequence, behind the first `front` tokens, which stay."""
    if len(tokens) > max_length:
        room = max_length - front
        if room < needed:
            raise ValueError(
                f"row {row['id']}: max_length is {max_length}; its answer alone needs {needed + front} tokens"
            )
        tokens = tokens[:front] + tokens[len(tokens) - room :]
    return np.array(tokens, np.int32)
