"""Predictors: what the labels so far say about the next one.

Label 0 is the blank. It is no label of a reference, so its row of the table stands for the start: a predictor sees 0,
then the labels, and has one output more than there are labels.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.language.config import check_sizes
from models.layers import Linear
from models.transducer.layers import check_rate
from models.transducer.lstm import lstm_stack
from zojax import ops

__all__ = ["LstmPredictor", "LstmPredictorConfig", "StatelessConfig", "StatelessPredictor"]

START = 0

State = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LstmPredictorConfig:
    """A predictor of LSTM layers (arXiv 1211.3711).

    Attributes:
      vocab_size: classes, the blank among them.
      embedding: width of the table of labels.
      layers: LSTM layers.
      hidden: cells of a layer.
      projection: width of a layer's output; 0: no projection.
      dropout: rate behind each layer, in training alone.

    Raises:
      ValueError: if a size is not positive, or the rate is out of range.

    Example:
      >>> LstmPredictorConfig(vocab_size=0)
      Traceback (most recent call last):
      ...
      ValueError: LstmPredictorConfig.vocab_size is 0; it must be positive
    """

    vocab_size: int
    embedding: int = 256
    layers: int = 1
    hidden: int = 640
    projection: int = 0
    dropout: float = 0.0

    def __post_init__(self):
        check_sizes(self, may_be_zero=("projection",))
        check_rate(self, "dropout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatelessConfig:
    """A predictor that sees the last labels alone.

    (That one label suffices with word pieces is the finding of Ghodsi et al., "RNN-Transducer with stateless prediction
    network", ICASSP 2020; two, and how they are joined, are ours.)

    Attributes:
      vocab_size: classes, the blank among them.
      embedding: width of the table of labels, and of the output.
      context: labels that it sees.

    Raises:
      ValueError: if a size is not positive.

    Example:
      >>> StatelessConfig(vocab_size=28).context
      2
    """

    vocab_size: int
    embedding: int = 256
    context: int = 2

    def __post_init__(self):
        check_sizes(self)


class LstmPredictor(nn.Module):
    """Embedded labels through LSTM layers, each with a norm behind it.

    Parameters: "table" [vocab_size, embedding] and those of `lstm_stack`, "lstm_0", "norm_0" and so on.

    Args:
      config: sizes.

    Example:
      >>> predictor = LstmPredictor(LstmPredictorConfig(vocab_size=5, embedding=4, hidden=8))
      >>> variables = predictor.init(jax.random.key(0), jnp.zeros((2, 3), jnp.int32))
      >>> predictor.apply(variables, jnp.zeros((2, 3), jnp.int32)).shape
      (2, 4, 8)
    """

    config: LstmPredictorConfig

    @property
    def d_out(self) -> int:
        """Width of the output."""
        return self.config.projection or self.config.hidden

    @nn.nowrap
    def _stack(self):
        c = self.config
        return lstm_stack(c.embedding, layers=c.layers, hidden=c.hidden, projection=c.projection, dropout=c.dropout)

    def setup(self):
        shape = (self.config.vocab_size, self.config.embedding)
        self.table = self.param("table", nn.initializers.normal(1.0), shape)
        self.lstm = self._stack()

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        """The state before the start."""
        return self._stack().initial_state(batch)

    def __call__(self, labels: Int[Array, "b u"]) -> Float[Array, "b u+1 p"]:
        """Outputs after 0, 1, .. u labels.

        Args:
          labels: in [0, vocab_size); an output depends on the labels before it alone.

        Returns:
          float32 [b, u + 1, d_out].
        """
        labels = jnp.pad(labels, ((0, 0), (1, 0)), constant_values=START)
        return self.lstm(ops.embed(self.table, labels), jnp.ones(labels.shape, bool))[0]

    def step(self, label: Int[Array, "b"], state: State) -> tuple[Float[Array, "b p"], State]:
        """The output after one more label; after `initial_state`, label 0 makes the output before any label."""
        x = ops.embed(self.table, label)[:, None]
        y, _, state = self.lstm.step(x, jnp.ones((label.shape[0], 1), bool), state)
        return y[:, 0], state


class StatelessPredictor(nn.Module):
    """relu(W [e_{u-1}, e_u]): a linear map of the last labels' embeddings.

    Parameters: "table" [vocab_size, embedding] and "linear".

    Args:
      config: sizes.

    Example:
      >>> predictor = StatelessPredictor(StatelessConfig(vocab_size=5, embedding=4))
      >>> variables = predictor.init(jax.random.key(0), jnp.zeros((2, 3), jnp.int32))
      >>> predictor.apply(variables, jnp.zeros((2, 3), jnp.int32)).shape
      (2, 4, 4)
    """

    config: StatelessConfig

    @property
    def d_out(self) -> int:
        """Width of the output."""
        return self.config.embedding

    def setup(self):
        c = self.config
        self.table = self.param("table", nn.initializers.normal(1.0), (c.vocab_size, c.embedding))
        self.linear = Linear(c.embedding, (2 / (c.context * c.embedding)) ** 0.5)

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        """The state before the start."""
        return jnp.full((batch, self.config.context), START, jnp.int32)

    def __call__(self, labels: Int[Array, "b u"]) -> Float[Array, "b u+1 p"]:
        """Outputs after 0, 1, .. u labels.

        Args:
          labels: in [0, vocab_size).

        Returns:
          float32 [b, u + 1, d_out].
        """
        context, count = self.config.context, labels.shape[1] + 1
        labels = jnp.pad(labels, ((0, 0), (context, 0)), constant_values=START)
        return self._map(jnp.stack([labels[:, k : k + count] for k in range(context)], axis=-1))

    def step(self, label: Int[Array, "b"], state: State) -> tuple[Float[Array, "b p"], State]:
        """The output after one more label; after `initial_state`, label 0 makes the output before any label."""
        state = jnp.concatenate([state[:, 1:], label[:, None].astype(state.dtype)], axis=1)
        return self._map(state), state

    def _map(self, last: Int[Array, "*b context"]) -> Float[Array, "*b p"]:
        x = ops.embed(self.table, last)
        return jax.nn.relu(self.linear(x.reshape(*last.shape[:-1], -1)))
