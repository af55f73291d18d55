"""Where the rows of a task come from: a folder, in whichever form the data set was published.

| form | files |
|---|---|
| JSON lines: SuperGLUE, SNLI, MNLI, the hub, flat rows of this project | `train.jsonl`, `val.jsonl`, `dev.jsonl`, ... |
| JSON: SQuAD, DROP | `train-v1.1.json`, `drop_dataset_dev.json` |
| tab-separated: GLUE | `train.tsv`, `dev.tsv`, `dev_matched.tsv` |
| trees: SST-5 | `train.txt`, `dev.txt`, `test.txt` |
| lines with a label: TREC | `train_5500.label`, `TREC_10.label` |
| Parquet: a snapshot of a hub data set (the folder of one configuration) | `train-00000-of-00001.parquet` |
| prepared by TFDS as array_record (a folder with `features.json`) | `...-train.array_record-00000-of-00001` |

None of them needs TensorFlow, and nothing is downloaded.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zojax.data.tasks.prompts import get_task
from zojax.data.tasks.records import rows
from zojax.data.text import data_root

__all__ = ["find_task_folder", "load_rows"]

# What the splits are called. MNLI's matched part is its validation set, as in the published runs.
_NAMES = {"train": ("train",), "dev": ("dev", "val", "validation", "valid"), "test": ("test",)}
_TFDS_NAMES = {
    "train": ("train",),
    "dev": ("validation", "validation_matched", "dev"),
    "test": ("test",),
}
_BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}

Record = dict[str, Any]


def find_task_folder(name: str, source: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a task's data.

    Args:
      name: a task's name.
      source: a folder that holds the task's files, or a folder of such folders, named as the tasks; None: the folder
        text of `data_root()`.

    Returns:
      The folder.

    Raises:
      ValueError: if there is no such task.
      FileNotFoundError: if there is no such folder.

    Example:
      >>> find_task_folder("rte", "/nowhere")
      Traceback (most recent call last):
      ...
      FileNotFoundError: task 'rte': there is no folder /nowhere
    """
    get_task(name)
    if source is None:
        root = data_root()
        if root is None:
            raise FileNotFoundError(
                f"task {name!r}: no data; name a folder, or set ZOJAX_DATA=<folder that holds text/{name}>"
            )
        if not (root / "text" / name).is_dir():
            raise FileNotFoundError(f"task {name!r}: no data: there is no folder {root / 'text' / name}")
        return root / "text" / name
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"task {name!r}: there is no folder {folder}")
    return folder / name if (folder / name).is_dir() else folder


def load_rows(name: str, split: str, source: str | os.PathLike[str] | None = None) -> list[dict[str, Any]]:
    """Reads a split of a task.

    Args:
      name: a task's name.
      split: "train", "dev" or "test"; the validation sets of the publishers are "dev".
      source: as `find_task_folder` takes it.

    Returns:
      Rows in the order of the file; `id` counts them from 0.

    Raises:
      ValueError: if there is no such task or split, or a record is not what it should be; the message names file,
        record and field.
      FileNotFoundError: if the folder or the split's file is missing.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = Path(folder, "train_5500.label").write_text("HUM:ind Who wrote Emma ?")
      ...     load_rows("trec", "train", folder)
      [{'text': 'Who wrote Emma ?', 'label': 3, 'id': 0}]
    """
    if split not in _NAMES:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(_NAMES)}")
    task, folder = get_task(name), find_task_folder(name, source)
    out: list[dict[str, Any]] = []
    for where, record in _records(name, split, folder):
        try:
            for row in rows(task, record):
                out.append({**row, "id": len(out)})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{where}: {_reason(error)}") from error
    if not out:
        raise ValueError(f"{folder}: the split {split!r} of {name} has no rows")
    return out


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"a record of an unknown form ({error!r})"


def _records(name: str, split: str, folder: Path) -> Iterator[tuple[str, Record]]:
    """Records of a split, each with a name for messages."""
    if (folder / "features.json").is_file():
        yield from _prepared(split, folder)
        return
    for path in _files(name, split, folder):
        for number, record in enumerate(_READERS[path.suffix](path), start=1):
            yield f"{path}, record {number}", record


def _files(name: str, split: str, folder: Path) -> list[Path]:
    """The file of a split, or its Parquet shards."""

    def belongs(path: Path) -> bool:
        words = re.split(r"[-_.]", path.name.lower())
        if path.suffix not in _READERS or "mismatched" in words:
            return False
        if path.suffix == ".label":  # TREC's test file does not say so
            return words[0] == {"train": "train", "test": "trec"}.get(split)
        return any(word in words for word in _NAMES[split])

    candidates = [path for place in (folder, folder / "data") if place.is_dir() for path in sorted(place.iterdir())]
    found = [path for path in candidates if belongs(path)]
    if not found:
        raise FileNotFoundError(f"{folder} holds no file of the split {split!r} of {name}")
    if len(found) > 1 and not all(path.suffix == ".parquet" and "-of-" in path.name for path in found):
        raise ValueError(
            f"{folder} holds {len(found)} files of the split {split!r} of {name}, and one is needed: "
            f"{', '.join(path.name for path in found)}"
        )
    return found


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line.decode("utf-8"))
            except ValueError as error:  # of the UTF-8 or of the JSON
                raise ValueError(f"{path}, line {number}: not a line of JSON ({error})") from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number}: expected an object, got {record!r}")
            yield record


def _json(path: Path) -> Iterator[Record]:
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(whole, dict):
        raise ValueError(f"{path}: expected an object, as SQuAD's and DROP's files have it")
    yield from whole["data"] if "data" in whole else whole.values()


def _tsv(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _trees(path: Path) -> Iterator[Record]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        grade = re.match(r"\((\d) ", line)
        if grade is None:
            raise ValueError(f"{path}, line {number}: not a tree such as (3 (2 Good) (2 film))")
        words = re.findall(r"\(\d ([^()]+)\)", line)
        yield {"text": " ".join(_BRACKETS.get(str(word), str(word)) for word in words), "label": int(grade.group(1))}


def _labelled_lines(path: Path) -> Iterator[Record]:
    for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), start=1):
        label, separator, text = line.partition(" ")
        if not separator or ":" not in label:
            raise ValueError(f"{path}, line {number}: not a line such as 'HUM:ind Who wrote Emma ?'")
        yield {"text": text, "label": label.partition(":")[0]}


def _parquet(path: Path) -> Iterator[Record]:
    from pyarrow import parquet  # comes with TFDS; only for those who read such files

    file = parquet.ParquetFile(path)
    described = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    features = described.get("info", {}).get("features", {})
    named = {name: feature["names"] for name, feature in features.items() if isinstance(feature, dict)
             and feature.get("_type") == "ClassLabel"}  # fmt: skip
    for batch in file.iter_batches():
        for record in batch.to_pylist():
            yield _with_names(record, named)


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".tsv": _tsv,
    ".txt": _trees,
    ".label": _labelled_lines,
    ".parquet": _parquet,
}


def _prepared(split: str, folder: Path) -> Iterator[tuple[str, Record]]:
    """The records of a folder that TFDS has prepared."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    name = next((name for name in _TFDS_NAMES[split] if name in builder.info.splits), None)
    if name is None:
        raise FileNotFoundError(f"{folder} has no split {split!r}; TFDS has prepared {list(builder.info.splits)}")
    try:
        source: Any = builder.as_data_source(name)  # pyright: ignore[reportCallIssue] (a decorator hides the signature)
    except NotImplementedError as error:
        raise ValueError(f"{folder}: TFDS must have prepared it with file_format='array_record' ({error})") from None
    features: Any = builder.info.features
    named = {name: feature.names for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)}
    for number in range(len(source)):
        yield f"{folder}, split {name}, record {number + 1}", _with_names(_plain(source[number]), named)


def _plain(value: Any) -> Any:
    """Python values in place of numpy's, text in place of bytes, and a list of mappings for a sequence of them."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value


def _with_names(record: Record, named: dict[str, list[str]]) -> Record:
    """Class numbers replaced by the names that the source gives them; -1 (no label) stays."""
    return {
        name: named[name][value] if name in named and isinstance(value, int) and value >= 0 else value
        for name, value in record.items()
    }
