"""The ends of a transducer: embeddings and the joiner."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from zojax.accelerator import primitives
from zojax.accelerator.device import Accelerator
from zojax.accelerator.emulate import Q0_7, Q3_12, Format, Value
from zojax.accelerator.linear import FullyConnected, fully_connected
from zojax.accelerator.transfers import lacks, leave

__all__ = ["Embedding", "Joiner", "embed", "join", "joiner"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding:
    """A table whose rows are activations: it stores codes of the format in which the next layer takes them.

    Attributes:
      table: [rows, d].
      format: of its entries, with a scalar scale.

    Example:
      >>> from zojax.accelerator.emulate import quantise, symmetric_format
      >>> f = symmetric_format(127.0)
      >>> Embedding(table=quantise(jnp.eye(2), f, "integer"), format=f).table.tolist()
      [[1, 0], [0, 1]]
    """

    table: Value
    format: Format


def embed(ids: Integer[Array, "*batch"], p: Embedding, accelerator: Accelerator) -> Value:
    """Rows of a table; nothing is computed.

    Args:
      ids: row numbers.
      p: the table.
      accelerator: may lack "embedding"; the row then crosses.

    Returns:
      [*batch, d] in the table's format.

    Example:
      >>> from zojax.accelerator import TFLITE
      >>> from zojax.accelerator.emulate import quantise, symmetric_format
      >>> f = symmetric_format(127.0)
      >>> embed(jnp.array([1]), Embedding(table=quantise(jnp.eye(2), f, "integer"), format=f), TFLITE).tolist()
      [[0, 1]]
    """

    def rows(ids: Array) -> Any:
        def take(table):
            return jnp.take(table, ids, axis=0)

        return p.table.map(take) if primitives.mode_of(p.table) == "emulation" else take(p.table)

    return leave("embedding", rows, ids) if lacks(accelerator, "embedding") else rows(ids)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Joiner:
    """A transducer's joiner: logits = W tanh(E x + P y) + b.

    Attributes:
      encoder: layer of the encoder's frames; its output format is Q3.12.
      predictor: layer of the predictor's states, of the same output format.
      output: layer from Q0.7 codes of the tanh to logits.

    Example:
      >>> Q0_7.scale.tolist() == 2.0**-7
      True
    """

    encoder: FullyConnected
    predictor: FullyConnected
    output: FullyConnected


def joiner(x: Value, y: Value, p: Joiner, accelerator: Accelerator) -> Value:
    """Logits of encoder frames and predictor states, which broadcast against each other.

    The two projections are 16-bit and their sum saturates; tanh gives Q0.15, which RDPOT by 8 brings to int8.

    Args:
      x: [*batch, d_encoder].
      y: [*batch, d_predictor].
      p: the joiner, of the same mode.
      accelerator: whose arithmetic.

    Returns:
      [*batch, vocabulary] in the output layer's format.

    Example:
      >>> from zojax.accelerator import TFLITE
      >>> from zojax.accelerator.emulate import quantise, symmetric_format
      >>> f = symmetric_format(127.0)
      >>> from zojax.accelerator.linear import fully_connected_layer, linear_plan
      >>> side = fully_connected_layer(jnp.eye(1), None, linear_plan(f, f, Q3_12), "integer")
      >>> out = fully_connected_layer(100 * jnp.eye(1), None, linear_plan(Q0_7, f, f), "integer")
      >>> joiner(jnp.int8([1]), jnp.int8([0]), Joiner(encoder=side, predictor=side, output=out), TFLITE).tolist()
      [77]
    """
    return join(
        fully_connected(x, p.encoder, accelerator), fully_connected(y, p.predictor, accelerator), p.output, accelerator
    )


def join(x: Value, y: Value, output: FullyConnected, accelerator: Accelerator) -> Value:
    """`joiner` of what its two projections gave, so that each frame and label is projected once.

    Args:
      x: [*batch, joint] in Q3.12.
      y: [*batch, joint] in Q3.12.
      output: the joiner's last layer, of the same mode.
      accelerator: whose arithmetic.

    Returns:
      [*batch, vocabulary] in the output layer's format.

    Example:
      >>> from zojax.accelerator import TFLITE
      >>> from zojax.accelerator.emulate import symmetric_format
      >>> from zojax.accelerator.linear import fully_connected_layer, linear_plan
      >>> f = symmetric_format(127.0)
      >>> out = fully_connected_layer(100 * jnp.eye(1), None, linear_plan(Q0_7, f, f), "integer")
      >>> join(jnp.int16([4096]), jnp.int16([0]), out, TFLITE).tolist()
      [77]
    """
    hidden = primitives.tanh(primitives.add(x, y, Q3_12), accelerator)
    return fully_connected(primitives.shift(hidden, 8, Q0_7), output, accelerator)
