"""Linear probes: multinomial logistic regression on frozen features, solved to the optimum in float64."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

__all__ = ["choose_l2", "fit_linear_probe"]

GRADIENT_TOLERANCE = 1e-8  # largest entry of the gradient at which the optimum counts as found
MAX_NEWTON_STEPS = 100
MAX_CG_STEPS = 200


def fit_linear_probe(
    features: Shaped[np.ndarray, "n d"], labels: Shaped[np.ndarray, " n"], *, num_classes: int, l2: float
) -> dict[str, Float[np.ndarray, "..."]]:
    """Fits a linear classifier: argmin_{W,b} mean_i CE(W'x_i + b, y_i) + l2/2 |W|^2 over standardised features x.

    The features are standardised to mean 0 and variance 1, so that one l2 suits all of them; the head that is
    returned acts on the features as they came. The solver (Newton, its steps by conjugate gradients) is
    deterministic and runs in float64 on the host.

    Args:
      features: [n, d]; a column without variance gets weight 0.
      labels: integers [n] in [0, num_classes).
      num_classes: classes, 2 or more.
      l2: penalty, positive: without one a separable problem has no optimum.

    Returns:
      {"kernel" [d, num_classes], "bias" [num_classes]}, float32: the "head" of `TextClassifier`.

    Raises:
      ValueError: if an argument is out of its range or the sizes do not agree.
      RuntimeError: if the optimum is not reached.

    Example:
      >>> head = fit_linear_probe(np.array([[-1.0], [2.0]]), np.array([0, 1]), num_classes=2, l2=0.1)
      >>> logits = np.array([[-1.0], [2.0]]) @ head["kernel"] + head["bias"]
      >>> logits.argmax(-1).tolist()
      [0, 1]
    """
    x, y = _check(features, labels, num_classes)
    if not l2 > 0:
        raise ValueError(f"l2 is {l2}; it must be positive")
    mean, spread = x.mean(0), x.std(0)
    # A column whose spread is rounding noise is constant.
    scale = np.where(spread > 1e-7 * (1 + np.abs(mean)), 1 / np.maximum(spread, 1e-300), 0.0)
    kernel, bias = _minimise((x - mean) * scale, np.eye(num_classes)[y], l2)
    kernel = kernel * scale[:, None]
    bias = bias - mean @ kernel
    return {"kernel": kernel.astype(np.float32), "bias": (bias - bias.mean()).astype(np.float32)}


def choose_l2(
    train_features: Shaped[np.ndarray, "n d"],
    train_labels: Shaped[np.ndarray, " n"],
    dev_features: Shaped[np.ndarray, "m d"],
    dev_labels: Shaped[np.ndarray, " m"],
    *,
    num_classes: int,
    grid: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
) -> tuple[float, dict[str, Float[np.ndarray, "..."]]]:
    """Picks the penalty whose probe has the lowest cross-entropy on the dev features.

    Cross-entropy rather than accuracy: it is the loss that fine-tuning goes on from, and on a few hundred examples
    the less noisy of the two.

    Args:
      train_features: [n, d].
      train_labels: [n].
      dev_features: [m, d].
      dev_labels: [m].
      num_classes: classes.
      grid: penalties to try.

    Returns:
      (l2, the head fitted on the train features with it).

    Raises:
      ValueError: as `fit_linear_probe`, or if the grid is empty.

    Example:
      >>> x, y = np.array([[-1.0], [1.0]]), np.array([0, 1])
      >>> choose_l2(x, y, x, y, num_classes=2, grid=(1.0, 0.01))[0]
      0.01
    """
    if not grid:
        raise ValueError("grid is empty; it must hold at least one l2")
    x, y = _check(dev_features, dev_labels, num_classes)
    fitted = []
    for l2 in grid:
        head = fit_linear_probe(train_features, train_labels, num_classes=num_classes, l2=l2)
        logits = x @ head["kernel"] + head["bias"]
        fitted.append((-float(np.mean(_log_softmax(logits)[np.arange(len(y)), y])), l2, head))
    _, l2, head = min(fitted, key=lambda entry: entry[0])
    return l2, head


def _check(features, labels, num_classes: int) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
    x, y = np.asarray(features, np.float64), np.asarray(labels)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; it must be 2 or more")
    if x.ndim != 2 or y.shape != x.shape[:1] or not x.size:
        raise ValueError(f"features of shape {x.shape} and labels of shape {y.shape}; they must be [n, d] and [n]")
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinity; they must be finite")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= num_classes:
        raise ValueError(
            f"labels of type {y.dtype} in [{y.min()}, {y.max()}]; they must be integers in [0, {num_classes})"
        )
    return x, y


def _log_softmax(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _minimise(x, onehot, l2: float) -> tuple[Float[np.ndarray, "d c"], Float[np.ndarray, " c"]]:
    """Newton's method with backtracking; a parameter is [d + 1, c], the bias last."""
    n, d = x.shape
    x = np.concatenate([x, np.ones((n, 1))], axis=1)
    ridge = np.full((d + 1, 1), l2)
    ridge[-1] = 0.0  # the bias is not penalised
    # H <= (1/2) (x'x/n + 2 l2 I) for every class (Böhning's bound): its inverse makes conjugate gradients short.
    bound = 0.5 * x.T @ x / n + np.diag(ridge[:, 0])
    precondition = np.linalg.inv(bound)

    def objective(w):
        log_p = _log_softmax(x @ w)
        return -np.sum(onehot * log_p) / n + 0.5 * np.sum(ridge * w * w), np.exp(log_p)

    w = np.zeros((d + 1, onehot.shape[1]))
    value, p = objective(w)
    for _ in range(MAX_NEWTON_STEPS):
        gradient = x.T @ (p - onehot) / n + ridge * w
        size = np.abs(gradient).max()
        if size <= GRADIENT_TOLERANCE:
            return w[:-1], w[-1]

        def hessian(v, p=p):
            u = x @ v
            return x.T @ (p * (u - np.sum(p * u, axis=1, keepdims=True))) / n + ridge * v

        step = _conjugate_gradients(hessian, -gradient, precondition, tolerance=min(0.1, size**0.5))
        slope, length = np.sum(gradient * step), 1.0
        # 1e-12: near the optimum the decrease is smaller than the objective's last bit.
        while (trial := objective(w + length * step))[0] > value + 1e-4 * length * slope + 1e-12:
            length *= 0.5
        w = w + length * step
        value, p = trial
    raise RuntimeError(f"fit_linear_probe: gradient {size:.1e} after {MAX_NEWTON_STEPS} steps; is l2={l2} too small?")


def _conjugate_gradients(hessian, target, precondition, *, tolerance: float):
    """Solves hessian(v) = target to a relative residual."""
    v, residual = np.zeros_like(target), target
    z = precondition @ residual
    direction, energy = z, np.sum(residual * z)
    first = energy
    for _ in range(MAX_CG_STEPS):
        image = hessian(direction)
        step = energy / np.sum(direction * image)
        v, residual = v + step * direction, residual - step * image
        z = precondition @ residual
        energy, before = np.sum(residual * z), energy
        if energy <= tolerance**2 * first:
            break
        direction = z + energy / before * direction
    return v
