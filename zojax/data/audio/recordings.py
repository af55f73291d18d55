"""Recorded utterances: a file with its text and speaker, and splits of them."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zojax.data.audio.prepared import Skipped, Utterance
from zojax.data.audio.waves import AudioError, read_wave

__all__ = ["Recording", "Recordings", "hold_out"]


class Recording(NamedTuple):
    """A file to decode: name of the utterance, path, what is said, by whom ("" where nobody knows)."""

    id: str
    path: Path
    text: str
    speaker: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recordings:
    """A `Source` of files.

    Attributes:
      files: the recordings of each split.

    Raises:
      ValueError: if two recordings of a split have one name, or a split is empty or badly named.

    Example:
      >>> Recordings(files={"dev": (Recording("a", Path("a.wav"), "go", ""),)}).splits
      ('dev',)
    """

    files: Mapping[str, Sequence[Recording]]

    def __post_init__(self):
        for split, recordings in self.files.items():
            if not re.fullmatch(r"\w+", split):
                raise ValueError(f"split {split!r}: letters, digits and underscores are needed")
            if not recordings:
                raise ValueError(f"split {split!r} has no recordings")
            seen = set()
            for recording in recordings:
                if recording.id in seen:
                    raise ValueError(f"split {split!r} has two recordings of the name {recording.id!r}")
                seen.add(recording.id)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.files)

    def fingerprint(self) -> str:
        """SHA-256 of names, texts and speakers, and of the files' paths, sizes and times of change."""
        digest = hashlib.sha256()
        for split, recordings in self.files.items():
            for recording in recordings:
                status = recording.path.stat() if recording.path.is_file() else None
                state = (status.st_size, status.st_mtime_ns) if status else None
                row = (split, recording.id, str(recording.path), recording.text, recording.speaker, state)
                digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()[:32]

    def utterances(self, split: str) -> Iterator[Utterance | Skipped]:
        """Decodes the files of a split; one that cannot be decoded comes as `Skipped`."""
        for recording in self.files[split]:
            try:
                samples = read_wave(recording.path)
            except AudioError as error:
                yield Skipped(recording.id, f"{recording.path}: {error}")
            else:
                yield {
                    "id": recording.id,
                    "samples": samples,
                    "text": recording.text,
                    "speaker": recording.speaker,
                }


def hold_out(recordings: Sequence[Recording], size: int) -> tuple[list[Recording], list[Recording]]:
    """Cuts off a split with speakers of its own.

    Speakers are taken whole, in the order of the SHA-256 of their names, each if the rest can still be filled up
    exactly by later ones. So the cut depends on the speakers' names and numbers of utterances alone.

    Args:
      recordings: of several speakers.
      size: utterances to cut off.

    Returns:
      (those kept, those cut off), both in their order.

    Raises:
      ValueError: no set of speakers has that many utterances, or all would have to go.

    Example:
      >>> recordings = [Recording(f"{s}{i}", Path("x"), "", s) for s in "abc" for i in range(3)]
      >>> kept, held = hold_out(recordings, 3)
      >>> len(kept), len({recording.speaker for recording in held})
      (6, 1)
    """
    counts: dict[str, int] = {}
    for recording in recordings:
        counts[recording.speaker] = counts.get(recording.speaker, 0) + 1
    speakers = sorted(counts, key=lambda speaker: hashlib.sha256(speaker.encode()).digest())
    # reachable[i]: what the speakers from the i-th on can add up to.
    reachable = [{0}]
    for speaker in reversed(speakers):
        reachable.insert(0, reachable[0] | {counts[speaker] + total for total in reachable[0]})
    if not 0 < size < len(recordings) or size not in reachable[0]:
        raise ValueError(
            f"size: no speakers of the {len(speakers)} have {size} of the {len(recordings)} utterances together"
        )
    held, missing = set(), size
    for i, speaker in enumerate(speakers):
        if missing - counts[speaker] in reachable[i + 1]:
            held.add(speaker)
            missing -= counts[speaker]
    return (
        [recording for recording in recordings if recording.speaker not in held],
        [recording for recording in recordings if recording.speaker in held],
    )
