"""The definition of the two passes through a lattice whose arcs go forward by whole steps.

Forward, in log space: alpha, less a running offset for each step. The offsets are integers, so that their sum is exact
and taking one off rounds next to nothing; what is left is as small in a long utterance as in a short one. (A plain
float32 alpha of -3300 has lost all digits behind 2e-4.) Backward, in linear space: the one unit of probability at the
end flows back through every node in the shares in which it arrived there. Shares sum to one, so nothing is lost on the
way, and no second recursion in log space is needed. Both choices are ours.
"""

from typing import Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

__all__ = ["backward", "forward"]

Arcs = tuple[tuple[int, bool], ...]
Rows = tuple[Float[Array, "steps batch symbols"], ...]
Semiring = Literal["sum", "best"]


def up(x: Array, by: bool) -> Array:
    """From the u of the node that an arc leaves to the u where it arrives."""
    return jnp.pad(x[..., :-1], ((0, 0),) * (x.ndim - 1) + ((1, 0),), constant_values=-jnp.inf) if by else x


def down(x: Array, by: bool) -> Array:
    """The reverse."""
    return jnp.pad(x[..., 1:], ((0, 0),) * (x.ndim - 1) + ((0, 1),)) if by else x


def later(x: Array, by: int, fill: float) -> Array:
    """Rows of the nodes that arcs leave, moved to the rows where they arrive; the last rows drop out."""
    return jnp.concatenate([jnp.full_like(x[:by], fill), x[: len(x) - by]]) if by else x


def forward(
    arriving: Rows,
    end: Int[Array, "batch"],
    last: Int[Array, "batch"],
    *,
    arcs: Arcs,
    semiring: Semiring,
    keep: bool,
) -> tuple[Float[Array, "batch"], Rows]:
    """The log-weight of all paths to the last node, and which part of each node's weight each arc has brought.

    Args:
      arriving: for each arc its log-weight at the node (step, u) where it arrives; row i is step i + 1.
      end: step of the last node.
      last: u of the last node.
      arcs: (steps that it goes forward, whether u goes up by one) of each arc.
      semiring: "sum" of the paths, or the "best" of them.
      keep: whether shares are wanted.

    Returns:
      (log-weight, shares [steps, batch, symbols] for each arc, which sum to one where anything has arrived; none
      without `keep`).

    Example:
      >>> half = jnp.log(jnp.full((2, 1, 2), 0.5))
      >>> arcs = ((1, False), (1, True))
      >>> total, shares = forward((half, half), jnp.array([2]), jnp.array([1]), arcs=arcs, semiring="sum", keep=True)
      >>> round(float(jnp.exp(total[0])), 3), shares[1][1, 0].tolist()
      (0.5, [0.0, 0.5])
    """
    alphas, taken = _alphas(arriving, arcs, semiring)
    row = jnp.arange(alphas.shape[1])
    total = taken[end, row] + alphas[end, row, last]
    return total, _shares(arriving, alphas, taken, arcs, semiring) if keep else ()


def backward(shares: Rows, end: Int[Array, "batch"], last: Int[Array, "batch"], *, arcs: Arcs) -> Rows:
    """How much of one unit at the last node has come through each arc.

    Args:
      shares: of `forward`.
      end: step of the last node.
      last: u of the last node.
      arcs: as in `forward`.

    Returns:
      [steps, batch, symbols] for each arc, at the node where it arrives.

    Example:
      >>> half = jnp.full((2, 1, 2), 0.5)
      >>> flows = backward((half, half), jnp.array([2]), jnp.array([1]), arcs=((1, False), (1, True)))
      >>> [flow[1, 0].tolist() for flow in flows]
      [[0.0, 0.5], [0.0, 0.5]]
    """
    steps_in_all, batch, symbols = shares[0].shape
    unit = (jnp.arange(symbols) == last[:, None]).astype(shares[0].dtype)

    def step(due, now):
        index, arrived = now
        node = due[0] + jnp.where((index + 1 == end)[:, None], unit, 0)
        due = [*due[1:], jnp.zeros_like(node)]
        for (steps, label), share in zip(arcs, arrived, strict=True):
            due[steps - 1] += down(node * share, label)
        return tuple(due), node

    nothing = (jnp.zeros((batch, symbols), shares[0].dtype),) * max(steps for steps, _ in arcs)
    _, nodes = lax.scan(step, nothing, (jnp.arange(steps_in_all), shares), reverse=True)
    return tuple(nodes * share for share in shares)


def _finite_top(terms: list[Array]) -> tuple[Array, Array]:
    """The greatest term, 0 where all are log 0; and where that is."""
    top = terms[0]
    for x in terms[1:]:
        top = jnp.maximum(top, x)
    nothing = top == -jnp.inf
    return lax.stop_gradient(jnp.where(nothing, 0, top)), nothing


def _alphas(arriving: Rows, arcs: Arcs, semiring: Semiring) -> tuple[Array, Array]:
    """log-weights of the ways to each node: alphas + taken, [1 + steps, batch, symbols] and [1 + steps, batch]."""
    _, batch, symbols = arriving[0].shape
    dtype, depth = arriving[0].dtype, max(steps for steps, _ in arcs)
    start = jnp.broadcast_to(jnp.where(jnp.arange(symbols) == 0, 0, -jnp.inf).astype(dtype), (batch, symbols))

    def step(history, now):
        terms = [up(history[steps - 1], label) + w for (steps, label), w in zip(arcs, now, strict=True)]
        top, nothing = _finite_top(terms)
        if semiring == "sum":
            total = sum(jnp.exp(x - top) for x in terms)
            top += jnp.log(jnp.where(nothing, 1, total))
        alpha = jnp.where(nothing, -jnp.inf, top)
        offset = lax.stop_gradient(jnp.floor(jnp.max(alpha, axis=-1)))
        offset = jnp.where(jnp.isfinite(offset), offset, 0)
        history = tuple(a - offset[:, None] for a in (alpha, *history[: depth - 1]))
        return history, (history[0], offset)

    older = (jnp.full_like(start, -jnp.inf),) * (depth - 1)
    _, (alphas, offsets) = lax.scan(step, (start, *older), arriving)
    taken = jnp.cumsum(offsets, axis=0)  # of integers: exact up to 2^24 in float32
    return jnp.concatenate([start[None], alphas]), jnp.concatenate([jnp.zeros_like(taken[:1]), taken])


def _shares(arriving: Rows, alphas: Array, taken: Array, arcs: Arcs, semiring: Semiring) -> Rows:
    terms = []
    for (steps, label), w in zip(arcs, arriving, strict=True):
        before = later(alphas[:-1], steps - 1, -jnp.inf)
        if steps > 1:  # what was taken off since
            before += (later(taken[:-1], steps - 1, 0.0) - taken[:-1])[..., None]
        terms.append(up(before, label) + w)
    top, nothing = _finite_top(terms)
    if semiring == "best":
        shares, free = [], ~nothing
        for x in terms:  # the first of equals
            shares.append(jnp.where(free & (x == top), 1, 0).astype(x.dtype))
            free &= x != top
        return tuple(shares)
    parts = [jnp.exp(x - top) for x in terms]
    total = jnp.where(nothing, 1, sum(parts))
    return tuple(part / total for part in parts)
