"""How generated answers are compared with reference answers: exact match and token F1, as SQuAD counts them.

Source: SQuAD, arXiv:1606.05250; the normalisation is that of its evaluation script.
"""

import collections
import re
import string
from collections.abc import Sequence

__all__ = ["exact_match", "normalize", "token_f1"]

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation, without the articles a, an and the, words set apart by one space.

    Args:
      text: an answer.

    Returns:
      What is compared.

    Example:
      >>> normalize("  The  U.S.-led Force! ")
      'usled force'
    """
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the normalised answer equals that of any reference, else 0.

    Args:
      answer: what was generated.
      references: right answers, one at least.

    Returns:
      0.0 or 1.0.

    Raises:
      ValueError: if there are no references.

    Example:
      >>> exact_match("the Nile.", ["Nile", "the river Nile"])
      1.0
    """
    return _best(lambda reference: float(normalize(answer) == normalize(reference)), references)


def token_f1(answer: str, references: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of the answer's words, for the reference for which it is highest.

    With c words in common, counted as often as they stand in both, F1 = 2 c / (words of the answer + words of the
    reference); 0 where c is 0.

    Args:
      answer: what was generated.
      references: right answers, one at least.

    Returns:
      A number in [0, 1].

    Raises:
      ValueError: if there are no references.

    Example:
      >>> token_f1("a big red ball", ["red ball"])
      0.8
    """

    def f1(reference: str) -> float:
        said, right = normalize(answer).split(), normalize(reference).split()
        common = sum((collections.Counter(said) & collections.Counter(right)).values())
        return 2 * common / (len(said) + len(right)) if common else 0.0

    return _best(f1, references)


def _best(measure, references: Sequence[str]) -> float:
    if isinstance(references, str) or not references:
        raise ValueError(f"references is {references!r}; it must be a sequence of one answer or more")
    return max(map(measure, references))
