"""Schedules of zeroth-order runs; learning rates and eps take optax's."""

import math
from collections.abc import Callable

__all__ = ["adaptive_queries"]


def adaptive_queries(
    *, alpha: float = 0.85, beta: float = 0.4, max_queries: int = 20, steps_per_epoch: int = 1
) -> Callable[[int], int]:
    """Number of probes that grows with the epoch (AdaZeta).

    Q = min(max(floor(alpha epoch^beta), 1), max_queries), epoch = 1, 2, ...

    A host function of the step: the training loop compiles a step once for each distinct Q, at most max_queries times,
    so that the gradient still fuses into the update. (A traced Q would keep the gradient resident.)

    Args:
      alpha: factor.
      beta: exponent; ln(max_queries / alpha) / ln(epochs) reaches max_queries in the last of `epochs`.
      max_queries: upper bound, at least 1.
      steps_per_epoch: steps of an epoch; step 0 is the first of epoch 1.

    Returns:
      Function from the step to Q.

    Raises:
      ValueError: if max_queries or steps_per_epoch is below 1, or alpha is not positive.

    Example:
      >>> [adaptive_queries(max_queries=15)(epoch - 1) for epoch in (1, 10, 40, 80, 160)]
      [1, 2, 3, 4, 6]

    References:
      AdaZeta, arXiv 2406.18060.
    """
    if max_queries < 1:
        raise ValueError(f"max_queries: {max_queries}; at least 1 is needed")
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch: {steps_per_epoch}; at least 1 is needed")
    if alpha <= 0:
        raise ValueError(f"alpha: {alpha}; a positive factor is needed")

    def queries(step: int) -> int:
        epoch = step // steps_per_epoch + 1
        return min(max(math.floor(alpha * epoch**beta), 1), max_queries)

    return queries
