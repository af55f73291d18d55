"""One-sided differences of many probes, and FZOO, which weighs them by the spread of the losses."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from zojax.estimators._base import Differences, Eps, Estimator, Probes, Samples, finite_differences
from zojax.perturb import PerturbSpec


def forward(
    eps: Eps,
    spec: PerturbSpec | None = None,
    *,
    num_samples: Samples = 1,
    max_samples: int | None = None,
    normalize: Literal["mean", "std"] = "mean",
    key: Key[Array, ""],
    probes: Probes = "turn",
) -> Estimator:
    """One-sided (forward) differences: q probes cost q + 1 forwards.

    "mean": c_i = [f(w + eps z_i) - f(w)] / eps;    "std": c_i = [f(w + eps z_i) - f(w)] / s,
    s the standard deviation (with q - 1) of the q losses f(w + eps z_i);    g = (1 / q) sum_i c_i z_i

    Args:
      eps: as at `spsa`.
      spec: as at `spsa`.
      num_samples: q; "std" needs a fixed number of at least 2.
      max_samples: as at `spsa`.
      normalize: "mean" or "std".
      key: typed key of the run.
      probes: "turn" or "batch".

    Returns:
      Estimator.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> estimator = forward(1e-3, num_samples=4, key=jax.random.key(0))
      >>> params = jnp.ones((3,))
      >>> loss = lambda p: p.materialize().sum()
      >>> gradient, state = estimator.update(None, estimator.init(params), params, value_fn=loss)
      >>> state.last.projected.shape
      (4,)
    """
    if normalize not in ("mean", "std"):
        raise ValueError(f'normalize: {normalize!r}; "mean" or "std" is needed')
    if normalize == "std" and (not isinstance(num_samples, int) or num_samples < 2):
        raise ValueError(f'num_samples: {num_samples}; "std" needs a fixed number of at least 2')

    def projected(losses, base, step_eps):
        rise = losses[:, 0] - base
        if normalize == "mean":
            return rise / step_eps
        if losses.shape[0] < 2:
            raise ValueError(f'num_samples: {losses.shape[0]}; "std" needs at least 2')
        # Equal losses carry no signal; the floor keeps 0 / 0 out.
        return rise / jnp.maximum(jnp.std(losses[:, 0], ddof=1), np.float32(2.0**-126))

    return finite_differences(
        Differences(base=True, sides=(1.0,), projected=projected),
        eps=eps,
        spec=spec or PerturbSpec(),
        num_samples=num_samples,
        max_samples=max_samples,
        key=key,
        probes=probes,
    )


def fzoo(
    eps: Eps, spec: PerturbSpec | None = None, *, num_samples: int = 8, key: Key[Array, ""], probes: Probes = "turn"
) -> Estimator:
    """FZOO: one-sided differences of sign directions over the standard deviation of the losses.

    g = 1 / (q s) sum_i [f(w + eps z_i) - f(w)] z_i, a step size that adapts to the slope, as normalised SGD does.

    Args:
      eps: as at `spsa`.
      spec: as at `spsa`; the method's own directions are Rademacher.
      num_samples: q, at least 2.
      key: typed key of the run.
      probes: "turn" or "batch" (the method's batched evaluation).

    Returns:
      Estimator.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax
      >>> fzoo(1e-3, key=jax.random.key(0)).measure is not None
      True

    References:
      FZOO, arXiv 2506.09034. Dividing by the deviation with q - 1 instead of q is a choice of this library.
    """
    return forward(eps, spec, num_samples=num_samples, normalize="std", key=key, probes=probes)
