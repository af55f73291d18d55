"""The training loop. A run is a folder, and it may be killed at any moment:

    base/             trainable weights before step 1
    scalars.log       the scalars of every step (zeroth order); see `zojax.replay`
    checkpoints/N/    weights, optimiser state, and where the batches, the log and the metrics stood
    best/N/           the weights that were best on the dev batches
    metrics.jsonl     tensorboard/

The step after a kill reads the last checkpoint and goes on from there; as long as the log has the scalars of a
step, they are applied instead of measured. So the weights and metrics.jsonl end in the bits of a run that was
never killed. Without a log (first order) the steps after the checkpoint are computed again.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from zojax import replay
from zojax.train import checkpoint
from zojax.train._signals import signals_noted
from zojax.train.metrics import MetricsWriter
from zojax.train.progress import Progress
from zojax.train.step import Method, evaluate, make_evaluate
from zojax.train.task import Task

__all__ = ["Batches", "NonFiniteError", "Result", "fit"]

Params = Any


@runtime_checkable
class Batches(Protocol):
    """An endless iterator of batches whose place can be saved as JSON, such as grain's."""

    def __next__(self) -> Any: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


class NonFiniteError(RuntimeError):
    """The loss or a scalar is not finite."""


class Result(NamedTuple):
    """What `fit` ends with.

    Attributes:
      params: trainable weights.
      step: last step that was taken.
      forwards: forward passes of all steps, evaluation left out.
      best: {"step", "value"} of the best evaluation, or None.
      stopped_by: name of the signal that ended the run early, or None.
      opt_state: the method's state.
    """

    params: Params
    step: int
    forwards: int
    best: dict[str, Any] | None
    stopped_by: str | None
    opt_state: Any


def fit(
    task: Task,
    method: Method,
    params: Params,
    frozen: Params,
    batches: Batches,
    *,
    key: jax.Array,
    workdir: str | os.PathLike[str],
    steps: int,
    dev: Sequence[Any] = (),
    judge: Callable[[Params], dict[str, float]] | None = None,
    eval_every: int = 0,
    checkpoint_every: int = 0,
    log_every: int = 1,
    keep_best: str | None = None,
    allow_nonfinite: bool = False,
    noise_format: int = 0,
) -> Result:
    """Trains, or continues the run in `workdir`.

    Args:
      task: gives loss and metrics.
      method: `zeroth_order(...)` or `first_order(...)`.
      params: trainable weights before step 1, None where `frozen` has the leaf. A base checkpoint in workdir
        takes their place.
      frozen: the other weights.
      batches: endless batches.
      key: typed run key, that of the estimator. The task sees keys derived from fold_in(key, 2^32 - 1), which
        no step of an estimator uses.
      workdir: folder of the run.
      steps: last step.
      dev: evaluation batches.
      judge: trainable weights -> more metrics of an evaluation, of what no program on the device can count.
      eval_every: steps between evaluations; 0 for none. Step 0 and the last step are evaluated as well.
      checkpoint_every: steps between checkpoints; 0 for the last step alone.
      log_every: steps between lines of metrics; a line has the mean loss since the line before.
      keep_best: metric whose best dev value has its weights kept in best/: the lowest of "loss" and "wer", else the
        highest.
      allow_nonfinite: go on after a loss that is not finite (the method skips the update).
      noise_format: version of the noise, for the log.

    Returns:
      The weights and how the run ended. After SIGTERM or SIGINT the run has saved itself and can be continued.

    Raises:
      NonFiniteError: at the first step whose scalars are not finite. Nothing of it or after it is written.
      ValueError: if workdir holds a run that does not fit.

    Example:
      >>> import jax.numpy as jnp, optax, tempfile
      >>> from zojax.train.step import first_order
      >>> class Quadratic(Task):
      ...     def loss(self, params, batch, *, key=None):
      ...         return jnp.sum((params["w"] - batch) ** 2), {}
      >>> class Ones(Batches):
      ...     place = 0
      ...     def __next__(self):
      ...         self.place += 1
      ...         return jnp.ones(2)
      ...     def get_state(self):
      ...         return self.place
      >>> with tempfile.TemporaryDirectory() as workdir:
      ...     result = fit(Quadratic(), first_order(Quadratic(), optax.sgd(0.25), description="sgd"),
      ...                  {"w": jnp.zeros(2)}, {"w": None}, Ones(), key=jax.random.key(0),
      ...                  workdir=workdir, steps=2)
      >>> result.params["w"], result.forwards
      (Array([0.75, 0.75], dtype=float32), 6)
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoint.save(workdir / "base", params, {"step": 0})
    params = checkpoint.load(workdir / "base", params)
    # A state may hold the weights themselves; loaded again, because no buffer can be donated twice.
    opt_state = method.init(checkpoint.load(workdir / "base", params))
    like = method.scalars_like(params, opt_state)
    names = [name for name, _ in replay.layout(like)]
    writer, recorded = _open_log(workdir, method, params, like, key, noise_format)

    place: dict[str, Any] = {"step": 0, "metrics": 0, "forwards": 0, "losses": [0.0, 0], "best": None}
    saved = checkpoint.steps(workdir / "checkpoints")
    if saved:
        path = workdir / "checkpoints" / str(saved[-1])
        params, opt_state = checkpoint.load(path, (params, opt_state))
        place = checkpoint.load_meta(path)
        batches.set_state(place["batches"])
    start, forwards_before = place["step"], place["forwards"]
    if writer is not None and (sorted(recorded) != [*range(1, len(recorded) + 1)] or len(recorded) < start):
        raise ValueError(f"{writer.path}: lacks steps before {start}, the step of the last checkpoint")

    metrics = MetricsWriter(workdir, size=place["metrics"], step=start)
    progress = Progress(steps, start=start)
    program = make_evaluate(task)
    task_key = jax.random.fold_in(key, np.uint32(2**32 - 1))
    evaluating = bool(eval_every and dev)

    def report(step: int, ids: Any, scalars: Any, extras: Any) -> None:
        scalars = jax.device_get(scalars)
        named = dict(zip(names, jax.tree.leaves(scalars), strict=True))
        if not allow_nonfinite and not all(np.all(np.isfinite(x)) for x in named.values()):
            raise NonFiniteError(_nonfinite_message(step, ids, named))
        if writer is not None and step not in recorded:
            writer.append(step, scalars)
        loss = float(named.pop("value"))
        total, count = place["losses"][0] + loss, place["losses"][1] + 1
        probes = max((len(x) for x in named.values() if x.ndim), default=1)
        place["forwards"] += method.forwards(probes, step)
        place["losses"] = [total, count]
        if step % log_every == 0 or step == steps:
            place["losses"] = [0.0, 0]
            rms = {f"{name}_rms": float(np.sqrt(np.mean(np.square(x)))) for name, x in named.items() if x.ndim}
            rest = {name: float(x) for name, x in named.items() if not x.ndim}
            rest |= {name: float(x) for name, x in extras.items()}
            metrics.write(step, forwards=place["forwards"], loss=total / count, **rms, **rest)
        progress.update(step, forwards=place["forwards"] - forwards_before, loss=loss)

    def evaluate_dev(step: int) -> None:
        values = evaluate(program, params, frozen, dev) | (judge(params) if judge is not None else {})
        metrics.write(step, split="dev", forwards=place["forwards"], **values)
        if keep_best is not None and (
            place["best"] is None or _is_better(keep_best, values[keep_best], place["best"]["value"])
        ):
            place["best"] = {"step": step, "value": values[keep_best]}
            checkpoint.save(workdir / "best" / str(step), params, place["best"])
            checkpoint.prune(workdir / "best", 1)

    def save(step: int) -> None:
        if writer is not None:
            writer.sync()
        place.update(step=step, metrics=metrics.size, batches=batches.get_state())
        checkpoint.save(workdir / "checkpoints" / str(step), (params, opt_state), place)
        checkpoint.prune(workdir / "checkpoints", 2)

    step, pending = start, None
    with contextlib.ExitStack() as stack:
        for resource in (metrics, progress, writer):
            if resource is not None:
                stack.callback(resource.close)
        caught = stack.enter_context(signals_noted())
        if evaluating and start == 0:
            evaluate_dev(0)
        for step in range(start + 1, steps + 1):
            batch = next(batches)
            if step in recorded and method.apply is not None:
                scalars = replay.unflatten(recorded[step], like)
                params, opt_state = method.apply(params, opt_state, scalars)
            else:
                params, opt_state, scalars = method.step(params, frozen, opt_state, batch, task_key, step)
            # The scalars of a step are read while the next one runs, unless something waits for them.
            if pending is not None:
                report(*pending)
            # In buffers of their own, since the state is donated to the next step.
            extras = jax.tree.map(jnp.copy, method.metrics(opt_state)) if step % log_every == 0 else {}
            pending = (step, batch.get("id") if isinstance(batch, dict) else None, scalars, extras)
            ends = step == steps or bool(caught)
            evaluates = evaluating and (step == steps or step % eval_every == 0)
            saves = ends or bool(checkpoint_every and step % checkpoint_every == 0)
            if evaluates or saves:
                report(*pending)
                pending = None
            if evaluates:
                evaluate_dev(step)
            if saves:
                save(step)
            if ends:
                break
    return Result(params, step, place["forwards"], place["best"], caught[0] if step < steps else None, opt_state)


def _open_log(
    workdir: Path, method: Method, params: Params, like: Any, key: jax.Array, noise_format: int
) -> tuple[replay.LogWriter | None, dict[int, np.ndarray]]:
    if method.apply is None:
        return None, {}
    header = replay.make_header(key, params, like, estimator=method.description, noise_format=noise_format)
    writer = replay.LogWriter(workdir / "scalars.log", header)
    log = replay.read(writer.path)
    for name, value in replay.platform().items():
        began = getattr(log.header, name)
        if began != value:
            what = f"the run began on {name} {began!r} and goes on on {value!r}"
            warnings.warn(f"{writer.path}: {what}: it replays to a tolerance, not bit for bit", stacklevel=3)
    return writer, dict(zip(log.steps, log.values, strict=True))


def _nonfinite_message(step: int, ids: Any, named: dict[str, np.ndarray]) -> str:
    wrong = ", ".join(f"{name} {np.asarray(x).tolist()}" for name, x in named.items() if not np.all(np.isfinite(x)))
    rows = "" if ids is None else f" (batch ids {np.asarray(ids).ravel().tolist()})"
    return (
        f"step {step}: not finite: {wrong}{rows}. Nothing of this step was written. "
        "Try a smaller learning_rate, a smaller eps, or skip_nonfinite"
    )


def _is_better(metric: str, value: float, than: float) -> bool:
    return value < than if metric in ("loss", "wer") else value > than
