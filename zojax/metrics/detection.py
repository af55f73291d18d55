"""What a detector has found of what was there: hits, misses, false alarms, and their F1."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Detections", "detections", "runs"]


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Counts of a detector; they add.

    Attributes:
      hits: what was there and found.
      misses: what was there and not found.
      false: what was found and not there.

    Example:
      >>> round((Detections(hits=3, misses=1) + Detections(false=2)).f1, 3)
      0.667
    """

    hits: int = 0
    misses: int = 0
    false: int = 0

    def __add__(self, other: "Detections") -> "Detections":
        return Detections(
            hits=self.hits + other.hits, misses=self.misses + other.misses, false=self.false + other.false
        )

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + misses + false): the harmonic mean of precision and recall; not a number of nothing."""
        total = 2 * self.hits + self.misses + self.false
        return 2 * self.hits / total if total else float("nan")


def runs(flags: Sequence[bool], least: int = 1) -> list[tuple[int, int]]:
    """Where flags are true so many times in a row.

    Args:
      flags: in order.
      least: of a run; shorter ones are none.

    Returns:
      (first position, the one behind the last) of each run.

    Example:
      >>> runs([True, True, False, True], least=2)
      [(0, 2)]
    """
    found, start = [], None
    for position, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = position
        elif not flag and start is not None:
            if position - start >= least:
                found.append((start, position))
            start = None
    return found


def detections(
    found: Sequence[tuple[float, float]], wanted: Sequence[tuple[float, float]], *, tolerance: float = 0.0
) -> Detections:
    """Compares stretches of time that were found with those that were there.

    One that was found hits the first that was there, and is not hit yet, whose begin and end, moved apart by the
    tolerance, have its middle between them. (Ours.)

    Args:
      found: (begin, end) in seconds, in order.
      wanted: likewise.
      tolerance: seconds.

    Returns:
      The counts.

    Example:
      >>> detections([(0.9, 1.5), (3.0, 3.4)], [(1.0, 1.6)], tolerance=0.1)
      Detections(hits=1, misses=0, false=1)
    """
    left, hits = list(wanted), 0
    for begin, end in found:
        middle = (begin + end) / 2
        hit = next((one for one in left if one[0] - tolerance <= middle <= one[1] + tolerance), None)
        if hit is not None:
            left.remove(hit)
            hits += 1
    return Detections(hits=hits, misses=len(left), false=len(found) - hits)
