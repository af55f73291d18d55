"""QuZO: two-point probes along directions of a few bits."""

import dataclasses

from jaxtyping import Array, Key

from zojax.directions import Gaussian, Rademacher, Rounded, Sparse
from zojax.estimators._base import Eps, Estimator, Probes, Samples
from zojax.estimators.spsa import spsa
from zojax.perturb import PerturbSpec


def quzo(
    eps: Eps,
    spec: PerturbSpec | None = None,
    *,
    bits: int = 4,
    independent: bool = True,
    num_samples: Samples = 1,
    max_samples: int | None = None,
    key: Key[Array, ""],
    probes: Probes = "turn",
) -> Estimator:
    """Zeroth-order estimates with directions of `bits` bits, rounded anew for the update.

    u_i1, u_i2: two independent stochastic roundings of one normal u_i,
    c_i = [f(w + eps u_i1) - f(w - eps u_i1)] / (2 eps),    g = (1 / q) sum_i c_i u_i2        (Q-RGE2)

    E[u_2 u_1^T] = I where nothing clips, so the estimate is unbiased up to O(eps^2). With `independent=False` u_i2 is
    u_i1 (Q-RGE1), which is biased by D^2 / 6 on the diagonal. One bit is Rademacher, where both are the same.

    The estimate is float; `zojax.quant.on_grid` around the chain keeps quantised weights on their grid.

    Args:
      eps: as for `spsa`.
      spec: rules, stacked leaves, masks and the way in which quantised leaves are probed; its `direction` is replaced,
        or, if it is `Sparse`, that one's inner direction.
      bits: of a direction's codes: 8 to 1.
      independent: whether the update has a rounding of its own.
      num_samples: probes a step, as for `spsa`.
      max_samples: as for `spsa`.
      key: the run's typed key.
      probes: as for `spsa`.

    Returns:
      An estimator.

    Raises:
      ValueError: if bits are out of range, or the spec's direction is not a plain one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from zojax import ops
      >>> estimator = quzo(1e-2, bits=4, key=jax.random.key(0))
      >>> params = {"w": jnp.ones((8, 4))}
      >>> loss = lambda p: jnp.sum(ops.value(p["w"]) ** 2)
      >>> g, state = estimator.update(None, estimator.init(params), params, value_fn=loss)
      >>> g["w"].shape
      (8, 4)

    References:
      QuZO, arXiv 2502.12346. The released code rounds both copies with one seed; this is the formula of the paper.
    """
    spec = PerturbSpec() if spec is None else spec
    direction = Rademacher() if bits == 1 else Rounded(bits=bits, independent=independent)
    if isinstance(spec.direction, Sparse):
        direction = dataclasses.replace(spec.direction, inner=direction)
    elif not isinstance(spec.direction, Rademacher) and type(spec.direction) is not Gaussian:
        raise ValueError(f"spec.direction: {spec.direction}; quzo has a direction of its own")
    return spsa(
        eps,
        dataclasses.replace(spec, direction=direction),
        num_samples=num_samples,
        max_samples=max_samples,
        key=key,
        probes=probes,
    )
