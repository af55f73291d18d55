"""Utterances in rooms: one scene for a name, three signals that belong together, a beam that loses where it misses."""

import dataclasses
from typing import Any

import numpy as np
from scipy import signal

from tests.data.audio.test_prepared import Made
from zojax.data.audio.microphones import delay_and_sum
from zojax.data.audio.prepared import Skipped, Source, load
from zojax.data.audio.recordings import Recordings
from zojax.data.audio.scenes import InRooms, draw_scene, record, separate, signals_of
from zojax.data.audio.sources import an4

BAD = Skipped("b", "b.wav: no such file")


def spoken(name, length=3000):
    rng = np.random.default_rng(length)
    x = (4000 * rng.standard_normal(length)).clip(-32768, 32767).astype(np.int16)
    return {"id": name, "samples": x, "text": f"say {name}", "speaker": "s"}


def test_a_name_has_one_recording():
    """Whatever comes before it, and in whichever split."""
    one = InRooms(source=Made({"train": [spoken("a"), BAD, spoken("c", 2000)]}), seed=3)
    other = InRooms(source=Made({"dev": [spoken("c", 2000)]}), seed=3)
    assert isinstance(one, Source)
    found: list[Any] = [*one.utterances("train"), *other.utterances("dev")]
    first, bad, second, again = found
    assert bad == BAD
    np.testing.assert_array_equal(second["samples"], again["samples"])
    assert (second["id"], second["text"], second["speaker"]) == ("c", "say c", "s")
    assert separate(first["samples"]).shape == (3000, 3)
    # The loudest sample of all is that of the utterance.
    assert abs(int(np.abs(second["samples"]).max()) - int(np.abs(spoken("c", 2000)["samples"]).max())) <= 1
    changed = InRooms(source=other.source, seed=4)
    moved: Any = next(changed.utterances("dev"))
    assert (moved["samples"] != again["samples"]).mean() > 0.9
    few = InRooms(source=other.source, seed=3, wrong=0.1)
    prints = {one.fingerprint(), changed.fingerprint(), few.fingerprint()}
    assert len(prints) == 3
    assert other.fingerprint() == InRooms(source=Made({"dev": []}), seed=3).fingerprint()


def test_scenes_are_as_promised():
    source = InRooms(source=Made({}), seed=0, wrong=0.3)
    scenes = [source.scene(f"{n}") for n in range(400)]
    right = np.array([scene.right for scene in scenes])
    assert abs(right.mean() - 0.7) < 4 * np.sqrt(0.21 / 400)  # four standard errors
    for scene in scenes:
        assert scene.right or 60 <= abs(scene.error) <= 120
        assert 0 <= scene.snr <= 15
        middle = scene.microphones.mean(axis=0)
        for place in (scene.speaker, scene.noise):
            assert np.linalg.norm((place - middle)[:2]) >= 1
            assert ((place > 0.3) & (place < scene.room.size)).all()
        a, b = ((place - middle)[:2] for place in (scene.speaker, scene.noise))
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) <= np.cos(np.radians(45)) + 1e-9
    assert {scene.error > 0 for scene in scenes if not scene.right} == {True, False}
    assert {scene.color for scene in scenes} == {"white", "pink", "brown"}
    assert [draw_scene(np.random.default_rng(0), wrong=share).right for share in (0.0, 1.0)] == [True, False]


def test_a_beam_loses_where_it_misses():
    """Nearly without noise: the share of the microphones' power that is in the beam, above 1 kHz."""
    x, band = spoken("a", 4000)["samples"] / 32768, signal.butter(4, 1000, "high", fs=16000, output="sos")
    shares = {True: [], False: []}
    for n in range(4):
        scene = dataclasses.replace(draw_scene(np.random.default_rng(n), wrong=1.0), snr=60.0)
        for right in (True, False):
            case = dataclasses.replace(scene, error=0.0) if right else scene
            y = signal.sosfilt(band, record(x, case, np.random.default_rng(1)))
            beam, *microphones = np.mean(np.square(y), axis=-1)
            shares[right].append(beam / np.mean(microphones))
    # Reverberation comes from everywhere: a quarter of it passes both.
    assert np.mean(shares[True]) > 1.5 * np.mean(shares[False])
    assert all(good > bad for good, bad in zip(shares[True], shares[False], strict=True))


def test_an_echo_is_what_the_canceller_leaves():
    """Of a loudspeaker as loud as the speaker: 20 dB less by the canceller are 20 dB less in the signals."""
    x = spoken("a", 4000)["samples"] / 32768
    scene = draw_scene(np.random.default_rng(0), wrong=0.0)

    def echo(attenuation):
        # One gain for all, the loudest sample that of x, is the same where the echo is small; what is left over is it.
        heard, none = (
            record(x, dataclasses.replace(scene, canceller=c), np.random.default_rng(1)) for c in (attenuation, 400.0)
        )
        gain = np.sum(heard * none) / np.sum(none**2)
        return np.sqrt(np.mean(np.square(heard / gain - none)))

    np.testing.assert_allclose(echo(40.0) / echo(60.0), 10, rtol=0.02)
    assert 30 <= scene.canceller <= 45


def test_signals_of_an_array():
    """The beam, the first microphone and the one farthest from it, as the recordings of an array have them."""
    places = 0.05 * np.array([[-1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0]])
    heard = np.random.default_rng(0).normal(size=(4, 500))
    look = np.array([0.6, 0.8, 0.0])
    beam, first, across = signals_of(heard, places, look)
    np.testing.assert_array_equal(beam, delay_and_sum(heard, places, look))
    np.testing.assert_array_equal(first, heard[0])
    np.testing.assert_array_equal(across, heard[3])


def test_silence_stays_silent():
    scene = draw_scene(np.random.default_rng(0), wrong=0.0)
    np.testing.assert_array_equal(record(np.zeros(500), scene, np.random.default_rng(0)), np.zeros((3, 500)))
    (short,) = InRooms(source=Made({"dev": [spoken("a", 1)]}), seed=0).utterances("dev")
    assert short == Skipped("a", "a sample is no utterance")


def test_prepared_recordings(tmp_path, zojax_data):
    """Two utterances of AN4, one steered rightly and one wrongly, through the prepared copy."""
    corpus = an4(zojax_data / "speech" / "an4")
    rooms = InRooms(source=corpus, seed=0)
    kinds = {rooms.scene(r.id).right: r for r in reversed(corpus.files["test"])}
    two = dataclasses.replace(rooms, source=Recordings(files={"test": [kinds[True], kinds[False]]}))
    found = load(two, "test", data_dir=tmp_path)
    assert [two.scene(name).right for name in found.ids] == [True, False]
    dry: list[Any] = list(two.source.utterances("test"))
    for utterance, before in zip(found, dry, strict=True):
        signals = separate(utterance["samples"]).astype(np.float64)
        assert signals.shape == (len(before["samples"]), 3)
        assert utterance["text"] == before["text"]
        # All three are of the utterance: its loudness over time is in them.
        loudness = [
            np.square(x[: len(x) // 800 * 800].reshape(-1, 800)).mean(axis=1)
            for x in (*signals.T, before["samples"].astype(np.float64))
        ]
        assert min(np.corrcoef(np.sqrt(loudness))[3, :3]) > 0.8
