"""From logits to the log-probabilities of blank and label at each node, without ever storing a softmax."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["node_log_probs"]

Pair = tuple[Array, Array]


def node_log_probs(
    logits: Float[Array, "batch frames symbols classes"],
    next_labels: Int[Array, "batch #frames symbols"],
    *,
    blank: int,
    hat: bool = False,
) -> tuple[Float[Array, "batch frames symbols"], Float[Array, "batch frames symbols"]]:
    """log P(blank) and log P(next label) at each node.

        softmax:  log P(k) = x_k - log sum_j exp(x_j)
        HAT:      log P(blank) = log sigmoid(x_blank),
                  log P(k)     = log sigmoid(-x_blank) + x_k - log sum_{j != blank} exp(x_j)

    The gradient is in closed form; for the softmax d/dx_k = g_k - P(k) sum_j g_j. What is kept for it is two numbers
    a node. A node whose two cotangents are 0 has a gradient of 0 whatever its logits are, so padding may hold anything.

    Infinite logits are limits: -inf is a probability of 0, and +inf takes all, in equal parts if there are several.

    Args:
      logits: of any float dtype; computed in float32 at least.
      next_labels: the class of each node's label arc; one out of range counts as 0.
      blank: index of the blank among the classes.
      hat: a hybrid autoregressive transducer (arXiv 2003.07705): blank or not is a binary decision of its own.

    Returns:
      (log P(blank), log P(next label)).

    Raises:
      ValueError: if blank is not a class.

    Example:
      >>> _, label = node_log_probs(jnp.zeros((1, 1, 2, 4)), jnp.array([[[3, 0]]]), blank=0)
      >>> jnp.exp(label).tolist()
      [[[0.25, 0.25]]]
    """
    check_blank(blank, logits.shape[-1])
    return _node_log_probs(logits, next_labels, blank, hat)


def check_blank(blank: int, classes: int) -> None:
    """Refuses a blank that is not a class."""
    if not 0 <= blank < classes:
        raise ValueError(f"blank: {blank}; the index of one of the {classes} classes, 0 to {classes - 1}, is needed")


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _node_log_probs(logits, next_labels, blank, hat):
    return log_probs_and_norms(logits, next_labels, blank, hat)[0]


def _forward(logits, next_labels, blank, hat):
    found, norms = log_probs_and_norms(logits, next_labels, blank, hat)
    return found, (logits, next_labels, norms)


def _backward(blank, hat, kept, cotangents):
    logits, next_labels, norms = kept
    return logits_cotangent(logits, next_labels, norms, cotangents, blank, hat), None


_node_log_probs.defvjp(_forward, _backward)


def _finite(logits: Array) -> Array:
    """In float32 at least, and no greater than finite: differences of two are then numbers or -inf."""
    x = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.minimum(x, jnp.finfo(x.dtype).max)


def _one_of(next_labels: Array, classes: int) -> Array:
    return jnp.where((next_labels >= 0) & (next_labels < classes), next_labels, 0)


def log_probs_and_norms(logits: Array, next_labels: Array, blank: int, hat: bool) -> tuple[Pair, Pair]:
    """As `node_log_probs`, and (m, s) of each node, for which P(k) = exp((x_k - m) - s), blank aside in a HAT."""
    is_blank = jnp.arange(logits.shape[-1]) == blank
    # Each reduction and each pick starts anew from the logits as they are held. What two of them shared, be it only
    # a cast, would be written to memory at the size of the logits.
    top = _finite(jnp.max(jnp.where(is_blank, -jnp.inf, logits) if hat else logits, axis=-1))
    top = jnp.where(top == -jnp.inf, 0, top)
    parts = jnp.exp(_finite(logits) - top[..., None])
    # Beside a large top, the sum of top and log_sum would round log_sum away: they stay apart.
    log_sum = jnp.log(jnp.sum(jnp.where(is_blank, 0, parts) if hat else parts, axis=-1))
    index = jnp.broadcast_to(_one_of(next_labels, logits.shape[-1]), logits.shape[:-1])
    x_label = _finite(jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0])
    x_blank = _finite(logits[..., blank])
    lp_label = (x_label - top) - log_sum
    if hat:
        lp_blank, lp_label = jax.nn.log_sigmoid(x_blank), jax.nn.log_sigmoid(-x_blank) + lp_label
    else:
        lp_blank = (x_blank - top) - log_sum
    # A class beside one of +inf, and all classes of a node whose logits are all -inf, have a probability of 0.
    lowest = jnp.finfo(top.dtype).min / 2
    never = log_sum == -jnp.inf
    lp_blank = jnp.where((lp_blank < lowest) | (never & (not hat)), -jnp.inf, lp_blank)
    return (lp_blank, jnp.where((lp_label < lowest) | never, -jnp.inf, lp_label)), (top, log_sum)


def logits_cotangent(logits: Array, next_labels: Array, norms: Pair, cotangents: Pair, blank: int, hat: bool) -> Array:
    """The gradient with respect to the logits, given that with respect to the two log-probabilities."""
    x, classes = _finite(logits), jnp.arange(logits.shape[-1])
    of_blank, of_label = cotangents
    top, log_sum = (n[..., None] for n in norms)
    if hat:
        normalised, p_blank = of_label, jax.nn.sigmoid(x[..., blank])
        at_blank = (of_blank * (1 - p_blank) - of_label * p_blank)[..., None]
    else:
        normalised, at_blank = of_blank + of_label, of_blank[..., None]
    gradient = -normalised[..., None] * jnp.exp((x - top) - log_sum)
    index = _one_of(next_labels, logits.shape[-1])[..., None]
    gradient += jnp.where(classes == index, of_label[..., None], 0)
    is_blank = classes == blank
    gradient = jnp.where(is_blank, at_blank, gradient) if hat else gradient + jnp.where(is_blank, at_blank, 0)
    reached = (of_blank != 0) | (of_label != 0)
    return jnp.where(reached[..., None], gradient, 0).astype(logits.dtype)
