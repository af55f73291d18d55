"""Room responses: closed forms, pyroomacoustics' answer for the same room, a measured room."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file
from scipy import signal

from zojax.data.audio.rooms import LEAD, Room, absorption_of, decay_time, impulses, render, render_moving, response

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "room_response.safetensors"

ANECHOIC = Room(size=(5.0, 4.0, 3.0), absorption=(1.0,) * 6)
LIVE = Room(size=(5.0, 4.0, 3.0), absorption=(0.2, 0.35, 0.4, 0.3, 0.15, 0.5))
SOURCE = np.array([1.3, 1.7, 1.1])
MICROPHONES = np.array([[3.2, 2.9, 1.6], [0.4, 0.3, 2.8]])


def spectrum(h, frequencies):
    """Of a response from the moment of emission on."""
    n = np.arange(len(h)) - LEAD
    return np.exp(-2j * np.pi * np.asarray(frequencies)[:, None] / 16000 * n) @ h


def above_200_hertz(h):
    """The decay of an image model's lowest frequencies is slower: reflections that all have one sign pile up there."""
    return np.asarray(signal.sosfilt(signal.butter(4, 200, "high", fs=16000, output="sos"), h))


def test_free_field():
    """One arrival: its delay r / c and its gain 1 / (4 pi r)."""
    h = response(ANECHOIC, SOURCE, MICROPHONES, seconds=0.02)
    frequencies = np.array([50.0, 500.0, 2000.0, 4000.0])
    for row, microphone in zip(h, MICROPHONES, strict=True):
        r = float(np.linalg.norm(microphone - SOURCE))
        want = np.exp(-2j * np.pi * frequencies * r / 343) / (4 * np.pi * r)
        np.testing.assert_allclose(spectrum(row, frequencies), want, rtol=0, atol=1e-6 / (4 * np.pi * r))
    # Up to 6 kHz, where the band of the sinc's window begins to end.
    r = np.linalg.norm(MICROPHONES[0] - SOURCE)
    got = spectrum(h[0], [6000.0]) * 4 * np.pi * r * np.exp(2j * np.pi * 6000 * r / 343)
    np.testing.assert_allclose(got, 1, atol=5e-6)


@pytest.mark.parametrize("wall", range(6))
def test_an_image_of_the_first_order(wall):
    """One wall that reflects: the direct sound and that of the source mirrored by hand."""
    absorption = [1.0] * 6
    absorption[wall] = 0.19
    room = Room(size=(5.0, 4.0, 3.0), absorption=tuple(absorption), sound_speed=340.0)
    axis, far = divmod(wall, 2)
    mirrored = SOURCE.copy()
    mirrored[axis] = 2 * room.size[axis] * far - SOURCE[axis]
    h = response(room, SOURCE, MICROPHONES, seconds=0.04)
    for row, microphone in zip(h, MICROPHONES, strict=True):
        r = np.linalg.norm(np.stack([SOURCE, mirrored]) - microphone, axis=1)
        want = impulses(r / 340 * 16000, np.array([1.0, 0.9]) / (4 * np.pi * r), len(row))
        np.testing.assert_allclose(row, want, rtol=0, atol=1e-12)


def test_all_images_by_loops():
    """Allen and Berkley's sum, one image at a time and with numpy's sinc."""
    source, microphone, taps, c = SOURCE, MICROPHONES[0], 300, 343.0
    n = np.arange(LEAD + taps) - LEAD
    want = np.zeros(len(n))
    for u in np.ndindex(2, 2, 2):
        for turns in np.ndindex(7, 7, 7):
            turn = np.array(turns) - 3
            place = (1 - 2 * np.array(u)) * source + 2 * turn * LIVE.size
            met = np.stack([np.abs(turn - u), np.abs(turn)], axis=1)
            r = np.linalg.norm(place - microphone)
            x = n - r / c * 16000
            window = np.where(np.abs(x) < LEAD, np.cos(np.pi * x / 2 / LEAD) ** 4, 0)
            want += np.prod(LIVE.reflection**met) / (4 * np.pi * r) * np.sinc(x) * window
    got = response(LIVE, source, microphone[None], seconds=taps / 16000)[0]
    # The last half sample of each window is left out: 1e-9 of an arrival.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


def test_a_longer_response_begins_with_the_shorter_one():
    short, long = (response(LIVE, SOURCE, MICROPHONES, seconds=seconds) for seconds in (0.03, 0.05))
    np.testing.assert_allclose(long[:, : short.shape[1]], short, rtol=0, atol=1e-12)


def test_reciprocity():
    there = response(LIVE, SOURCE, MICROPHONES[:1], seconds=0.1)
    back = response(LIVE, MICROPHONES[0], SOURCE[None], seconds=0.1)
    np.testing.assert_allclose(there, back, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "seconds"), [((6.0, 5.0, 3.0), 0.3), ((5.0, 4.5, 4.0), 0.3), ((5.0, 4.5, 4.0), 0.5)])
def test_decay_follows_eyring(size, seconds):
    """Eyring assumes a diffuse field; a box with equal walls decays more slowly, by 8 to 12 % in these rooms."""
    room = Room(size=size, absorption=(absorption_of(size, seconds),) * 6)
    h = response(room, SOURCE, MICROPHONES[:1], seconds=seconds)[0]
    assert 1 < decay_time(above_200_hertz(h)) / seconds < 1.15


def test_absorption_inverts_the_formulas():
    size = (6.0, 5.0, 3.0)
    for formula, of_share in (("sabine", lambda a: a), ("eyring", lambda a: -np.log(1 - a))):
        share = absorption_of(size, 0.4, formula=formula, sound_speed=340.0)
        # The textbook's 55.3 is 24 ln 10.
        assert 55.2620 * 90 / (340 * 126 * of_share(share)) == pytest.approx(0.4, rel=1e-5)
    with pytest.raises(ValueError, match=r"by Sabine's formula the walls would keep 2\.30 of 1"):
        absorption_of(size, 0.05, formula="sabine")
    with pytest.raises(ValueError, match="formula is 'norris'"):
        absorption_of(size, 0.4, formula="norris")
    with pytest.raises(ValueError, match="seconds is 0"):
        absorption_of(size, 0.0)


def test_pyroomacoustics():
    """The responses of a published simulator (tests/golden/make_rooms.py), which leaves out the 1 / (4 pi)."""
    known = load_file(GOLDEN)
    room = Room(size=tuple(known["size"]), absorption=tuple(known["absorption"]))
    h = response(room, known["source"], known["microphones"], seconds=0.06)
    assert h.shape == known["response"].shape
    # Its images, placed by us: they are float32, and 1e-6 m of 20 m are 5e-5 samples.
    r = np.linalg.norm(known["images"] - known["microphones"][0], axis=1)
    same = impulses(r / 343 * 16000, known["gains"] / (4 * np.pi * r), h.shape[1])
    # Those that begin before the end and have their middle behind it are not in the file.
    np.testing.assert_allclose(h[0, :-LEAD], same[:-LEAD], rtol=0, atol=5e-5 * np.abs(h).max())
    # Its own samples: it interpolates a table of sincs and its window is another, which differs most near 8 kHz.
    frequencies = np.arange(0, 6000, 20.0)
    for mine, other in zip(h[:, :-LEAD], known["response"][:, :-LEAD].astype(np.float64) / (4 * np.pi), strict=True):
        assert np.abs(mine - other).max() < 0.02 * np.abs(other).max()
        a, b = spectrum(mine, frequencies), spectrum(other, frequencies)
        assert np.linalg.norm(a - b) < 2e-3 * np.linalg.norm(b)


def test_a_measured_room(zojax_data):
    """A box with the measured time of decay has the measured shape of decay."""
    measured, rate = soundfile.read(zojax_data / "speech" / "rirs" / "speechbrain" / "rir1.flac")
    assert rate == 16000
    measured = above_200_hertz(measured)[int(np.abs(measured).argmax()) :]
    seconds = decay_time(measured)
    assert 0.5 < seconds < 0.7
    size = (5.0, 4.0, 3.0)  # a small room: the recording says nothing of its own
    room = Room(size=size, absorption=(absorption_of(size, seconds),) * 6)
    made = response(room, SOURCE, MICROPHONES[:1], seconds=seconds)[0]
    made = above_200_hertz(made)[int(np.abs(made).argmax()) :]
    # A box decays more slowly than Eyring's formula says, see above.
    assert decay_time(made) == pytest.approx(seconds, rel=0.15)

    def levels(h):
        energy = np.cumsum(np.square(h[::-1]))[::-1]
        return 10 * np.log10(energy[[1600, 3200, 4800]] / energy[800])

    # At 100, 200 and 300 ms against 50 ms: what comes before hangs on a distance that nobody knows. The measured room
    # loses 5.6, 15.3 and 24.4 dB.
    np.testing.assert_allclose(levels(made), levels(measured), rtol=0, atol=2)


def test_decay_times_of_known_decays():
    t = np.arange(16000) / 16000
    rng = np.random.default_rng(0)
    assert decay_time(rng.standard_normal(16000) * 10 ** (-3 * t / 0.4)) == pytest.approx(0.4, rel=0.03)
    with pytest.raises(ValueError, match=r"the response has 0 samples between -5\.0 and -25\.0 dB"):
        decay_time(np.eye(100)[0])
    with pytest.raises(ValueError, match="upper, lower: "):
        decay_time(t, upper=-25.0, lower=-5.0)


def test_rendering_is_a_convolution():
    rng = np.random.default_rng(0)
    x, h = rng.standard_normal(300), response(LIVE, SOURCE, MICROPHONES, seconds=0.03)
    want = np.stack([np.convolve(x, row)[LEAD : LEAD + 300] for row in h])
    np.testing.assert_allclose(render(x, h), want, rtol=0, atol=1e-12)
    # A delay of whole samples near the end of a short response.
    np.testing.assert_allclose(render(x, impulses(np.array([0.0]), np.ones(1), LEAD + 1)[None])[0], x, atol=1e-8)


def test_a_source_that_moves():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(400)
    places = SOURCE + np.linspace(0, 1, 5)[:, None] * [0.5, 0.2, 0.1]
    h = np.stack([response(LIVE, place, MICROPHONES, seconds=0.02) for place in places])
    # One that stands is a source that does not move, whatever the number of places.
    for count in (1, 3):
        same = np.stack([h[0]] * count)
        np.testing.assert_allclose(render_moving(x, same), render(x, h[0]), rtol=0, atol=1e-12)
    # A click is heard from where the source then is.
    for place, at in ((0, 0), (1, 100), (4, 400)):
        click = np.eye(401)[at]
        np.testing.assert_allclose(render_moving(click, h), render(click, h[place]), rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused():
    one = MICROPHONES[:1]
    for place in ([5.1, 1, 1], [1, 0, 1], [1, 1, np.nan]):
        with pytest.raises(ValueError, match="places inside the room"):
            response(ANECHOIC, np.array(place, float), one, seconds=0.1)
    with pytest.raises(ValueError, match="one is at the source"):
        response(ANECHOIC, SOURCE, np.stack([one[0], SOURCE]), seconds=0.1)
    with pytest.raises(ValueError, match=r"\[9, 3\]|\(9, 3\)"):
        response(ANECHOIC, SOURCE, np.repeat(one, 9, axis=0), seconds=0.1)
    with pytest.raises(ValueError, match="seconds is 0"):
        response(ANECHOIC, SOURCE, one, seconds=0.0)
    with pytest.raises(ValueError, match=r"Room\.size is"):
        Room(size=(1.0, 0.0, 1.0), absorption=(0.1,) * 6)
    with pytest.raises(ValueError, match=r"Room\.absorption is"):
        Room(size=(1.0, 1.0, 1.0), absorption=(0.1,) * 5)
    with pytest.raises(ValueError, match=r"Room\.sound_speed is"):
        Room(size=(1.0, 1.0, 1.0), absorption=(0.1,) * 6, sound_speed=-1.0)
