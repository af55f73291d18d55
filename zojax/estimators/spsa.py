"""Two-point simultaneous perturbation: the estimator of MeZO."""

from jaxtyping import Array, Key

from zojax.estimators._base import TWO_SIDED, Eps, Estimator, Probes, Samples, finite_differences
from zojax.perturb import PerturbSpec


def spsa(
    eps: Eps,
    spec: PerturbSpec | None = None,
    *,
    num_samples: Samples = 1,
    max_samples: int | None = None,
    key: Key[Array, ""],
    probes: Probes = "turn",
) -> Estimator:
    """Simultaneous perturbation stochastic approximation, two-sided.

    c_i = [f(w + eps z_i) - f(w - eps z_i)] / (2 eps),    g = (1 / q) sum_i c_i z_i

    With Gaussian directions and `optax.sgd` this is MeZO, without its three passes over the weights: they are never
    changed by a probe, so nothing has to be restored.

    Args:
      eps: scale of the probes in units of the weights: a number, a schedule (count -> eps), "auto" or `AutoEps`
        (measured at the start and re-measured on its schedule).
      spec: which direction each leaf takes; None: Rademacher for all.
      num_samples: q, the number of probes; a schedule (traced count -> q) keeps the gradient resident and needs
        max_samples. To compile once for each q instead, pass `num_samples` to `measure`.
      max_samples: upper bound of a schedule of num_samples.
      key: typed key of the run.
      probes: "turn": one forward after another, in the memory of one; "pair": both signs as one batched forward over
        shared noise; "batch": all evaluations as one batched forward.

    Returns:
      Estimator.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from zojax import estimators, ops
      >>> loss = lambda p: jnp.sum(jnp.square(ops.value(p["w"]) - 1.0))
      >>> params = {"w": jnp.zeros((8,))}
      >>> tx = estimators.chain(spsa(1e-3, key=jax.random.key(0)), optax.sgd(0.05))
      >>> state = tx.init(params)
      >>> for _ in range(60):
      ...     updates, state = tx.update(None, state, params, value_fn=loss)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(loss(params) < 0.5)
      True

    References:
      Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient approximation", IEEE TAC
      37(3), 1992; MeZO, arXiv 2305.17333.
    """

    return finite_differences(
        TWO_SIDED,
        eps=eps,
        spec=spec or PerturbSpec(),
        num_samples=num_samples,
        max_samples=max_samples,
        key=key,
        probes=probes,
    )
