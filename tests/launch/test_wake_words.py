"""Wake words end to end: tones with spans, a run on top of another one, its table, streams that say when."""

import copy
import dataclasses
import json
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest

from launch import eval as eval_program
from launch import transcribe as transcribe_program
from launch.common import schema
from launch.common.build import build
from launch.speech import recipe, recogniser, signals, wake_words
from models.transducer.task import TransducerTask
from models.transducer.wake_word_task import WakeWordTask
from tests.launch.test_signals import write_run
from tests.launch.test_speech import TONES, fields, write_tones  # noqa: F401 (a fixture)
from zojax.data.audio.units import CharacterUnits
from zojax.data.audio.waves import RATE
from zojax.trees import merge


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Tones, a word "B" among them in half of the utterances; `fields` reads this one here."""
    folder, rng = tmp_path_factory.mktemp("wake_tones"), np.random.default_rng(0)
    number = 0
    for split, count in (("train", 8), ("dev", 4), ("test", 4)):
        rows = ["path\ttext\tid"]
        for _ in range(count):
            first, last = ("".join(rng.choice(list(TONES), 2)) for _ in range(2))
            text = f"{first} {'B' if number % 2 else 'A'} {last}"
            write_tones(folder / f"{number}.wav", text, number)
            # The middle letter stands behind a rest, two letters and another rest, of 0.2 s each.
            spot = f"@{RATE // 5 * 4}-{RATE // 5 * 5}" if number % 2 else ""
            rows.append(f"{number}.wav\t{text}\t{number}{spot}")
            number += 1
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    (folder / "wake_words.txt").write_text("B\n\n")
    (folder / "catalogue.txt").write_text("\n".join(a + b for a in TONES for b in TONES) + "\n")
    return folder


def config_of(fields, **changes) -> Any:  # noqa: F811
    config: Any = ml_collections.ConfigDict(copy.deepcopy(fields))
    config.wake.update(changes)
    schema.check(config)
    return config


@pytest.fixture(scope="module")
def trained(fields, tmp_path_factory):  # noqa: F811
    """The folders of a run without phrases, and of one with dual attention on top of it; neither has taken a step."""
    folder = tmp_path_factory.mktemp("wake")
    base = copy.deepcopy(fields)
    base["train"] |= {"steps": 0, "eval_every": 0, "keep_best": "none"}
    base["speech"] |= {"speeds": (100,), "acoustic": 0.0}
    dual = copy.deepcopy(base) | {"trainable": ("^wake/",)}
    dual["model"]["weights"] = f"{folder / 'base'}:base"
    dual["wake"] |= {"attention": "dual"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOJAX_CACHE", str(tmp_path_factory.getbasetemp() / "zojax_cache"))
        write_run(base, folder / "base")
        run = build(config_of(dual), splits=("dev",))
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), run.params)
        write_run(dual, folder / "dual", params)
    return folder, run


@pytest.fixture(scope="module")
def found(trained):
    return recogniser.load(trained[0] / "dual", "base")


def test_batches_have_phrases_and_spans(fields):  # noqa: F811
    config = config_of(fields, attention="dual", catalogue=4)
    made = CharacterUnits(characters=" ABC")
    known = wake_words.phrases(wake_words.lists(config, "train"), made)
    assert known["wake"].tolist() == [[3]]
    assert known["catalogue"].shape == (9, 2)
    ids, texts = ["a@1600-3200", "b"], ["AA B AC", "CC A CB"]
    of = wake_words.beside(config, made, "train", ids, texts, recipe.filter_bank(config))
    whole = of(np.array([1, 0]), None)
    assert whole["spans"].tolist() == [[0, 0], [10, 20]]
    assert whole["phrases"]["catalogue"].tolist() == known["catalogue"].tolist()
    # Rows 0 and 2 are one utterance, at the speeds 95 and 100.
    steps = [of(np.array([0, 2, 3]), step) for step in range(200)]
    assert steps[0]["spans"].tolist() == [[11, 21], [10, 20], [0, 0]]
    again = of(np.array([0, 2, 3]), 7)
    np.testing.assert_array_equal(again["phrases"]["catalogue"], steps[7]["phrases"]["catalogue"])
    lists = [{tuple(row) for row in step["phrases"]["catalogue"].tolist()} for step in steps]
    assert {len(found) for found in lists} == {4}
    # Four phrases are said. A fifth of them stays out, and does not come back among the others by chance: 4 of 9 stand
    # in each list, those said more often than a list without them would have it.
    said = [tuple(made.encode(text)) for text in ("AA", "AC", "CC", "CB")]
    for phrase in said:
        assert 0.7 < np.mean([phrase in found for found in lists]) < 0.95
    others = [tuple(row) for row in known["catalogue"].tolist() if tuple(row) not in said]
    assert all(0.05 < np.mean([phrase in found for found in lists]) < 0.3 for phrase in others)
    none = wake_words.beside(config_of(fields), made, "train", ids, texts, recipe.filter_bank(config))
    assert none(np.array([0]), 0) == {}


def test_a_run_on_top_of_another_trains_the_attentions_alone(trained, found):
    folder, run = trained
    base = recogniser.load(folder / "base", "base")
    assert isinstance(found.task, WakeWordTask)
    assert found.params.keys() - base.params.keys() == {"wake"}
    for name, tree in base.params.items():
        for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(found.params[name]), strict=True):
            np.testing.assert_array_equal(one, other)
    assert [jax.tree.leaves(tree) != [] for tree in run.params.values()].count(True) == 1
    # Its batches fit its loss.
    batch = next(run.batches)
    gradient = jax.eval_shape(jax.grad(lambda p: run.task.loss(merge(p, run.frozen), batch)[0]), run.params)
    assert jax.tree.map(np.shape, gradient) == jax.tree.map(np.shape, run.params)
    assert wake_words.remembering(base.task, base.params, base.units, wake_words.Lists((), ())) is base.params


def test_the_table_judges_wake_words(trained, found, capsys):
    assert (
        eval_program.main(["eval", f"--workdir={trained[0] / 'dual'}", "--weights=base", "--split=dev", "--beam=0"])
        == 0
    )
    out = capsys.readouterr().out
    record = json.loads((trained[0] / "dual" / "recognised_dev_base.jsonl").read_text().splitlines()[0])
    assert "wake F1" in out
    assert "B-WER" in out
    assert out.count("attention: MFLOP a frame") == 1
    cost = wake_words.operations(found.task.wake, 1, 9)
    assert (record["flops_inside"], record["flops_outside"]) == (cost["inside"], cost["outside"])
    own = sum(x.size for name in ("small", "spotter") for x in jax.tree.leaves(found.params["wake"][name]))
    assert record["added"] == own < record["weights"]
    mean = record["inside"] * cost["inside"] + (1 - record["inside"]) * cost["outside"]
    assert record["flops"] == pytest.approx(mean)
    assert {"wake_f1", "spot_f1", "spot_f1_timed"} <= record.keys()


def hearing_always(found, sign):
    """The run, with a spotter that hears a wake word everywhere, or nowhere."""
    params = jax.tree.map(np.array, found.params)
    params["wake"]["spotter"]["out"]["linear"]["bias"] += sign * 1e3
    return found._replace(params=params)


def test_figures_of_the_spotter(found, corpus):
    batches = recipe.evaluation(found.config, found.units, "dev")
    # Two of four utterances have a wake word. One that is heard all the time is heard in all four utterances; its
    # middle is within a quarter of a second of the word's, which stands in the middle of the letters.
    values = wake_words.spotting(found.task, hearing_always(found, 1).params, batches, found.bank)
    assert values["spot_f1"] == pytest.approx(2 * 2 / (2 * 2 + 2))
    assert values["spot_f1_timed"] == pytest.approx(2 * 2 / (2 * 2 + 2))
    assert values["inside"] == 1
    values = wake_words.spotting(found.task, hearing_always(found, -1).params, batches, found.bank)
    assert (values["spot_f1"], values["spot_f1_timed"], values["inside"]) == (0, 0, 0)
    known = wake_words.lists(found.config, "dev")
    pairs = [("AA B CC", "AA B"), ("AA B CC", "AA"), ("AA A CC", "B"), ("AA A CC", "AB BA")]
    assert wake_words.figures(known, pairs)["wake_f1"] == pytest.approx(2 / (2 + 1 + 1))
    assert wake_words.figures(wake_words.Lists((), ()), pairs) == {}


def test_a_stream_says_when_it_has_heard_the_wake_word(found, tmp_path, capsys, monkeypatch):
    def heard(one, *flags) -> list[str]:
        monkeypatch.setattr(recogniser, "load", lambda *_: one)
        assert transcribe_program.main(["transcribe", "test:0", "--workdir=x", *flags]) == 0
        return capsys.readouterr().out.splitlines()

    known = wake_words.phrases(wake_words.lists(found.config, "test"), found.units)
    pcm, _ = transcribe_program.read(found, "test:0", signals.Array.parse((), microphones="", look="", missing=""))
    for sign, count in ((1, 1), (-1, 0)):
        one = hearing_always(found, sign)
        lines = heard(one, "--stream")
        # Three frames of 40 ms in a row are in the first piece, of 160 ms, whose last window ends 15 ms later.
        assert [line for line in lines if "(wake word)" in line] == ["\t0.32\t(wake word)"] * count
        led = one._replace(params=one.task.with_catalogue(one.params, known))
        assert lines[-2] == f"test:0\t{transcribe_program.transcribe(led, pcm)}"
    # Empty lists say nothing: what is recognised is what the run recognises that this one stands on.
    (tmp_path / "none.txt").write_text("\n")
    base = found._replace(task=without_attentions(found.task))
    files = [f"--{name}={tmp_path / 'none.txt'}" for name in ("wake_words", "bias")]
    assert heard(one, *files)[-1] == f"test:0\t{transcribe_program.transcribe(base, pcm)}"


def without_attentions(task):
    """The transducer itself."""
    return TransducerTask(**{field.name: getattr(task, field.name) for field in dataclasses.fields(TransducerTask)})


def test_wrong_phrases_are_refused(found, tmp_path, capsys, monkeypatch):
    (tmp_path / "new.txt").write_text("AB\nXY\n")
    base = found._replace(task=without_attentions(found.task))
    for one, flag, message in ((found, "bias", "character 'X'"), (base, "wake_words", "does not attend to any")):
        monkeypatch.setattr(recogniser, "load", lambda *_: one)  # noqa: B023
        arguments = ["transcribe", "test:0", "--workdir=x", f"--{flag}={tmp_path / 'new.txt'}"]
        assert transcribe_program.main(arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("wake", "attention", "both", "config.wake.attention is 'both'"),
        ("wake", "small", 0, "config.wake.small is 0"),
        ("integer", "accelerator", "tflite", "config.integer.accelerator is 'tflite'; with wake.attention"),
        ("model", "name", "bert_classifier", "config.model.name is 'bert_classifier'; with wake.attention"),
    ],
)
def test_refusals_name_the_field(fields, section, field, value, message):  # noqa: F811
    changed = copy.deepcopy(fields)
    changed["wake"]["attention"] = "dual"
    changed[section][field] = value
    with pytest.raises(ValueError, match=message):
        config_of(changed)
