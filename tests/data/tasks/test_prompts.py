import dataclasses

import pytest

from tests.data.tasks.examples import KNOWN, MASKED
from zojax.data.tasks import prompts
from zojax.data.tasks.prompts import TASKS, get_task


def test_every_task_has_a_known_prompt():
    assert set(KNOWN) == set(TASKS)
    assert set(MASKED) == set(prompts.MASKED)
    published = ("sst2", "rte", "cb", "boolq", "wsc", "wic", "multirc", "copa", "record", "squad", "drop")
    assert published == prompts.CAUSAL


@pytest.mark.parametrize("name", TASKS)
def test_the_prompt_of_a_row(name):
    task, known = TASKS[name], KNOWN[name]
    assert task.prompt(known.row) == known.prompt
    assert task.candidates(known.row) == known.candidates
    assert task.correct(known.row) == known.correct
    whole = task.demonstration(known.row)
    assert whole.startswith(known.prompt.rstrip("\n"))
    assert whole.endswith(known.answered)
    assert whole == whole.strip()


@pytest.mark.parametrize("name", MASKED)
def test_the_masked_prompt_of_a_row(name):
    pattern, words = MASKED[name]
    assert TASKS[name].masked(KNOWN[name].row) == pattern
    assert TASKS[name].masked_words == words


def test_what_the_published_prompts_do_in_special_cases():
    copa, boolq, squad = TASKS["copa"], TASKS["boolq"], TASKS["squad"]
    row = KNOWN["copa"].row
    assert copa.prompt({**row, "premise": "Why? ", "question": "effect"}) == "Why? so"
    assert boolq.prompt({"passage": "P.", "question": "is it?"}) == "P. Is it?\n"
    assert squad.prompt({"context": "C.", "question": "Q?"}) == "Context: C.\nQuestion: Q?\nAnswer:"
    assert squad.text({"context": "C.", "question": "Q?"}, "A").endswith("\nAnswer: A\n")
    # Only punctuation is cut off the first sentence.
    assert TASKS["rte"].masked({"premise": "it rains", "hypothesis": "Wet."}) == "it rains? <mask>, wet."


def test_of_several_right_entities_each_counts_and_the_first_is_shown():
    row = {"passage": "P", "query": "@placeholder.", "entities": ["a", "b", "c"], "answers": ["c", "b"]}
    assert TASKS["record"].correct(row) == (1, 2)
    assert TASKS["record"].demonstration(row) == "P\n- b."


def test_a_task_says_what_is_wrong_with_it():
    task = get_task("sst2")
    with pytest.raises(ValueError, match=r"PromptedTask\.kind is 'ranking'"):
        dataclasses.replace(task, kind="ranking")
    with pytest.raises(ValueError, match=r"PromptedTask\.metric is 'bleu'"):
        dataclasses.replace(task, metric="bleu")
    with pytest.raises(ValueError, match=r"PromptedTask\.words is"):
        dataclasses.replace(task, words=("bad",))
    with pytest.raises(ValueError, match=r"PromptedTask\.choices is None"):
        dataclasses.replace(task, kind="multiple_choice")
    with pytest.raises(ValueError, match="there is no task 'sst'; the tasks are boolq"):
        get_task("sst")
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.name = "x"  # pyright: ignore[reportAttributeAccessIssue]
