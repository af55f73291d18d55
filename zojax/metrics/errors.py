"""Word and character error rates with their alignments, and word errors split by a list of rare words.

Errors add up: the rate of a test set is that of the sum of its utterances' `Errors`, not a mean of rates.
"""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["BiasedErrors", "Costs", "Errors", "Step", "align", "biased_errors", "character_errors", "word_errors"]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What an alignment minimises.

    The defaults give the Levenshtein distance, the least number of errors. `Costs(insertion=3, deletion=3,
    substitution=4)` is the convention of sclite, and of the scores with biasing lists (see `biased_errors`): an
    insertion beside a deletion never stands where a substitution would do, and alignments are unique more often.

    Attributes:
      insertion: of a word that the reference lacks.
      deletion: of a word that the hypothesis lacks.
      substitution: of one word for another.

    Raises:
      ValueError: if a cost is not positive.

    Example:
      >>> Costs(substitution=2).insertion
      1
    """

    insertion: int = 1
    deletion: int = 1
    substitution: int = 1

    def __post_init__(self):
        for name in ("insertion", "deletion", "substitution"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)}; a cost above 0 is needed")


SCLITE = Costs(insertion=3, deletion=3, substitution=4)


class Step(NamedTuple):
    """One step of an alignment: positions in reference and hypothesis, None for the side that has nothing."""

    reference: int | None
    hypothesis: int | None


def align(reference: Sequence[Hashable], hypothesis: Sequence[Hashable], costs: Costs = SCLITE) -> list[Step]:
    """An alignment of least cost.

    Of equal ones, read from the end: a pair before an insertion before a deletion.

    Args:
      reference: words or characters.
      hypothesis: the same of what was recognised.
      costs: of the three errors.

    Returns:
      The steps in order; each position of either side stands in one of them.

    Example:
      >>> align("go left now".split(), "go now".split())
      [Step(reference=0, hypothesis=0), Step(reference=1, hypothesis=None), Step(reference=2, hypothesis=1)]
    """
    width = len(hypothesis) + 1
    row = [j * costs.insertion for j in range(width)]
    # For each cell the step that leads there: 0 a pair, 1 an insertion, 2 a deletion.
    moves = [bytearray([1]) * width]
    for word in reference:
        diagonal, row[0] = row[0], row[0] + costs.deletion
        move = bytearray(width)
        move[0] = 2
        for j in range(1, width):
            best = diagonal + (0 if word == hypothesis[j - 1] else costs.substitution)
            if (inserted := row[j - 1] + costs.insertion) < best:
                best, move[j] = inserted, 1
            if (deleted := row[j] + costs.deletion) < best:
                best, move[j] = deleted, 2
            diagonal, row[j] = row[j], best
        moves.append(move)
    steps, i, j = [], len(reference), len(hypothesis)
    while i or j:
        move = moves[i][j]
        i, j = i - (move != 1), j - (move != 2)
        steps.append(Step(None if move == 1 else i, None if move == 2 else j))
    return steps[::-1]


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Counts of an alignment; they add.

    Attributes:
      hits: words recognised.
      substitutions: words taken for others.
      deletions: words left out.
      insertions: words added.

    Example:
      >>> (Errors(hits=3, deletions=1) + Errors(insertions=1)).rate
      0.5
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            hits=self.hits + other.hits,
            substitutions=self.substitutions + other.substitutions,
            deletions=self.deletions + other.deletions,
            insertions=self.insertions + other.insertions,
        )

    @property
    def words(self) -> int:
        """Words of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """Errors of all kinds."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per word of the reference: not a number without errors or words, inf with errors alone."""
        if not self.words:
            return float("inf") if self.errors else float("nan")
        return self.errors / self.words


def word_errors(reference: str, hypothesis: str, costs: Costs = SCLITE) -> Errors:
    """Counts the word errors of an utterance; words are what white space parts, as they are written.

    Args:
      reference: what was said.
      hypothesis: what was recognised.
      costs: of the alignment. With the sclite costs the count can be above the Levenshtein distance.

    Returns:
      The counts.

    Example:
      >>> word_errors("turn the light on", "turn light off").errors
      2
    """
    return _counts(reference.split(), hypothesis.split(), costs)


def character_errors(reference: str, hypothesis: str, costs: Costs = SCLITE) -> Errors:
    """Counts the character errors of an utterance, white space within it included as it stands.

    Args:
      reference: what was said.
      hypothesis: what was recognised.
      costs: of the alignment.

    Returns:
      The counts.

    Example:
      >>> character_errors("light", "night").rate
      0.2
    """
    return _counts(reference, hypothesis, costs)


def _counts(reference: Sequence[Hashable], hypothesis: Sequence[Hashable], costs: Costs) -> Errors:
    return sum((_count(reference, hypothesis, s) for s in align(reference, hypothesis, costs)), Errors())


def _count(reference: Sequence[Hashable], hypothesis: Sequence[Hashable], step: Step) -> Errors:
    i, j = step
    if i is None:
        return Errors(insertions=1)
    if j is None:
        return Errors(deletions=1)
    return Errors(hits=1) if reference[i] == hypothesis[j] else Errors(substitutions=1)


@dataclass(frozen=True, kw_only=True)
class BiasedErrors:
    """Word errors on words of a biasing list, and on all others; they add.

    Attributes:
      biased: the errors on listed words (B-WER).
      unbiased: the errors on others (U-WER).

    Example:
      >>> both = BiasedErrors(biased=Errors(hits=1)) + BiasedErrors(unbiased=Errors(hits=2, insertions=1))
      >>> both.overall.errors, both.overall.words
      (1, 3)
    """

    biased: Errors = Errors()
    unbiased: Errors = Errors()

    def __add__(self, other: "BiasedErrors") -> "BiasedErrors":
        return BiasedErrors(biased=self.biased + other.biased, unbiased=self.unbiased + other.unbiased)

    @property
    def overall(self) -> Errors:
        """Both together."""
        return self.biased + self.unbiased


def biased_errors(reference: str, hypothesis: str, listed: Collection[str], costs: Costs = SCLITE) -> BiasedErrors:
    """Splits the word errors of an utterance by a list of words (the protocol of arXiv 2104.02194).

    A hit, substitution or deletion counts by the word of the reference; an insertion counts as biased only if the
    inserted word is listed.

    Args:
      reference: what was said.
      hypothesis: what was recognised.
      listed: the rare words of this reference; without distractors.
      costs: of the alignment; the published scores use the default.

    Returns:
      The counts of both kinds.

    Example:
      >>> split = biased_errors("call mister nakamura", "call mister knock knock", {"nakamura"})
      >>> split.biased.substitutions, split.unbiased.insertions
      (1, 1)
    """
    said, heard, listed = reference.split(), hypothesis.split(), set(listed)
    found = BiasedErrors()
    for step in align(said, heard, costs):
        i, j = step
        word = said[i] if i is not None else heard[j]  # type: ignore[index]
        counted = _count(said, heard, step)
        found += BiasedErrors(biased=counted) if word in listed else BiasedErrors(unbiased=counted)
    return found
