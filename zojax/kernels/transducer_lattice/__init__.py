"""The two passes through a transducer's lattice: the weight of all paths, and how it came together."""

from functools import partial
from types import SimpleNamespace

from jaxtyping import Array, Float, Int

from zojax.kernels._platform import configured, dispatch
from zojax.kernels.transducer_lattice import reference
from zojax.kernels.transducer_lattice.reference import Arcs, Rows, Semiring

__all__ = ["backward", "forward"]

NAME = "transducer_lattice"


def forward(
    arriving: Rows,
    end: Int[Array, "batch"],
    last: Int[Array, "batch"],
    *,
    arcs: Arcs,
    semiring: Semiring = "sum",
    keep: bool = True,
    implementation: str | None = None,
    config=None,
) -> tuple[Float[Array, "batch"], Rows]:
    """The log-weight of all paths to the last node, and which part of each node's weight each arc has brought.

        alpha(i, u) = log sum over arcs of exp(alpha(i - steps, u - is_label) + arriving(i, u))

    from alpha(0, 0) = 0. A lattice is laid out in *steps* (anti-diagonals or frames, see
    `zojax.losses.transducer.lattice`) such that each arc goes forward by a fixed number of them.

    Args:
      arriving: for each arc its log-weight at the node (step, u) where it arrives; row i is step i + 1. -inf forbids.
      end: int32 step of the last node, 0 to steps.
      last: int32 u of the last node.
      arcs: (steps that it goes forward, whether u goes up by one) of each arc.
      semiring: "sum" of the paths, or the "best" of them.
      keep: whether shares are wanted.
      implementation: "reference", "tpu", "gpu" or None, the first that supports the arguments on the platform that the
        program is lowered for. The kernels know one blank and one label arc of one step each, in float32; they have no
        derivatives.
      config: the `Config` of the named implementation; None: what `autotune` has stored, else a default.

    Returns:
      (log-weight, shares for each arc, which sum to one where anything has arrived; none without `keep`).

    Raises:
      ValueError: if the named implementation does not support the arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> half = jnp.log(jnp.full((2, 1, 2), 0.5))
      >>> total, shares = forward((half, half), jnp.array([2]), jnp.array([1]), arcs=((1, False), (1, True)))
      >>> round(float(jnp.exp(total[0])), 3), shares[1][1, 0].tolist()
      (0.5, [0.0, 0.5])
    """
    options = dict(arcs=arcs, semiring=semiring, keep=keep)
    return _call("forward", implementation, config, (arriving, end, last), options)


def backward(
    shares: Rows,
    end: Int[Array, "batch"],
    last: Int[Array, "batch"],
    *,
    arcs: Arcs,
    implementation: str | None = None,
    config=None,
) -> Rows:
    """How much of one unit at the last node has come through each arc: the arc's posterior probability.

        flow(i, u) = share(i, u) node(i, u),    node(i, u) = sum of the flows of the arcs that leave (i, u)

    Args:
      shares: of `forward`.
      end: as in `forward`.
      last: as in `forward`.
      arcs: as in `forward`.
      implementation: as in `forward`.
      config: as in `forward`.

    Returns:
      [steps, batch, symbols] for each arc, at the node where it arrives.

    Raises:
      ValueError: if the named implementation does not support the arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> half = jnp.full((2, 1, 2), 0.5)
      >>> flows = backward((half, half), jnp.array([2]), jnp.array([1]), arcs=((1, False), (1, True)))
      >>> [flow[1, 0].tolist() for flow in flows]
      [[0.0, 0.5], [0.0, 0.5]]
    """
    return _call("backward", implementation, config, (shares, end, last), dict(arcs=arcs))


def _call(direction: str, implementation: str | None, config, args, options):
    define = partial(getattr(reference, direction), **options)
    if implementation == "reference" and config is None:
        return define(*args)
    from zojax.kernels.transducer_lattice import gpu, tpu  # Pallas takes a second to import

    modules = {
        name: SimpleNamespace(
            PLATFORM=module.PLATFORM,
            Config=module.Config,
            default_config=module.default_config,
            supported=module.supported,
            run=getattr(module, direction),
        )
        for name, module in {"tpu": tpu, "gpu": gpu}.items()
    }
    backends = configured(f"{NAME}.{direction}", modules, implementation, config, *args, **options)
    return dispatch(NAME, implementation, define, backends, *args)
