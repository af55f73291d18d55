"""Makes speech_features.safetensors and word_errors.json, known values of other implementations.

    pip install kaldi-native-fbank==1.23.0 librosa==0.11.0 jiwer==4.0.0 soundfile safetensors   (an environment apart)
    python tests/golden/make_speech.py AN4/wav/an4_clstk/mgah/cen8-mgah-b.flac

The waveform is 0.6 s out of one AN4 utterance (Carnegie Mellon University, free for any use).
"""

import json
import random
import sys
from pathlib import Path

import jiwer
import kaldi_native_fbank
import librosa
import numpy as np
import soundfile
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
START, SAMPLES = 8000, 9600


def kaldi(samples: np.ndarray, bins: int) -> np.ndarray:
    """Features of int16 samples."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = bins
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16000, samples.astype(np.float32).tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


def slaney(samples: np.ndarray, bins: int) -> np.ndarray:
    """log of librosa's Mel spectrogram of int16 samples."""
    x = samples.astype(np.float32) / 32768
    power = librosa.feature.melspectrogram(
        y=x, sr=16000, n_fft=400, hop_length=160, win_length=400, n_mels=bins, center=False
    )
    return np.log(np.maximum(power, 1e-10)).T.astype(np.float32)


def word_errors() -> list[dict]:
    """Random pairs of sentences over a few words, with jiwer's counts."""
    rng, words = random.Random(0), ["go", "stop", "left", "right", "five"]
    cases = []
    for _ in range(60):
        reference, hypothesis = (" ".join(rng.choices(words, k=rng.randint(low, 9))) for low in (1, 0))
        by_word, by_character = (
            jiwer.process_words(reference, hypothesis),
            jiwer.process_characters(reference, hypothesis),
        )
        cases.append(
            {
                "reference": reference,
                "hypothesis": hypothesis,
                "wer": by_word.wer,
                "cer": by_character.cer,
                "errors": by_word.substitutions + by_word.deletions + by_word.insertions,
            }
        )
    return cases


def main() -> None:
    """Writes both files."""
    samples, rate = soundfile.read(sys.argv[1], dtype="int16")
    assert rate == 16000
    samples = np.ascontiguousarray(samples[START : START + SAMPLES])
    arrays = {
        "samples": samples,
        "kaldi_80": kaldi(samples, 80),
        "kaldi_64": kaldi(samples, 64),
        "librosa_80": slaney(samples, 80),
        "librosa_64": slaney(samples, 64),
    }
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, HERE / "speech_features.safetensors")
    (HERE / "word_errors.json").write_text(json.dumps(word_errors(), indent=0) + "\n")


if __name__ == "__main__":
    main()
