"""Two-point probes of several tasks at once."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from zojax.estimators._base import Differences, Eps, Estimator, Probes, Samples, finite_differences
from zojax.perturb import PerturbSpec


class TaskScalars(NamedTuple):
    """`Scalars` and what each task said.

    Attributes:
      projected: as in `Scalars`, of the weighted sum of the losses.
      value: mean of the weighted sums that were measured.
      eps: as in `Scalars`.
      norm: as in `Scalars`.
      losses: of each task, means over the sides of each probe.
      by_task: projected gradients of each task; projected is their weighted sum.
    """

    projected: Float[Array, "q"]
    value: Float[Array, ""]
    eps: Float[Array, ""]
    norm: Float[Array, "q"]
    losses: tuple[Float[Array, "q"], ...]
    by_task: tuple[Float[Array, "q"], ...]


def multi_task(
    eps: Eps,
    spec: PerturbSpec | None = None,
    *,
    weights: Sequence[float],
    num_samples: Samples = 1,
    max_samples: int | None = None,
    key: Key[Array, ""],
    probes: Probes = "turn",
) -> Estimator:
    """Two-point estimates of a weighted sum of tasks, every task's difference from the same pair of forwards.

        c_it = [f_t(w + eps z_i) - f_t(w - eps z_i)] / (2 eps),    g = (1 / q) sum_i (sum_t weights_t c_it) z_i

    `value_fn` returns the losses of all tasks, of shape (tasks,). The directions do not depend on the tasks, so all
    tasks' estimates of one probe lie along one z: they differ in a number, which the record keeps (`TaskScalars`).
    With `Sparse` directions by the masks of `zojax.importance`, this is the step of MaZO. There the mask is applied to
    the update; here the probe moves the chosen weights alone as well (ours), which leaves out what the others would
    add to the difference.

    Args:
      eps: as for `spsa`.
      spec: as for `spsa`.
      weights: of the tasks, one each.
      num_samples: as for `spsa`, like the rest.
      max_samples: upper bound of a schedule of num_samples.
      key: typed key of the run.
      probes: "turn", "pair" or "batch".

    Returns:
      Estimator whose record is `TaskScalars`.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax
      >>> from zojax import ops
      >>> two = lambda p: jnp.stack([jnp.sum(ops.value(p)), -3 * jnp.sum(ops.value(p))])
      >>> estimator = multi_task(1e-2, weights=(1.0, 1.0), key=jax.random.key(0))
      >>> params = jnp.zeros(4)
      >>> scalars = estimator.measure(params, estimator.init(params), two)
      >>> bool(jnp.allclose(scalars.by_task[1], -3 * scalars.by_task[0], atol=1e-4))
      True

    References:
      MaZO, arXiv 2502.11513.
    """
    if not weights or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ValueError(f"weights: {tuple(weights)}; a number of at least 0 for each task, not all 0, is needed")
    share = jnp.asarray(weights, jnp.float32)

    def differences_of(losses: Array, step_eps: Array) -> Array:
        return (losses[:, 0] - losses[:, 1]) / (2 * step_eps)

    def record(scalars: Any, losses: Array, base: Array | None) -> TaskScalars:
        del base
        # Where the state is made there is no eps yet.
        by_task = differences_of(losses, jnp.where(scalars.eps > 0, scalars.eps, 1.0)) * scalars.norm[:, None]
        return TaskScalars(*scalars, losses=tuple(jnp.mean(losses, axis=1).T), by_task=tuple(by_task.T))

    differences = Differences(
        base=False,
        sides=(1.0, -1.0),
        projected=lambda losses, base, step_eps: differences_of(losses, step_eps) @ share,
        record=record,
        shape=(len(weights),),
        total=lambda losses: losses @ share,
    )
    return finite_differences(
        differences,
        eps=eps,
        spec=spec or PerturbSpec(),
        num_samples=num_samples,
        max_samples=max_samples,
        key=key,
        probes=probes,
    )
