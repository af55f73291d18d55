"""Sums over the paths through a transducer's lattice: their weight, the posterior of each arc, the best path.

A lattice has nodes (t, u): t frames read, u labels written. Arcs leave each node, a blank to (t + n, u) or a label to
(t + n, u + 1), each with a log-weight; a path from (0, 0) to (T, U) weighs the product of its arcs. All topologies run
through one recursion, for each has an order of *steps* in which an arc goes forward by a fixed number: the
anti-diagonals t + u where a label may cost no frame, the frames where it costs one. A step is vectorised over batch
and u, and `skew` brings the weights into its layout.

Two passes give the cost and its gradient: forward for the weight of all paths and for the share that each arc has in
what arrives at a node, backward for the probability that flows through each arc. That is its posterior, and the
posteriors are the gradient. `zojax.kernels.transducer_lattice` holds the passes.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zojax.kernels import transducer_lattice
from zojax.kernels.transducer_lattice.reference import Arcs, Rows, Semiring, down, later, up

__all__ = ["MONOTONIC", "STANDARD", "Lattice", "path_cost", "posteriors"]

Weights = tuple[Float[Array, "batch frames symbols"], ...]


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """Which arcs leave a node.

    Attributes:
      arcs: (frames that it takes, whether it is a label) of each arc, in the order of the weights.
      ends_in_blank: whether the last arc of every path is a blank.

    Raises:
      ValueError: if an arc leads to its own node.

    Example:
      >>> Lattice(arcs=((1, False), (0, True))).steps
      (1, 1)
    """

    arcs: tuple[tuple[int, bool], ...]
    ends_in_blank: bool = True

    def __post_init__(self):
        if any(frames < (0 if label else 1) for frames, label in self.arcs):
            raise ValueError(f"arcs: {self.arcs}; a blank takes 1 frame or more, a label 0 or more")

    @property
    def skewed(self) -> bool:
        """Whether steps are anti-diagonals t + u; else they are frames t."""
        return any(frames == 0 for frames, _ in self.arcs)

    @property
    def steps(self) -> tuple[int, ...]:
        """How many steps each arc goes forward."""
        return tuple(frames + (self.skewed and label) for frames, label in self.arcs)

    @property
    def layout(self) -> Arcs:
        """(steps, whether it is a label) of each arc."""
        return tuple((steps, label) for steps, (_, label) in zip(self.steps, self.arcs, strict=True))


STANDARD = Lattice(arcs=((1, False), (0, True)))
MONOTONIC = Lattice(arcs=((1, False), (1, True)), ends_in_blank=False)


def path_cost(
    weights: Weights,
    frame_lengths: Int[Array, "batch"],
    label_lengths: Int[Array, "batch"],
    lattice: Lattice,
    *,
    implementation: str | None = None,
) -> Float[Array, "batch"]:
    """-log of the summed weight of all paths, differentiable in the weights.

    Args:
      weights: a log-weight for each node and arc of the lattice, [batch, T, U + 1] each, of the node that the arc
        leaves; -inf forbids an arc.
      frame_lengths: int32 frames of each utterance, up to T.
      label_lengths: int32 labels of each utterance, up to U.
      lattice: the arcs.
      implementation: of the recursion, as in `zojax.kernels.transducer_lattice`.

    Returns:
      float [batch]: inf, with a gradient of 0, where no path exists; 0 for an utterance without frames.

    Example:
      >>> half = jnp.log(jnp.full((1, 2, 2), 0.5))
      >>> cost = path_cost((half, half), jnp.array([2]), jnp.array([1]), STANDARD)
      >>> round(float(jnp.exp(-cost[0])), 4)  # two paths of three arcs
      0.25
    """
    return _path_cost((lattice, implementation), weights, frame_lengths, label_lengths)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _path_cost(static, weights, frame_lengths, label_lengths):
    lattice, implementation = static
    return _forward(lattice, implementation, weights, frame_lengths, label_lengths, keep=False)[0]


def _path_cost_forward(static, weights, frame_lengths, label_lengths):
    lattice, implementation = static
    cost, shares = _forward(lattice, implementation, weights, frame_lengths, label_lengths)
    return cost, _backward(lattice, implementation, shares, frame_lengths, label_lengths, weights[0].shape[1])


def _path_cost_backward(static, found, cotangent):
    del static
    # An utterance of no frames has no posterior; its factor may be anything.
    return tuple(-cotangent[:, None, None] * p for p in found), None, None


_path_cost.defvjp(_path_cost_forward, _path_cost_backward)


def posteriors(
    weights: Weights,
    frame_lengths: Int[Array, "batch"],
    label_lengths: Int[Array, "batch"],
    lattice: Lattice,
    semiring: Semiring = "sum",
    *,
    implementation: str | None = None,
) -> Weights:
    """The probability that a path takes each arc, paths being drawn in proportion to their weight.

    Args:
      weights: as in `path_cost`.
      frame_lengths: as in `path_cost`.
      label_lengths: as in `path_cost`.
      lattice: the arcs.
      semiring: "sum"; or "best": 1 for the arcs of the path of greatest weight and 0 for all others.
      implementation: as in `path_cost`. Derivatives of posteriors are those of the "reference" alone.

    Returns:
      [batch, T, U + 1] for each arc.

    Example:
      >>> half = jnp.log(jnp.full((1, 2, 2), 0.5))
      >>> blank, label = posteriors((half, half), jnp.array([2]), jnp.array([1]), STANDARD)
      >>> label[0].tolist()  # the label falls on one frame or the other
      [[0.5, 0.0], [0.5, 0.0]]
    """
    _, shares = _forward(lattice, implementation, weights, frame_lengths, label_lengths, semiring)
    return _backward(lattice, implementation, shares, frame_lengths, label_lengths, weights[0].shape[1])


def _end(lattice: Lattice, frame_lengths: Array, label_lengths: Array) -> Array:
    """The step of the last node."""
    return frame_lengths + label_lengths if lattice.skewed else frame_lengths


def _forward(
    lattice: Lattice,
    implementation: str | None,
    weights: Weights,
    frame_lengths: Array,
    label_lengths: Array,
    semiring: Semiring = "sum",
    *,
    keep: bool = True,
) -> tuple[Array, Rows]:
    """The cost, and the shares of what arrives."""
    arriving = _arriving(lattice, weights, frame_lengths, label_lengths)
    end = _end(lattice, frame_lengths, label_lengths)
    total, shares = transducer_lattice.forward(
        arriving,
        end,
        label_lengths,
        arcs=lattice.layout,
        semiring=semiring,
        keep=keep,
        implementation=implementation,
    )
    return jnp.where(frame_lengths > 0, -total, 0), shares


def _backward(
    lattice: Lattice,
    implementation: str | None,
    shares: Rows,
    frame_lengths: Array,
    label_lengths: Array,
    frames: int,
) -> Weights:
    """The posteriors."""
    end = _end(lattice, frame_lengths, label_lengths)
    flows = transducer_lattice.backward(shares, end, label_lengths, arcs=lattice.layout, implementation=implementation)
    return _leaving(lattice, flows, frames)


def skew(x: Float[Array, "batch frames symbols"], fill: float) -> Float[Array, "steps batch symbols"]:
    """Row d holds what x has on the anti-diagonal t + u = d.

    Args:
      x: a value for each node.
      fill: value of the places where a row has no node.

    Returns:
      [frames + symbols - 1, batch, symbols].

    Example:
      >>> skew(jnp.arange(4.0).reshape(1, 2, 2), -1.0)[:, 0].tolist()
      [[0.0, -1.0], [2.0, 1.0], [-1.0, 3.0]]
    """
    batch, frames, symbols = x.shape
    # Rows of u, padded to length frames + symbols and read again as if they were one shorter: row u moves right by u.
    padded = jnp.pad(x.transpose(0, 2, 1), ((0, 0), (0, 0), (0, symbols)), constant_values=fill)
    rows = padded.reshape(batch, -1)[:, :-symbols].reshape(batch, symbols, frames + symbols - 1)
    return rows.transpose(2, 0, 1)


def unskew(x: Float[Array, "steps batch symbols"], frames: int) -> Float[Array, "batch frames symbols"]:
    """The inverse of `skew`.

    Args:
      x: rows of anti-diagonals.
      frames: frames of the result.

    Returns:
      [batch, frames, symbols].

    Example:
      >>> x = jnp.arange(6.0).reshape(1, 3, 2)
      >>> bool((unskew(skew(x, 0.0), 3) == x).all())
      True
    """
    steps, batch, symbols = x.shape
    rows = jnp.pad(x.transpose(1, 2, 0).reshape(batch, -1), ((0, 0), (0, symbols)))
    return rows.reshape(batch, symbols, steps + 1)[:, :, :frames].transpose(0, 2, 1)


def _earlier(x: Array, by: int) -> Array:
    """The reverse of `later`."""
    return jnp.concatenate([x[by:], jnp.zeros_like(x[:by])]) if by else x


def _arriving(lattice: Lattice, weights: Weights, frame_lengths: Array, label_lengths: Array) -> Rows:
    """The weights at the nodes where the arcs arrive, [steps, batch, symbols]; row i is step i + 1.

    Arcs that lead out of an utterance's own lattice, or to the side of its last node, are forbidden.
    """
    _, frames, symbols = weights[0].shape
    t, u = jnp.arange(frames)[:, None], jnp.arange(symbols)
    length, labels = frame_lengths[:, None, None], label_lengths[:, None, None]
    out = []
    for (taken, label), steps, w in zip(lattice.arcs, lattice.steps, weights, strict=True):
        last = length - (label and lattice.ends_in_blank)
        w = jnp.where((t + taken <= last) & (u + label <= labels), w, -jnp.inf)
        rows = skew(w, -jnp.inf) if lattice.skewed else w.transpose(1, 0, 2)
        out.append(later(up(rows, label), steps - 1, -jnp.inf))
    return tuple(out)


def _leaving(lattice: Lattice, flows: Rows, frames: int) -> Weights:
    """What passes through arcs, from the order of `_arriving` to [batch, frames, symbols]."""
    out = []
    for (_, label), steps, flow in zip(lattice.arcs, lattice.steps, flows, strict=True):
        rows = down(_earlier(flow, steps - 1), label)
        out.append(unskew(rows, frames) if lattice.skewed else rows.transpose(1, 0, 2))
    return tuple(out)
