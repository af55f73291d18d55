"""Speech synthesised by espeak-ng, whose library and voices come as the Python package `espeakng-loader`."""

import ctypes
import dataclasses
import os
import threading

import numpy as np
from jaxtyping import Int16

from zojax.data.audio.waves import RATE, resample, to_int16

__all__ = ["Voice", "accents", "speak", "variants"]

_RANGES = {"rate": (80, 450), "pitch": (0, 99), "pitch_range": (0, 99)}
# Numbers of espeak-ng's interface (speak_lib.h).
_PARAMETERS = {"rate": 1, "pitch": 3, "pitch_range": 4}
_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_lock = threading.Lock()  # the library has one state for all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voice:
    """Who speaks, and how.

    Attributes:
      accent: a language of espeak-ng, such as "en-US" or "en-GB-scotland".
      variant: a timbre, such as "f2" or "m7".
      rate: words a minute, 80 to 450.
      pitch: 0 to 99; 50 is the timbre's own.
      pitch_range: how lively, 0 (monotone) to 99.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> Voice(accent="en-US", variant="f2", rate=160).pitch
      50
    """

    accent: str
    variant: str
    rate: int = 175
    pitch: int = 50
    pitch_range: int = 50

    def __post_init__(self):
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: {getattr(self, name)}; {low} to {high} is needed")


def speak(text: str, voice: Voice) -> Int16[np.ndarray, "samples"]:
    """Speaks a text, at 16 kHz.

    The same text and voice give the same samples, whatever was spoken before: the library's state is made anew.

    Args:
      text: what to say, in English.
      voice: by whom.

    Returns:
      int16 samples, with the silence that espeak-ng leaves around them.

    Raises:
      ImportError: `espeakng-loader` is not installed.
      ValueError: there is no such accent or variant, or nothing to say.
      RuntimeError: the library does not start.

    Example:
      >>> samples = speak("go on", Voice(accent="en-US", variant="m1"))
      >>> samples.dtype, 0.3 < len(samples) / 16000 < 1.5
      (dtype('int16'), True)
    """
    # espeak-ng takes any variant for a name, and the plain voice for one that it does not have.
    for name, known in (("accent", accents()), ("variant", variants())):
        if getattr(voice, name) not in known:
            raise ValueError(f"{name}: espeak-ng has no {getattr(voice, name)!r}; there are {', '.join(known)}")
    if not text.strip():
        raise ValueError("text: nothing to say")
    with _lock:
        rate, pcm = _synthesise(text, voice)
    x = np.frombuffer(pcm, np.int16)
    return to_int16(resample(x.astype(np.float32) / np.float32(32768), rate, RATE))


def accents() -> tuple[str, ...]:
    """The kinds of English that the installed espeak-ng speaks.

    Returns:
      Their names: "en" is British, and those for another alphabet are left out.

    Raises:
      ImportError: `espeakng-loader` is not installed.

    Example:
      >>> "en-US" in accents()
      True
    """
    folder = os.path.join(_loader().get_data_path(), "lang", "gmw")
    return tuple(sorted(name for name in os.listdir(folder) if name.startswith("en") and name != "en-Shaw"))


def variants() -> tuple[str, ...]:
    """The timbres that the installed espeak-ng has.

    Returns:
      Their names.

    Raises:
      ImportError: `espeakng-loader` is not installed.

    Example:
      >>> "f2" in variants()
      True
    """
    return tuple(sorted(os.listdir(os.path.join(_loader().get_data_path(), "voices", "!v"))))


def _loader():
    try:
        import espeakng_loader
    except ImportError:
        raise ImportError(
            "spoken commands need the package espeakng-loader, which carries espeak-ng: pip install espeakng-loader"
        ) from None
    return espeakng_loader


def _synthesise(text: str, voice: Voice) -> tuple[int, bytes]:
    loader = _loader()
    path, data = loader.get_library_path(), loader.get_data_path()
    # The phase of a voice's flutter outlives an utterance, and even a new start of the library: only loaded anew does
    # it begin at 0. Somebody else's hold on the library would keep it loaded.
    try:
        held = ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
    except OSError:
        pass
    else:
        _dlclose(held)
        raise RuntimeError(f"{path} is in use in this process: speech would depend on what it spoke before")
    library, spoken = ctypes.CDLL(path), []

    @_Callback
    def collect(samples, count, events):
        if samples and count > 0:
            spoken.append(ctypes.string_at(samples, 2 * count))
        return 0

    try:
        # It keeps its folder in 160 bytes.
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _DONT_EXIT)
        if rate <= 0:
            raise RuntimeError(f"espeak-ng does not start with its data in {data}")
        library.espeak_SetSynthCallback(collect)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        status = library.espeak_SetVoiceByName(f"{voice.accent}+{voice.variant}".encode())
        for name, number in _PARAMETERS.items():
            status = status or library.espeak_SetParameter(number, getattr(voice, name), 0)
        content = text.encode()
        status = status or library.espeak_Synth(content, ctypes.c_size_t(len(content) + 1), 0, 0, 0, _UTF8, None, None)
        library.espeak_Terminate()
        if status:
            raise RuntimeError(f"espeak-ng cannot speak {text!r} by {voice}: status {status}")
    finally:
        _dlclose(library)
    return rate, b"".join(spoken)


def _dlclose(library: ctypes.CDLL) -> None:
    close = ctypes.CDLL(None).dlclose
    close.argtypes = [ctypes.c_void_p]
    close(library._handle)
