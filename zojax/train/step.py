"""The programs of a step.

A zeroth-order step is two programs: `measure` (forwards to scalars) and `apply` (scalars to weights). They
stay apart because XLA contracts `p - lr * c * z` differently beside a forward; apart, training, resuming and
replaying run the same `apply` and end in the same bits.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax.estimators import Estimator
from zojax.train.task import Task, add, average, prepared
from zojax.trees import merge

__all__ = [
    "Method",
    "evaluate",
    "first_order",
    "make_apply",
    "make_evaluate",
    "make_measure",
    "zeroth_order",
]

Params = Any
Scalars = Any


class Method(NamedTuple):
    """How the loop takes a step.

    Attributes:
      init: trainable weights -> optimiser state, jitted: a state must not share the run key's own buffer with
        the estimator, since the state is donated.
      step: (trainable, frozen, opt_state, batch, key, step) -> (trainable, opt_state, scalars), where key is
        the run key and step an int from 1. Trainable and opt_state are donated. Scalars hold "value", the loss.
      apply: (trainable, opt_state, scalars) -> (trainable, opt_state), both inputs donated; None if a step
        cannot be repeated from its scalars.
      scalars_like: (trainable, opt_state) -> shapes of the scalars.
      forwards: (probes of the step, step) -> what the step costs in forward passes.
      description: what a log says of the method.
      metrics: optimiser state -> scalars that are logged beside a step's own.
    """

    init: Callable[[Params], Any]
    step: Callable[[Params, Params, Any, Any, jax.Array, int], tuple[Params, Any, Scalars]]
    apply: Callable[[Params, Any, Scalars], tuple[Params, Any]] | None
    scalars_like: Callable[[Params, Any], Scalars]
    forwards: Callable[[int, int], int]
    description: str
    metrics: Callable[[Any], dict[str, jax.Array]] = lambda opt_state: {}


def make_measure(task: Task, estimator: Estimator, *, microbatches: int = 1) -> Callable[..., Scalars]:
    """The program that runs the forwards of a step.

    Args:
      task: gives the loss.
      estimator: an estimator, or a chain that begins with one.
      microbatches: parts that a batch is cut into, one forward after the other; the loss is their mean.

    Returns:
      Jitted (trainable, frozen, opt_state, batch, key, *, num_samples=None) -> scalars; nothing is donated.
      num_samples is static and takes the place of the estimator's own number of probes.

    Example:
      >>> from zojax import estimators, ops
      >>> class Quadratic(Task):
      ...     def loss(self, params, batch, *, key=None):
      ...         return jnp.sum((ops.value(params["w"]) - batch["x"].mean(0)) ** 2), {}
      >>> tx = estimators.spsa(1e-3, key=jax.random.key(0))
      >>> params = {"w": jnp.zeros(3)}
      >>> measure = make_measure(Quadratic(), tx, microbatches=2)
      >>> batch = {"x": jnp.ones((4, 3))}
      >>> scalars = measure(params, {"w": None}, tx.init(params), batch, jax.random.key(1))
      >>> round(float(scalars.value), 3)
      3.0
    """

    @functools.partial(jax.jit, static_argnames="num_samples")
    def measure(trainable, frozen, opt_state, batch, key, *, num_samples=None):
        batch = prepared(task, merge(trainable, frozen), batch)

        def value_fn(candidate):
            params = merge(candidate, frozen)
            if microbatches == 1:
                return task.loss(params, batch, key=key)[0]
            losses = jax.lax.map(
                lambda part: task.loss(params, part[0], key=part[1])[0], _parts(batch, key, microbatches)
            )
            return jnp.mean(losses, axis=0)

        options = {} if num_samples is None else {"num_samples": num_samples}
        return estimator.measure(trainable, opt_state, value_fn, **options)

    return measure


def make_apply(tx: optax.GradientTransformationExtraArgs) -> Callable[..., tuple[Params, Any]]:
    """The program that turns scalars into an update of the weights; the only one that changes them.

    Args:
      tx: an estimator, or a chain that begins with one.

    Returns:
      Jitted (trainable, opt_state, scalars) -> (trainable, opt_state); both inputs are donated.

    Example:
      >>> from zojax import estimators, ops
      >>> tx = estimators.chain(estimators.spsa(1e-3, key=jax.random.key(0)), optax.sgd(0.1))
      >>> params = {"w": jnp.zeros(3)}
      >>> state = tx.init(params)
      >>> scalars = tx.measure(params, state, lambda p: jnp.sum((ops.value(p["w"]) - 1) ** 2))
      >>> params, state = make_apply(tx)(params, state, scalars)
      >>> params["w"].shape
      (3,)
    """

    def apply(trainable, opt_state, scalars):
        # The estimator does not read the updates that it is given.
        updates, opt_state = tx.update(trainable, opt_state, trainable, scalars=scalars)
        return optax.apply_updates(trainable, updates), opt_state

    return jax.jit(apply, donate_argnums=(0, 1))


def zeroth_order(
    task: Task,
    tx: Estimator,
    *,
    forwards: Callable[[int, int], int],
    description: str,
    queries: Callable[[int], int] | None = None,
    microbatches: int = 1,
    metrics: Callable[[Any], dict[str, jax.Array]] = lambda opt_state: {},
) -> Method:
    """Steps of an estimator.

    Args:
      task: gives the loss.
      tx: an estimator, or a chain that begins with one.
      forwards: (probes of the step, step) -> forward passes of the step.
      description: what the log says of the estimator and of the optimiser.
      queries: steps taken before -> number of probes, such as `zojax.schedules.adaptive_queries`; each
        number is compiled once, and none may exceed the estimator's own.
      microbatches: parts that a batch is cut into.
      metrics: optimiser state -> scalars that are logged beside a step's own.

    Returns:
      The method.

    Example:
      >>> from zojax import estimators
      >>> tx = estimators.chain(estimators.spsa(1e-3, key=jax.random.key(0)), optax.sgd(0.1))
      >>> class Zero(Task):
      ...     def loss(self, params, batch, *, key=None):
      ...         return jnp.float32(0), {}
      >>> method = zeroth_order(Zero(), tx, forwards=lambda q, _: 2 * q, description="two-point, sgd")
      >>> method.forwards(4, 1)
      8
    """
    measure = make_measure(task, tx, microbatches=microbatches)
    apply = make_apply(tx)

    def step(trainable, frozen, opt_state, batch, key, step):
        probes = None if queries is None else queries(step - 1)
        step_key = jax.random.fold_in(key, step)
        scalars = measure(trainable, frozen, opt_state, batch, step_key, num_samples=probes)
        trainable, opt_state = apply(trainable, opt_state, scalars)
        return trainable, opt_state, scalars

    def scalars_like(trainable, opt_state):
        constant = lambda candidate: jnp.float32(0)  # noqa: E731
        return jax.eval_shape(lambda t, s: tx.measure(t, s, constant), trainable, opt_state)

    return Method(_init(tx), step, apply, scalars_like, forwards, description, metrics)


def first_order(task: Task, tx: optax.GradientTransformation, *, description: str, microbatches: int = 1) -> Method:
    """Steps of back-propagation. A step counts as three forward passes: the backward costs about two.

    Args:
      task: gives the loss, which must be differentiable.
      tx: an optax optimiser.
      description: what a log says of the optimiser.
      microbatches: parts that a batch is cut into; gradients are accumulated.

    Returns:
      The method; its scalars are "value" and "grad_norm".

    Example:
      >>> class Zero(Task):
      ...     def loss(self, params, batch, *, key=None):
      ...         return jnp.float32(0), {}
      >>> first_order(Zero(), optax.adam(1e-3), description="adam").forwards(1, 1)
      3
    """

    @functools.partial(jax.jit, donate_argnums=(0, 2))
    def step(trainable, frozen, opt_state, batch, key, step):
        key = jax.random.fold_in(key, step)

        def value_fn(candidate, part, part_key):
            return task.loss(merge(candidate, frozen), part, key=part_key)[0]

        if microbatches == 1:
            value, grads = jax.value_and_grad(value_fn)(trainable, batch, key)
        else:

            def accumulate(total, part):
                return jax.tree.map(jnp.add, total, jax.value_and_grad(value_fn)(trainable, *part)), None

            zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, trainable))
            total, _ = jax.lax.scan(accumulate, zero, _parts(batch, key, microbatches))
            value, grads = jax.tree.map(lambda x: x / microbatches, total)
        updates, opt_state = tx.update(grads, opt_state, trainable)
        norm = optax.tree.norm(grads).astype(jnp.float32)
        return optax.apply_updates(trainable, updates), opt_state, {"value": value, "grad_norm": norm}

    def scalars_like(trainable, opt_state):
        del trainable, opt_state
        return dict.fromkeys(("value", "grad_norm"), jax.ShapeDtypeStruct((), jnp.float32))

    return Method(_init(tx), step, None, scalars_like, lambda probes, step: 3, description)


def _init(tx: optax.GradientTransformation) -> Callable[[Params], Any]:
    # keep_unused: a state of constants is then committed to where the weights are, as that of every later step is.
    # Otherwise the programs of a step are compiled twice.
    return jax.jit(tx.init, keep_unused=True)


def _parts(batch: Any, key: jax.Array, count: int) -> tuple[Any, jax.Array]:
    def cut(rows):
        if rows.shape[0] % count:
            raise ValueError(f"microbatches: {rows.shape[0]} rows cannot be cut into {count} equal parts")
        return rows.reshape(count, rows.shape[0] // count, *rows.shape[1:])

    return jax.tree.map(cut, batch), jax.random.split(key, count)


def make_evaluate(task: Task) -> Callable[..., Any]:
    """The program that evaluates a batch.

    Args:
      task: gives the metrics.

    Returns:
      Jitted (trainable, frozen, batch) -> metrics.

    Example:
      >>> class Mean(Task):
      ...     def evaluate(self, params, batch):
      ...         return {"mean": (batch.sum() * params["w"], jnp.float32(batch.size))}
      >>> program = make_evaluate(Mean())
      >>> evaluate(program, {"w": jnp.float32(2)}, {"w": None}, [jnp.ones(2), jnp.zeros(2)])
      {'mean': 1.0}
    """
    return jax.jit(lambda trainable, frozen, batch: task.evaluate(merge(trainable, frozen), batch))


def evaluate(
    program: Callable[..., Any], trainable: Params, frozen: Params, batches: Iterable[Any]
) -> dict[str, float]:
    """Averages the metrics of batches.

    Args:
      program: from `make_evaluate`.
      trainable: trainable weights.
      frozen: frozen weights.
      batches: evaluation batches, at least one.

    Returns:
      float for each metric.

    Raises:
      ValueError: if there are no batches.

    Example:
      See `make_evaluate`:

      >>> evaluate(print, {}, {}, [])
      Traceback (most recent call last):
      ValueError: evaluate: no batches
    """
    total = None
    for batch in batches:
        metrics = program(trainable, frozen, batch)
        total = metrics if total is None else add(total, metrics)
    if total is None:
        raise ValueError("evaluate: no batches")
    return average(jax.device_get(total))
