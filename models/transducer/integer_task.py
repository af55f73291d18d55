"""The task of a transducer that ships as integers: trained through its emulation or its simulator, judged by them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.transducer.integer import (
    Network,
    encode,
    frame_input,
    join,
    network,
    observe,
    output_layer,
    predict,
    predictor_state,
)
from models.transducer.integer_formats import Formats, check_integer, make_formats, widen
from models.transducer.model import BLANK
from models.transducer.task import Batch, TransducerTask
from zojax.accelerator import Accelerator
from zojax.accelerator import transducer as ends
from zojax.accelerator.emulate import Q3_12, Mode, quantise, value_of
from zojax.losses.transducer import fused_transducer_loss
from zojax.train.task import Metrics

__all__ = ["IntegerTask", "calibrate", "search_functions"]

Params = Any


def calibrate(task: TransducerTask, params: Params, batches: Iterable[Batch], accelerator: Accelerator) -> Formats:
    """The formats of a transducer's activations, from their ranges over some batches.

    Args:
      task: the float transducer.
      params: its weights, floats.
      batches: as the task takes them.
      accelerator: whose widths.

    Returns:
      Formats.

    Raises:
      ValueError: if there is no integer network of the transducer, or no batch.
    """
    check_integer(task.config)

    @jax.jit
    def ranges(params: Params, batch: Batch) -> dict[str, tuple[Array, Array]]:
        x, mask = task.features(batch)
        labels = jnp.pad(jnp.asarray(batch["labels"]), ((0, 0), (1, 0)), constant_values=BLANK)
        real = jnp.asarray(batch["weight"]) > 0
        return observe(task.config, params, x, mask & real[:, None], labels, accelerator)

    return make_formats(task.config, params, widen(ranges(params, batch) for batch in batches), accelerator)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class IntegerTask(TransducerTask):
    """A transducer on an accelerator.

    Its matrices are leaves that know their grid: `QArray`s, or `FakeQuant`s where gradients are wanted. `evaluate` is
    always that of the integers. `loss` is the loss of

        float       the float network with the weights on their grids: quantisation-aware training
        emulation   the integers in float, straight-through gradients: accelerator-aware training (arXiv 2305.07778)
        integer     the integers: for estimators that need no gradient

    Dropout is known to the float network alone. The acoustic loss, which is no part of what ships, reads the frames by
    a float layer in all of them.

    Args:
      formats: of the activations, see `calibrate`.
      accelerator: whose arithmetic.
      forward: by what `loss` is computed.

    Raises:
      ValueError: if there is no integer network of the transducer.

    Example:
      >>> IntegerTask.__dataclass_fields__["forward"].default
      'emulation'
    """

    formats: Formats
    accelerator: Accelerator
    forward: Literal["float", "emulation", "integer"] = "emulation"

    def __post_init__(self):
        super().__post_init__()
        check_integer(self.config)

    def evaluate(self, params: Params, batch: Batch) -> Metrics:
        """Sums of the exact loss of the integer network; see `TransducerTask.evaluate`."""
        integers = self if self.forward == "integer" else dataclasses.replace(self, forward="integer")
        return TransducerTask.evaluate(integers, params, batch)

    def _apply(self, method: str, params: Params, *args: Any, **options: Any) -> Any:
        if self.forward == "float" or method not in ("encode", "predict"):
            return super()._apply(method, params, *args, **options)
        net = network(self.config, params, self.formats, self.accelerator, self.forward)
        if method == "encode":
            x, mask = args
            frames, _ = encode(frame_input(x, self.formats, self.forward), net, self.accelerator)
            return value_of(frames, Q3_12), mask[:, net.stack - 1 :: net.stack]
        labels = jnp.pad(args[0], ((0, 0), (1, 0)), constant_values=BLANK)
        return value_of(predict(labels, net, self.accelerator)[0], Q3_12)

    def _exact(
        self, params, frames, lengths: Int[Array, "b"], symbols, labels, batch, guide: Any = None
    ) -> Float[Array, "b"]:
        del guide  # of the first steps from random weights; these are trained
        if self.forward == "float":
            return super()._exact(params, frames, lengths, symbols, labels, batch)
        joined = _joined(self.formats, self.accelerator, self.forward)
        counts = jnp.asarray(batch["label_lengths"])
        options = {"blank": BLANK, "chunk": self.chunk, "spec": self.spec}
        output = params["joiner"]["output"]
        return fused_transducer_loss(joined, output, frames, symbols, labels, lengths, counts, **options)


@functools.lru_cache(maxsize=16)
def _joined(formats: Formats, accelerator: Accelerator, mode: Mode) -> Callable[..., Array]:
    """A joiner as the loss takes it: of frames and symbols as floats on the grid Q3.12, which become codes again."""

    def joined(params: Params, frames: Array, symbols: Array) -> Array:
        layer = output_layer(params, formats, mode)
        logits = ends.join(quantise(frames, Q3_12, mode), quantise(symbols, Q3_12, mode), layer, accelerator)
        return value_of(logits, formats.logits)

    return joined


@functools.lru_cache(maxsize=16)
def search_functions(accelerator: Accelerator) -> tuple[Callable, Callable, Callable]:
    """The start, the step and the joiner of a `Decodable` whose parameters are a `Network`."""

    def step(net: Network, labels: Array, state: Any) -> tuple[Array, Any]:
        symbols, state = predict(labels[:, None], net, accelerator, state)
        return value_of(symbols[:, 0], Q3_12), state

    def joiner(net: Network, frames: Array, symbols: Array) -> Array:
        codes = join(Q3_12.encode(frames), Q3_12.encode(symbols), net, accelerator)
        return value_of(codes, net.joiner.output.plan.output)

    return predictor_state, step, joiner
