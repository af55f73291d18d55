"""KerZOO: two-point probes at random radii, weighted by a kernel that removes the second-order bias."""

from jaxtyping import Array, Key

from zojax.estimators._base import TWO_SIDED, Differences, Eps, Estimator, Probes, finite_differences
from zojax.perturb import PerturbSpec


def kerzoo(
    eps: Eps,
    spec: PerturbSpec | None = None,
    *,
    num_samples: int = 1,
    key: Key[Array, ""],
    probes: Probes = "turn",
) -> Estimator:
    """Kernel-weighted two-point estimates.

    r_i uniform in [-1, 1],    K(r) = (15 / 4) r (5 - 7 r^2),
    c_i = K(r_i) [f(w + eps r_i z_i) - f(w - eps r_i z_i)] / (2 eps),    g = (1 / q) sum_i c_i z_i

    E[r K(r)] = 1 and E[r^3 K(r)] = 0, so that the eps^2 term of the bias is gone and the next is of order eps^4. The
    price: E[(r K(r))^2] = 25 / 4, so that the second moment is 6.25 times that of `spsa` where the loss is
    quadratic. It pays where eps must be large.

    Args:
      eps: as for `spsa`; the greatest radius.
      spec: as for `spsa`.
      num_samples: q.
      key: typed key of the run; the radii come from it, too.
      probes: as for `spsa`.

    Returns:
      Estimator; the scalars' `norm` is r_i (times the sphere's factor).

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> estimator = kerzoo(1e-2, num_samples=4, key=jax.random.key(0))
      >>> params = jnp.ones((3,))
      >>> _, state = estimator.update(None, estimator.init(params), params, value_fn=lambda p: p.materialize().sum())
      >>> bool((jnp.abs(state.last.norm) <= 1).all())
      True

    References:
      KerZOO, arXiv 2505.18886.
    """
    return finite_differences(
        Differences(
            base=False,
            sides=TWO_SIDED.sides,
            projected=TWO_SIDED.projected,
            kernel=lambda r: 3.75 * r * (5 - 7 * r * r),
        ),
        eps=eps,
        spec=spec or PerturbSpec(),
        num_samples=num_samples,
        key=key,
        probes=probes,
    )
