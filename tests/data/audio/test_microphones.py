"""Noise, mixing and beams: spectra, coherences and gains against their closed forms."""

import numpy as np
import pytest
import soundfile
from scipy import signal

from zojax.data.audio.microphones import (
    delay_and_sum,
    diffuse_noise,
    direction,
    echo_residual,
    mix,
    steering_gain,
)
from zojax.data.audio.rooms import Room, render, response

# A row of four, 5 cm apart, in the middle of a room.
ROW = np.array([[2.5 + 0.05 * n, 2.0, 1.5] for n in range(4)])
CIRCLE = np.array([[0.035 * np.cos(a), 0.035 * np.sin(a), 0.0] for a in np.arange(6) * np.pi / 3])


def plane_wave(microphones, wave, frequency, samples=2000):
    """A tone from a direction, 0 in phase at the middle of the array."""
    t = np.arange(samples) / 16000
    early = (microphones - microphones.mean(axis=0)) @ wave / 343
    return np.sin(2 * np.pi * frequency * (t + early[:, None]))


def at(degrees, height=0.0):
    a = np.radians(degrees)
    flat = np.sqrt(1 - height**2)
    return np.array([flat * np.cos(a), flat * np.sin(a), height])


@pytest.mark.parametrize("microphones", [ROW, CIRCLE, ROW[:2], ROW[:1]], ids=["row", "circle", "two", "one"])
@pytest.mark.parametrize(("frequency", "error"), [(500.0, 60.0), (1000.0, 0.0), (2500.0, 30.0), (4000.0, -90.0)])
def test_a_beam_has_the_gain_of_the_formula(microphones, frequency, error):
    """In the look direction 1; elsewhere what wrong steering loses."""
    wave, look = at(25.0, 0.2), at(25.0 + error, 0.2)
    y = delay_and_sum(plane_wave(microphones, wave, frequency), microphones, look)
    # Amplitude and phase of the tone, away from the ends.
    middle = np.arange(200, 1800)
    basis = np.exp(-2j * np.pi * frequency * middle / 16000)
    found = np.abs(2 * np.mean(y[middle] * basis))
    (gain,) = steering_gain(microphones, look, wave, np.array([frequency]))
    # Whole periods of 500 Hz: the basis is exact; the fractional delays are, to 1e-7 below 4 kHz.
    assert found == pytest.approx(gain, abs=1e-6)
    if not error:
        assert gain == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(
            y[middle], np.sin(2 * np.pi * frequency * middle / 16000), rtol=0, atol=1e-6
        )  # and no delay


def test_the_formula_is_that_of_a_uniform_row():
    """|sin(N x) / (N sin x)| with x = pi f d (cos u - cos v) / c, for N microphones d apart."""
    frequency = np.linspace(100, 7000, 50)
    x = np.pi * frequency * 0.05 * (np.cos(np.radians(40)) - np.cos(np.radians(110))) / 343
    want = np.abs(np.sin(4 * x) / (4 * np.sin(x)))
    np.testing.assert_allclose(steering_gain(ROW, at(40), at(110), frequency), want, rtol=0, atol=1e-12)


def test_directions():
    source = ROW.mean(axis=0) + np.array([0.0, 2.0, 2.0])
    np.testing.assert_allclose(direction(source, ROW), [0, 0.5**0.5, 0.5**0.5], atol=1e-12)
    np.testing.assert_allclose(direction(source, ROW, error=90.0), [-(0.5**0.5), 0, 0.5**0.5], atol=1e-12)
    with pytest.raises(ValueError, match="must not be in the middle"):
        direction(ROW.mean(axis=0), ROW)


def test_a_beam_in_a_room_loses_by_wrong_steering():
    """Free field, a source 2 m away: nearly a plane wave."""
    room = Room(size=(6.0, 6.0, 3.0), absorption=(1.0,) * 6)
    source = ROW.mean(axis=0) + np.array([0.5, 2.0, 0.0])
    band = signal.butter(6, [1900, 2100], "band", fs=16000, output="sos")
    x = np.asarray(signal.sosfilt(band, _rng().standard_normal(8000)))
    heard = render(x, response(room, source, ROW, seconds=0.02))
    powers = []
    for error in (0.0, -40.0):
        look = direction(source, ROW, error=error)
        powers.append(np.mean(delay_and_sum(heard, ROW, look) ** 2))
    (gain,) = steering_gain(ROW, look, direction(source, ROW), np.array([2000.0]))
    assert powers[0] == pytest.approx(np.mean(heard**2), rel=1e-2)
    # The wave is a sphere's, 2 m wide, and the noise a band of a third of a tone.
    assert powers[1] / powers[0] == pytest.approx(gain**2, abs=0.02)
    assert gain**2 < 0.4


@pytest.mark.parametrize("name", ["speech_-0.82918_0.55279_-0.082918", "noise_0.70225_-0.70225_0.11704"])
def test_real_recordings(name, zojax_data):
    """The beam of recordings by an array is loudest where they say that the source is.

    They do not say how the array looks. The delays of a third one, from -x, make it a square of 10 cm in this order.
    """
    x, rate = soundfile.read(zojax_data / "speech" / "multichannel" / f"{name}.flac")
    assert rate == 16000
    array = 0.05 * np.array([[-1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0]])
    # Above 1 kHz, where a beam of 10 cm is not all too wide.
    x = np.asarray(signal.sosfilt(signal.butter(4, 1000, "high", fs=16000, output="sos"), x[:48000].T))
    source = 100 * np.array([float(number) for number in name.split("_")[1:]])
    errors = np.arange(-180.0, 180.0, 15.0)
    powers = [np.mean(delay_and_sum(x, array, direction(source, array, error=error)) ** 2) for error in errors]
    assert errors[int(np.argmax(powers))] == 0
    # Of the microphones' power it has 0.81 and 0.71, and 0.13 and 0.16 where it misses most.
    assert max(powers) > 0.6 * np.mean(x**2)
    assert min(powers) < 0.4 * np.mean(x**2)


def test_diffuse_noise_has_the_coherence_of_a_diffuse_field():
    x = diffuse_noise(_rng(), ROW, 160000)
    for one, other in ((0, 1), (0, 3), (1, 2)):
        f, cross = signal.csd(x[one], x[other], fs=16000, nperseg=512)
        powers = [signal.welch(x[m], fs=16000, nperseg=512)[1] for m in (one, other)]
        want = np.sinc(2 * f * 0.05 * (other - one) / 343)
        # 624 half-overlapping windows: a standard deviation of 0.04, less where the coherence is high.
        got = (cross / np.sqrt(powers[0] * powers[1]))[1:-1]
        np.testing.assert_allclose(got, want[1:-1], rtol=0, atol=5 * 0.04)
        assert np.sqrt(np.mean(np.abs(got - want[1:-1]) ** 2)) < 0.05
    np.testing.assert_allclose(np.mean(x**2, axis=1), 1, atol=0.05)


@pytest.mark.parametrize("color", ["pink", "brown"])
def test_diffuse_noise_has_its_color(color):
    power = np.abs(np.fft.rfft(diffuse_noise(_rng(), ROW, 32000, color=color))) ** 2
    octaves = np.array([power[:, k : 2 * k].mean() for k in (1000, 2000, 4000, 8000)])
    want = {"pink": 1, "brown": 2}[color]
    # 1000 bins and more, of four microphones that hear much the same: 3 % each.
    np.testing.assert_allclose(np.log2(octaves[:-1] / octaves[1:]), want, atol=0.2)


def test_what_is_drawn_comes_from_the_generator():
    again = [diffuse_noise(np.random.default_rng(seed), ROW, 500) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(again[0], again[1])
    assert np.abs(again[0] - again[2]).max() > 0.1


def test_mixtures_have_their_ratio():
    speech, other = _rng().standard_normal((2, 3, 1000))
    added = mix(speech, 7 * other, snr=12.0) - speech
    assert 10 * np.log10(np.mean(speech**2) / np.mean(added**2)) == pytest.approx(12, abs=1e-9)
    ratio = added / other
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-9)  # one gain
    with pytest.raises(ValueError, match="not silent"):
        mix(speech, np.zeros((3, 1000)), snr=0.0)


def test_an_echo_residual():
    h = response(Room(size=(4.0, 4.0, 3.0), absorption=(0.3,) * 6), np.ones(3), ROW, seconds=0.03)
    x = _rng().standard_normal(500)
    np.testing.assert_allclose(echo_residual(x, h, attenuation=26.0), render(x, h) * 0.0501187, rtol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="squares sum to 1"):
        delay_and_sum(np.zeros((4, 10)), ROW, np.array([1.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match=r"microphones have shape \(9, 3\)"):
        diffuse_noise(_rng(), np.zeros((9, 3)), 10)


def _rng():
    return np.random.default_rng(0)
