"""Recorded corpora as lists of files with their texts: AN4, LibriSpeech, and any manifest."""

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from zojax.data.audio.recordings import Recording, Recordings, hold_out
from zojax.data.text import data_root

__all__ = ["an4", "find_recordings", "librispeech", "manifests"]

# What a corpus without suffixes in its lists may have been stored as.
SUFFIXES = (".flac", ".wav", ".sph")


def an4(folder: str | os.PathLike[str], *, dev_size: int = 100) -> Recordings:
    """The census corpus of Carnegie Mellon University: spelled words, numbers, commands.

    AN4 has 948 utterances to train on and 130 to test on, by other speakers. `dev` is cut from the former by speakers,
    with `hold_out` (ours).

    Args:
      folder: holds `etc/an4_train.fileids`, `.transcription` and the same of `test`, and `wav/`, as the public archives
        unpack; the audio may be flac, wav or sphere.
      dev_size: utterances of `dev`.

    Returns:
      Splits train, dev and test; texts in capitals, without the marks of sentence ends and fillers.

    Raises:
      FileNotFoundError: a list is missing.
      ValueError: naming file and line, if ids and texts do not belong together; or if `dev_size` leaves nothing.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     (Path(folder) / "etc").mkdir()
      ...     for split, names in (("train", "ab"), ("test", "c")):
      ...         _ = Path(folder, f"etc/an4_{split}.fileids").write_text("".join(f"x/s{n}/{n}\\n" for n in names))
      ...         lines = "".join(f"<s> GO </s> ({n})\\n" for n in names)
      ...         _ = Path(folder, f"etc/an4_{split}.transcription").write_text(lines)
      ...     {name: [r[0::2] for r in files] for name, files in an4(folder, dev_size=1).files.items()}
      {'train': [('b', 'GO')], 'dev': [('a', 'GO')], 'test': [('c', 'GO')]}
    """
    folder = Path(folder)
    train, dev = hold_out(_an4_split(folder, "train"), dev_size)
    return Recordings(files={"train": train, "dev": dev, "test": _an4_split(folder, "test")})


def _an4_split(folder: Path, split: str) -> list[Recording]:
    lists = folder / "etc" / f"an4_{split}.fileids"
    texts = folder / "etc" / f"an4_{split}.transcription"
    files, lines = (path.read_text(encoding="utf-8").splitlines() for path in (lists, texts))
    if len(files) != len(lines):
        raise ValueError(f"{texts}: {len(lines)} lines, but {lists} has {len(files)}")
    recordings = []
    for number, (file, line) in enumerate(zip(files, lines, strict=True), start=1):
        parts, found = file.strip().split("/"), re.fullmatch(r"(.*)\((\S+)\)\s*", line)
        if not found or found.group(2) != parts[-1] or len(parts) < 2:
            raise ValueError(f"{texts}, line {number}: expected TEXT ({parts[-1]}), got {line!r}")
        text = " ".join(word for word in found.group(1).split() if not re.fullmatch(r"<.*>|\+\+.*\+\+", word))
        path = _inside(folder / "wav", file.strip(), f"{lists}, line {number}")
        paths = [path.with_name(path.name + suffix) for suffix in SUFFIXES]
        recordings.append(Recording(parts[-1], next(filter(Path.is_file, paths), paths[0]), text, parts[-2]))
    return recordings


def librispeech(folder: str | os.PathLike[str]) -> Recordings:
    """Folders of LibriSpeech, as its archives unpack.

    Args:
      folder: holds any of `train-clean-100`, `dev-other` and so on, each with `<speaker>/<chapter>/` and in it one
        `<speaker>-<chapter>.trans.txt` of lines "<id> TEXT" beside `<id>.flac`.

    Returns:
      A split for each folder, its name with underscores: `train_clean_100`.

    Raises:
      FileNotFoundError: there are no such folders.
      ValueError: naming file and line, if a line has no text or a foreign id.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     (Path(folder) / "dev-clean/84/121").mkdir(parents=True)
      ...     _ = Path(folder, "dev-clean/84/121/84-121.trans.txt").write_text("84-121-0000 GO ON\\n")
      ...     corpus = librispeech(folder)
      >>> corpus.splits, corpus.files["dev_clean"][0].text, corpus.files["dev_clean"][0].speaker
      (('dev_clean',), 'GO ON', '84')
    """
    files = {}
    for subset in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        recordings = []
        for texts in sorted(subset.glob("*/*/*.trans.txt")):
            chapter = texts.name.removesuffix(".trans.txt")
            for number, line in enumerate(texts.read_text(encoding="utf-8").splitlines(), start=1):
                name, _, text = line.partition(" ")
                if not re.fullmatch(re.escape(chapter) + r"-\d+", name) or not text.strip():
                    raise ValueError(f"{texts}, line {number}: expected {chapter}-<number> TEXT, got {line!r}")
                path = texts.with_name(name + ".flac")
                recordings.append(Recording(name, path, text.strip(), texts.parent.parent.name))
        if recordings:
            files[subset.name.replace("-", "_")] = recordings
    if not files:
        raise FileNotFoundError(f"{folder} holds no <subset>/<speaker>/<chapter>/*.trans.txt")
    return Recordings(files=files)


def manifests(paths: Mapping[str, str | os.PathLike[str]], *, root: str | os.PathLike[str] | None = None) -> Recordings:
    """Any corpus, by one list of files and texts a split.

    A `.tsv` names its columns in its first line and quotes nothing; a `.jsonl` has one object a line. Both need `path`
    and `text`; `id` (or `utt_id`) is the path where it is missing, `speaker` is "". More fields are ignored.

    Args:
      paths: the list of each split.
      root: the folder that holds the audio; by default that of each list. A path has to stay in it, links followed.

    Returns:
      The splits.

    Raises:
      ValueError: naming file, line and fault: no JSON, a missing field or column, a field that is not text, a path
        that leads out of the root; or a list without rows.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = Path(folder, "dev.tsv").write_text("path\\ttext\\nx/a.flac\\tgo on\\n")
      ...     corpus = manifests({"dev": Path(folder, "dev.tsv")})
      >>> corpus.files["dev"][0].id, corpus.files["dev"][0].text
      ('x/a.flac', 'go on')
    """
    files = {}
    for split, path in paths.items():
        path = Path(path)
        if path.suffix not in _READERS:
            raise ValueError(f"split {split!r}: {path} must end in .tsv or .jsonl")
        files[split] = [_recording(row, where, Path(root or path.parent)) for where, row in _READERS[path.suffix](path)]
        if not files[split]:
            raise ValueError(f"{path}: the file has no rows")
    return Recordings(files=files)


def _tsv(path: Path) -> Iterator[tuple[str, object]]:
    with open(path, encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            # A row that is too long has the key None, one that is too short the value None.
            if None in row or None in row.values():
                raise ValueError(f"{where}: expected {len(reader.fieldnames or ())} columns, as in the first line")
            yield where, row


def _jsonl(path: Path) -> Iterator[tuple[str, object]]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line.decode("utf-8"))
            except ValueError as error:  # of the UTF-8 or of the JSON
                raise ValueError(f"{where}: not a line of JSON ({error})") from None


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, object]]]] = {".tsv": _tsv, ".jsonl": _jsonl}


def _recording(row: object, where: str, root: Path) -> Recording:
    if not isinstance(row, dict):
        raise ValueError(f'{where}: expected an object {{"path", "text"}}, got {row!r}')
    for field in ("path", "text"):
        if field not in row:
            raise ValueError(f"{where}: field {field!r} is missing; there are {sorted(row)}")
    name = row.get("id", row.get("utt_id", row["path"]))
    fields = {"path": row["path"], "id": name, "text": row["text"], "speaker": row.get("speaker", "")}
    for field, value in fields.items():
        if not isinstance(value, str):
            raise ValueError(f"{where}: field {field!r} must be a string, got {value!r}")
        if field in ("path", "id") and not value:
            raise ValueError(f"{where}: field {field!r} is empty")
    return Recording(name, _inside(root, row["path"], where), row["text"], fields["speaker"])


def _inside(root: Path, name: str, where: str) -> Path:
    """root / name, if that lies in root."""
    root = root.resolve()
    path = (root / name).resolve() if "\0" not in name else root
    if path == root or not path.is_relative_to(root):
        raise ValueError(f"{where}: path {name!r} leads out of {root}")
    return path


def find_recordings(source: str | os.PathLike[str]) -> Recordings:
    """Turns the name of a corpus, or a path, into its recordings.

    Args:
      source: "an4" (looked for in `data_root()/speech/an4`), or a folder of AN4, of LibriSpeech, or with lists
        `<split>.tsv` or `<split>.jsonl` for `manifests`.

    Returns:
      The recordings.

    Raises:
      FileNotFoundError: there is no such folder, or none of that is in it.
      ValueError: a list is malformed.

    Example:
      >>> find_recordings("nosuch")
      Traceback (most recent call last):
      FileNotFoundError: speech source 'nosuch' is neither 'an4' nor a folder
    """
    folder = Path(source)
    if source == "an4":
        root = data_root()
        if root is None or not (root / "speech" / "an4").is_dir():
            raise FileNotFoundError("speech source 'an4' needs ZOJAX_DATA=<folder that holds speech/an4>, or its path")
        folder = root / "speech" / "an4"
    if not folder.is_dir():
        raise FileNotFoundError(f"speech source {str(source)!r} is neither 'an4' nor a folder")
    if (folder / "etc" / "an4_train.fileids").is_file():
        return an4(folder)
    lists = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in _READERS}
    return manifests(lists) if lists else librispeech(folder)
