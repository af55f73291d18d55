"""Updates of quantised weights that stay on their grid, with no float copy of the weights anywhere."""

import dataclasses
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from zojax import ops, random
from zojax.estimators import Estimator, EstimatorState
from zojax.quant.calibration import expand
from zojax.quant.qarray import QArray
from zojax.trees import path_string

__all__ = ["OnGridState", "UpdateNoise", "on_grid", "update_noise"]

Params = Any

# In place of the updates, which an estimator at the head of a chain does not read.
NOTHING: Any = None


class OnGridState(NamedTuple):
    """State of `on_grid`.

    Attributes:
      inner: the float chain's state.
      count: number of updates.
      key: key of the rounding; never changes.
      past: of the K - 1 steps before this one, oldest first: the chain's step counters and the scalars; None without
        feedback.
      moved: share of the quantised weights whose code the last update changed.
      clipped: share whose update would have gone beyond an end of the grid.
    """

    inner: Any
    count: Int[Array, ""]
    key: Key[Array, ""]
    past: Any
    moved: Float[Array, ""]
    clipped: Float[Array, ""]


def on_grid(inner: Estimator, *, key: Key[Array, ""], feedback: int = 0) -> Estimator:
    """Lets a float chain move quantised weights by whole codes.

    code' = clip(code + floor(update / scale + r)),    r uniform in [0, 1)

    On average that is the float update. The chain sees one float32 leaf for every `QArray`; what leaves is a tree of
    integer differences of codes, zero for scales, so that `optax.apply_updates` ends the step. Other leaves pass.

    Every rounding adds a variance of scale^2 f (1 - f), f the fraction of update / scale: for small updates scale times
    |update|, far more than the update's square. Error feedback adds what rounding left over to the next update,

    u_t = update_t + e_(t-1),    step_t = floor(u_t / scale + r),    e_t = u_t - scale step_t

    in blocks of K = `feedback` steps: a block starts with e = 0, and all of its steps round with one r. The codes then
    stand where one rounding of the block's summed update would put them, and the variance of K roundings becomes that
    of one: sqrt(K) times less for small updates of independent signs, and none less for ones that all point one way
    until their sum nears a code. e is not stored but rebuilt from the records of the block's steps, whose updates are
    drawn and rounded again; where nothing is clipped it is bit for bit what would have been stored. An apply costs K
    draws of the update. That r is held through a block is our choice: with a new one in every step, a residual that
    forgets what is older than K steps takes nothing off the variance of longer runs.

    A chain that reads the weights (weight decay, masks by magnitude) is drawn again at the weights as they are now.

    With `optax.scale_by_sign` in the chain the steps are those of ZOQO: every update is plus or minus the rate.

    Args:
      inner: an estimator, or a chain that begins with one.
      key: typed key of the rounding, apart from the estimator's.
      feedback: K, the steps of a block of error feedback; 0 for no feedback.

    Returns:
      Estimator over trees with `QArray` leaves.

    Raises:
      ValueError: if feedback is 1 or negative; (from init) if no leaf is quantised; or, with feedback, if the chain
        keeps a state other than counters, or a leaf lies on a float8 grid, whose steps depend on codes that are gone.

    Example:
      >>> import optax
      >>> from zojax import estimators
      >>> from zojax.quant import quantize
      >>> chain = estimators.chain(estimators.quzo(1e-2, key=jax.random.key(0)), optax.sgd(1e-2))
      >>> tx = on_grid(chain, key=jax.random.key(1))
      >>> params = {"w": quantize(jnp.ones((8, 4)), "int8_127")}
      >>> loss = lambda p: jnp.sum(ops.value(p["w"]) ** 2)
      >>> updates, state = tx.update(None, tx.init(params), params, value_fn=loss)
      >>> updates["w"].qvalue.dtype
      dtype('int8')

    References:
      QuZO, arXiv 2502.12346 (rounds each probe's part of the update; one rounding of their sum is our choice); QES,
      arXiv 2602.03120 (error feedback by replay); ZOQO, arXiv 2501.06736 (sign steps on the grid).
    """
    if feedback < 0 or feedback == 1:
        raise ValueError(f"feedback: {feedback}; 0, or a block of at least 2 steps, is needed")

    def init_fn(params):
        leaves = [leaf for leaf in _leaves(params) if isinstance(leaf, QArray)]
        if not leaves:
            raise ValueError("params: no leaf is quantised; quantise the tree first, or leave on_grid out")
        state = inner.init(params)
        past = None
        if feedback:
            if any(leaf.grid.float_type for leaf in leaves):
                raise ValueError("feedback: a leaf lies on a float8 grid; use an integer grid, or feedback=0")
            record = (_counters(state), _scalars_like(inner, params, state))
            past = jax.tree.map(lambda x: jnp.zeros((feedback - 1, *x.shape), x.dtype), record)
        return OnGridState(state, jnp.int32(0), random.own(key), past, jnp.float32(0), jnp.float32(0))

    def update_fn(updates, state, params=None, *, value_fn=None, scalars=None, **extra_args):
        if params is None:
            raise ValueError("params: on_grid needs the parameters")
        if value_fn is not None and scalars is None:
            scalars = inner.measure(params, state.inner, value_fn)
        elif scalars is None or value_fn is not None:
            raise ValueError("update: exactly one of value_fn and scalars is needed")
        updates, after = inner.update(updates, state.inner, params, scalars=scalars, **extra_args)
        errors = _errors(inner, state, params, feedback) if feedback else None
        steps = _rounded(updates, errors, state, params, feedback)
        leaves, treedef = jax.tree.flatten(params, is_leaf=_is_weight)
        out, moved, clipped, total = [], jnp.float32(0), jnp.float32(0), 0
        for w, step in zip(leaves, steps, strict=True):
            if isinstance(w, QArray):
                codes = w.qvalue.astype(jnp.int32)
                taken = jnp.clip(codes + step, w.grid.low, w.grid.high) - codes
                packed = (2 * taken + (taken != step)).astype(jnp.int16)
                # Kept apart: each of the uses below would otherwise draw the noise of the update anew, or, where they
                # are apart from it, keep the old codes beside the new ones.
                packed = random.stored(state.key, lambda packed=packed: packed)
                taken = packed >> 1
                moved += _count(taken != 0)
                clipped += _count(packed & 1 != 0)
                total += w.size
                step = _difference(w, taken)
            out.append(step)
        past = state.past
        if feedback:
            record = (_counters(state.inner), scalars)
            past = jax.tree.map(lambda ring, x: jnp.concatenate([ring[1:], x[None].astype(ring.dtype)]), past, record)
        return treedef.unflatten(out), OnGridState(
            after, state.count + 1, state.key, past, moved / float(total), clipped / float(total)
        )

    def measure(params, state, value_fn, **options):
        return inner.measure(params, state.inner, value_fn, **options)

    return Estimator(init_fn, update_fn, measure)


class UpdateNoise(NamedTuple):
    """What rounding does to one update, root mean squares over the quantised weights, in units of the weights.

    Attributes:
      update: of the float update.
      predicted: of the rounding error, from its law: s^2 f (1 - f), f the fraction of update / s.
      measured: of the rounding error that was drawn.
    """

    update: Float[Array, ""]
    predicted: Float[Array, ""]
    measured: Float[Array, ""]


def update_noise(tx: Estimator, inner: Estimator, params: Params, state: OnGridState, scalars: Any) -> UpdateNoise:
    """The noise that rounding adds to the update of these scalars.

    Args:
      tx: `on_grid(inner, ...)` without feedback.
      inner: the float chain.
      params: weights before the step.
      state: state before the step.
      scalars: what the step measured.

    Returns:
      The root mean squares.

    Example:
      >>> import optax
      >>> from zojax import estimators
      >>> from zojax.quant import quantize
      >>> chain = estimators.chain(estimators.quzo(1e-2, key=jax.random.key(0)), optax.sgd(1e-4))
      >>> tx = on_grid(chain, key=jax.random.key(1))
      >>> params = {"w": quantize(jax.random.normal(jax.random.key(2), (64, 64)), "int8_127")}
      >>> state = tx.init(params)
      >>> scalars = tx.measure(params, state, lambda p: jnp.sum(ops.value(p["w"]) ** 2))
      >>> noise = update_noise(tx, chain, params, state, scalars)
      >>> bool(abs(noise.measured / noise.predicted - 1) < 0.1)
      True
    """
    wanted, _ = inner.update(NOTHING, state.inner, params, scalars=scalars)
    got, _ = tx.update(NOTHING, state, params, scalars=scalars)
    count, update, predicted, measured = 0, 0.0, 0.0, 0.0
    for w, u, d in zip(_leaves(params), jax.tree.leaves(wanted), _leaves(got), strict=True):
        if isinstance(w, QArray):
            scale = expand(ops.value(w.scale), w.shape)
            levels = u / scale
            fraction = levels - jnp.floor(levels)
            error = d.qvalue.astype(jnp.float32) * scale - u
            count += w.size
            update += jnp.sum(jnp.square(u))
            predicted += jnp.sum(jnp.square(scale) * fraction * (1 - fraction))
            measured += jnp.sum(jnp.square(error))
    return UpdateNoise(*(jnp.sqrt(total / count) for total in (update, predicted, measured)))


def _is_weight(node: Any) -> bool:
    return hasattr(node, "materialize")


def _leaves(params: Params) -> list[Any]:
    return jax.tree.leaves(params, is_leaf=_is_weight)


def _rounded(updates: Params, errors: list[Any] | None, state: OnGridState, params: Params, block: int) -> list[Any]:
    """Steps of codes of quantised leaves, updates of the others."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_weight)
    given = jax.tree.leaves(updates)
    past = [None] * len(flat) if errors is None else errors
    rounded = []
    for (path, w), update, error in zip(flat, given, past, strict=True):
        if isinstance(w, QArray):
            update = _steps(w, update if error is None else update + error, _words(state, path, w, block))
        rounded.append(update)
    return rounded


def _steps(w: QArray, by: Array, words: Array) -> Array:
    steps = w.steps(by, words)
    if w.grid.float_type:
        # These steps stop at the ends. One more where the move goes on, so that it counts as clipped.
        level = w.grid.levels(w.qvalue) + by / expand(ops.value(w.scale), w.shape)
        steps += (level > w.grid.span).astype(jnp.int32) - (level < -w.grid.span).astype(jnp.int32)
    return steps


def _words(state: OnGridState, path: Any, w: QArray, block: int) -> Array:
    """The random words of this step's rounding; with feedback, those of its block."""
    number = state.count // block if block else state.count
    leaf_key = jax.random.fold_in(
        jax.random.fold_in(state.key, number), np.uint32(zlib.crc32(path_string(path).encode()))
    )
    return random.bits(leaf_key, w.shape)


def _errors(inner: Estimator, state: OnGridState, params: Params, block: int) -> list[Any]:
    """The error before this step, from the records of the steps of its block."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_weight)
    errors: list[Any] = [jnp.zeros(w.shape, jnp.float32) if isinstance(w, QArray) else None for _, w in flat]
    for index in range(block - 1):
        counters, scalars = jax.tree.map(lambda x, i=index: x[i], state.past)
        updates, _ = inner.update(NOTHING, _with_counters(state.inner, counters), params, scalars=scalars)
        in_block = block - 1 - index <= state.count % block
        for at, ((path, w), update) in enumerate(zip(flat, jax.tree.leaves(updates), strict=True)):
            if isinstance(w, QArray):
                wanted = update + errors[at]
                step = w.steps(wanted, _words(state, path, w, block)).astype(jnp.float32)
                left = wanted - step * expand(ops.value(w.scale), w.shape)
                errors[at] = jnp.where(in_block, left, 0.0)
    return errors


def _count(flags: Array) -> Array:
    """How many hold, float32."""
    columns = flags.shape[-1]
    if columns % 32 == 0:
        # In two stages of different types: XLA:CPU would keep the flags of one sum over everything as int32.
        flags = jnp.sum(flags.reshape(-1, columns // 32, 32), axis=-1, dtype=jnp.int8)
    return jnp.sum(flags, dtype=jnp.int32).astype(jnp.float32)


def _difference(w: QArray, taken: Array) -> QArray:
    """The leaf that, added to w, moves its codes: modulo 2^bits, as is the sum."""
    zeros = jax.tree.map(jnp.zeros_like, w)
    return dataclasses.replace(zeros, qvalue=taken.astype(w.qvalue.dtype))


def _counters(state: Any) -> Any:
    """What of a chain's state changes from step to step, where that is counters alone."""

    def leaf(node: Any) -> Any:
        if isinstance(node, EstimatorState):
            return node.count
        if jnp.ndim(node) or not jnp.issubdtype(jnp.asarray(node).dtype, jnp.integer):
            raise ValueError(
                "feedback: the chain keeps a state beside step counters (momentum, Adam); use SGD, or feedback=0"
            )
        return node

    return jax.tree.map(leaf, state, is_leaf=lambda node: isinstance(node, EstimatorState))


def _with_counters(state: Any, counters: Any) -> Any:
    return jax.tree.map(
        lambda node, count: node._replace(count=count) if isinstance(node, EstimatorState) else count,
        state,
        counters,
        is_leaf=lambda node: isinstance(node, EstimatorState),
    )


def _scalars_like(inner: Estimator, params: Params, state: Any) -> Any:
    return jax.eval_shape(lambda p, s: inner.measure(p, s, lambda candidate: jnp.float32(0)), params, state)
