"""By how much the attention to catalogues misses what is said, where that is known. (Ours.)

Led by the loss of the labels alone, attention finds its phrase among a hundred hardly ever: its first steps are right
one time in a hundred. Labels and lists say what it ought to find, and these are losses of that: of the predictor, at
each label; of frames, whose labels have no times, along all paths.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from models.language.layers import MASKED

__all__ = ["missed_by_frames", "missed_by_symbols"]


def missed_by_symbols(
    log_alpha: Float[Array, "b v k1"], right: Bool[Array, "b v k"], counts: Int[Array, "b"]
) -> Float[Array, "b"]:
    """What the predictor's outputs do not give to the keys that come next.

        nats = -sum_{v <= labels} ln sum_{k right} alpha_vk,    of the no-bias key where none is right

    Args:
      log_alpha: logarithms of attention to the no-bias key and to the others, after v labels.
      right: which of the others are right.
      counts: labels of each utterance.

    Returns:
      Nats of each utterance.

    Example:
      >>> log_alpha = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))
      >>> nats = missed_by_symbols(log_alpha, jnp.array([[[True], [False]]]), jnp.array([1]))
      >>> float(nats[0]) == float(jnp.log(8.0))
      True
    """
    right = jnp.concatenate([~jnp.any(right, axis=-1, keepdims=True), right], axis=-1)
    nats = -jax.nn.logsumexp(jnp.where(right, log_alpha, MASKED), axis=-1)
    real = jnp.arange(nats.shape[1]) <= counts[:, None]
    return jnp.sum(jnp.where(real, nats, 0), axis=1)


def missed_by_frames(
    log_alpha: Float[Array, "b t k1"], mask: Bool[Array, "b t"], right: Bool[Array, "b v k"], counts: Int[Array, "b"]
) -> Float[Array, "b"]:
    """What frames do not give to the keys that are said, one after another, at whatever frames.

        nats = -ln sum_paths prod_t alpha_t,path(t)    over all paths that collapse to the keys

    A path is one of CTC (Graves and others, 2006): frames of no phrase attend to the no-bias key, its blank.

    Args:
      log_alpha: logarithms of each frame's attention to the no-bias key and to the others.
      mask: which frames there are; the first ones.
      right: which keys come next after v labels; of several, the first is looked for.
      counts: labels of each utterance.

    Returns:
      Nats of each utterance; 0 where there are fewer frames than a path needs.

    Example:
      >>> log_alpha = jnp.log(jnp.array([[[0.5, 0.5], [0.5, 0.5]]]))
      >>> one, none = jnp.array([[[True], [False]]]), jnp.zeros((1, 2, 1), bool)
      >>> for right in (one, none):  # three paths of the key, and one of nothing; each has 1 / 4
      ...     nats = missed_by_frames(log_alpha, jnp.ones((1, 2), bool), right, jnp.array([1]))
      ...     print(f"{float(jnp.exp(-nats[0])):.2f}")
      0.75
      0.25
    """
    there = jnp.any(right, axis=-1) & (jnp.arange(right.shape[1]) < counts[:, None])
    keys = jnp.where(there, jnp.argmax(right, axis=-1) + 1, 0)
    # Labels of no phrase have no key: those that have one are moved to the front, in their order.
    order = jnp.argsort(~there, axis=1, stable=True)
    keys, filling = (jnp.take_along_axis(x, order, axis=1) for x in (keys, ~there))
    nats = optax.ctc_loss(log_alpha, (~mask).astype(log_alpha.dtype), keys, filling.astype(log_alpha.dtype))
    repeated = (keys[:, 1:] == keys[:, :-1]) & (keys[:, 1:] > 0)
    needed = jnp.sum(there, axis=1) + jnp.sum(repeated, axis=1)
    return jnp.where(needed <= jnp.sum(mask, axis=1), nats, 0)
