"""Which examples to draw more often than others."""

import numpy as np
from jaxtyping import Float, Float64, Int

__all__ = ["importance"]


def importance(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, "n"], *, uniform: float = 0.2
) -> Float64[np.ndarray, "n"]:
    """Probabilities to draw examples by: large where the gradient of the cross-entropy is.

        p_i = (1 - uniform) * s_i / sum_j s_j + uniform / N,   s_i = || softmax(logits_i) - onehot(labels_i) ||

    s_i is the norm of the gradient at the logits. Up to a constant it bounds the norm of the gradient with respect
    to the weights (Katharopoulos and Fleuret, arXiv 1803.00942). The uniform share bounds the weights 1/(N p_i) by
    1/uniform. To take the scores once, before the first step, is our choice: the paper scores anew in every step.

    Args:
      logits: the model's logits for all N examples.
      labels: their classes.
      uniform: 0 < uniform <= 1, the share drawn without regard to the scores.

    Returns:
      float64, positive, summing to 1. All equal if all scores are.

    Raises:
      ValueError: `uniform` is out of range, or a logit is not finite.

    Example:
      >>> logits = np.array([[9.0, -9.0], [9.0, -9.0], [-9.0, 9.0], [-9.0, 9.0]])
      >>> importance(logits, np.array([0, 1, 1, 1])).round(3)
      array([0.05, 0.85, 0.05, 0.05])
    """
    if not 0 < uniform <= 1:
        raise ValueError(f"uniform must lie above 0 and be at most 1, got {uniform}")
    if not np.isfinite(logits).all():
        raise ValueError(f"logits of {np.sum(~np.isfinite(logits).all(axis=1))} examples are not finite")
    odds = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    error = odds / odds.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1
    # The smallest number keeps scores that are all 0 equal instead of 0/0.
    scores = np.linalg.norm(error, axis=1) + np.finfo(np.float64).tiny
    return (1 - uniform) * scores / scores.sum() + uniform / len(scores)
