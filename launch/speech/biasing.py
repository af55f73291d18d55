"""From the `biasing` fields of a config to adapters, lexicons and the lists of phrases that utterances come with."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from launch.common.schema import Config
from models.language import config as language_configs
from models.language import hub
from models.language.classifier import TextClassifier
from models.transducer.biasing import BiasingConfig
from zojax.data.audio import names
from zojax.data.audio.units import Units
from zojax.data.catalogues import Lexicon, Listed, alike, arrays, read_phrases
from zojax.data.tokenize import Tokenizer

__all__ = ["Lists", "Meanings", "beside", "biasing_config", "catalogue", "labels_of", "led", "lexicon", "list_of"]

Beside = Callable[[np.ndarray, int | None], dict[str, Any]]

# Of each of an utterance's own phrases, distractors that sound like it.
ALIKE = 20

# Phrases that a text encoder reads at a time, and tokens that it reads of each; a list's line may have 200 characters.
ROWS, TOKENS = 64, (16, 128)


def biasing_config(config: Config) -> BiasingConfig | None:
    """The sizes of a config's adapters; None: it has none.

    Raises:
      FileNotFoundError: if there is no text encoder.
    """
    c = config.biasing
    if c.kind == "none":
        return None
    semantic = c.kind in ("semantic", "both")
    return BiasingConfig(
        acoustic=c.kind in ("acoustic", "both"),
        semantic=semantic,
        positions=c.positions,
        embedding=c.hidden,
        hidden=c.hidden,
        width=c.width,
        meaning=_width(c.source) if semantic else 1,
    )


def _width(source: str) -> int:
    return int(language_configs.read(hub.resolve(source) / "config.json")["hidden_size"])


def lexicon(config: Config, split: str) -> Lexicon:
    """The phrases of a config for a split: those of spoken names, or of a file for all splits.

    Raises:
      ValueError: if the config names none, or a line of the file is no phrase.
      FileNotFoundError: if there is no such file.
    """
    named = config.biasing.phrases
    if not named:
        raise ValueError("config.biasing.phrases is ''; names, or a file of phrases, is needed for lists")
    return Lexicon(phrases=names.names(split)) if named == "names" else Lexicon(phrases=read_phrases(named))


class Meanings:
    """Vectors of texts by a frozen text encoder, as `TextClassifier` pools them; each text is read once.

    Args:
      source: as `hub.load` takes it.
    """

    def __init__(self, source: str):
        config, params = hub.load(source)
        self._task = TextClassifier(config=config, num_classes=2)
        self._params = {"encoder": jax.tree.map(jax.numpy.asarray, params)}
        self._tokenizer = Tokenizer.from_folder(hub.resolve(source))
        self._features = jax.jit(self._task.features)
        self._known: dict[str, np.ndarray] = {}

    @property
    def width(self) -> int:
        """Width of a vector."""
        return self._task.config.hidden_size

    def __call__(self, texts: Sequence[str]) -> Float32[np.ndarray, "n m"]:
        """The vectors; of an empty text, zeros."""
        new = [text for text in dict.fromkeys(texts) if text and text not in self._known]
        tokens = self._tokenizer.encode(new, TOKENS[-1]) if new else []
        by_length = sorted(zip(new, tokens, strict=True), key=lambda pair: len(pair[1]))
        for start in range(0, len(new), ROWS):
            part = by_length[start : start + ROWS]
            width = next(size for size in TOKENS if len(part[-1][1]) <= size)
            batch = {"tokens": np.zeros((ROWS, width), np.int32), "mask": np.zeros((ROWS, width), bool)}
            for row, (_, ids) in enumerate(part):
                batch["tokens"][row, : len(ids)], batch["mask"][row, : len(ids)] = ids, True
            vectors = np.asarray(self._features(self._params, batch))
            self._known |= {text: vector for (text, _), vector in zip(part, vectors, strict=False)}
        zero = np.zeros(self.width, np.float32)
        return np.stack([self._known.get(text, zero) for text in texts])


@functools.lru_cache(maxsize=2)
def _meanings(source: str) -> Meanings:
    return Meanings(source)


@functools.lru_cache(maxsize=2)
def _of_units(source: str, made: Units) -> np.ndarray:
    """Vectors of what each label writes; of the blank, and of marks that write nothing, zeros."""
    texts = ["", *(made.decode([label]).strip() for label in range(1, made.size))]
    return _meanings(source)(texts)


def catalogue(
    config: Config, made: Units, lists: Sequence[Sequence[str]], *, least: int = 1
) -> Mapping[str, np.ndarray]:
    """The arrays of lists, with room for `least` phrases, and with meanings where the config's adapters read them.

    Raises:
      ValueError: naming a phrase that the units cannot write.
    """
    if config.biasing.kind not in ("semantic", "both"):
        return arrays(lists, made, least=least)
    source = config.biasing.source
    return arrays(lists, made, meaning=_meanings(source), unit_meaning=_of_units(source, made), least=least)


def labels_of(phrase: str, made: Units) -> list[int]:
    """The labels that a search has to write for a phrase.

    Raises:
      ValueError: naming the phrase, if the units cannot write it.
    """
    try:
        return made.encode(phrase).tolist()
    except ValueError as error:
        raise ValueError(f"phrase {phrase!r}: the model cannot write it: {error}") from None


def list_of(
    own: Sequence[str],
    known: Lexicon,
    size: int,
    distractors: str,
    number: int,
    *,
    writes: Callable[[str], bool] = lambda phrase: True,
) -> tuple[str, ...]:
    """An utterance's list to evaluate with: its own phrases and so many distractors; 0: an empty list.

    Args:
      own: its own phrases.
      known: where distractors are drawn from.
      size: distractors.
      distractors: "drawn", or "alike": up to 20 for each of its own phrases sound like it, and the rest is drawn.
      number: of the utterance: its distractors are the same in every evaluation.
      writes: whether the model can write a phrase that was made to sound alike.

    Raises:
      ValueError: if there are not so many phrases.
    """
    if not size:
        return ()
    similar: list[str] = []
    if distractors == "alike":
        for phrase in own:
            similar += alike(phrase, ALIKE, seed=0, number=number)
    similar = [phrase for phrase in dict.fromkeys(similar) if phrase not in own and writes(phrase)][:size]
    drawn = known.distractors([*own, *similar], size - len(similar), seed=0, number=number)
    return (*own, *similar, *drawn)


class Lists:
    """The lists of the utterances of a split.

    To train on, an utterance's list is its own phrases, left out in a share of the cases, so that what is not listed
    is learned too; and some of the phrases of its batch: those of the other utterances, and as many drawn ones as the
    config says. How many, is drawn as well, its logarithm evenly: attention to one of many phrases is learned from the
    lists of few, where it is right by chance. (Ours.)

    Args:
      config: of the run.
      made: its units.
      split: name of the split.
      texts: what is said in it.
      size: distractors to evaluate with; None: as many as the config says.
      distractors: "drawn" or "alike", see `list_of`; of no use where lists are published.
      published: lists in the place of made ones, by their texts in lower case.
    """

    def __init__(
        self,
        config: Config,
        made: Units,
        split: str,
        texts: Sequence[str],
        *,
        size: int | None = None,
        distractors: str = "drawn",
        published: Mapping[str, Listed] | None = None,
    ):
        self._config, self._made, self._texts, self._published = config, made, texts, published
        self._size, self._distractors = config.biasing.size if size is None else size, distractors
        # Word lists are in lower case, and the texts of some corpora are not.
        self._cased = str.upper if all(text.isupper() for text in texts) else str
        self._lexicon = Lexicon(phrases=tuple(dict.fromkeys(map(self._cased, lexicon(config, split).phrases))))
        self._own = functools.lru_cache(maxsize=None)(self._find)

    def _find(self, number: int) -> tuple[str, ...]:
        text = self._texts[number]
        return self._lexicon.own(text) if self._published is None else self._cased_all(self._listed(text).own)

    def _listed(self, text: str) -> Listed:
        assert self._published is not None
        if text.lower() not in self._published:
            raise ValueError(f"distractors: the published lists have none for {text!r}")
        return self._published[text.lower()]

    def _cased_all(self, phrases: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(self._cased, phrases))

    def own(self, number: int) -> tuple[str, ...]:
        """An utterance's own phrases."""
        return self._own(number)

    def of(self, number: int) -> tuple[str, ...]:
        """An utterance's list to evaluate with; nothing for a row that only fills a batch up, of number -1."""
        if number < 0 or not self._size:
            return ()
        if self._published is not None:
            return self._cased_all(self._listed(self._texts[number]).phrases)
        own = self.own(number)
        return list_of(own, self._lexicon, self._size, self._distractors, number, writes=self._writes)

    def _writes(self, phrase: str) -> bool:
        try:
            labels_of(phrase, self._made)
        except ValueError:
            return False
        return True

    def arrays(self, numbers: Sequence[int]) -> Mapping[str, np.ndarray]:
        """The lists of some utterances as a model takes them."""
        return catalogue(self._config, self._made, [self.of(int(number)) for number in numbers])

    def training(self, numbers: Sequence[int], step: int) -> Mapping[str, np.ndarray]:
        """Lists to train on, a function of the utterances, the step and the config's seed alone."""
        c = self._config
        own = [self.own(int(number) % len(self._texts)) for number in numbers]
        everyone = list(dict.fromkeys(phrase for phrases in own for phrase in phrases))
        seed = 2 * c.seed + 1
        most = min(c.biasing.size, len(self._lexicon.phrases) - len(everyone))
        drawn = self._lexicon.distractors(everyone, max(most, 0), seed=seed, number=step)
        pool = np.array([*everyone, *drawn], object)
        # Raw words of a counter-based generator: numpy promises them for ever.
        generator = np.random.Philox(key=np.array([seed, step], np.uint64), counter=np.array([0, 0, 0, 8], np.uint64))
        lists = []
        for phrases in own:
            kept = generator.random_raw() / 2**64 < c.biasing.keep
            count = int((c.biasing.size + 2) ** (generator.random_raw() / 2**64)) - 1
            order = np.argsort(generator.random_raw(len(pool)), kind="stable")
            others = [phrase for phrase in pool[order] if phrase not in phrases][:count]
            lists.append([*(phrases if kept else ()), *others])
        # Lists of all sizes share a program: compiling one takes longer than many steps with empty places.
        return catalogue(c, self._made, lists, least=c.biasing.size)


def beside(config: Config, made: Units, split: str, texts: Sequence[str], inner: Beside) -> Beside:
    """What the batches of a split have beside speech: lists, where the config has adapters, and what `inner` gives.

    Args:
      config: of the run.
      made: its units.
      split: its name.
      texts: of its utterances.
      inner: (positions of the rows' utterances, those heard at other speeds behind the others; step, None in
        evaluation) -> fields of a batch.

    Returns:
      The like.

    Raises:
      ValueError: if the config has no phrases, or its units cannot write one.
    """
    if config.biasing.kind == "none":
        return inner
    lists = Lists(config, made, split, texts)

    def fields(rows: np.ndarray, step: int | None) -> dict[str, Any]:
        found = lists.arrays(rows.tolist()) if step is None else lists.training(rows.tolist(), step)
        return inner(rows, step) | {"catalogue": found}

    return fields


def led(task: Any, params: Any, batch: Mapping[str, Any]) -> Any:
    """Weights that are led by a batch's lists; themselves, where it has none or nothing reads them."""
    if task.biasing is None or "catalogue" not in batch:
        return params
    return _remembering(task)(params, batch["catalogue"])


@functools.lru_cache(maxsize=8)
def _remembering(task: Any) -> Callable[[Any, Any], Any]:
    return jax.jit(task.with_catalogue)
