"""Decoding: exact where it can be, named faults where it cannot; resampling against tones."""

import numpy as np
import pytest
import soundfile

from zojax.data.audio.waves import AudioError, read_wave, resample, to_int16


def pcm(samples, seed=0):
    return np.random.default_rng(seed).integers(-32768, 32768, samples).astype(np.int16)


@pytest.mark.parametrize(("suffix", "options"), [
    ("wav", {}), ("flac", {}), ("sph", {"format": "NIST", "subtype": "PCM_16"}), ("wav", {"subtype": "PCM_24"}),
])  # fmt: skip
def test_16_bit_samples_come_through_as_they_are(tmp_path, suffix, options):
    x = pcm(4000)
    x[:2] = -32768, 32767
    soundfile.write(tmp_path / f"a.{suffix}", x, 16000, **options)
    np.testing.assert_array_equal(read_wave(tmp_path / f"a.{suffix}"), x, strict=True)


def test_float_files_are_in_units_of_full_scale(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.5, -0.25, 2.0, -2.0]), 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_wave(tmp_path / "a.wav"), [16384, -8192, 32767, -32768])


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([[100, 300], [-5, 5]], np.int16), 16000)
    np.testing.assert_array_equal(read_wave(tmp_path / "a.wav"), [200, 0])


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_another_rate_is_brought_to_16_khz(tmp_path, rate):
    n = np.arange(rate)
    x = 0.5 * np.sin(2 * np.pi * 1000 * n / rate)
    soundfile.write(tmp_path / "a.wav", to_int16(x.astype(np.float32)), rate)
    found = read_wave(tmp_path / "a.wav") / 32768
    assert len(found) == 16000
    m = np.arange(500, 15500)  # away from the ends, where the tone starts and stops
    # 16 bits leave 1.5e-5 twice; the filter's ripple is below that
    np.testing.assert_allclose(found[m], 0.5 * np.sin(2 * np.pi * 1000 * m / 16000), rtol=0, atol=1e-4)


def test_what_16_khz_cannot_hold_is_taken_out():
    x = np.sin(2 * np.pi * 10000 * np.arange(44100) / 44100).astype(np.float32)
    # 10 kHz would come back as 6 kHz; the window's side lobes are 90 dB down
    assert np.abs(resample(x, 44100, 16000)[500:-500]).max() < 1e-4
    with pytest.raises(ValueError, match="rate, new_rate: 0 and 16000 Hz"):
        resample(x, 0, 16000)


def broken(folder):
    """Files that cannot be used, by name, with what is said of them."""
    soundfile.write(folder / "good.wav", pcm(4000), 16000)
    soundfile.write(folder / "good.flac", pcm(40000), 16000)
    soundfile.write(folder / "good.sph", pcm(4000), 16000, format="NIST", subtype="PCM_16")
    for suffix in ("wav", "flac", "sph"):
        content = (folder / f"good.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "garbage.flac").write_bytes(b"this is no audio " * 99)
    soundfile.write(folder / "silent.wav", pcm(0), 16000)
    soundfile.write(folder / "nan.wav", np.array([0.0, np.nan]), 16000, subtype="FLOAT")
    (folder / "folder.wav").mkdir()
    return {
        "nosuch.wav": "no such file",
        "folder.wav": "no such file",
        "empty.wav": "the file is empty",
        "garbage.flac": "Format not recognised",
        "cut.wav": r"cut short: 19\d\d samples of 4000",
        "cut.sph": r"cut short: 17\d\d samples of 4000",
        "cut.flac": "lost sync|cut short",
        "silent.wav": "no samples",
        "nan.wav": "a sample is not finite",
    }


def test_a_file_that_cannot_be_used_says_why(tmp_path):
    for name, reason in broken(tmp_path).items():
        with pytest.raises(AudioError, match=reason):
            read_wave(tmp_path / name)


def test_a_header_without_a_length_is_no_fault(tmp_path):
    soundfile.write(tmp_path / "a.wav", pcm(4000), 16000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    for at in (4, content.index(b"data") + 4):  # as a program writes that pipes its output
        content[at : at + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(content)
    np.testing.assert_array_equal(read_wave(tmp_path / "a.wav"), pcm(4000))
