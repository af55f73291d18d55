"""The transducer loss: time of loss and gradient, temporaries through the joiner, error against float64.

Run it on one core (taskset -c 0) to compare with the other implementations: their figures, in lines that name them,
are constants, medians on one core of a 2-core x86-64 machine in November 2026 with the same shapes; ratios to them
carry over to other machines roughly. The cases:

    logits              loss and gradient from logits, B x T x U x V
    joiner              from encoder and predictor through tanh and one layer, logits made in chunks over time
    joiner, whole       the same with all logits in memory
    pruned              the loss of two parts that are added, and the same within the bands that it chooses: what
                        pruning costs, without a layer in the joiner
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.bench._harness import Record, interleave, record, temporaries
from launch.bench._sizes import chosen
from zojax.losses.transducer import fused_transducer_loss, pruned_transducer_loss, transducer_loss

__all__ = ["run"]

BENCH = "transducer_loss"
Shape = tuple[int, int, int, int]

PEER = "fast_rnnt, November 2026"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """Which shapes are measured, and what others have published of them.

    Attributes:
      peer: who.
      shapes: (B, T, U, V) from logits, with the peer's ms.
      joined: shape of the cases with a joiner.
      pruned: shape, band, the peer's ms of the pruned case.
      long: shape of the comparison with float64.
    """

    peer: str
    shapes: Mapping[Shape, float | None]
    joined: Shape
    pruned: tuple[Shape, int, float | None]
    long: Shape = (1, 800, 150, 32)


SCALES: dict[str, Scale] = {
    "core": Scale(
        peer=PEER,
        shapes={(1, 150, 40, 28): 3.7, (16, 150, 40, 28): 50, (1, 150, 20, 5000): 243, (4, 200, 50, 128): 70},
        joined=(4, 200, 50, 1024),
        pruned=((4, 200, 50, 500), 5, 150),
    ),
    # LibriSpeech's sizes on a GPU. As published for k2: the best exact loss 211 ms, the pruned one 38 ms.
    "large": Scale(
        peer="published, GPU",
        shapes={(30, 400, 60, 500): 211},
        joined=(30, 400, 60, 500),
        pruned=((30, 400, 60, 500), 5, 38),
    ),
}
WIDTH = 512  # of the joiner's hidden layer
CHUNK = 1
LONG_ERROR = 3.5e-4  # fast_rnnt, the best of three


def run(
    repeats: int = 20,
    *,
    scale: str = "core",
    shapes: Sequence[Shape] | None = None,
    joined: Shape | None = None,
    pruned: tuple[Shape, int, float | None] | None = None,
    long: Shape | None = None,
) -> Iterator[Record]:
    """Measures all cases.

    Args:
      repeats: rounds of the interleaved timings; a quarter of them for the cases with a joiner.
      scale: name in SCALES, whose fields hold where an argument is None.
      shapes: (B, T, U, V) from logits.
      joined: shape of the cases with a joiner.
      pruned: shape, band and the peer's ms of the pruned case.
      long: shape of the comparison with float64.

    Yields:
      Lines: errors against float64, temporaries in bytes (those through the joiner against the logits' own), times in
      ms.
    """
    sizes: Scale = chosen(scale, SCALES)
    shapes = tuple(sizes.shapes) if shapes is None else shapes
    joined = sizes.joined if joined is None else joined
    pruned = sizes.pruned if pruned is None else pruned
    long = sizes.long if long is None else long
    yield from _errors(long)
    cases: dict[str, Any] = {}
    known: dict[str, float] = {}
    for shape in shapes:
        name = "x".join(map(str, shape))
        compiled, args = _from_logits(shape)
        cases[f"logits, {name}"] = functools.partial(compiled, *args)
        yield record(BENCH, f"logits, {name}", "temporaries", temporaries(compiled), "bytes")
        if (value := sizes.shapes.get(shape)) is not None:
            known[f"logits, {name}"] = value
    yield from _times(interleave(cases, repeats), known, {}, sizes.peer)

    name = "x".join(map(str, joined))
    logits = f"the logits themselves, {name}"
    size = joined[0] * joined[1] * (joined[2] + 1) * joined[3] * 4
    yield record(BENCH, logits, "temporaries", size, "bytes")
    cases, references = {}, {f"joiner, {name}": f"joiner, whole, {name}"}
    for case, loss in ((f"joiner, {name}", _through_joiner), (f"joiner, whole, {name}", _through_logits)):
        compiled, args = _with_joiner(loss, joined, WIDTH)
        cases[case] = functools.partial(compiled, *args)
        needed = temporaries(compiled)
        yield record(BENCH, case, "temporaries", needed, "bytes", reference=logits, reference_value=size)
    shape, band, peer = pruned
    case = f"pruned, band {band}, {'x'.join(map(str, shape))}"
    compiled, args = _with_joiner(functools.partial(_pruned, band=band), shape, shape[3])
    cases[case] = functools.partial(compiled, *args)
    known = {} if peer is None else {case: peer}
    yield from _times(interleave(cases, max(1, repeats // 4)), known, references, sizes.peer)


def _times(
    seconds: dict[str, np.ndarray], known: dict[str, float], references: dict[str, str], other: str
) -> Iterator[Record]:
    """Median and least time of each case; the median against a known figure or another case."""
    medians = {case: 1e3 * float(np.median(s)) for case, s in seconds.items()}
    for case, measured in seconds.items():
        reference, value = references.get(case), None
        if case in known:
            reference, value = f"{other}, {case}", known[case]
            yield record(BENCH, reference, "time_median", value, "ms")
        elif reference is not None:
            value = medians[reference]
        median = medians[case]
        yield record(BENCH, case, "time_median", median, "ms", reference=reference, reference_value=value)
        yield record(BENCH, case, "time_min", 1e3 * float(np.min(measured)), "ms")


def _integers(shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and full lengths; the blank is 0."""
    batch, frames, labels, classes = shape
    rng = np.random.default_rng(1)
    drawn = rng.integers(1, classes, (batch, labels)).astype(np.int32)
    return drawn, np.full(batch, frames, np.int32), np.full(batch, labels, np.int32)


def _logits(shape: Shape) -> np.ndarray:
    batch, frames, labels, classes = shape
    return np.random.default_rng(0).normal(size=(batch, frames, labels + 1, classes)).astype(np.float32)


def _loss_and_gradient(logits, labels, frame_lengths, label_lengths):
    loss = lambda x: transducer_loss(x, labels, frame_lengths, label_lengths, blank=0).sum()  # noqa: E731
    return jax.value_and_grad(loss)(logits)


def _from_logits(shape: Shape) -> tuple[Any, tuple[Any, ...]]:
    args = tuple(map(jnp.asarray, (_logits(shape), *_integers(shape))))
    return jax.jit(_loss_and_gradient).lower(*args).compile(), args


def _joiner(params, encoded, predicted):
    return jnp.tanh(encoded + predicted) @ params["kernel"] + params["bias"]


def _through_joiner(params, encoded, predicted, *integers):
    return fused_transducer_loss(_joiner, params, encoded, predicted, *integers, blank=0, chunk=CHUNK).sum()


def _through_logits(params, encoded, predicted, *integers):
    logits = _joiner(params, encoded[:, :, None], predicted[:, None])
    return transducer_loss(logits, *integers, blank=0).sum()


def _add(params, encoded, predicted):
    del params
    return encoded + predicted


def _pruned(params, encoded, predicted, *integers, band):
    args = (_add, params, encoded, predicted, encoded, predicted, *integers)
    loss = pruned_transducer_loss(*args, blank=0, band=band, chunk=20)
    return (loss.simple + loss.pruned).sum()


def _with_joiner(loss: Callable[..., jax.Array], shape: Shape, width: int) -> tuple[Any, tuple[Any, ...]]:
    """The program of a loss and its gradient in all that is not an integer, and its arguments."""
    batch, frames, labels, classes = shape
    rng = np.random.default_rng(0)
    draw = lambda *size: jnp.asarray(0.1 * rng.normal(size=size), jnp.float32)  # noqa: E731
    params = {"kernel": draw(width, classes), "bias": draw(classes)}
    args = (params, draw(batch, frames, width), draw(batch, labels + 1, width), *map(jnp.asarray, _integers(shape)))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*args).compile(), args


def _errors(shape: Shape) -> Iterator[Record]:
    """float32 against float64: of the gradient the greatest difference, of the loss the relative one.

    The float64 program is this library's own; the tests hold it to path enumeration and to another recursion.
    """
    logits, integers = _logits(shape), _integers(shape)
    loss, gradient = jax.jit(_loss_and_gradient)(logits, *integers)
    with jax.enable_x64(True):
        exact_loss, exact = jax.jit(_loss_and_gradient)(logits.astype(np.float64), *integers)
        found = float(np.abs(np.asarray(gradient, np.float64) - np.asarray(exact)).max())
        relative = abs(float(loss) - float(exact_loss)) / float(exact_loss)
    case = f"logits, {'x'.join(map(str, shape))}"
    peer = f"{PEER}, {case}"
    yield record(BENCH, peer, "gradient_error", LONG_ERROR, "1")
    yield record(BENCH, case, "gradient_error", found, "1", reference=peer, reference_value=LONG_ERROR)
    yield record(BENCH, case, "loss_error", relative, "1")
