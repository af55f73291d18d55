"""From the `speech` fields of a config to a transducer: its data, its units and its model."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from launch.common import weights
from launch.common.schema import Config
from launch.speech import biasing, signals, wake_words
from launch.speech.transducers import look_ahead, model_config
from models.transducer.task import Pruning, TransducerTask
from zojax.data.audio import batches, prepared, sources, units
from zojax.data.audio.buckets import Examples, plan_buckets
from zojax.data.audio.commands import Commands
from zojax.data.audio.features import FilterBank, num_frames
from zojax.data.audio.names import Names
from zojax.data.audio.noise import in_noise
from zojax.data.audio.wake import WakeWords
from zojax.data.audio.waves import RATE, resample, to_int16
from zojax.losses.transducer import TransducerSpec
from zojax.train import Batches

Params = Any

# The files of the units in the folder of a run.
UNITS = ("units.json", "units.model")

# Batches over which the statistics of the features are taken, and seconds of an evaluation batch, with padding.
STATISTICS, EVAL_SECONDS = 16, 360

# Samples of training utterances, at all speeds, that are held in memory: a gigabyte. More are read when needed.
HELD = 1 << 29


# Parts of a model that can be added to the weights of a run without them.
ADAPTERS = ("wake", "biasing")

# Embedded corpora, and the utterances to train on where a config has no number of its own.
MADE: dict[str, tuple[Callable[..., prepared.Source], int]] = {
    "commands": (Commands, 2000),
    "wake": (WakeWords, 4000),
    "names": (Names, 8000),
}


def source(config: Config) -> prepared.Source:
    """Where the utterances of a config come from: a corpus of `MADE`, "an4" or a folder; with signals, from rooms.

    Raises:
      FileNotFoundError: if there is no such corpus.
      ValueError: if a list of it is malformed.
    """
    if config.data.source not in MADE:
        return signals.in_rooms(config, sources.find_recordings(config.data.source))
    made, count = MADE[config.data.source]
    low, high = config.speech.snr
    # The utterances of all runs are the same, whatever their seeds.
    return signals.in_rooms(config, made(seed=0, train=config.data.train_examples or count, low_snr=low, high_snr=high))


def make_units(config: Config) -> units.CharacterUnits | units.PieceUnits:
    """The units of a config, made of its training texts; adapters write with the units of the run that they lead.

    Raises:
      FileNotFoundError: if the data set is missing.
      ValueError: if it is too small, or the texts do not give so many pieces.
    """
    if config.biasing.kind != "none" and config.model.weights:
        return load_units(weights.parse(config.model.weights)[0])
    texts = _split(config, "train").texts[: _train_size(config)]
    if config.speech.pieces:
        return units.PieceUnits.train(texts, size=config.speech.pieces)
    return units.CharacterUnits.of(texts)


def save_units(config: Config, workdir: Path) -> None:
    """Writes the units into the folder of a run of speech, so that it can be used without its data."""
    if config.model.name == "transducer" and not any((workdir / name).exists() for name in UNITS):
        made = make_units(config)
        made.save(workdir / UNITS[isinstance(made, units.PieceUnits)])


def load_units(workdir: Path) -> units.CharacterUnits | units.PieceUnits:
    """The units in the folder of a run.

    Raises:
      FileNotFoundError: if there are none.
    """
    for name in UNITS:
        if (workdir / name).exists():
            return units.load_units(workdir / name)
    raise FileNotFoundError(f"workdir: {workdir} has no units ({' or '.join(UNITS)}); is it a run of speech?")


def filter_bank(config: Config) -> FilterBank:
    """The features of a config."""
    return FilterBank(bins=config.speech.bins)


def make_task(config: Config, classes: int, statistics: tuple[np.ndarray, np.ndarray] | None = None) -> TransducerTask:
    """The task of a config.

    Args:
      config: a config that `schema.check` has passed.
      classes: labels of its units, the blank among them.
      statistics: of the features, from which new weights start.

    Returns:
      The task; its batches hold pcm.
    """
    c = config.speech
    task = TransducerTask(
        config=model_config(config, classes),
        spec=TransducerSpec(fast_emit=float(c.fast_emit), delay_penalty=float(c.delay_penalty)),
        acoustic=float(c.acoustic),
        alone=c.alone,
        look_ahead=look_ahead(config) if c.encoder == "ancat" else None,
        pruning=Pruning(band=c.band) if c.band else None,
        front_end=signals.front_end(config, filter_bank(config)),
        augment=signals.augment(config),
        statistics=statistics,
        biasing=biasing.biasing_config(config),
        guidance=float(config.biasing.guidance) if config.biasing.kind != "none" else 0.0,
    )
    return wake_words.task_of(config, task)


class Loaded(NamedTuple):
    """What `build` needs of a run of speech, beside the method.

    Attributes:
      task: the transducer.
      params: weights before step 1.
      zero_head: None: there is no head to begin with.
      batches: training batches.
      evaluation: evaluation batches by split.
      steps_per_epoch: training batches of an epoch.
    """

    task: TransducerTask
    params: Params
    zero_head: None
    batches: Batches
    evaluation: dict[str, Any]
    steps_per_epoch: int


def load(config: Config, key: jax.Array, *, splits: Iterable[str], trained: Callable[[Params], Params]) -> Loaded:
    """Loads the data of a config of speech and makes its model.

    Args:
      config: a config that `schema.check` has passed.
      key: of the weights.
      splits: evaluation splits to load.
      trained: from the tree of a new model to the weights of the run that `config.model.weights` names.

    Returns:
      What `build` needs.

    Raises:
      ValueError: if an utterance holds a character that the training texts lack, or sizes do not fit.
      FileNotFoundError: if the data set is missing.
    """
    c, bank, made = config.speech, filter_bank(config), make_units(config)
    train = _split(config, "train")
    examples = _examples(config, train, made, _train_size(config), tuple(c.speeds))
    buckets = plan_buckets(
        examples.lengths,
        examples.label_lengths,
        count=c.buckets,
        budget=c.seconds * RATE,
        max_rows=config.data.batch_size,
        multiple=RATE // 10,
    )
    found = {}
    for name in dict.fromkeys(("train", *splits)):
        found[name] = evaluation(config, made, name)
    task = make_task(config, made.size, statistics(config, found["train"], bank))
    params = task.init(key)
    if config.model.weights:
        params = trained(params)
    rows = np.array([bucket.rows for bucket in buckets])
    steps = np.sum(1 / rows[np.searchsorted([bucket.length for bucket in buckets], examples.lengths)])
    size = _train_size(config)
    beside = _beside(config, made, "train", train, size)
    training = _Training(batches.train_batches(examples, buckets, seed=config.seed), bank, beside)
    return Loaded(task, params, None, training, found, max(round(float(steps)), 1))


def with_new_parts(params: Params, like: Params) -> Params:
    """The weights of another run, with those of `like` for the adapters that it has not."""
    return params | {name: like[name] for name in ADAPTERS if name in like and name not in params}


def _split(config: Config, name: str) -> prepared.Utterances:
    """A split; of a corpus that has several of a kind, as train_clean_100 and train_other_500, all of them."""
    found = source(config)
    parts = [name] if name in found.splits else [part for part in found.splits if part.startswith(f"{name}_")]
    return prepared.load(found, "+".join(parts) or name)


def texts(config: Config, split: str) -> list[str]:
    """What is said in a split."""
    return _split(config, split).texts


def _train_size(config: Config) -> int:
    """Utterances to train on: the first so many."""
    size, wanted = len(_split(config, "train")), config.data.train_examples
    if wanted > size:
        raise ValueError(f"config.data.train_examples is {wanted}; {config.data.source} has {size}")
    return wanted or size


def _examples(
    config: Config, utterances: prepared.Utterances, made: units.Units, size: int, speeds: tuple[int, ...]
) -> Examples:
    """The first `size` utterances, at each of the speeds, in percent; id % size is the utterance."""
    noise, (low, high) = config.speech.noise, config.speech.snr
    labels = [made.encode(text) for text in utterances.texts[:size]]
    lengths = np.concatenate([-(-signals.lengths(config, utterances)[:size] * 100 // speed) for speed in speeds])

    def read(index: int) -> np.ndarray:
        speed, one = speeds[index // size], utterances[index % size]
        samples = signals.chosen(config, one["samples"])
        if speed != 100:
            samples = to_int16(resample(samples.astype(np.float32) / 32768, speed, 100))
        if noise == "none":
            return samples
        return in_noise(samples, f"{one['id']} {speed}", color=noise, low=low, high=high)

    x = read
    if lengths.sum() * max(len(config.speech.signals), 1) <= HELD:
        with ThreadPoolExecutor() as threads:
            x = list(threads.map(read, range(len(lengths)))).__getitem__
    return Examples(utterances.ids[:size] * len(speeds), lengths, labels * len(speeds), x)


def evaluation(config: Config, made: units.Units, split: str) -> Sequence[Any]:
    """The evaluation batches of a split.

    Raises:
      ValueError: if there is no such split, or an utterance holds what the units cannot write.
    """
    utterances = _split(config, split)
    size, bank = _train_size(config) if split == "train" else len(utterances), filter_bank(config)
    examples = _examples(config, utterances, made, size, (100,))
    buckets = plan_buckets(
        examples.lengths,
        examples.label_lengths,
        count=2,
        budget=EVAL_SECONDS * RATE,
        max_rows=config.data.eval_batch_size,
        multiple=RATE // 10,
    )
    return _Evaluation(batches.eval_batches(examples, buckets), bank, _beside(config, made, split, utterances, size))


def _beside(
    config: Config, made: units.Units, split: str, utterances: prepared.Utterances, size: int
) -> wake_words.Beside:
    ids, texts = utterances.ids[:size], utterances.texts[:size]
    of_wake = wake_words.beside(config, made, split, ids, texts, filter_bank(config))
    return biasing.beside(config, made, split, texts, of_wake)


def _batch(batch: batches.Batch, bank: FilterBank) -> dict[str, Any]:
    """A batch as the task takes it."""
    frames = num_frames(batch["x_lengths"], bank)
    names = ("labels", "label_lengths", "weight", "id")
    return {"pcm": batch["x"], "frame_lengths": frames, **{name: batch[name] for name in names}}


class _Training:
    """Training batches; their place is that of the iterator below."""

    def __init__(self, inner: Any, bank: FilterBank, beside: wake_words.Beside):
        self._inner, self._bank, self._beside = inner, bank, beside

    def __next__(self) -> Any:
        # The steps taken: the pruned loss warms up by them.
        step = np.int32(self._inner.get_state()["next_index"])
        batch = _batch(next(self._inner), self._bank)
        return batch | self._beside(batch["id"], int(step)) | {"step": step}

    def get_state(self) -> Any:
        return self._inner.get_state()

    def set_state(self, state: Any) -> None:
        self._inner.set_state(state)


class _Evaluation(Sequence[Any]):
    """Evaluation batches, each made when it is read."""

    def __init__(self, inner: Sequence[Any], bank: FilterBank, beside: wake_words.Beside):
        self._inner, self._bank, self._beside = inner, bank, beside

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: Any) -> Any:
        batch = _batch(self._inner[index], self._bank)
        return batch | self._beside(batch["id"], None)


def steering(config: Config, split: str) -> list[bool]:
    """Whether the beam is steered rightly in each utterance of a split; nothing of a run without signals."""
    return signals.steering(source(config), _split(config, split).ids)


def statistics(config: Config, found: Sequence[Any], bank: FilterBank) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each bin, over some of the batches.

    Args:
      config: of the run.
      found: batches with pcm; of many, some that are spread evenly.
      bank: the features.

    Returns:
      (mean, deviation), float32 [bins].
    """
    front_end = jax.jit(signals.front_end(config, bank))
    chosen = sorted({int(i) for i in np.linspace(0, len(found) - 1, STATISTICS)})
    count, total, squares = 0, np.zeros(bank.bins), np.zeros(bank.bins)
    for index in chosen:
        batch = found[index]
        x = np.asarray(front_end(batch["pcm"]), np.float64)
        x = x[(np.arange(x.shape[1]) < batch["frame_lengths"][:, None]) & (batch["weight"][:, None] > 0)]
        x = signals.rows(config, x)
        count, total, squares = count + len(x), total + x.sum(0), squares + np.square(x).sum(0)
    mean = total / max(count, 1)
    deviation = np.sqrt(np.maximum(squares / max(count, 1) - np.square(mean), 0))
    return mean.astype(np.float32), deviation.astype(np.float32)
