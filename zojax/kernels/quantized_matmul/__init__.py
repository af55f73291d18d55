"""Products of integers or 8-bit floats with their scales: what a linear layer of a quantised network computes."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int32, Num

from zojax.kernels._platform import configured, dispatch
from zojax.kernels.quantized_matmul import reference

__all__ = ["integer_dot", "quantized_matmul"]

NAME = "quantized_matmul"


def _check_operands(x: Array, w: Array) -> None:
    kinds = (reference.is_integer, reference.is_float8)
    if not any(kind(x.dtype) and kind(w.dtype) for kind in kinds):
        raise ValueError(f"x, w: {x.dtype} by {w.dtype}; both int8 or int4, or both float8_e4m3fn or float8_e5m2")
    if x.ndim == 0 or w.ndim != 2 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"x, w: shapes {x.shape} and {w.shape}; [..., k] and [k, n] are needed")


def integer_dot(x: Num[Array, "*batch k"], w: Num[Array, "rows n"]) -> Int32[Array, "*batch n"]:
    """The exact product of small integers.

        y_ij = sum_k x_ik w_kj

    Accumulated in int32: exact up to k = 131,071 for int8.

    Args:
      x: int8 or int4 [..., k].
      w: int8 or int4 [k, n].

    Returns:
      int32 [..., n].

    Raises:
      ValueError: if an operand is not of these types or the shapes do not agree.

    Example:
      >>> x = jnp.full((1, 5000), -128, jnp.int8)
      >>> int(integer_dot(x, x.T)[0, 0]) == 5000 * 128 * 128
      True
    """
    _check_operands(x, w)
    if not reference.is_integer(x.dtype):
        raise ValueError(f"x, w: {x.dtype} by {w.dtype}; integer_dot takes int8 and int4")
    return reference.product(x, w)


def _rows_together(run: Callable[..., Array]) -> Callable[..., Array]:
    """`run`; under vmap over the activations alone one product with all their rows, which reads the weight once."""

    @custom_vmap
    def call(x, w, x_scale, w_scale):
        return run(x, w, x_scale, w_scale)

    @call.def_vmap
    def _(size, batched, x, w, x_scale, w_scale):
        if batched[1] or batched[3]:
            axes = tuple(0 if over else None for over in batched)
            return jax.vmap(run, in_axes=axes)(x, w, x_scale, w_scale), True
        x, x_scale = (
            a if over else jnp.broadcast_to(a, (size, *a.shape)) for a, over in ((x, batched[0]), (x_scale, batched[2]))
        )
        y = call(x.reshape(-1, x.shape[-1]), w, x_scale.reshape(-1, 1), w_scale)
        return y.reshape(size, -1, y.shape[-1]), True

    return call


def _linear_in_scales(run: Callable[..., Array]) -> Callable[..., Array]:
    """`run` with derivatives with respect to the scales, those of the definition: kernels bring none."""

    @jax.custom_jvp
    def call(x, w, x_scale, w_scale):
        return run(x, w, x_scale, w_scale)

    @call.defjvp
    def _(primals, tangents):
        x, w, x_scale, w_scale = primals
        y = call(*primals)
        dy = reference.scaled_product(x, w, tangents[2], w_scale) + reference.scaled_product(x, w, x_scale, tangents[3])
        return y, dy

    return call


def quantized_matmul(
    x: Num[Array, "*batch k"],
    w: Num[Array, "rows n"],
    *,
    x_scale: Float[Array, "..."],
    w_scale: Float[Array, "..."],
    implementation: str | None = None,
    config=None,
) -> Float[Array, "*batch n"]:
    """The scaled product of codes, with one scale a row of x and one a column, or a group of rows, of w.

        y_ij = [ sum_g (sum_{k in g} x_ik w_kj) w_scale_gj ] x_scale_i

    Sums inside a group are exact int32 for integers and float32 for 8-bit floats; groups are added in float32 and in
    order. Differentiable in the scales.
    The zero points of asymmetric grids are the caller's business.

    Args:
      x: int8 or int4, or float8_e4m3fn or float8_e5m2, [..., k].
      w: of the same kind, [k, n].
      x_scale: float32 scalar or [..., 1].
      w_scale: float32 scalar, [1, n] (or [n]), or [groups, n] with groups a divisor of k.
      implementation: "reference", "tpu", "gpu" or None, the first that supports the arguments on the platform that the
        program is lowered for.
      config: the `Config` of the named implementation; None: what `autotune` has stored, else a default.

    Returns:
      float32 [..., n].

    Raises:
      ValueError: if types or shapes do not agree, or the named implementation does not support them.

    Example:
      >>> x, w = jnp.array([[1, 2]], jnp.int8), jnp.array([[3, 4], [5, 6]], jnp.int8)
      >>> quantized_matmul(x, w, x_scale=jnp.float32(0.5), w_scale=jnp.array([[1.0, 10.0]])).tolist()
      [[6.5, 80.0]]
    """
    _check_operands(x, w)
    (*batch, k), n = x.shape, w.shape[1]
    x_scale, w_scale = jnp.asarray(x_scale, jnp.float32), jnp.asarray(w_scale, jnp.float32)
    if x_scale.ndim and x_scale.shape != (*batch, 1):
        raise ValueError(f"x_scale: shape {x_scale.shape}; () or {(*batch, 1)} is needed")
    groups = w_scale.shape[0] if w_scale.ndim == 2 else 1
    if w_scale.ndim > 2 or (w_scale.ndim and w_scale.shape[-1] not in (1, n)) or groups == 0 or k % groups:
        raise ValueError(f"w_scale: shape {w_scale.shape}; (), (1, {n}) or (a divisor of {k}, {n}) is needed")
    args = (
        x.reshape(math.prod(batch), k),
        w,
        jnp.broadcast_to(x_scale, (*batch, 1)).reshape(math.prod(batch), 1),
        jnp.broadcast_to(w_scale, (groups, n)),
    )
    if implementation == "reference" and config is None:
        return reference.scaled_product(*args).reshape(*batch, n)
    from zojax.kernels.quantized_matmul import gpu, tpu  # Pallas takes a second to import

    backends = {
        name: replace(backend, run=_rows_together(backend.run))
        for name, backend in configured(NAME, {"tpu": tpu, "gpu": gpu}, implementation, config, *args).items()
    }
    run = _linear_in_scales(partial(dispatch, NAME, implementation, reference.scaled_product, backends))
    return run(*args).reshape(*batch, n)
