"""Adapters to lists of phrases, end to end: training on a base, evaluation by list size, transcription."""

import copy
import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import soundfile

from configs import names_biasing, names_rnnt
from launch import eval as eval_program
from launch import train as train_program
from launch import transcribe as transcribe_program
from launch.common import cli, schema
from launch.common.build import build
from launch.speech import biasing, evaluate, recipe, recogniser, recognition
from launch.speech.shapes import shapes
from models.transducer.task import TransducerTask
from zojax.data.audio.units import CharacterUnits
from zojax.data.audio.waves import RATE
from zojax.data.catalogues import Lexicon, read_lists

WORDS = ("abba", "baab", "aa", "bb", "abab")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of tones: two letters, words of WORDS, half a second each."""
    folder, rng = tmp_path_factory.mktemp("biasing"), np.random.default_rng(0)
    number = 0
    for split, count in (("train", 8), ("dev", 2), ("test", 2)):
        rows = ["path\ttext"]
        for _ in range(count):
            text = f"{WORDS[number % 5]} {WORDS[(number + 2) % 5]}"
            pitch = np.repeat([{"a": 500, "b": 1700, " ": 0}[c] for c in text], RATE // 12)
            x = 0.3 * np.sin(2 * np.pi * pitch * np.arange(len(pitch)) / RATE) + 0.003 * rng.normal(size=len(pitch))
            soundfile.write(folder / f"{number}.wav", np.pad(x, (0, 16000 - len(x))).astype(np.float32), RATE)
            rows.append(f"{number}.wav\t{text}")
            number += 1
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    (folder / "phrases.txt").write_text("\n".join([*WORDS[:4], "aaa", "bbb", "ab", "ba", "a b"]) + "\n")
    return folder


@pytest.fixture(scope="module")
def fields(tiny, folder):
    fields = copy.deepcopy(tiny)
    fields["trainable"] = (".*",)
    fields["data"] |= {"source": str(folder), "batch_size": 4, "eval_batch_size": 4}
    fields["model"] |= {"name": "transducer", "source": "random", "head": "zero"}
    fields["method"]["name"] = "first_order"
    fields["speech"] |= {"bins": 8, "stack": 8, "width": 8, "layers": 1, "seconds": 30, "buckets": 1}
    fields["biasing"]["phrases"] = str(folder / "phrases.txt")
    fields["optimizer"] |= {"name": "adam", "learning_rate": 1e-2}
    fields["train"] |= {"steps": 0, "eval_every": 0, "checkpoint_every": 0, "keep_best": "none"}
    return fields


@pytest.fixture(scope="module")
def runs(fields, folder, tmp_path_factory):
    """The folders of a base of random weights, and of adapters on it."""
    adapted = copy.deepcopy(fields) | {"trainable": ("^biasing/",)}
    adapted["model"]["weights"] = str(folder / "base")
    adapted["biasing"] |= {"kind": "subword", "positions": True, "guidance": 0.3}
    adapted["train"]["steps"] = 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOJAX_CACHE", str(tmp_path_factory.getbasetemp() / "zojax_cache"))
        for name, own in (("base", fields), ("adapted", adapted)):
            config: Any = ml_collections.ConfigDict(own)
            schema.check(config)
            (folder / name).mkdir()
            schema.save(folder / name, config)
            recipe.save_units(config, folder / name)
            train_program.fit(config, build(config, splits=("dev",)), folder / name)
        yield folder / "base", folder / "adapted"


def test_only_adapters_are_trained_and_the_run_is_read_with_its_base(runs):
    base, adapted = (recogniser.load(run, "last") for run in runs)
    own = {name: leaf for name, leaf in adapted.params.items() if name != "biasing"}
    assert jax.tree.all(jax.tree.map(jnp.array_equal, own, base.params))
    assert np.any(adapted.params["biasing"]["heard"]["output"]["kernel"])
    batches = recipe.evaluation(adapted.config, adapted.units, "dev")
    assert batches[0]["catalogue"]["rows"].shape[0] == 4
    assert recognition.errors(adapted.task, adapted.params, batches, adapted.units).words == 4


def test_one_command_evaluates_by_list_size_and_an_empty_list_is_the_base(runs, capsys, monkeypatch):
    # Streams are compared below, by fewer programs.
    monkeypatch.setattr(evaluate, "can_stream", lambda found: False)
    base, adapted = runs
    arguments = [f"--workdir={adapted}", "--beam=0", "--sizes=0,3", "--distractors=alike"]
    assert eval_program.main(["eval", *arguments]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("U-WER", "B-WER", "greedy, 0 listed", "greedy, 3 listed"))
    records = [json.loads(line) for line in (adapted / "biased_test_last_alike.jsonl").read_text().splitlines()]
    assert [(one["size"], one["mode"]) for one in records] == [(0, "whole"), (3, "whole")]
    # Each of the split's four words is on its utterance's list, but for "abab", which no list has.
    assert records[0]["b_words"] + records[0]["u_words"] == records[0]["words"] == 4
    assert records[0]["b_words"] == 4 - sum(text.split().count("abab") for text in texts(adapted))
    assert records[1]["nats_per_label"] != records[0]["nats_per_label"]
    assert eval_program.main(["eval", f"--workdir={base}", "--beam=0", "--sizes=0"]) == 0
    plain = [json.loads(line) for line in (base / "biased_test_last.jsonl").read_text().splitlines()]
    assert plain[0]["nats_per_label"] == records[0]["nats_per_label"]
    heard = [json.loads((run / name).read_text().splitlines()[0])["greedy, 0 listed whole"] for run, name in (
        (base, "heard_test_last.jsonl"), (adapted, "heard_test_last_alike.jsonl"))]  # fmt: skip
    assert heard[0] == heard[1]


def texts(run):
    return recipe.texts(schema.load(run), "test")


def test_shallow_fusion_writes_what_is_listed(runs, folder, capsys):
    """A base that has learned nothing writes what it is paid for: the other order of its letters."""
    (folder / "one.txt").write_text("ab\n")
    wave = str(folder / "0.wav")
    arguments = [f"--workdir={runs[0]}", "--weights=last", f"--bias={folder / 'one.txt'}", "--boost=50"]
    assert transcribe_program.main(["t", wave, *arguments]) == 0
    whole = capsys.readouterr().out.split("\t")[1]
    assert whole.strip("\n ab") == ""
    assert whole.count("ab") > 3
    assert transcribe_program.main(["t", wave, *arguments, "--stream"]) == 0
    assert f"{wave}\t{whole.strip()}\n" in capsys.readouterr().out


def test_a_list_leads_the_adapters_of_a_file(runs, folder, capsys):
    run, wave = f"--workdir={runs[1]}", str(folder / "0.wav")
    found = recogniser.load(runs[1], "last")
    led = transcribe_program.biased(found, str(folder / "phrases.txt"), 0.0)
    assert led.params["memories"].heard.keys.shape[:2] == (1, 16 * 8)  # 9 phrases and 6 positions, filled up
    arguments = ["t", wave, run, "--weights=last", f"--bias={folder / 'phrases.txt'}"]
    assert transcribe_program.main(arguments) == 0
    whole = capsys.readouterr().out
    assert whole.startswith(f"{wave}\t")
    assert transcribe_program.main([*arguments, "--stream"]) == 0
    assert whole in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0", "--bias=phrases.txt"], "the run has no adapters to phrases; --boost=NATS is needed"),
        (["0", "--boost=1"], "--boost=1.0: --bias=FILE"),
        (["1", "--bias=strange.txt"], "phrase 'José': the model cannot write it: character 'J'"),
        (["1", "--bias=nosuch.txt"], "nosuch.txt"),
        (["1", "--bias=long.txt"], "line 1: 300 characters; at most 200"),
    ],
)
def test_a_wrong_list_is_refused_in_a_line(runs, folder, capsys, arguments, message):
    (folder / "strange.txt").write_text("aa\nJosé\n", encoding="utf-8")
    (folder / "long.txt").write_text("a" * 300)
    flags = [flag.replace("=", f"={folder}/") if flag.startswith("--bias") else flag for flag in arguments[1:]]
    code = transcribe_program.main(
        ["t", str(folder / "0.wav"), f"--workdir={runs[int(arguments[0])]}", "--weights=last", *flags]
    )
    assert code == cli.WRONG
    assert message in capsys.readouterr().err


def test_lists_to_train_on_are_functions_of_seed_and_step(fields):
    config = ml_collections.ConfigDict(copy.deepcopy(fields))
    config.biasing.kind = "subword"
    made = CharacterUnits(characters=" ab")

    def lists(seed=0):
        config.seed = seed
        return biasing.Lists(config, made, "train", ["abba baab", "aa", "a b", "bb"])

    one = lists().training([0, 1, 5], 7)
    assert one["rows"].shape[0] == 3
    assert all(np.array_equal(one[name], value) for name, value in lists().training([0, 1, 5], 7).items())
    assert not all(np.array_equal(one[name], value) for name, value in lists().training([0, 1, 5], 8).items())
    assert not all(np.array_equal(one[name], value) for name, value in lists(1).training([0, 1, 5], 7).items())
    # Number 5 of four utterances is the second at another speed.
    kept = [lists().training([5], step)["pieces"][0, :3].tolist() == [2, 2, 0] for step in range(200)]
    assert 120 < sum(kept) < 190  # four in five, and more where it comes first by chance


def test_adapters_write_with_the_units_of_their_base(fields, folder):
    config = ml_collections.ConfigDict(copy.deepcopy(fields))
    (folder / "other").mkdir()
    CharacterUnits(characters=" abc").save(folder / "other" / "units.json")
    config.model.weights, config.biasing.kind = str(folder / "other"), "subword"
    assert recipe.make_units(config) == CharacterUnits(characters=" abc")


def test_published_lists_are_found_by_what_is_said_in_whatever_case(fields, folder, tmp_path):
    config = ml_collections.ConfigDict(copy.deepcopy(fields))
    (tmp_path / "lists.tsv").write_text('1-1\tabba baab\t["baab"]\t["baab", "bab"]\n2-1\taa\t[]\t["bab"]\n')
    published = {one.text: one for one in read_lists(tmp_path / "lists.tsv").values()}
    made = CharacterUnits(characters=" AB")
    lists = biasing.Lists(config, made, "test", ["AA", "ABBA BAAB", "BB"], size=100, published=published)
    assert (lists.own(0), lists.own(1)) == ((), ("BAAB",))
    assert (lists.of(0), lists.of(1), lists.of(-1)) == (("BAB",), ("BAAB", "BAB"), ())
    with pytest.raises(ValueError, match="the published lists have none for 'BB'"):
        lists.of(2)


def test_an_evaluation_list_is_its_own_phrases_and_the_same_distractors_for_every_run():
    known = Lexicon(phrases=tuple(f"name{i}" for i in range(50)))
    assert biasing.list_of(("name3",), known, 0, "drawn", 5) == ()
    short, long = (biasing.list_of(("name3",), known, size, "drawn", 5) for size in (4, 40))
    assert short[0] == long[0] == "name3"
    assert len(set(short)) == 5
    assert len(set(long)) == 41
    similar = biasing.list_of(("name3",), known, 30, "alike", 5)
    assert len(set(similar)) == 31
    assert not set(similar[1:21]) & set(known.phrases)
    assert set(similar[21:]) <= set(known.phrases)


def test_meanings_are_those_of_the_text_encoder_each_read_once(tiny):
    meanings = biasing.Meanings(tiny["model"]["source"])
    found = meanings(["good film", "", "dull", "good film"])
    assert found.shape == (4, 8)
    np.testing.assert_array_equal(found[0], found[3])
    assert not found[1].any()
    # Alone, with other padding, and together: the same text.
    np.testing.assert_allclose(biasing.Meanings(tiny["model"]["source"])(["dull"])[0], found[2], rtol=1e-5)


@pytest.mark.parametrize("kind", ["subword", "acoustic", "semantic", "both"])
def test_the_configs_can_be_built(kind):
    config: Any = names_biasing.get_config(kind)
    config.biasing.source = "minilm"
    schema.check(config)
    made = shapes(config, seconds=3.0, labels=20)
    assert isinstance(made.task, TransducerTask)
    adapters = sum(leaf.size for leaf in jax.tree.leaves(made.params["biasing"]))
    base = shapes(names_rnnt.get_config(), seconds=3.0, labels=20).params
    assert {name for name in made.params if name != "biasing"} == set(base)
    # Adapters are a part of the model, not another one.
    assert adapters < 0.35 * sum(leaf.size for leaf in jax.tree.leaves(base))


def test_a_run_without_adapters_says_what_lists_need(runs, capsys):
    assert eval_program.main(["eval", f"--workdir={runs[0]}", "--sizes=5"]) == cli.WRONG
    assert "--boost=NATS is needed" in capsys.readouterr().err
    assert eval_program.main(["eval", f"--workdir={runs[0]}", "--sizes=a"]) == cli.WRONG
    assert "--sizes=a: integers" in capsys.readouterr().err
