"""How much a weight matters to a task, from a gradient and a Hessian of each row.

A kernel here is [inputs, outputs], y = x W, and a *row*, in the paper's words, is what makes one output: a column of
the kernel. Rows are scored apart, each as if the loss were q(d) = g.d + d'H d / 2 in the change d of that row alone,
with one H for all rows of a layer.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

__all__ = ["Importance", "damped", "global_score", "greedy_score", "task_score"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """How scores are made: S = global + alpha * greedy + beta |W|.

    Attributes:
      alpha: share of the greedy score.
      beta: share of the magnitude of the weights.
      learning_rate: length of the step that the greedy score looks at.
      damping: what is added to H's diagonal, as a share of its mean.
      block: inputs are cut into equal blocks of at most so many, and what two blocks have in common is left out.

    Raises:
      ValueError: if a number is out of its range.

    Example:
      >>> Importance(alpha=0.5).block
      2048

    References:
      MaZO, arXiv 2502.11513, for the form; the numbers are our choice.
    """

    alpha: float = 1.0
    beta: float = 0.0
    learning_rate: float = 1e-2
    damping: float = 1e-2
    block: int = 2048

    def __post_init__(self):
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)}; a number of at least 0 is needed")
        for name in ("learning_rate", "damping"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)}; a positive number is needed")
        if self.block < 1:
            raise ValueError(f"block: {self.block}; at least 1 is needed")


def global_score(gradient: Float[Array, "m n"], hessian: Float[Array, "m m"]) -> Float[Array, "m n"]:
    """What the best loss that a row can reach rises by if one of its weights is frozen.

        S_m = [(H^-1 g)_m]^2 / (2 [H^-1]_mm) = min_{d: d_m = 0} q(d) - min_d q(d)

    By one Cholesky factor H = L L' for all rows: H^-1 g from two triangular solves, and [H^-1]_mm as the squared norm
    of column m of L^-1. In float32 a relative error of about 1e-7 times H's condition number, which damping bounds by
    m / damping.

    Args:
      gradient: g of each row, a column each.
      hessian: H, positive definite.

    Returns:
      Scores, at least 0, in the unit of the loss.

    Example:
      >>> global_score(jnp.array([[2.0], [1.0]]), jnp.diag(jnp.array([1.0, 4.0]))).tolist()
      [[2.0], [0.125]]

    References:
      MaZO, arXiv 2502.11513, for the definition in words; the formula, that of the optimal brain surgeon, is ours here.
    """
    lower = jnp.linalg.cholesky(hessian)
    inverse = solve_triangular(lower, jnp.eye(len(hessian), dtype=hessian.dtype), lower=True)
    solved = inverse.T @ (inverse @ gradient)
    return jnp.square(solved) / (2 * jnp.sum(jnp.square(inverse), axis=0))[:, None]


def greedy_score(
    gradient: Float[Array, "m n"], hessian: Float[Array, "m m"], learning_rate: float
) -> Float[Array, "m n"]:
    """What one step d = -learning_rate g gains less if one of a row's weights stays where it is.

        S_m = lr g_m^2 - lr^2 g_m (H g)_m + lr^2 H_mm g_m^2 / 2 = q(d without its entry m) - q(d)

    Args:
      gradient: g of each row, a column each.
      hessian: H.
      learning_rate: lr.

    Returns:
      Scores in the unit of the loss; below 0 where the weight's part of the step goes too far.

    Example:
      >>> greedy_score(jnp.array([[2.0]]), jnp.array([[1.0]]), 0.5).tolist()
      [[1.5]]

    References:
      MaZO, arXiv 2502.11513, for the definition in words; the formula is ours.
    """
    diagonal = jnp.diagonal(hessian)[:, None]
    square, product = jnp.square(gradient), gradient * (hessian @ gradient)
    return learning_rate * square - learning_rate**2 * (product - diagonal * square / 2)


def damped(gram: Float[Array, "b s s"], inputs: int, damping: float) -> Float[Array, "b s s"]:
    """X X' + lambda I by blocks, lambda the share `damping` of the mean of the diagonal.

    Args:
      gram: sums or means of x x', in blocks along the diagonal; rows of the last block beyond `inputs` are 0.
      inputs: m, the layer's width.
      damping: of the mean over the m inputs. Where all are 0, lambda is `damping`.

    Returns:
      Positive definite blocks.

    Example:
      >>> damped(jnp.array([[[2.0, 0.0], [0.0, 0.0]]]), 2, 0.5).tolist()
      [[[2.5, 0.0], [0.0, 0.5]]]
    """
    mean = jnp.trace(gram, axis1=1, axis2=2).sum() / inputs
    return gram + damping * jnp.where(mean > 0, mean, 1.0) * jnp.eye(gram.shape[-1], dtype=gram.dtype)


def task_score(
    gradient: Float[Array, "m n"], gram: Float[Array, "b s s"], weights: Float[Array, "m n"], options: Importance
) -> Float[Array, "m n"]:
    """The score of one task, each row divided by the sum of its magnitudes.

        S = (S' / sum_m |S'_m|),    S' = global + alpha * greedy + beta |W|

    A row of zeros stays one. Magnitudes, because greedy scores may be negative; the sum is the plain one where none is.

    Args:
      gradient: of the loss with respect to the weights.
      gram: mean of x x' over the layer's inputs, in b blocks of s, b s >= m; the loss's curvature in the outputs is
        taken to be 1 (ours).
      weights: W.
      options: shares, damping and step.

    Returns:
      Scores whose magnitudes sum to 1 over the inputs.

    Example:
      >>> gram = jnp.eye(2)[None]
      >>> score = task_score(jnp.array([[3.0], [1.0]]), gram, jnp.ones((2, 1)), Importance(alpha=0.0))
      >>> [round(float(x), 3) for x in score[:, 0]]
      [0.9, 0.1]

    References:
      MaZO, arXiv 2502.11513; the normaliser is ours.
    """
    inputs, outputs = gradient.shape
    count, size, _ = gram.shape
    hessian = damped(gram, inputs, options.damping)
    rows = jnp.pad(gradient, ((0, count * size - inputs), (0, 0))).reshape(count, size, outputs)
    score = jax.vmap(global_score)(rows, hessian)
    if options.alpha:
        greedy = jax.vmap(lambda g, h: greedy_score(g, h, options.learning_rate))(rows, hessian)
        score = score + options.alpha * greedy
    score = score.reshape(-1, outputs)[:inputs] + options.beta * jnp.abs(weights)
    total = jnp.sum(jnp.abs(score), axis=0)
    return score / jnp.where(total > 0, total, 1.0)
