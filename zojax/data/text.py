"""Text classification data sets: folders of JSON lines, prepared once by TFDS and read by random access.

A data set is a folder with any of `train.jsonl`, `dev.jsonl` and `test.jsonl`; each line is a JSON object
with `text` (a string) and `label` (an integer from 0). The prepared copy is an ArrayRecord file; neither
writing nor reading it needs TensorFlow.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import TypedDict, overload

import numpy as np
import tensorflow_datasets as tfds  # does not import TensorFlow until something of it is used

from zojax.data._prepared import prepare

SPLITS = ("train", "dev", "test")


class Row(TypedDict):
    """One example: its text, its class and its row number in the split."""

    text: str
    label: int
    id: int


def data_root() -> Path | None:
    """Find the folder of the larger data sets, which the package does not carry.

    Returns:
      The folder that the environment variable `ZOJAX_DATA` names; without it `../shared/data` beside the
      checkout, if that exists; else None.

    Raises:
      FileNotFoundError: `ZOJAX_DATA` is set and is not a folder.

    Example:
      >>> root = data_root()
      >>> root is None or root.is_dir()
      True
    """
    named = os.environ.get("ZOJAX_DATA")
    if named:
        if not Path(named).is_dir():
            raise FileNotFoundError(f"ZOJAX_DATA={named!r} is not a folder")
        return Path(named)
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return beside if beside.is_dir() else None


def find_folder(source: str | os.PathLike[str]) -> Path:
    """Turn the name of a data set, or a path, into the folder that holds its JSON lines.

    Args:
      source: "reviews" (short reviews written for this project, shipped with it, two classes), "sst2" (looked for in
        `data_root()/text/sst2`), or the path of a folder.

    Returns:
      The folder.

    Raises:
      FileNotFoundError: there is no such folder.

    Example:
      >>> sorted(path.name for path in find_folder("reviews").glob("*.jsonl"))
      ['dev.jsonl', 'test.jsonl', 'train.jsonl']
    """
    if source == "reviews":
        return Path(str(resources.files("zojax.data") / "reviews"))
    if source == "sst2":
        root = data_root()
        if root is None:
            raise FileNotFoundError(
                "data set 'sst2' needs ZOJAX_DATA=<folder that holds text/sst2/*.jsonl>; it is not set and "
                "there is no ../shared/data beside the checkout"
            )
        if not (root / "text" / "sst2").is_dir():
            raise FileNotFoundError(f"data set 'sst2' is not in {root}: no folder text/sst2 there")
        return root / "text" / "sst2"
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"data source {str(source)!r} is neither 'reviews' nor 'sst2' nor a folder")
    return folder


def read_jsonl(path: str | os.PathLike[str], *, num_classes: int = 2) -> list[Row]:
    """Read and check one file of JSON lines.

    Args:
      path: the file; one JSON object a line, with `text` and `label`; other fields are ignored.
      num_classes: labels must lie in 0..num_classes-1.

    Returns:
      The rows in the order of the file; `id` counts them from 0.

    Raises:
      ValueError: naming file, line and fault, for invalid JSON, a missing field, a text that is not a
        string or is blank, a label that is not an integer in range, or a file without rows.

    Example:
      >>> rows = read_jsonl(find_folder("reviews") / "test.jsonl")
      >>> len(rows), sorted(rows[0])
      (200, ['id', 'label', 'text'])
    """
    rows: list[Row] = []
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            try:
                record = json.loads(line.decode("utf-8"))
            except ValueError as error:  # of the UTF-8 or of the JSON
                raise ValueError(f"{where}: not a line of JSON ({error})") from None
            if not isinstance(record, dict):
                raise ValueError(f'{where}: expected an object {{"text", "label"}}, got {record!r}')
            for field in ("text", "label"):
                if field not in record:
                    raise ValueError(f"{where}: field {field!r} is missing; the line has {sorted(record)}")
            text, label = record["text"], record["label"]
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{where}: field 'text' must be a string with something in it, got {text!r}")
            # bool is a subclass of int, and `true` is not a class number
            if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < num_classes:
                raise ValueError(f"{where}: field 'label' must be an integer in 0..{num_classes - 1}, got {label!r}")
            rows.append({"text": text, "label": label, "id": len(rows)})
    if not rows:
        raise ValueError(f"{path}: the file has no rows")
    return rows


@dataclasses.dataclass(eq=False)
class JsonlConfig(tfds.core.BuilderConfig):
    """Which folder a `JsonlClassification` is built from; `jsonl_config` makes one.

    Attributes:
      folder: the folder of the JSON lines.
      num_classes: labels lie in 0..num_classes-1.

    Example:
      >>> JsonlConfig(name="reviews", folder="reviews").num_classes
      2
    """

    folder: str = ""
    num_classes: int = 2


def jsonl_config(folder: str | os.PathLike[str], *, num_classes: int = 2) -> JsonlConfig:
    """Describe a folder, under a name that changes whenever one of its files does.

    Args:
      folder: a folder with any of train.jsonl, dev.jsonl and test.jsonl.
      num_classes: labels lie in 0..num_classes-1.

    Returns:
      A config named by the SHA-256 of the files' names and contents and the number of classes.

    Raises:
      FileNotFoundError: the folder holds none of the three files.

    Example:
      >>> len(jsonl_config(find_folder("reviews")).name)
      32
    """
    digest = hashlib.sha256(f"{num_classes}".encode())
    splits = _splits(Path(folder))
    if not splits:
        raise FileNotFoundError(f"{folder} holds none of {', '.join(f'{split}.jsonl' for split in SPLITS)}")
    for split, path in splits.items():
        content = path.read_bytes()
        # the length keeps "train" + a line and "train" + half a line apart
        digest.update(f"\n{split} {len(content)}\n".encode() + content)
    return JsonlConfig(name=digest.hexdigest()[:32], folder=str(folder), num_classes=num_classes)


class JsonlClassification(tfds.core.GeneratorBasedBuilder):
    """TFDS builder over a folder of JSON lines; make it with `file_format="array_record"`.

    Features: `text`, `label` (a class) and `id` (the row's number in its split, from 0). Rows keep the
    order of the file.

    Example:
      >>> import tempfile
      >>> config = jsonl_config(find_folder("reviews"))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     builder = JsonlClassification(data_dir=folder, config=config, file_format="array_record")
      >>> builder.info.features["label"].num_classes
      2
    """

    VERSION = tfds.core.Version("1.0.0")
    # TFDS looks beside the code for checksums of downloads; there are none, and on its way there it would
    # import importlib_resources, which it does not require.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(num_classes=self._config.num_classes),
            "id": np.int64,
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {split: self._generate_examples(path) for split, path in _splits(Path(self._config.folder)).items()}

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, Row]]:
        for row in read_jsonl(path, num_classes=self._config.num_classes):
            yield row["id"], row

    @property
    def _config(self) -> JsonlConfig:
        if not isinstance(self.builder_config, JsonlConfig):
            raise ValueError(f"config must be made by jsonl_config(folder), got {self.builder_config!r}")
        return self.builder_config


class Rows(Sequence[Row]):
    """The rows of a prepared split, read from its file when asked for.

    Example:
      >>> Rows([{"text": b"fine", "label": np.int64(1), "id": np.int64(0)}])[0]["text"]
      'fine'
    """

    def __init__(self, source: Sequence):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"row {index} of a split of {len(self)}")
        return self._read(position)

    def _read(self, position: int) -> Row:
        record = self._source[position]
        return {
            "text": record["text"].decode("utf-8"),
            "label": int(record["label"]),
            "id": int(record["id"]),
        }


def load(
    source: str | os.PathLike[str],
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    num_classes: int = 2,
) -> Rows:
    """Load one split of a data set, preparing it first if that has not been done.

    The prepared copy is keyed by the contents of the files: an edited source is prepared anew. Several
    processes may ask for the same data set at once.

    Args:
      source: "reviews", "sst2" or a folder; see `find_folder`.
      split: "train", "dev" or "test".
      data_dir: where prepared copies live; by default `$ZOJAX_CACHE`, else `~/.cache/zojax/tfds`.
      num_classes: labels must lie in 0..num_classes-1.

    Returns:
      A random-access sequence of rows {"text": str, "label": int, "id": int}.

    Raises:
      FileNotFoundError: there is no such data set.
      ValueError: it has no such split, or a row is malformed; see `read_jsonl`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     rows = load("reviews", "train", data_dir=folder)
      ...     len(rows), sum(row["label"] for row in rows)
      (526, 263)
    """
    folder = find_folder(source)
    config = jsonl_config(folder, num_classes=num_classes)
    splits = _splits(folder)
    if split not in splits:
        raise ValueError(f"split {split!r} of {str(source)!r} does not exist; there are {list(splits)}")

    def check() -> None:
        for path in splits.values():
            read_jsonl(path, num_classes=num_classes)

    builder = prepare(
        lambda into: JsonlClassification(data_dir=into, config=config, file_format="array_record"),
        kind=JsonlClassification,
        name=config.name,
        data_dir=data_dir,
        check=check,
    )
    return Rows(builder.as_data_source(split))


def _splits(folder: Path) -> dict[str, Path]:
    return {split: path for split in SPLITS if (path := folder / f"{split}.jsonl").is_file()}
