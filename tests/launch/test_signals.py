"""Several signals end to end: tones in rooms, a fusion before the encoder, streams, missing signals, steering."""

import copy
import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import soundfile

from configs import an4_fusion, commands_fusion
from launch import compare_speech
from launch import eval as eval_program
from launch import transcribe as transcribe_program
from launch.common import schema
from launch.common.build import build
from launch.speech import evaluate, recipe, recogniser, recognition, signals, streams
from models.transducer.sizes import abstract
from tests.launch.test_speech import TONES, fields, write_tones  # noqa: F401 (a fixture)
from zojax.data.audio import prepared
from zojax.data.audio.features import log_mel
from zojax.data.audio.scenes import InRooms, separate
from zojax.data.audio.waves import RATE
from zojax.train import checkpoint

WAYS = {"beam": ((0,), "none"), "cnn": ((0, 1, 2), "cnn"), "average": ((0, 1, 2), "average")}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A few tones of one length, so that all batches have one shape; `fields` reads this one here."""
    folder, rng = tmp_path_factory.mktemp("few_tones"), np.random.default_rng(0)
    number = 0
    for split, count in (("train", 8), ("dev", 6), ("test", 2)):
        rows = ["path\ttext"]
        for _ in range(count):
            one, two, three = rng.choice(list(TONES), 3)
            text = f"{one}{two} {three}"
            write_tones(folder / f"{number}.wav", text, number)
            rows.append(f"{number}.wav\t{text}")
            number += 1
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return folder


# Nats by which the blank is likelier than random weights say: each utterance has labels, and there is room for them.
QUIET = 1.6


def of_way(fields, way) -> Any:  # noqa: F811
    found = copy.deepcopy(fields)
    found["speech"] |= {"speeds": (100,), "fusion_width": 4, "wrong": 0.5}
    found["speech"]["signals"], found["speech"]["fusion"] = WAYS[way]
    found["train"] |= {"steps": 0, "eval_every": 0, "keep_best": "none"}
    return found


def config_of(found, **changes) -> Any:
    config: Any = ml_collections.ConfigDict(copy.deepcopy(found))
    config.speech.update(changes)
    schema.check(config)
    return config


@pytest.fixture(scope="module", autouse=True)
def of_module(tmp_path_factory):
    """Prepared data sets stay out of the user's cache, for the fixtures of this module too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOJAX_CACHE", str(tmp_path_factory.getbasetemp() / "zojax_cache"))
        yield


def write_run(fields, folder, params=None):  # noqa: F811
    """The folder of a run without a step, and its weights: those given, or new ones with a likelier blank."""
    config: Any = ml_collections.ConfigDict(copy.deepcopy(fields))
    schema.check(config)
    folder.mkdir()
    schema.save(folder, config)
    recipe.save_units(config, folder)
    if params is None:
        params = build(config, splits=("dev",)).params
        bias = params["joiner"]["output"]["bias"]
        params["joiner"]["output"]["bias"] = bias.at[0].add(QUIET)
    checkpoint.save(folder / "base", params, {"step": 0})
    return folder, params


@pytest.fixture(scope="module")
def trained(fields, tmp_path_factory):  # noqa: F811
    """The folder of a run that fuses three signals by a CNN, before its first step."""
    return write_run(of_way(fields, "cnn"), tmp_path_factory.mktemp("signals") / "cnn")[0]


@pytest.fixture(scope="module")
def found(trained):
    return recogniser.load(trained, "last")


def test_a_batch_holds_the_signals_of_the_scenes(fields):  # noqa: F811
    config = config_of(of_way(fields, "cnn"))
    made = recipe.make_units(config)
    batch = recipe.evaluation(config, made, "dev")[0]
    assert batch["pcm"].ndim == 3
    assert batch["pcm"].shape[2] == 3
    source: Any = recipe.source(config)
    assert isinstance(source, InRooms)
    dry = list(source.source.utterances("dev"))
    rooms = prepared.load(source, "dev")
    for row, number in enumerate(batch["id"]):
        if number >= 0:
            want = separate(rooms[int(number)]["samples"])
            assert len(want) == len(dry[number]["samples"])
            np.testing.assert_array_equal(batch["pcm"][row, : len(want)], want)
    # One signal alone is heard as an utterance without rooms is.
    alone = recipe.evaluation(config_of(of_way(fields, "beam")), made, "dev")[0]
    np.testing.assert_array_equal(alone["pcm"], batch["pcm"][..., 0])
    assert recipe.steering(config, "dev") == [source.scene(one["id"]).right for one in rooms]
    assert recipe.steering(config_of(fields), "dev") == []


def test_features_of_each_signal_and_which_are_there(fields):  # noqa: F811
    config = config_of(of_way(fields, "cnn"))
    bank = recipe.filter_bank(config)
    pcm = np.random.default_rng(0).integers(-900, 900, (2, 2000, 3)).astype(np.int16)
    pcm[1, :, 1] = 77  # a microphone that says one thing is not there
    x = np.asarray(jax.jit(signals.front_end(config, bank))(pcm))
    features, present = x[..., :-3].reshape(2, -1, bank.bins, 3), x[..., -3:]
    for signal in range(3):
        want = log_mel(pcm[..., signal] / jnp.float32(32768), bank)
        # The same products in another order.
        np.testing.assert_allclose(features[..., signal], want, rtol=1e-4, atol=1e-4)
    assert present[0].all()
    np.testing.assert_array_equal(present[1], np.broadcast_to([1, 0, 1], present[1].shape))
    kept = signals.rows(config, x.reshape(-1, x.shape[-1]))
    assert len(kept) == 5 * x.shape[1]
    mean, deviation = recipe.statistics(
        config, [{"pcm": pcm, "frame_lengths": np.full(2, x.shape[1]), "weight": np.ones(2)}], bank
    )
    np.testing.assert_allclose(mean, kept.mean(0), rtol=1e-4)
    np.testing.assert_allclose(deviation, kept.std(0), rtol=1e-3)


def test_masks_hide_all_signals_alike(fields):  # noqa: F811
    config = config_of(of_way(fields, "cnn"), gain=0.0, time_masks=0, frequency_masks=2, frequency_width=6)
    x = np.random.default_rng(1).normal(size=(1, 9, 16, 3)).astype(np.float32)
    frames = signals.join_signals(jnp.asarray(x), jnp.array([[True, False, True]]))[0]
    y = np.asarray(jax.jit(signals.augment(config))(frames, jnp.int32(9), jax.random.key(3)))
    np.testing.assert_array_equal(y[:, -3:], frames[:, -3:])
    hidden = y[:, :-3].reshape(9, 16, 3) != x[0]
    assert hidden.any()
    assert not hidden.all()
    np.testing.assert_array_equal(hidden, np.broadcast_to(hidden[:, :, :1], hidden.shape))


def test_every_weight_of_a_fusion_is_trained(found):
    """By the loss, under channel dropout and masks."""
    task = recipe.make_task(config_of(found.config, channel_dropout=0.3), found.units.size)
    # A gain of 0, as it is at first, hides the others.
    params = jax.tree_util.tree_map_with_path(lambda path, x: x + 0.1 * (path[-1].key == "gain"), found.params)
    batch = recipe.evaluation(found.config, found.units, "dev")[0]
    gradient = jax.jit(jax.grad(lambda params: task.loss(params, batch, key=jax.random.key(0))[0]))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient["encoder"]["fusion"]):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf != 0), path


def test_statistics_go_into_the_fusion(trained, found):
    weights = found.params["encoder"]["fusion"]["signals"]
    assert np.asarray(weights["scale"]).std() > 0  # not the ones of a new layer
    encoder = found.params["encoder"]["input"]
    np.testing.assert_array_equal(encoder["scale"], 1)
    of_fusion, of_all = signals.share(found.params)
    assert of_fusion == sum(x.size for x in jax.tree.leaves(found.params["encoder"]["fusion"]))
    assert 0 < of_fusion < of_all


def test_streams_of_signals_find_what_the_whole_gives(found, tmp_path):
    """Of any chunks, also with a microphone that falls silent midway."""
    rng = np.random.default_rng(0)
    for number, one in enumerate(prepared.load(recipe.source(found.config), "dev")[:4]):
        pcm = separate(one["samples"]).copy()
        if number % 2:
            pcm[len(pcm) // 2 :, 1] = 0
        whole = transcribe_program.transcribe(found, pcm)
        stream = streams.Stream(found.task, found.params, found.bank, recognition.search(64, 0))
        for part in np.split(pcm, np.sort(rng.integers(0, len(pcm), 4))):
            stream.push(part[None])
        stream.finish()
        assert found.units.decode(recognition.best_labels(stream.found())[0]) == whole


def test_the_table_tells_right_and_wrong_steering_apart(trained, capsys):
    assert eval_program.main(["eval", f"--workdir={trained}", "--split=dev", "--beam=0"]) == 0
    out = capsys.readouterr().out
    assert "WER, beam right" in out
    assert "beam wrong" in out
    found = recogniser.load(trained, "last")
    of_fusion, of_all = signals.share(found.params)
    assert f"fusion (cnn): {of_fusion:,} of {of_all:,} weights, {of_fusion / of_all:.2%}" in out
    rows = [json.loads(line) for line in (trained / "heard_dev_last.jsonl").read_text().splitlines()]
    right = recipe.steering(found.config, "dev")
    assert [row["beam"] for row in rows] == ["right" if right[row["id"]] else "wrong" for row in rows]
    assert len(set(right)) == 2
    record = json.loads((trained / "recognised_dev_last.jsonl").read_text().splitlines()[0])
    counted = {
        kind: compare_speech.read([str(trained)], "heard_dev_last.jsonl", "greedy whole", kind)
        for kind in ("right", "wrong")
    }
    for kind, counts in counted.items():
        assert record[f"wer_{kind}"] == pytest.approx(float(counts.rates[0]))
    assert sum(len(counts.words) for counts in counted.values()) == len(rows)


def test_files_of_several_channels(trained, found, fields, tmp_path, capsys):  # noqa: F811
    pcm = separate(prepared.load(recipe.source(found.config), "test")[0]["samples"])
    soundfile.write(tmp_path / "three.flac", pcm, RATE)
    soundfile.write(tmp_path / "two.flac", pcm[:, :2], RATE)

    def heard(*arguments) -> list[str]:
        assert transcribe_program.main(["transcribe", *arguments, f"--workdir={trained}", "--weights=last"]) == 0
        return [line.split("\t")[-1] for line in capsys.readouterr().out.splitlines() if "said:" not in line]

    texts = heard(str(tmp_path / "three.flac"), "test:0")
    assert texts == [transcribe_program.transcribe(found, pcm)] * 2
    gone = pcm.copy()
    gone[:, [0, 2]] = 0
    texts = heard(str(tmp_path / "three.flac"), "test:0", "--missing=0,2")
    assert texts == [transcribe_program.transcribe(found, gone)] * 2
    array = signals.Array.parse(found.signals, microphones="0,0,0 0.1,0,0", look="1,0,0", missing="")
    assert array.read(found.config, str(tmp_path / "two.flac")).shape == pcm.shape
    for options, message in (
        (["--missing=3"], "--missing=3: some of a fusion's signals 0 to 2"),
        (["--look=1,0,0"], "both or none are needed"),
        (["--microphones=0,0", "--look=1,0,0"], "--microphones=0,0: numbers with commas"),
    ):
        arguments = [str(tmp_path / "two.flac"), f"--workdir={trained}", "--weights=last", *options]
        code = transcribe_program.main(["transcribe", *arguments])
        assert code == 2
        assert message in capsys.readouterr().err
    arguments = [str(tmp_path / "two.flac"), f"--workdir={trained}", "--weights=last"]
    assert transcribe_program.main(["transcribe", *arguments]) == 1
    assert "it has 2 channels; 3, the beam and two microphones" in capsys.readouterr().err


def test_recordings_of_a_real_array(trained, found, zojax_data):
    """Four microphones at the places that the recordings' delays tell; the beam goes where their names say."""
    places = "-0.05,-0.05,0 -0.05,0.05,0 0.05,-0.05,0 0.05,0.05,0"
    name = "speech_-0.82918_0.55279_-0.082918"
    array = signals.Array.parse(found.signals, microphones=places, look=",".join(name.split("_")[1:]), missing="")
    x = array.read(found.config, str(zojax_data / "speech" / "multichannel" / f"{name}.flac"))
    recorded, _ = soundfile.read(zojax_data / "speech" / "multichannel" / f"{name}.flac", dtype="int16")
    assert x.shape == (len(recorded), 3)
    np.testing.assert_array_equal(x[:, 1], recorded[:, 0])
    np.testing.assert_array_equal(x[:, 2], recorded[:, 3])  # across the square
    # Speech is in phase in the beam: it is as loud as a microphone, and sums of other delays are not.
    assert np.std(x[:, 0].astype(float)) > 0.7 * np.std(x[:, 1].astype(float))
    whole = transcribe_program.transcribe(found, x[: 2 * RATE])
    assert found.units.decode(transcribe_program.stream(found, x[: 2 * RATE]).labels) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signals": (0, 1)}, r"config.speech.fusion is 'none', speech.signals \(0, 1\)"),
        ({"fusion": "cnn"}, r"config.speech.fusion is 'cnn', speech.signals \(\)"),
        ({"signals": (0, 3)}, "config.speech.signals is"),
        ({"channel_dropout": 0.1}, "config.speech.channel_dropout is 0.1; without fusion it must be 0"),
        ({"signals": (0,), "noise": "pink"}, "config.speech.noise is 'pink'; signals have one of their own"),
    ],
)
def test_refusals_name_the_field(fields, changes, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        config_of(fields, **changes)


@pytest.mark.parametrize("module", [commands_fusion, an4_fusion], ids=["commands", "an4"])
def test_a_fusion_is_small_beside_its_transducer(module):
    """Each way of each config; the paper has at most 2 % more weights."""
    for way in module.WAYS:
        config = module.get_config(way)
        schema.check(config)
        of_fusion, of_all = signals.share(abstract(recipe.model_config(config, 28)))
        assert (of_fusion > 0) == (config.speech.fusion != "none")
        assert of_fusion < 0.02 * of_all
    with pytest.raises(ValueError, match="argument 'mean'; one of beam, microphone_1"):
        module.get_config("mean")


def test_a_row_without_such_an_utterance_has_no_rate(found):
    utterance: Any = dict.fromkeys(evaluate.Utterance._fields, np.zeros(0))
    utterance |= {"id": 0, "said": "A", "heard": "A"}
    row = dict.fromkeys(evaluate.Condition._fields, 0.0) | {"search": "greedy", "mode": "whole"}
    made: Any = row | {"utterances": [evaluate.Utterance(**utterance)]}
    values = evaluate.record(found, evaluate.Condition(**made), steered=[True])
    assert (values["wer_right"], values["wer_wrong"]) == (0.0, None)
