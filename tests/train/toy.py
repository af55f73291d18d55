"""A run that takes a second: two classes in the plane, a tiny network, batches from a counter.

As a program it trains in a folder until the end, or until it kills itself:
    python -m tests.train.toy WORKDIR METHOD DTYPE STEPS [BATCH SECONDS]    (killed SECONDS after BATCH is read)
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zojax import estimators, ops, replay, train

KEY = jax.random.key(7)


class Toy:
    """Is the point inside the circle?"""

    def __init__(self, dtype: str = "float32"):
        self.dtype = dtype

    def init(self, key: Any) -> Any:
        a, b = jax.random.split(key)
        return {
            "w1": jax.random.normal(a, (2, 8)).astype(self.dtype),
            "b1": jnp.zeros(8),
            "w2": (0.3 * jax.random.normal(b, (8, 2))).astype(self.dtype),
        }

    def evaluate(self, params: Any, batch: Any) -> train.Metrics:
        hidden = jnp.tanh(ops.dot(batch["x"], params["w1"]) + ops.value(params["b1"]))
        logits = ops.dot(hidden, params["w2"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        right = jnp.argmax(logits, -1) == batch["label"]
        weight = batch["weight"]
        return {"loss": (loss @ weight, weight.sum()), "accuracy": (right @ weight, weight.sum())}

    def loss(self, params: Any, batch: Any, *, key: Any = None) -> Any:
        del key
        metrics = self.evaluate(params, batch)
        return metrics["loss"][0] / metrics["loss"][1], metrics


def make_batch(place: int, rows: int = 16) -> dict[str, np.ndarray]:
    x = np.random.default_rng(place).normal(size=(rows, 2)).astype(np.float32)
    return {
        "x": x,
        "label": (np.sum(x**2, -1) < 1.4).astype(np.int32),
        "weight": np.ones(rows, np.float32),
        "id": np.arange(rows, dtype=np.int32) + 100 * place,
    }


class Batches:
    """Batch n is made from the number n; the place is n. Once, at batch `at` or later, `action` is called."""

    def __init__(self, *, poison: int = 0, at: int = 0, action: Callable[[], None] | None = None):
        self.place, self.poison, self.at, self.action = 0, poison, at, action

    def __next__(self) -> dict[str, np.ndarray]:
        self.place += 1
        if self.place >= self.at and self.action is not None:
            action, self.action = self.action, None
            action()
        batch = make_batch(self.place)
        if self.place == self.poison:
            batch["x"][3, 0] = np.nan
        return batch

    def get_state(self) -> Any:
        return {"place": self.place}

    def set_state(self, state: Any) -> None:
        self.place = state["place"]


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.02),
    "momentum": lambda: optax.sgd(0.01, momentum=0.9),
    "adam": lambda: optax.adam(0.02),
    "adamw": lambda: optax.adamw(optax.linear_schedule(0.03, 0.0, 40), weight_decay=0.1),
}


def make_method(task: Toy, name: str, *, microbatches: int = 1) -> train.Method:
    if name == "first_order":
        return train.first_order(task, optax.adam(0.02), description=name, microbatches=microbatches)
    spsa = estimators.spsa(1e-2, key=KEY, num_samples=2)
    tx = estimators.chain(spsa, OPTIMIZERS[name]())
    return train.zeroth_order(
        task, tx, forwards=lambda q, _: 2 * q, description=f"spsa, {name}", microbatches=microbatches
    )


def run(workdir: Any, name: str, dtype: str = "float32", steps: int = 30, **options: Any) -> train.Result:
    task = Toy(dtype)
    params = task.init(jax.random.key(0))
    settings: dict[str, Any] = {
        "dev": [make_batch(-(i + 1) % 1000) for i in range(2)],
        "eval_every": 4,
        "checkpoint_every": 3,
        "log_every": 2,
        "keep_best": "accuracy",
    }
    frozen = jax.tree.map(lambda _: None, params)
    batches = options.pop("batches", None) or Batches()
    method = options.pop("method", None) or make_method(task, name)
    return train.fit(task, method, params, frozen, batches, key=KEY, workdir=workdir, steps=steps, **settings | options)


def main(workdir: str, name: str, dtype: str, steps: str, at: str = "0", seconds: str = "0") -> None:
    # The process dies wherever it is then: inside XLA, between two writes, within a checkpoint.
    death = threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGKILL))
    death.daemon = True
    result = run(workdir, name, dtype, int(steps), batches=Batches(at=int(at), action=death.start if int(at) else None))
    if int(at):  # the end came first
        os.kill(os.getpid(), signal.SIGKILL)
    print(result.step, result.stopped_by, replay.digest(result.params))


if __name__ == "__main__":
    main(*sys.argv[1:])
