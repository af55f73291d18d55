"""A transducer as it ships on an accelerator: a task whose parameters are the integers, whole and in streams.

It comes from an `IntegerTask` and its weights, or from a file that was exported from them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.transducer.decode import Decodable
from models.transducer.integer import (
    FrameInput,
    Network,
    encode,
    encoder_state,
    input_codes,
    network,
    predict,
)
from models.transducer.integer_formats import FEATURES
from models.transducer.integer_task import IntegerTask, search_functions
from models.transducer.lstm import LstmConfig
from models.transducer.model import BLANK, TransducerConfig
from models.transducer.predictor import LstmPredictorConfig, StatelessConfig
from models.transducer.task import TransducerTask
from zojax.accelerator import Accelerator
from zojax.accelerator import transducer as ends
from zojax.accelerator.emulate import Q3_12, value_of
from zojax.accelerator.linear import FullyConnected
from zojax.accelerator.lstm import Lstm
from zojax.losses.transducer import fused_transducer_loss

__all__ = ["DeployedTask", "config_of", "deploy"]

Params = Any


def config_of(net: Network) -> TransducerConfig:
    """The sizes of the transducer that a network is.

    Args:
      net: in the integer mode.

    Returns:
      The sizes; there is no dropout.
    """
    first, (classes, width) = net.encoder[0].lstm, net.table.table.shape
    if net.linear is None:
        second = net.predictor[0].lstm
        words = LstmPredictorConfig(
            vocab_size=classes,
            embedding=width,
            layers=len(net.predictor),
            hidden=second.cells,
            projection=_projection(second),
        )
    else:
        words = StatelessConfig(vocab_size=classes, embedding=width, context=net.context)
    encoder = LstmConfig(
        d_in=first.input.shape[0] // net.stack,
        stack=net.stack,
        layers=len(net.encoder),
        hidden=first.cells,
        projection=_projection(first),
    )
    return TransducerConfig(encoder=encoder, predictor=words, joint=net.joiner.encoder.weight.shape[-1])


def _projection(layer: Lstm) -> int:
    return 0 if layer.projection is None else layer.projection.weight.shape[-1]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DeployedTask(TransducerTask):
    """Recognises speech in integers.

    Parameters: {"network", "frames"}, a `Network` in the integer mode and a `FrameInput`. What passes between encoder,
    predictor and joiner are floats in which the codes are held exactly: searches and losses take floats.

    Args:
      accelerator: whose arithmetic.

    Example:
      >>> DeployedTask.__dataclass_fields__["accelerator"].type
      <class 'zojax.accelerator.device.Accelerator'>
    """

    accelerator: Accelerator

    def init(self, key: Any) -> Params:
        """Raises ValueError: integers come from weights."""
        raise ValueError("DeployedTask.init: there is nothing to begin with; see `deploy`")

    def stream_state(self, params: Params, rows: int) -> Any:
        """The state before the first frame of streams."""
        return encoder_state(params["network"], rows)

    def encode_step(
        self, params: Params, x: Float[Array, "b t d"], mask: Bool[Array, "b t"], state: Any
    ) -> tuple[Float[Array, "b t2 j"], Bool[Array, "b t2"], Any]:
        """The next frames of streams, a multiple of the stack: (frames, their mask, state)."""
        net = params["network"]
        codes = input_codes(FEATURES.encode(x), params["frames"])
        frames, state = encode(codes, net, self.accelerator, state)
        return value_of(frames, Q3_12), mask[:, net.stack - 1 :: net.stack], state

    def encode_flush(self, params: Params, state: Any) -> tuple[Float[Array, "b 0 j"], Bool[Array, "b 0"]]:
        """Nothing: no frame is held back."""
        rows = jax.tree.leaves(state)[0].shape[0]
        return jnp.zeros((rows, 0, self.config.joint)), jnp.zeros((rows, 0), bool)

    def decodable(self, params: Params) -> Decodable:
        """Predictor and joiner, for a search."""
        start, step, joiner = search_functions(self.accelerator)
        return Decodable(params=params["network"], start=start, step=step, joiner=joiner)

    def _apply(self, method: str, params: Params, *args: Any, **options: Any) -> Any:
        if method == "encode":
            x, mask = args
            return self.encode_step(params, x, mask, None)[:2]
        assert method == "predict", method  # the integers have no other
        labels = jnp.pad(args[0], ((0, 0), (1, 0)), constant_values=BLANK)
        return value_of(predict(labels, params["network"], self.accelerator)[0], Q3_12)

    def _exact(self, params, frames, lengths: Int[Array, "b"], symbols, labels, batch) -> Float[Array, "b"]:
        counts = jnp.asarray(batch["label_lengths"])
        joined, output = _joined(self.accelerator), params["network"].joiner.output
        return fused_transducer_loss(
            joined, output, frames, symbols, labels, lengths, counts, blank=BLANK, chunk=self.chunk, spec=self.spec
        )


@functools.lru_cache(maxsize=16)
def _joined(accelerator: Accelerator) -> Callable[..., Array]:
    def joined(output: FullyConnected, frames: Array, symbols: Array) -> Array:
        codes = ends.join(Q3_12.encode(frames), Q3_12.encode(symbols), output, accelerator)
        return value_of(codes, output.plan.output)

    return joined


def deploy(task: IntegerTask, params: Params) -> tuple[DeployedTask, Params]:
    """The integers of a transducer that was trained for an accelerator.

    Args:
      task: the transducer.
      params: leaves that know their grid.

    Returns:
      (task, parameters): one task for all parameters, so that its programs are compiled once.

    Example:
      >>> deploy.__name__
      'deploy'
    """
    deployed, made = _deployed(task)
    return deployed, made(params)


@functools.lru_cache(maxsize=8)
def _deployed(task: IntegerTask) -> tuple[DeployedTask, Callable[[Params], Params]]:
    formats = task.formats

    @jax.jit
    def made(params: Params) -> Params:
        frames = FrameInput(offset=formats.offset, factor=formats.factor, output=formats.input)
        return {"network": network(task.config, params, formats, task.accelerator, "integer"), "frames": frames}

    config = dataclasses.replace(task.config, acoustic=False)
    deployed = DeployedTask(
        config=config, chunk=task.chunk, spec=task.spec, front_end=task.front_end, accelerator=task.accelerator
    )
    return deployed, made
