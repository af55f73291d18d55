"""How well a run of speech recognises a split: one table for searches, whole utterances and streams."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from launch.common import cli, weights
from launch.speech import biasing, recipe, recogniser, signals, wake_words
from launch.speech.endpoints import Aligner, emission_delays, speech_bounds
from launch.speech.latency import frame_latencies
from launch.speech.recogniser import Recogniser
from launch.speech.recognition import encoder_program, search
from launch.transcribe import PADDED, factor, stream
from models.transducer.decode import decode
from models.transducer.deployed import DeployedTask
from models.transducer.model import transducer
from zojax import train
from zojax.data.audio.features import FilterBank, num_frames
from zojax.data.audio.waves import RATE
from zojax.metrics import BiasedErrors, Errors, biased_errors, character_errors, word_errors

# Draws of the bootstrap.
DRAWS = 2000


class Utterance(NamedTuple):
    """What was said and what was recognised.

    Attributes:
      id: its number in the split.
      pcm: int16 samples.
      said: the reference.
      heard: what was recognised.
      labels: the labels of that.
      times: seconds from the start of the sound to where the encoder has heard what each label needs.
      waits: seconds that each encoder frame waits for others; see `latency.frame_latencies`.
      own: what its batch has of it beside speech.
    """

    id: int
    pcm: np.ndarray
    said: str
    heard: str
    labels: np.ndarray
    times: np.ndarray
    waits: np.ndarray
    own: Any = None


class Condition(NamedTuple):
    """One row of the table.

    Attributes:
      search: "greedy" or "beam N".
      mode: "whole" or "stream".
      utterances: what was recognised.
      factor: real-time factor: seconds of work for a second of sound.
      rest: mean seconds from the end of a streamed sound to its last label, work included; 0 of whole ones.
      frame: mean seconds from the end of an encoder's frame to where it came out of a stream, work included; 0 of whole
        ones.
    """

    search: str
    mode: str
    utterances: list[Utterance]
    factor: float
    rest: float
    frame: float


Lead = Callable[[Recogniser, Any], Recogniser]


def led(found: Recogniser, batch: Any) -> Recogniser:
    """What recognises a batch: led by the lists that it has, where the run has adapters to them."""
    return found._replace(params=biasing.led(found.task, found.params, batch))


def conditions(found: Recogniser, batches: Sequence[Any], beam: int, lead: Lead = led) -> list[Condition]:
    """Recognises a split: greedy and with a beam, whole and, where the encoder can, as streams.

    Args:
      found: what recognises.
      batches: the split.
      beam: hypotheses of the second search; 0: greedy alone.
      lead: what recognises a batch, or what an utterance has of one.

    Returns:
      The rows.

    Raises:
      RuntimeError: if a stream gives another text than the whole utterance.
    """
    rows = []
    # One room for labels in all batches and streams, so that what fills it is cut off alike.
    longest = max(-(-batch["pcm"].shape[1] // PADDED) * PADDED for batch in batches)
    for width in (0, beam) if beam else (0,):
        rows.append(_whole(found, batches, width, longest, lead))
        if not can_stream(found):
            continue
        rows.append(_streamed(found, rows[-1], width, longest, lead))
        pairs = zip(*(row.utterances for row in rows[-2:]), strict=True)
        differ = [a.id for a, b in pairs if a.heard != b.heard]
        if differ:
            raise RuntimeError(f"{rows[-1].search}: streams give another text than the whole of utterances {differ}")
    return rows


def can_stream(found: Recogniser) -> bool:
    """Whether the encoder can be fed piece by piece."""
    try:
        transducer(found.task.config).encoder_state(1)
    except ValueError:
        return False
    return True


def _whole(found: Recogniser, batches: Sequence[Any], beam: int, longest: int, lead: Lead) -> Condition:
    utterances, work, seconds, compiled = [], 0.0, 0.0, set()
    how = search(-(-num_frames(longest, found.bank) // transducer(found.task.config).encoder.stride), beam)
    program = encoder_program(found.task)
    for batch in batches:
        now = lead(found, batch)
        model = now.task.decodable(now.params)
        shape, took = (batch["pcm"].shape, *map(np.shape, jax.tree.leaves((now.params, now.boost)))), 0.0
        for _ in range(1 if shape in compiled else 2):  # not the time to compile
            began = time.perf_counter()
            frames, mask = program(now.params, batch)
            best = jax.device_get(decode(how, model, frames, mask, fusion=now.boost))
            took = time.perf_counter() - began
        compiled.add(shape)
        work += took
        waits = frame_latencies(found, batch)
        for row in np.flatnonzero(batch["weight"] > 0):
            count = int(best.lengths[row, 0])
            pcm = batch["pcm"][row, : _samples(int(batch["frame_lengths"][row]), found.bank)]
            said = found.units.decode(batch["labels"][row, : batch["label_lengths"][row]])
            labels, at = best.tokens[row, 0, :count], best.frames[row, 0, :count]
            heard = found.units.decode(labels)
            times = emission_times(found, at, waits[row])
            one = Utterance(int(batch["id"][row]), pcm, said, heard, labels, times, waits[row], _own(batch, int(row)))
            utterances.append(one)
            seconds += len(pcm) / RATE
    name = f"beam {beam}" if beam else "greedy"
    return Condition(name, "whole", utterances, work / seconds, 0.0, 0.0)


def _own(batch: Any, row: int) -> dict[str, Any]:
    """What a batch has of one utterance beside speech: its number, and its list where there are lists."""
    found = {"id": batch["id"][row : row + 1]}
    if "catalogue" in batch:
        found["catalogue"] = batch["catalogue"] | {"rows": batch["catalogue"]["rows"][row : row + 1]}
    return found


def _streamed(found: Recogniser, whole: Condition, beam: int, longest: int, lead: Lead) -> Condition:
    heard = [stream(lead(found, one.own), one.pcm, beam, longest=longest) for one in whole.utterances]
    utterances = []
    for one, new in zip(whole.utterances, heard, strict=True):
        times = emission_times(found, new.frames, one.waits)
        utterances.append(one._replace(heard=found.units.decode(new.labels), labels=new.labels, times=times))
    rest = float(np.mean([new.rest for new in heard]))
    delays = [delay for new in heard for delay in new.delays]
    return Condition(whole.search, "stream", utterances, factor(heard), rest, float(np.mean(delays)) if delays else 0.0)


def _samples(frames: int, bank: FilterBank) -> int:
    """Samples of so many frames; what an utterance has behind them makes no frame."""
    return (frames - 1) * bank.hop + bank.window if frames else 0


def emission_times(found: Recogniser, frames: np.ndarray, waits: np.ndarray) -> np.ndarray:
    """Seconds from the start of the sound to the last sample that an encoder's frames need, block and look-ahead too.

    Of an encoder that sees whole utterances: to the end of the frames themselves.
    """
    stride = transducer(found.task.config).encoder.stride
    own = np.array([_samples(stride * (int(t) + 1), found.bank) / RATE for t in frames])
    return own + waits[frames] if len(frames) and can_stream(found) else own


def record(
    found: Recogniser,
    row: Condition,
    *,
    listed: frozenset[str] = frozenset(),
    aligned: Aligner | None = None,
    steered: Sequence[bool] = (),
) -> dict[str, Any]:
    """The figures of a row.

    Args:
      found: what has recognised.
      row: what was recognised.
      listed: words of a biasing list; without them no split of the errors.
      aligned: gives the times at which words are said; without it no emission delay.
      steered: whether the beam is steered rightly in each utterance of the split; without it no split of the errors.

    Returns:
      Rates as shares, times in seconds, but "latency_ms" and "latency_95_ms", which are milliseconds: mean and 95th
      percentile of `latency.frame_latencies`. "first" and "last": from the first and to the last 10 ms of speech, by
      energy, to where the first and the last label were emitted; means over utterances that have labels.
    """
    words = [word_errors(one.said, one.heard) for one in row.utterances]
    total = sum(words, Errors())
    characters = sum((character_errors(one.said, one.heard) for one in row.utterances), Errors())
    low, high = interval(words)
    values: dict[str, Any] = {"search": row.search, "mode": row.mode}
    values |= {"wer": total.rate, "low": low, "high": high, "errors": total.errors, "words": total.words}
    values |= {"cer": characters.rate, "real_time_factor": row.factor}
    if (waits := 1000 * np.concatenate([one.waits for one in row.utterances])).size:
        values |= {"latency_ms": float(waits.mean()), "latency_95_ms": float(np.quantile(waits, 0.95))}
    if listed:
        split = sum((biased_errors(one.said, one.heard, listed) for one in row.utterances), BiasedErrors())
        values |= {"u_wer": split.unbiased.rate, "b_wer": split.biased.rate}
    if steered:
        for name, kind in STEERING.items():
            pairs = zip(words, row.utterances, strict=True)
            of_kind = [one for one, utterance in pairs if steered[utterance.id] is kind]
            values[f"wer_{name}"] = sum(of_kind, Errors()).rate if of_kind else None
    if row.mode == "stream":
        bounds = [(one, speech_bounds(one.pcm)) for one in row.utterances if len(one.times)]
        values["first"] = float(np.mean([one.times[0] - start for one, (start, _) in bounds])) if bounds else None
        values["last"] = float(np.mean([one.times[-1] - end for one, (_, end) in bounds])) if bounds else None
        values |= {"rest": row.rest, "frame": row.frame}
    if aligned is not None:
        delays = [x for one in row.utterances for x in emission_delays(one, aligned, found.units)]
        values["delay"] = float(np.mean(delays)) if delays else None
    return values


def interval(words: Sequence[Errors]) -> tuple[float, float]:
    """The 95 % interval of a word error rate, by a bootstrap over utterances (percentiles; fixed draws)."""
    rng = np.random.default_rng(0)
    errors, said = (np.array([getattr(one, name) for one in words]) for name in ("errors", "words"))
    drawn = rng.integers(0, len(words), (DRAWS, len(words)))
    rates = errors[drawn].sum(1) / np.maximum(said[drawn].sum(1), 1)
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


STEERING = {"right": True, "wrong": False}

COLUMNS = {
    "wake_f1": ("wake F1", "{:.3f}"),
    "wer_right": ("WER, beam right", "{:.2%}"),
    "wer_wrong": ("beam wrong", "{:.2%}"),
    "u_wer": ("U-WER", "{:.2%}"),
    "b_wer": ("B-WER", "{:.2%}"),
    "real_time_factor": ("RTF", "{:.3f}"),
    "latency_ms": ("latency", "{:.0f} ms"),
    "latency_95_ms": ("95th", "{:.0f} ms"),
    "frame": ("frame", "{:.3f} s"),
    "delay": ("delay", "{:+.3f} s"),
    "first": ("first", "{:+.3f} s"),
    "last": ("last", "{:+.3f} s"),
    "rest": ("after end", "{:.3f} s"),
}


def table(records: Sequence[dict[str, Any]]) -> str:
    """The records as a table; columns that none has are left out."""
    shown = [name for name in COLUMNS if any(one.get(name) is not None for one in records)]
    heads = ["search", "mode", "words", "errors", "WER", "95 %", "CER", *(COLUMNS[name][0] for name in shown)]
    rows = [heads]
    for one in records:
        counts = [one["search"], one["mode"], f"{one['words']:,}", f"{one['errors']:,}", f"{one['wer']:.2%}"]
        counts += [f"{one['low']:.1%} - {one['high']:.1%}", f"{one['cer']:.2%}"]
        rows.append(counts + ["" if one.get(n) is None else COLUMNS[n][1].format(one[n]) for n in shown])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if i < 2 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def save(folder: Path, name: str, rows: Sequence[Condition], steered: Sequence[bool] = ()) -> None:
    """Writes what was said and heard, a JSON line an utterance: {"id", "said", "<search> <mode>": what was heard}.

    Of a run with signals also "beam": "right" or "wrong".
    """
    with (folder / name).open("w", encoding="utf-8") as file:
        for ones in sorted(zip(*(row.utterances for row in rows), strict=True), key=lambda ones: ones[0].id):
            heard = {f"{row.search} {row.mode}": one.heard for row, one in zip(rows, ones, strict=True)}
            if steered:
                heard["beam"] = "right" if steered[ones[0].id] else "wrong"
            file.write(json.dumps({"id": ones[0].id, "said": ones[0].said, **heard}, ensure_ascii=False) + "\n")


def run(workdir: Path, which: str, split: str, *, beam: int = 4, listed: str = "", aligner: str = "") -> int:
    """What `launch.eval` does with a run of speech; returns its exit code.

    Args:
      workdir: folder of the run.
      which: weights.
      split: examples.
      beam: hypotheses of the second search; 0: none.
      listed: file of words, or nothing.
      aligner: "runs/x" or "runs/x:best", or nothing.

    Raises:
      ValueError: if the aligner has other units, or a file is malformed.
      FileNotFoundError: if something is not there.
    """
    found = recogniser.load(workdir, which)
    aligned, words = None, frozenset()
    if aligner:
        other = recogniser.load(*weights.parse(aligner))
        if isinstance(other.task, DeployedTask):
            raise ValueError(f"--aligner={aligner}: it is on an accelerator; a float run is needed")
        if other.units != found.units:
            raise ValueError(f"--aligner={aligner}: its units are others than those of {workdir}")
        if list(other.config.speech.signals) != list(found.config.speech.signals):
            raise ValueError(f"--aligner={aligner}: it hears other signals than {workdir}")
        aligned = Aligner(other)
    if listed:
        words = frozenset(Path(listed).read_text(encoding="utf-8").split())
    known = wake_words.lists(found.config, split)
    if known.wake and not listed:
        words = frozenset(" ".join(known.catalogue).split())
    found = found._replace(params=wake_words.remembering(found.task, found.params, found.units, known))
    batches, steered = recipe.evaluation(found.config, found.units, split), recipe.steering(found.config, split)
    try:
        rows = conditions(found, batches, beam)
    except RuntimeError as error:
        cli.complain("eval", error)
        return cli.FAILED
    # Not by `make_evaluate`, which puts two trees of weights together: these may be integers.
    judge = jax.jit(lambda params, _, batch: found.task.evaluate(params, batch))
    loss = train.evaluate(judge, found.params, {}, batches)
    heard = wake_words.judged(found.task, found.params, batches, found.bank, known)
    records = [record(found, row, listed=words, aligned=aligned, steered=steered) | loss | heard for row in rows]
    for values, row in zip(records, rows, strict=True):
        values |= wake_words.figures(known, [(one.said, one.heard) for one in row.utterances])
    save(workdir, f"heard_{split}_{which}.jsonl", rows, steered)
    lines = [json.dumps({"split": split, "weights": which, **one}) + "\n" for one in records]
    (workdir / f"recognised_{split}_{which}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{split}, {which} weights, {len(rows[0].utterances)} utterances, {loss['nats_per_label']:.4f} nats a label")
    print(table(records))
    if heard:
        print(wake_words.summary(heard))
    of_fusion, of_all = signals.share(found.params)
    if of_fusion:
        print(f"fusion ({found.config.speech.fusion}): {of_fusion:,} of {of_all:,} weights, {of_fusion / of_all:.2%}")
    return 0
