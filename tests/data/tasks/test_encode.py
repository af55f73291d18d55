import json

import numpy as np
import pytest

from tests.data.tasks.examples import KNOWN
from zojax.data.tasks.encode import encode, encode_masked, encode_prompts
from zojax.data.tasks.prompts import TASKS, get_task
from zojax.data.tasks.tokenizer import TextTokenizer


class Letters:
    """A token a character, behind a token that begins a text."""

    def encode(self, text):
        return [1, *map(ord, text)]


class Words(Letters):
    """A token a word with the blank or line break before it: most answers are one token."""

    def encode(self, text):
        words = text.replace("\n", " \n").split(" ")
        return [1, *(2 + hash_of(word) for word in words)] if text else [1]


def hash_of(word):
    return int.from_bytes(word.encode()[:7].ljust(7), "big") % 1_000_003


def text_of(tokens):
    return "".join(map(chr, tokens))


@pytest.fixture(scope="module")
def gpt2(zojax_data):
    return TextTokenizer.from_folder(zojax_data / "lm" / "gpt2_tokenizer")


@pytest.mark.parametrize("name", TASKS)
def test_prompt_and_answer_are_the_published_text(name):
    task, row = TASKS[name], {**KNOWN[name].row, "id": 5}
    (example,) = encode(task, [row], Letters(), max_length=10_000)
    candidates = task.candidates(row)
    assert len(example["answers"]) == len(candidates)
    assert (example["correct"], example["id"]) == (KNOWN[name].correct, 5)
    sequences = example["sequences"] * (len(candidates) if len(example["sequences"]) == 1 else 1)
    for candidate, sequence, answer in zip(candidates, sequences, example["answers"], strict=True):
        whole = task.text(row, candidate)
        assert text_of([*sequence[1:], answer[-1]]) == whole
        # The answer begins where the prompt ends.
        assert text_of(answer) == whole[len(task.prompt(row)) :]


@pytest.mark.parametrize("name", TASKS)
def test_the_columns_before_an_answer_predict_it(name):
    task, row = TASKS[name], {**KNOWN[name].row, "id": 0}
    (example,) = encode(task, [row], Letters(), max_length=10_000)
    for k, sequence in enumerate(example["sequences"]):
        whole = [*sequence, example["answers"][k][-1]]
        assert [whole[t + 1] for t in example["at"][k]] == example["answers"][k].tolist()


def test_answers_of_one_token_share_their_sequence():
    row = {"text": "a fine film", "label": 1, "id": 0}
    (example,) = encode(get_task("sst2"), [row], Words(), max_length=99)
    assert [len(example[name]) for name in ("sequences", "answers", "at")] == [1, 2, 1]
    assert example["at"][0].tolist() == [5]
    # In letters "terrible" and "great" have a sequence each.
    (example,) = encode(get_task("sst2"), [row], Letters(), max_length=99)
    assert len(example["sequences"]) == 2


def test_with_gpt2_the_answers_are_those_of_its_vocabulary(gpt2):
    # Ids in OpenAI's encoder.json: "Ġterrible" 7818, "Ġgreat" 1049, "Yes" 5297, "No" 2949, "Maybe" 13300.
    known = {"sst2": [[7818], [1049]], "rte": [[5297], [2949]], "cb": [[5297], [2949], [13300]]}
    for name, answers in known.items():
        (example,) = encode(TASKS[name], [{**KNOWN[name].row, "id": 0}], gpt2, max_length=99)
        assert [answer.tolist() for answer in example["answers"]] == answers
        assert len(example["sequences"]) == 1
        assert gpt2.decode(example["sequences"][0].tolist()) == KNOWN[name].prompt
    (example,) = encode(TASKS["squad"], [{**KNOWN["squad"].row, "id": 0}], gpt2, max_length=99)
    assert gpt2.decode(example["answers"][0].tolist()) == " Tea\n"


def test_a_token_that_joins_prompt_and_answer_belongs_to_the_answer():
    class Joining(Letters):
        def encode(self, text):
            return [1, *map(ord, text.replace("s g", "$"))]

    row = {"text": "x", "label": 1, "id": 0}
    (example,) = encode(get_task("sst2"), [row], Joining(), max_length=99)
    assert [text_of(answer) for answer in example["answers"]] == [" terrible", "$reat"]


def test_a_long_text_loses_its_beginning_but_not_its_first_token():
    row = {"text": "0123456789", "label": 0, "id": 3}
    (example,) = encode(get_task("sst2"), [row], Letters(), max_length=13)
    assert example["sequences"][0].tolist()[0] == 1
    assert text_of(example["sequences"][0][1:]) == "was terribl".rjust(12)
    assert text_of(example["sequences"][1][1:]) == " It was grea"
    with pytest.raises(ValueError, match="row 3: max_length is 9; its answer alone needs 10 tokens"):
        encode(get_task("sst2"), [row], Letters(), max_length=9)
    (prompt,) = encode_prompts(TASKS["squad"], [{**KNOWN["squad"].row, "id": 0}], Letters(), max_length=8)
    assert prompt["sequences"][0].tolist() == [1, *map(ord, "Answer:")]


def test_demonstrations_stand_before_the_prompt():
    rows = [{"text": "a", "label": 0, "id": 0}, {"text": "b", "label": 1, "id": 1}]
    task = get_task("sst2")
    (example,) = encode(task, [{"text": "c", "label": 0, "id": 2}], Letters(), max_length=99, demonstrations=rows)
    whole = "a It was terrible\n\nb It was great\n\nc It was terrible"
    assert text_of([*example["sequences"][0][1:], example["answers"][0][-1]]) == whole
    (prompt,) = encode_prompts(
        TASKS["squad"],
        [{**KNOWN["squad"].row, "id": 0}],
        Letters(),
        max_length=999,
        demonstrations=[KNOWN["squad"].row],
    )
    shown = "Title: Tea\nContext: Tea is hot.\nQuestion: What is hot?\nAnswer:"
    assert text_of(prompt["sequences"][0][1:]) == f"{shown} Tea\n\n{shown}"


def test_training_on_a_choice_needs_the_right_one_alone():
    row = {**KNOWN["copa"].row, "id": 0}
    (example,) = encode(TASKS["copa"], [row], Letters(), max_length=99, train=True)
    assert [text_of(answer) for answer in example["answers"]] == [" he was Ill."]
    assert example["correct"] == (0,)
    (example,) = encode(TASKS["sst2"], [{"text": "a", "label": 1, "id": 0}], Letters(), max_length=99, train=True)
    assert len(example["answers"]) == 2


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A byte-level tokenizer in RoBERTa's files: letters, and a few merges."""
    folder = tmp_path_factory.mktemp("roberta")
    letters = "Ġ abcdefghijklmnopqrstuvwxyzINY.?:,".replace(" ", "")
    words = ["great", "terrible", "Yes", "No"]
    merges, vocab = [], ["<s>", "<pad>", "</s>", "<unk>", *letters]
    for word in words:
        piece = "Ġ"
        for letter in word:
            if f"{piece} {letter}" not in merges:
                merges.append(f"{piece} {letter}")
            piece += letter
            if piece not in vocab:
                vocab.append(piece)
    vocab.append("<mask>")
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    return TextTokenizer.from_folder(folder)


def test_a_masked_prompt_has_one_mask_and_words_of_one_token(roberta):
    rows = [{"text": "a film", "label": 1, "id": 0}]
    (example,) = encode_masked(TASKS["sst2"], rows, roberta, max_length=40)
    tokens = example["sequences"][0].tolist()
    assert roberta.fast.decode(tokens, skip_special_tokens=False) == "<s>a film It was<mask> .</s>"
    assert tokens[example["at"][0][0]] == roberta.fast.token_to_id("<mask>")
    assert [roberta.decode(answer.tolist()) for answer in example["answers"]] == [" terrible", " great"]


@pytest.mark.parametrize("length", range(3, 30))
def test_a_long_masked_prompt_keeps_what_is_near_the_mask(roberta, length):
    row = {"premise": "abcdefgh", "hypothesis": "ijklmn", "label": 0, "id": 0}
    (whole,) = encode_masked(TASKS["rte"], [row], roberta, max_length=100)
    (cut,) = encode_masked(TASKS["rte"], [row], roberta, max_length=length)
    tokens, at = cut["sequences"][0].tolist(), cut["at"][0][0]
    full = whole["sequences"][0].tolist()
    assert len(tokens) == min(length, len(full))
    assert (tokens[0], tokens[-1]) == (full[0], full[-1])
    assert tokens[at] == full[whole["at"][0][0]]
    # What stays is a stretch of the text.
    begin = whole["at"][0][0] - at + 1
    assert tokens[1:-1] == full[begin : begin + len(tokens) - 2]
    assert abs((at - 1) - (len(tokens) - 2 - at)) <= max(1, abs(2 * whole["at"][0][0] - len(full)))


def test_what_a_masked_prompt_needs(roberta, gpt2):
    row = {"text": "a", "label": 0, "id": 0}
    with pytest.raises(ValueError, match="'boolq' has no prompt for masked models"):
        encode_masked(TASKS["boolq"], [row], roberta, max_length=40)
    with pytest.raises(ValueError, match="'sst2': the tokenizer has no mask token"):
        encode_masked(TASKS["sst2"], [row], gpt2, max_length=40)
    with pytest.raises(ValueError, match="'sst5': the word 'bad' is 4 tokens; it must be one"):
        encode_masked(TASKS["sst5"], [row], roberta, max_length=40)
    with pytest.raises(ValueError, match="max_length is 2; it must be over 2"):
        encode_masked(TASKS["sst2"], [row], roberta, max_length=2)


def test_where_a_tokenizer_comes_from(tmp_path, roberta, gpt2):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json, vocab.json with merges.txt, or vocab.txt"):
        TextTokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ValueError, match="are no byte-pair encoding"):
        TextTokenizer.from_folder(tmp_path)
    # GPT-2 puts nothing around a text; RoBERTa does. 15496 is "Hello", 995 "Ġworld".
    assert gpt2.encode("Hello world") == [15496, 995]
    assert roberta.encode("")[0] == roberta.fast.token_to_id("<s>")
    assert np.array_equal(roberta.encode_plain(""), [])
