"""Static scales of activations, measured on calibration batches."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from zojax._observed import Observer, observed
from zojax.quant.grids import get_grid
from zojax.quant.qarray import QArray
from zojax.trees import path_string

__all__ = ["calibrate"]

Params = Any


def calibrate(
    function: Callable[[Params, Any], Any], params: Params, batches: Iterable[Any], *, percentile: float = 100.0
) -> Params:
    """Measures the static scales of activations.

    scale = max over batches of the percentile of |x| / span,    x what enters the products with the leaf

    While it measures, a product quantises its activations with one scale a call, so that later layers see about what
    they will see. The percentile is taken in each call, and a leaf that is used several times has the largest.

    Args:
      function: called as function(params, batch) under `jit`, for example a task's loss; its result is not used.
      params: tree with `QArray` leaves whose activations are "static".
      batches: calibration batches; each shape compiles once.
      percentile: of |x|, in (0, 100]; 100 is the largest magnitude.

    Returns:
      params with `activation_scale` set: a scalar, or one a slice ([L]) where the function scans over the leaf.

    Raises:
      ValueError: if the percentile is out of range, no leaf has static activations, or a leaf, which is named, saw no
        activations or some that are not finite.

    Example:
      >>> from zojax import ops
      >>> from zojax.quant import Activations, quantize
      >>> static = Activations(grid="int8_127", per="static")
      >>> params = {"w": quantize(jnp.eye(2), "int8_127", activations=static)}
      >>> batches = [jnp.array([[1.0, -254.0]]), jnp.array([[3.0, 4.0]])]
      >>> params = calibrate(lambda p, x: ops.dot(x, p["w"]), params, batches)
      >>> float(params["w"].activation_scale)
      2.0
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile: {percentile}; a number in (0, 100] is needed")
    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda node: hasattr(node, "materialize"))
    if not any(_is_static(leaf) for _, leaf in flat):
        raise ValueError('params: no leaf has activations of per="static"')
    recorder = _Peaks(percentile)
    watched = treedef.unflatten(
        [
            observed(_by_tensor(leaf), number, recorder) if _is_static(leaf) else leaf
            for number, (_, leaf) in enumerate(flat)
        ]
    )

    @jax.jit
    def run(params: Params, batch: Any) -> None:
        function(params, batch)

    for batch in batches:
        run(watched, batch)
    jax.effects_barrier()
    leaves = []
    for number, (path, leaf) in enumerate(flat):
        if _is_static(leaf):
            scale = recorder.peaks(number, path_string(path)) / np.float32(get_grid(leaf.activations.grid).span)
            # Where all activations were zero any scale serves.
            leaf = dataclasses.replace(leaf, activation_scale=jnp.asarray(np.where(scale > 0, scale, 1.0), jnp.float32))
        leaves.append(leaf)
    return treedef.unflatten(leaves)


class _Peaks(Observer):
    """The largest magnitudes seen, by leaf number and slice."""

    def __init__(self, percentile: float):
        super().__init__(self._peak, self._record)
        self.percentile = percentile
        self.seen: dict[int, np.ndarray] = {}

    def _peak(self, leaf: Any, x: Array, product: str) -> Array:
        del leaf, product
        magnitude = jnp.abs(x.astype(jnp.float32))
        return jnp.max(magnitude) if self.percentile == 100 else jnp.percentile(magnitude, self.percentile)

    def _record(self, number: int, slices: tuple[int, ...], index: Any, peak: Any) -> None:
        seen = self.seen.setdefault(number, np.full(slices, -np.inf, np.float32))
        # np.maximum, and not max: NaN must stay.
        seen.reshape(-1)[int(index)] = np.maximum(seen.reshape(-1)[int(index)], np.float32(peak))

    def peaks(self, number: int, path: str) -> np.ndarray:
        if number not in self.seen or np.any(np.isneginf(self.seen[number])):
            raise ValueError(f"batches: no activations entered a product with {path!r}, or with one of its slices")
        if not np.all(np.isfinite(self.seen[number])):
            raise ValueError(f"batches: activations that entered {path!r} are not finite")
        return self.seen[number]


def _is_static(leaf: Any) -> bool:
    return isinstance(leaf, QArray) and leaf.activations is not None and leaf.activations.per == "static"


def _by_tensor(leaf: QArray) -> QArray:
    assert leaf.activations is not None
    return dataclasses.replace(leaf, activations=dataclasses.replace(leaf.activations, per="tensor"))
