"""Writes down what is said in sound files, by a run of speech.

    python -m launch.transcribe FILE... --workdir=runs/commands_rnnt [--stream] [--beam=4] [--weights=best|last|base]
    python -m launch.transcribe FILE... --export=an4.safetensors [--stream] [--beam=4]
    python -m launch.transcribe FILE... --workdir=runs/names_both --bias=PHRASES [--boost=0.5]
    python -m launch.transcribe FILE... --workdir=runs/wake_dual --stream [--wake_words=WORDS] [--bias=PHRASES]
    python -m launch.transcribe FILE... --workdir=runs/commands_fusion [--missing=1] \
        [--microphones="-0.05,-0.05,0 -0.05,0.05,0 0.05,-0.05,0 0.05,0.05,0" --look=1,0,0]

Prints a line for each file, "NAME<tab>TEXT". A run for an accelerator is heard with its integers, as is the file of
`launch.export`, which needs neither run nor data. With --stream a file is heard as if it were just being spoken: a line
"<tab>SECONDS<tab>TEXT" for each change of the text on the way, and at the end the real-time factor (seconds of work
for a second of sound) and the emission latency, from the end of the frame that a label was recognised at to the moment
when it was there. In place of a file "test:0" may stand, an utterance of the run's own data; what was said comes with
it. A run with several signals takes files with a channel for each of them, or recordings by an array whose microphones
are at the given places, in metres, with a beam towards --look; signals of the run that are --missing (0 is its first)
are not heard. PHRASES is a file of phrases, one a line: the run's adapters lead it to these, and --boost its search. A
run with wake words says in a stream when it has heard one; WORDS and PHRASES are of its own data where none are named.
Files that cannot be read are named on stderr and counted. Exit code 1: none could be read; 2: a wrong request.
"""

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from launch.common import cli
from launch.common.weights import FOLDERS
from launch.speech import biasing, exported, recipe, recogniser, signals, wake_words
from launch.speech.recogniser import Recogniser
from launch.speech.recognition import best_labels, encoder_program, search
from launch.speech.streams import Stream, piece_frames
from models.transducer.decode import decode, phrase_boost
from models.transducer.model import transducer
from models.transducer.wake_word_task import WakeWordTask
from zojax.data.audio import prepared
from zojax.data.audio.features import num_frames
from zojax.data.audio.waves import RATE, AudioError, read_wave
from zojax.data.catalogues import read_phrases

# A file is padded to a multiple of this, so that files of all lengths share a few programs.
PADDED = 4 * RATE

# Flags that say what the channels of a file are.
ARRAY = ("microphones", "look", "missing")


class Heard(NamedTuple):
    """What was heard in a stream, and what it has cost.

    Attributes:
      labels: what was recognised.
      frames: the encoder's frame of each label.
      seconds: of sound.
      work: seconds of work.
      latencies: seconds from the end of each label's frame to the moment when the label was there.
      delays: seconds from the end of each frame of the encoder to the moment when it was there.
      rest: seconds from the end of the sound to the end of the work.
    """

    labels: np.ndarray
    frames: np.ndarray
    seconds: float
    work: float
    latencies: list[float]
    delays: list[float]
    rest: float


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    files = [argument for argument in argv[1:] if not argument.startswith("-")]
    try:
        values = cli.parse([argument for argument in argv if argument not in files], __doc__ or "", _define)
        workdir, export = (values[name].value or "" for name in ("workdir", "export"))
        if bool(workdir) == bool(export) or not files:
            raise ValueError("--workdir=RUN or --export=FILE, and one FILE or more to hear, are needed")
        if export:
            found = recogniser.of_export(exported.read(Path(export)))
        else:
            found = recogniser.load(Path(workdir), str(values["weights"].value))
        beam, streams = int(values["beam"].value or 0), bool(values["stream"].value)
        words, bias, boost = (values[name].value or "" for name in ("wake_words", "bias", "boost"))
        if isinstance(found.task, WakeWordTask):
            known = wake_words.named(found.config, words, bias)
            found = found._replace(params=wake_words.remembering(found.task, found.params, found.units, known))
        elif words:
            raise ValueError(f"--wake_words={words}: the run does not attend to any")
        if boost or found.task.biasing is not None or not isinstance(found.task, WakeWordTask):
            found = biased(found, bias, float(boost or 0))
        array = signals.Array.parse(found.signals, **{name: values[name].value or "" for name in ARRAY})
        if streams:
            _ = transducer(found.task.config).encoder_state(1)  # says why, where an encoder does not stream
    except (ValueError, FileNotFoundError) as error:
        cli.complain("transcribe", error)
        return cli.WRONG
    heard: list[Heard] = []
    skipped = 0
    for name in files:
        try:
            pcm, said = read(found, name, array)
        except (AudioError, LookupError) as error:
            cli.complain("transcribe", ValueError(f"{name}: {error}"))
            skipped += 1
            continue
        if said is not None:
            print(f"{name}\t(said: {said})")
        if streams:
            heard.append(stream(found, pcm, beam, show=True))
            print(f"{name}\t{found.units.decode(heard[-1].labels)}")
        else:
            print(f"{name}\t{transcribe(found, pcm, beam)}")
    if streams and heard:
        print(summary(heard))
    if skipped:
        cli.complain("transcribe", ValueError(f"{skipped} of {len(files)} files could not be read"))
    return cli.FAILED if skipped == len(files) else 0


def biased(found: Recogniser, path: str, reward: float) -> Recogniser:
    """What recognises, led to phrases by its adapters, by rewards in its searches, or both.

    Args:
      found: what recognises.
      path: file of phrases, one a line, or nothing.
      reward: of each label of a phrase, in nats; 0: none.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a line is no phrase or the model cannot write it, a flag lacks the other, or nothing reads phrases.
    """
    if not path:
        if reward:
            raise ValueError(f"--boost={reward}: --bias=FILE, whose phrases are to be boosted, is needed")
        return found
    phrases, adapters = read_phrases(path), found.task.biasing is not None
    if not adapters and not reward:
        raise ValueError(f"--bias={path}: the run has no adapters to phrases; --boost=NATS is needed")
    if reward:
        labels = [biasing.labels_of(phrase, found.units) for phrase in phrases]
        found = found._replace(boost=phrase_boost(labels, found.units.size, reward=reward))
    if not adapters:
        return found
    batch = {"catalogue": biasing.catalogue(found.config, found.units, [phrases])}
    return found._replace(params=biasing.led(found.task, found.params, batch))


def read(found: Recogniser, name: str, array: signals.Array) -> tuple[np.ndarray, str | None]:
    """Samples at 16 kHz, and what is said where that is known.

    Args:
      found: the run.
      name: of a file, or an utterance of the run's own data: a split, a colon and a number.
      array: what the channels of a file are, where the run has signals.

    Raises:
      AudioError: if the file cannot be read.
      LookupError: if there is no such utterance.
    """
    own = re.fullmatch(r"(\w+):(\d+)", name)
    if own is None or Path(name).exists():
        return (array.read(found.config, name) if found.signals else read_wave(name)), None
    if found.config is None:
        raise LookupError("no such file, and an export has no data of its own")
    split, number = own[1], int(own[2])
    try:
        one = prepared.load(recipe.source(found.config), split)[number]
    except (ValueError, IndexError, FileNotFoundError) as error:
        raise LookupError(cli.one_line(error)) from None
    return array.without_missing(signals.chosen(found.config, one["samples"])), one["text"]


def transcribe(found: Recogniser, pcm: np.ndarray, beam: int = 0) -> str:
    """What is said in a file, heard as a whole.

    Args:
      found: what recognises.
      pcm: int16 samples at 16 kHz, [samples] or [samples, signals].
      beam: hypotheses; 0: greedy search.

    Returns:
      The text.
    """
    frames = num_frames(len(pcm), found.bank)
    padded = np.zeros((1, -(-max(len(pcm), 1) // PADDED) * PADDED, *pcm.shape[1:]), np.int16)
    padded[0, : len(pcm)] = pcm
    batch = {"pcm": padded, "frame_lengths": np.array([frames])}
    encoded, mask = encoder_program(found.task)(found.params, batch)
    how, model = search(encoded.shape[1], beam), found.task.decodable(found.params)
    best = decode(how, model, encoded, mask, fusion=found.boost)
    return found.units.decode(best_labels(best)[0])


def stream(found: Recogniser, pcm: np.ndarray, beam: int = 0, *, longest: int = 0, show: bool = False) -> Heard:
    """What is said in a file, heard piece by piece, as if each came when it had been spoken.

    The work on a piece begins when its last sample is there and the piece before is done. Its duration is measured;
    waiting for the speaker is not.

    Args:
      found: what recognises.
      pcm: int16 samples at 16 kHz, [samples] or [samples, signals].
      beam: hypotheses; 0: greedy search.
      longest: samples for whose labels there is room, if that is more than the file needs; so that one that babbles
        is cut off where it is in an utterance of so many.
      show: prints each change of the text.

    Returns:
      What was heard. A label that takes the place of another, as in a beam, has the latency of the first.
    """
    task, bank = found.task, found.bank
    size = piece_frames(task) * bank.hop
    # Room for what the padded file would be given, so that the searches are one.
    room = num_frames(max(longest, -(-max(len(pcm), 1) // PADDED) * PADDED), bank)
    how = search(-(-room // transducer(task.config).encoder.stride), beam)
    _warm(found, how, pcm.shape[1:])
    hearing = Stream(task, found.params, bank, how, fusion=found.boost)
    clock, work, shown, said = 0.0, 0.0, "", 0
    step = bank.hop * transducer(task.config).encoder.stride / RATE
    labels, frames = np.zeros(0, np.int32), np.zeros(0, np.int32)
    latencies: list[float] = []
    delays: list[float] = []
    pieces = [pcm[start : start + size] for start in range(0, len(pcm), size)]
    for number, piece in enumerate([*pieces, None]):
        began = time.perf_counter()
        if piece is not None:
            hearing.push(piece[None])
        else:
            hearing.finish()
        there = min((number + 1) * size, len(pcm)) / RATE
        best = jax.device_get(hearing.found())
        took = time.perf_counter() - began
        clock, work = max(clock, there) + took, work + took
        count = int(best.lengths[0, 0])
        labels, frames = best.tokens[0, 0, :count], best.frames[0, 0, :count]
        delays += [clock - (frame + 1) * step for frame in range(len(delays), hearing.frames)]
        latencies += [clock - (int(frame) + 1) * step for frame in frames[len(latencies) :]]
        if show and isinstance(task, WakeWordTask) and (count := int(hearing.encoder[1].said[0])) > said:
            said = count
            print(f"\t{there:.2f}\t(wake word)", flush=True)
        if show and (text := found.units.decode(labels)) != shown:
            shown = text
            print(f"\t{there:.2f}\t{text}", flush=True)
    return Heard(labels, frames, len(pcm) / RATE, work, latencies, delays, clock - len(pcm) / RATE)


def factor(heard: Sequence[Heard]) -> float:
    """The real-time factor: seconds of work for a second of sound."""
    return sum(one.work for one in heard) / sum(one.seconds for one in heard)


def summary(heard: Sequence[Heard]) -> str:
    """Real-time factor and latencies of several files, in a line."""
    latencies = [x for one in heard for x in one.latencies]
    seconds = sum(one.seconds for one in heard)
    parts = [f"{len(heard)} files, {seconds:.1f} s", f"real-time factor {factor(heard):.3f}"]
    if latencies:
        parts.append(f"emission latency {np.mean(latencies):.3f} s, at most {max(latencies):.3f} s")
    return ", ".join([*parts, f"after the end {np.mean([one.rest for one in heard]):.3f} s"])


def _warm(found: Recogniser, how, several: tuple[int, ...]) -> None:
    """Compiles what a stream needs, so that no file pays for it."""
    warm = Stream(found.task, found.params, found.bank, how, fusion=found.boost)
    warm.push(np.zeros((1, piece_frames(found.task) * found.bank.hop + found.bank.window, *several), np.int16))
    warm.finish()
    jax.block_until_ready(warm.found())


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("export", None, "file of an integer transducer, in place of a run", flag_values=values)
    flags.DEFINE_enum("weights", "best", [*FOLDERS], "which weights", flag_values=values)
    flags.DEFINE_bool("stream", False, "hear the files as they would be spoken", flag_values=values)
    flags.DEFINE_integer("beam", 0, "hypotheses; 0: greedy search", lower_bound=0, flag_values=values)
    flags.DEFINE_string("wake_words", None, "file of wake words, one a line", flag_values=values)
    flags.DEFINE_string("bias", None, "file of phrases, one a line, that may be said", flag_values=values)
    flags.DEFINE_float("boost", 0.0, "nats a label of a phrase in the search", lower_bound=0, flag_values=values)
    flags.DEFINE_string("microphones", None, "places X,Y,Z of the channels' microphones, in metres", flag_values=values)
    flags.DEFINE_string("look", None, "direction X,Y,Z of the beam that is made of them", flag_values=values)
    flags.DEFINE_string("missing", None, "signals that are not heard, such as 0,2", flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
