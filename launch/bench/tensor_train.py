"""Products with tensor trains at the widths of AdaZeta's runs: the contraction in two halves against others.

Cases of one product x W, x [rows, d_in] and W [d_in, d_out] a tensor train of rank 5 (arXiv 2406.18060):

    two halves          zojax.adapters.tensor_train_dot: both halves contracted, and x through the one and the other
    dense               W stored whole
    whole, then dense   W made from the cores in every call
    core by core        x through one core after the other, the order of older tensor-train layers

and of a whole adapter, down to 64 and up again: two halves, dense, and one square product of the layer's width, which
says what the adapter adds to a layer.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from launch.bench._harness import Record, interleave, record, temporaries, timings
from zojax.adapters import Bottleneck, TensorTrain, bottleneck, init_tensor_train, tensor_train_dot

__all__ = ["run"]

BENCH = "tensor_train"
WIDTHS = {"LLaMA2-7B": 4096, "RoBERTa-large": 1024}
NARROW, RANK = 64, 5


def run(repeats: int = 20, *, widths: Sequence[int] = tuple(WIDTHS.values()), rows: int = 512) -> Iterator[Record]:
    """Measures all cases.

    Args:
      repeats: rounds of the interleaved timing.
      widths: of the layers; the published ones are in WIDTHS.
      rows: tokens.

    Yields:
      Lines: for every case its weights, temporaries in bytes, error against float64 as a share of the result's norm,
      and times in ms; those of a product are compared with the dense one, those of an adapter with the layer's product.
    """
    calls: dict[str, Callable[[], Any]] = {}
    references: dict[str, str] = {}
    for width in widths:
        for case, reference, function, x, weights, error in _cases(width, rows):
            compiled = jax.jit(function).lower(x, weights).compile()
            calls[case] = functools.partial(compiled, x, weights)
            if reference is not None:
                references[case] = reference
            yield record(BENCH, case, "weights", sum(w.size for w in jax.tree.leaves(weights)), "1")
            yield record(BENCH, case, "temporaries", temporaries(compiled), "bytes")
            if error is not None:
                yield record(BENCH, case, "error", _error(calls[case](), error), "1")
    yield from timings(BENCH, interleave(calls, repeats), references)


def _cases(width: int, rows: int) -> Iterator[tuple[str, str | None, Callable[..., Array], Array, Any, Any]]:
    """(case, what it is compared with, function of input and weights, both, the result in float64 or None)."""
    for number, (d_in, d_out) in enumerate(((width, NARROW), (NARROW, width))):
        key = jax.random.key(number)
        x = jax.random.normal(jax.random.fold_in(key, 0), (rows, d_in))
        train = init_tensor_train(jax.random.fold_in(key, 1), d_in, d_out, rank=RANK)
        matrix = _matrix(train)
        wanted = np.asarray(x, np.float64) @ matrix
        whole, text = jnp.asarray(matrix, jnp.float32), f"{rows}x{d_in}x{d_out}"
        dense = f"dense, {text}"
        yield dense, None, jnp.matmul, x, whole, wanted
        yield f"two halves, {text}", dense, tensor_train_dot, x, train, wanted
        yield f"whole, then dense, {text}", dense, _whole_first, x, train, wanted
        yield f"core by core, {text}", dense, _core_by_core, x, train, wanted
    x = jax.random.normal(jax.random.key(2), (rows, width))
    square, text = f"product of the layer, {rows}x{width}x{width}", f"{rows}x{width}"
    yield square, None, jnp.matmul, x, jnp.ones((width, width), jnp.float32), None
    adapter = Bottleneck(width=NARROW, rank=RANK, identity=False).init(jax.random.key(3), width)
    yield f"adapter, two halves, {text}", square, bottleneck, x, adapter, None
    kernels = [jnp.asarray(_matrix(adapter[name]["kernel"]), jnp.float32) for name in ("down", "up")]
    biases = [adapter[name]["bias"] for name in ("down", "up")]
    yield f"adapter, dense, {text}", square, _dense_adapter, x, (kernels, biases), None


def _matrix(train: TensorTrain) -> np.ndarray:
    """The matrix of a train, in float64."""
    whole = np.ones((1, 1))
    for core in (*train.inputs, *train.outputs):
        whole = np.tensordot(whole, np.asarray(core, np.float64), axes=1).reshape(-1, core.shape[-1])
    return whole.reshape(math.prod(core.shape[1] for core in train.inputs), -1)


def _whole_first(x: Float[Array, "t m"], train: TensorTrain) -> Float[Array, "t n"]:
    whole = jnp.ones((1, 1))
    for core in (*train.inputs, *train.outputs):
        whole = jnp.tensordot(whole, core, axes=1).reshape(-1, core.shape[-1])
    return x @ whole.reshape(x.shape[1], -1)


def _core_by_core(x: Float[Array, "t m"], train: TensorTrain) -> Float[Array, "t n"]:
    state = x[:, None, :]  # [t, r, what is left of the row's index]
    for core in train.inputs:
        state = jnp.einsum("trim,ris->tsm", state.reshape(*state.shape[:2], core.shape[1], -1), core)
    state = state[:, None, :, 0]  # [t, what has been made of the column's index, r]
    for core in train.outputs:
        state = jnp.einsum("tnr,rjs->tnjs", state, core)
        state = state.reshape(len(x), -1, core.shape[-1])
    return state[..., 0]


def _dense_adapter(x: Float[Array, "t d"], weights: Any) -> Float[Array, "t d"]:
    (down, up), (first, second) = weights
    return x + jax.nn.relu(x @ down + first) @ up + second


def _error(found: Any, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(found) - wanted) / np.linalg.norm(wanted))
