"""Utterances decoded once: TFDS keeps them as 16-bit samples, and they are read by random access.

The prepared copy is an ArrayRecord file; neither writing nor reading it needs TensorFlow. An index beside it holds what
batches have to know of all utterances at once (lengths, texts), and what was left out.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict, overload, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds  # does not import TensorFlow until something of it is used
from jaxtyping import Int16

from zojax.data._prepared import prepare

__all__ = ["Skipped", "Source", "SpeechBuilder", "SpeechConfig", "Utterance", "Utterances", "load"]

INDEX = "index.json"


class Utterance(TypedDict):
    """One utterance: its name, samples at 16 kHz, what is said, and by whom ("" where nobody knows)."""

    id: str
    samples: Int16[np.ndarray, "samples"]
    text: str
    speaker: str


class Skipped(NamedTuple):
    """An utterance that could not be read, and why."""

    id: str
    reason: str


@runtime_checkable
class Source(Protocol):
    """Where utterances come from."""

    @property
    def splits(self) -> Sequence[str]:
        """Names of the splits: letters, digits and underscores."""
        ...

    def fingerprint(self) -> str:
        """A name that changes whenever an utterance does."""
        ...

    def utterances(self, split: str) -> Iterator[Utterance | Skipped]:
        """The utterances of a split, in order; one that cannot be read comes as `Skipped`."""
        ...


@dataclasses.dataclass(eq=False)
class SpeechConfig(tfds.core.BuilderConfig):
    """What a `SpeechBuilder` is built from.

    Attributes:
      source: the source; `name` is its fingerprint.

    Example:
      >>> from zojax.data.audio.commands import Commands
      >>> SpeechConfig(name="commands", source=Commands(seed=0)).source.splits
      ('train', 'dev', 'test')
    """

    source: Any = dataclasses.field(default=None, repr=False)  # TFDS logs its configs, and a corpus is long


class SpeechBuilder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder over a `Source`; make it with `file_format="array_record"`.

    Features: `id`, `samples` (int16 at 16 kHz), `text` and `speaker`. Utterances keep the order of the source.

    Example:
      >>> import tempfile
      >>> from zojax.data.audio.commands import Commands
      >>> config = SpeechConfig(name="commands", source=Commands(seed=0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     builder = SpeechBuilder(data_dir=folder, config=config, file_format="array_record")
      >>> sorted(builder.info.features)
      ['id', 'samples', 'speaker', 'text']
    """

    VERSION = tfds.core.Version("1.0.0")
    # TFDS looks beside the code for checksums of downloads; there are none.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            # As bytes: TFDS would else keep each sample as an integer of 64 bits.
            "samples": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
            "text": tfds.features.Text(),
            "speaker": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        self.index = {split: {"utterances": [], "skipped": []} for split in self._source.splits}
        return {split: self._generate_examples(split) for split in self._source.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Utterance]]:
        index = self.index[split]
        for item in self._source.utterances(split):
            if isinstance(item, Skipped):
                index["skipped"].append(item)
            else:
                number = len(index["utterances"])
                index["utterances"].append([item["id"], len(item["samples"]), item["text"], item["speaker"]])
                yield number, item

    @property
    def _source(self) -> Source:
        if not isinstance(self.builder_config, SpeechConfig) or self.builder_config.source is None:
            raise ValueError(f"config must be a SpeechConfig with a source, got {self.builder_config!r}")
        return self.builder_config.source


class Utterances(Sequence[Utterance]):
    """The utterances of a prepared split; samples are read from the file when asked for.

    Attributes:
      ids: name of each utterance.
      lengths: samples of each.
      texts: what is said in each.
      speakers: who says it, "" where nobody knows.
      skipped: what could not be read.

    Example:
      >>> record = {"id": b"a", "samples": np.zeros(5, np.int16), "text": b"go", "speaker": b""}
      >>> utterances = Utterances([record], [("a", 5, "go", "")])
      >>> utterances[0]["text"], utterances.lengths
      ('go', array([5]))
    """

    def __init__(self, source: Sequence, index: Sequence[tuple[str, int, str, str]], skipped: tuple[Skipped, ...] = ()):
        self._source = source
        self.ids = [row[0] for row in index]
        self.lengths = np.array([row[1] for row in index], np.int64)
        self.texts = [row[2] for row in index]
        self.speakers = [row[3] for row in index]
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...
    @overload
    def __getitem__(self, index: slice) -> list[Utterance]: ...
    def __getitem__(self, index: int | slice) -> Utterance | list[Utterance]:
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"utterance {index} of a split of {len(self)}")
        return self._read(int(position))

    def _read(self, position: int) -> Utterance:
        record = self._source[position]
        return {
            "id": record["id"].decode("utf-8"),
            "samples": record["samples"],
            "text": record["text"].decode("utf-8"),
            "speaker": record["speaker"].decode("utf-8"),
        }


def load(source: Source, split: str, *, data_dir: str | os.PathLike[str] | None = None) -> Utterances:
    """Loads one split of a source, decoding all of them first if that has not been done.

    Utterances that could not be read are left out, and named in a warning with their number, each time the split is
    loaded. Several processes may ask for the same source at once.

    Args:
      source: such as `sources.find_recordings` or `commands.Commands` make.
      split: one of the source's splits, or several joined by "+".
      data_dir: where prepared copies live; by default `$ZOJAX_CACHE`, else `~/.cache/zojax/tfds`.

    Returns:
      The utterances, in the order of the source.

    Raises:
      ValueError: there is no such split, or none of a split's utterances can be read.

    Example:
      >>> import tempfile
      >>> from zojax.data.audio.commands import Commands
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     utterances = load(Commands(seed=0, train=2, dev=1, test=1), "train+dev", data_dir=folder)
      ...     len(utterances), utterances[0]["samples"].dtype
      (3, dtype('int16'))
    """
    names = split.split("+")
    for name in names:
        if name not in source.splits:
            raise ValueError(f"split {name!r} does not exist; there are {list(source.splits)}")
    config = SpeechConfig(name=source.fingerprint(), source=source)
    builder = prepare(
        lambda into: SpeechBuilder(data_dir=into, config=config, file_format="array_record"),
        kind=SpeechBuilder,
        name=config.name,
        data_dir=data_dir,
        write=_write,
    )
    index = json.loads((Path(builder.data_path) / INDEX).read_text(encoding="utf-8"))
    skipped = tuple(Skipped(*item) for name in names for item in index[name]["skipped"])
    rows = [tuple(row) for name in names for row in index[name]["utterances"]]
    if skipped:
        warnings.warn(_left_out(split, skipped, len(rows) + len(skipped)), stacklevel=2)
    return Utterances(builder.as_data_source(split), rows, skipped)


def _left_out(split: str, skipped: Sequence[Skipped], count: int) -> str:
    named = "; ".join(f"{item.id}: {item.reason}" for item in skipped[:10])
    more = f"; and {len(skipped) - 10} more, in `skipped`" if len(skipped) > 10 else ""
    return f"{len(skipped)} of {count} utterances of {split!r} could not be read and are left out: {named}{more}"


def _write(builder: SpeechBuilder) -> None:
    try:
        builder.download_and_prepare()
    except Exception:
        # TFDS has no words for a split without examples.
        for split, index in getattr(builder, "index", {}).items():
            if index["skipped"] and not index["utterances"]:
                raise ValueError(_left_out(split, index["skipped"], len(index["skipped"]))) from None
        raise
    index = json.dumps(builder.index, ensure_ascii=False)
    (Path(builder.data_path) / INDEX).write_text(index, encoding="utf-8")
