"""Weights of half precision that still move: stochastically rounded and compensated updates.

At the usual sizes of a zeroth-order update a plain bfloat16 addition changes about one weight in a hundred. Both
transformations here stand last in a chain and turn a float32 update into one whose plain addition
(`optax.apply_updates`) lands on the rounded sum, so nothing else changes.
"""

import re
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt32

from zojax import random
from zojax.trees import leaf_paths, path_string

__all__ = ["CompensatedState", "StochasticRoundingState", "cast", "compensated", "round_to", "stochastic_rounding"]

Params = Any


def cast(params: Params, dtype: Any, *, stacked: tuple[str, ...] = ()) -> Params:
    """Casts matrices to a dtype and leaves gains and biases in float32.

    A gain of 1.0 in bfloat16 has a spacing of 2^-7 and would not feel a probe; 1-D leaves cost nothing in float32.

    Args:
      params: tree of float arrays.
      dtype: dtype of leaves of two axes or more.
      stacked: regular expressions of leaves with one more, scanned axis in front.

    Returns:
      Tree of the same structure.

    Raises:
      ValueError: if a pattern matches no leaf.

    Example:
      >>> tree = cast({"w": jnp.ones((2, 2)), "b": jnp.ones((2,))}, jnp.bfloat16)
      >>> tree["w"].dtype, tree["b"].dtype
      (dtype(bfloat16), dtype('float32'))
    """

    paths = jax.tree.leaves(leaf_paths(params))
    for pattern in stacked:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(f"stacked: the pattern {pattern!r} matches no leaf; the leaves are {', '.join(paths)}")

    def leaf(path, x):
        scanned = any(re.search(pattern, path_string(path)) for pattern in stacked)
        return x.astype(dtype if x.ndim - scanned >= 2 else jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, params)


def round_to(x: Float[Array, "*s"], dtype: Any, words: UInt32[Array, "*s"] | None = None) -> Float[Array, "*s"]:
    """Rounds float32 to a narrower float format, to nearest even or stochastically.

    Stochastically: x lies between two neighbours lo <= x <= hi of the format; hi is taken with probability
    (x - lo) / (hi - lo), so that the result is x on average. Values beyond the largest finite one saturate.

    Args:
      x: float32 array.
      dtype: bfloat16, float16 or a float8.
      words: uniform random words, one an element; None: to nearest even.

    Returns:
      Array of the dtype.

    Example:
      >>> x = jnp.full((10000,), 1.0 + 2.0**-9)
      >>> r = round_to(x, jnp.bfloat16, random.bits(jax.random.key(0), (10000,)))
      >>> sorted(set(r.tolist())), abs(float(r.astype(jnp.float32).mean()) - float(x[0])) < 2e-4
      ([1.0, 1.0078125], True)
    """
    dtype = jnp.dtype(dtype)
    info = jnp.finfo(dtype)
    clipped = jnp.where(jnp.isnan(x), x, jnp.clip(x, float(info.min), float(info.max)))
    nearest = clipped.astype(dtype)
    if words is None:
        return nearest
    # The other neighbour lies on the side of the remainder; codes of one sign are ordered like their values.
    unsigned = jnp.dtype(f"uint{8 * dtype.itemsize}")
    code = jax.lax.bitcast_convert_type(nearest, unsigned)
    rest = clipped - nearest.astype(jnp.float32)
    sign_bit = np.array(1 << (8 * dtype.itemsize - 1), unsigned)
    one = np.array(1, unsigned)
    away = (rest > 0) == (code < sign_bit)
    zero = (code & ~sign_bit) == 0
    smallest = jnp.where(rest > 0, one, one | sign_bit)
    other = jnp.where(zero, smallest, jnp.where(away, code + one, code - one)).astype(unsigned)
    gap = jax.lax.bitcast_convert_type(other, dtype).astype(jnp.float32) - nearest.astype(jnp.float32)
    chance = (words >> np.uint32(8)).astype(jnp.float32) * np.float32(2.0**-24)
    take_other = (rest != 0) & (chance < rest / jnp.where(gap == 0, 1, gap))
    return jnp.where(take_other, jax.lax.bitcast_convert_type(other, dtype), nearest)


class StochasticRoundingState(NamedTuple):
    """State of `stochastic_rounding`.

    Attributes:
      count: number of updates.
      key: key of the rounding noise; never changes.
    """

    count: Int[Array, ""]
    key: Key[Array, ""]


def stochastic_rounding(key: Key[Array, ""]) -> optax.GradientTransformation:
    """Rounds w + update stochastically to w's dtype, so that E[new w] = w + update. Leaves of float32 pass.

    The noise is addressed by (key, step, leaf path, index), so a replay rounds alike.

    Args:
      key: typed key, apart from the estimator's.

    Returns:
      optax transformation; last in a chain.

    Example:
      >>> tx = stochastic_rounding(jax.random.key(1))
      >>> w = jnp.ones((10000,), jnp.bfloat16)
      >>> updates, _ = tx.update(jnp.full((10000,), 1e-3), tx.init(w), w)
      >>> bool(abs(float(optax.apply_updates(w, updates).astype(jnp.float32).mean()) - 1.001) < 1e-4)
      True
    """

    def init_fn(params):
        del params
        return StochasticRoundingState(jnp.int32(0), random.own(key))

    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError("params: stochastic_rounding needs the parameters")
        step_key = jax.random.fold_in(state.key, state.count)

        def leaf(path, update, w):
            if w.dtype.itemsize >= 4:
                return update
            leaf_key = jax.random.fold_in(step_key, np.uint32(zlib.crc32(path_string(path).encode())))
            words = random.bits(leaf_key, w.shape)
            return _step_to(w, round_to(w.astype(jnp.float32) + update.astype(jnp.float32), w.dtype, words))

        rounded = jax.tree_util.tree_map_with_path(leaf, updates, params)
        return rounded, StochasticRoundingState(state.count + 1, state.key)

    return optax.GradientTransformation(init_fn, update_fn)


def _step_to(w: Array, target: Array) -> Array:
    """The float32 update that takes w to target: exact, since both have at most 11 significant bits."""
    return target.astype(jnp.float32) - w.astype(jnp.float32)


class CompensatedState(NamedTuple):
    """State of `compensated`.

    Attributes:
      residual: what rounding has kept back so far, in the weights' dtype; None at leaves of float32.
    """

    residual: Params


def compensated() -> optax.GradientTransformation:
    """Adds what earlier roundings lost (Kahan): new w = round(w + update + residual), residual = what that left.

    Costs one more array of the weights' dtype. Leaves of float32 pass.

    Returns:
      optax transformation; last in a chain.

    Example:
      >>> tx = compensated()
      >>> w = jnp.ones((1,), jnp.bfloat16)
      >>> state = tx.init(w)
      >>> for _ in range(100):
      ...     updates, state = tx.update(jnp.full((1,), 1e-3), state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> abs(float(w[0]) - 1.1) < 2**-7
      True
    """

    def init_fn(params):
        return CompensatedState(jax.tree.map(lambda w: None if w.dtype.itemsize >= 4 else jnp.zeros_like(w), params))

    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError("params: compensated needs the parameters")

        def leaf(update, w, residual):
            if residual is None:
                return update, None
            total = update.astype(jnp.float32) + residual.astype(jnp.float32)
            target = round_to(w.astype(jnp.float32) + total, w.dtype)
            step = _step_to(w, target)
            return step, (total - step).astype(w.dtype)

        flat, treedef = jax.tree.flatten(params)
        pairs = [
            leaf(update, w, residual)
            for update, w, residual in zip(
                treedef.flatten_up_to(updates), flat, treedef.flatten_up_to(state.residual), strict=True
            )
        ]
        return (
            treedef.unflatten([update for update, _ in pairs]),
            CompensatedState(treedef.unflatten([residual for _, residual in pairs])),
        )

    return optax.GradientTransformation(init_fn, update_fn)
