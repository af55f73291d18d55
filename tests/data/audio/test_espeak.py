"""Synthetic voices: pure functions of text and voice, at 16 kHz; names checked; the package optional."""

import ctypes
import sys

import numpy as np
import pytest

from zojax.data.audio.espeak import Voice, _loader, accents, speak, variants

VOICE = Voice(accent="en-US", variant="f2")
TEXT = "turn the kitchen light off"


def test_what_was_spoken_before_changes_nothing():
    first = speak(TEXT, VOICE)
    # A voice with noise in it, another accent, and a longer text, so that every state moves on.
    speak("one two three", Voice(accent="en-GB-scotland", variant="whisper", rate=120))
    np.testing.assert_array_equal(speak(TEXT, VOICE), first)
    whisper = Voice(accent="en", variant="whisper")
    np.testing.assert_array_equal(speak(TEXT, whisper), speak(TEXT, whisper))


def test_each_field_is_heard():
    plain = speak(TEXT, VOICE)
    for change in ({"accent": "en"}, {"variant": "m1"}, {"rate": 150}, {"pitch": 70}, {"pitch_range": 10}):
        other = speak(TEXT, Voice(**({"accent": "en-US", "variant": "f2"} | change)))
        assert len(other) != len(plain) or (other != plain).any()
    slow, fast = (len(speak(TEXT, Voice(accent="en-US", variant="f2", rate=rate))) for rate in (120, 240))
    assert 1.6 < slow / fast < 2.4  # twice as fast, but for the pauses
    assert 2 * 16000 > len(plain) > 16000


def test_speech_is_at_16_khz():
    # The pitch of a vowel by autocorrelation: a woman's, where a wrong rate would move it out, and it follows `pitch`.
    def hertz(pitch):
        x = speak("ah", Voice(accent="en-US", variant="f2", pitch=pitch, pitch_range=0)).astype(np.float64)
        x = x[len(x) // 4 : len(x) // 2]
        r = np.correlate(x, x, "full")[len(x) - 1 :]
        return 16000 / (40 + r[40:400].argmax())

    assert 110 < hertz(20) < 140 < hertz(50) < 200 < hertz(80) < 260


def test_names_are_checked():
    assert {"en-US", "en", "en-029"} <= set(accents())
    # espeak-ng itself takes any variant, and speaks with the plain voice
    with pytest.raises(ValueError, match=r"variant: espeak-ng has no 'nosuch'; there are .*f2"):
        speak(TEXT, Voice(accent="en-US", variant="nosuch"))
    with pytest.raises(ValueError, match=r"accent: espeak-ng has no '../en'"):
        speak(TEXT, Voice(accent="../en", variant="f2"))
    with pytest.raises(ValueError, match="text: nothing to say"):
        speak("  ", VOICE)
    for change in ({"rate": 79}, {"pitch": 100}, {"pitch_range": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}: .* is needed"):
            Voice(accent="en-US", variant="f2", **change)
    assert len(variants()) == len(set(variants())) > 20


def test_a_library_that_somebody_holds_is_refused():
    held = ctypes.CDLL(_loader().get_library_path())
    try:
        with pytest.raises(RuntimeError, match="is in use in this process"):
            speak(TEXT, VOICE)
    finally:
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(held._handle))
    assert len(speak(TEXT, VOICE))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match="pip install espeakng-loader"):
        speak(TEXT, VOICE)
