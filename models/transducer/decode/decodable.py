"""What a search needs of a model and of a language model: pure functions of parameters and states."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Int

__all__ = ["Decodable", "Fusion"]

Params = Any
State = Any


def _static() -> Any:
    return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Decodable:
    """A transducer's predictor and joiner.

    A pytree whose leaves are those of `params`: it goes through `jax.jit` as an argument. Its functions are compared by
    `==`, so keep one object of each: a lambda made anew for each call compiles each time.

    Args:
      params: arrays or leaf types, given to the three functions.
      start: (params, batch) -> the state before the first label, a tree of arrays whose first axis is the batch.
      step: (params, labels [batch], state) -> (output [batch, p], state). It is called first with the blank, which
        stands for the beginning; after that with labels only.
      joiner: (params, encoded [.., d], predicted [.., p]) -> logits [.., classes], leading axes broadcasting. Logits
        need not be normalised. Log-probabilities are logits as well: a HAT's joiner returns those.

    Example:
      >>> import jax.numpy as jnp
      >>> model = Decodable(
      ...     params={"out": jnp.ones((2, 3))},
      ...     start=lambda params, batch: jnp.zeros((batch, 2)),
      ...     step=lambda params, labels, state: (state + labels[:, None], state + 1),
      ...     joiner=lambda params, encoded, predicted: (encoded + predicted) @ params["out"],
      ... )
      >>> predicted, state = model.predict(jnp.array([0]), model.initial_state(1))
      >>> model.join(jnp.ones((1, 5, 2)), predicted[:, None]).shape
      (1, 5, 3)
    """

    params: Params
    start: Callable[[Params, int], State] = _static()
    step: Callable[[Params, Int[Array, " b"], State], tuple[Float[Array, "b p"], State]] = _static()
    joiner: Callable[[Params, Float[Array, "*a d"], Float[Array, "*b p"]], Float[Array, "*c classes"]] = _static()

    def initial_state(self, batch: int) -> State:
        """The predictor's state before the first label."""
        return self.start(self.params, batch)

    def predict(self, labels: Int[Array, " b"], state: State) -> tuple[Float[Array, "b p"], State]:
        """The predictor's output after one more label."""
        return self.step(self.params, labels, state)

    def join(self, encoded: Float[Array, "*a d"], predicted: Float[Array, "*b p"]) -> Float[Array, "*c classes"]:
        """Logits of encoder and predictor outputs."""
        return self.joiner(self.params, encoded, predicted)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Fusion:
    """Shallow fusion: scores for the next label from outside the transducer, such as a language model's.

    A search ranks hypotheses by log P of the transducer plus the scores of their labels, and at last that of the end. A
    blank has none. The weight of the model is the functions' business.

    Args:
      params: arrays, given to all functions.
      start: (params, batch) -> state, as of a `Decodable`.
      step: (params, labels [batch], state) -> (scores of the next label [batch, classes], state); called first with
        the blank. Scores do not change when a hypothesis gets a blank. What stands in the blank's column is not read.
      end: (params, state) -> score of ending there [batch]; None: it has none.

    Example:
      >>> import jax.numpy as jnp
      >>> no_repeats = Fusion(
      ...     params=jnp.float32(-2.0),
      ...     start=lambda weight, batch: jnp.zeros((batch, 0)),
      ...     step=lambda weight, labels, state: (jnp.where(jnp.arange(4) == labels[:, None], weight, 0), state),
      ... )
      >>> no_repeats.scores(jnp.array([3]), no_repeats.initial_state(1))[0].tolist()
      [[0.0, 0.0, 0.0, -2.0]]
    """

    params: Params
    start: Callable[[Params, int], State] = _static()
    step: Callable[[Params, Int[Array, " b"], State], tuple[Float[Array, "b classes"], State]] = _static()
    end: Callable[[Params, State], Float[Array, " b"]] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )

    def initial_state(self, batch: int) -> State:
        """The state before the first label."""
        return self.start(self.params, batch)

    def scores(self, labels: Int[Array, " b"], state: State) -> tuple[Float[Array, "b classes"], State]:
        """Scores of the label after these."""
        return self.step(self.params, labels, state)
