"""Both signs of a zeroth-order probe from one reading of each weight, with the noise made where it is used."""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from zojax import random
from zojax.kernels._platform import configured, dispatch
from zojax.kernels.perturbed_matmul import reference

__all__ = ["perturbed_matmul"]

NAME = "perturbed_matmul"
DTYPES = ("float32", "bfloat16", "int8", "int4")


def perturbed_matmul(
    x: Float[Array, "sides m k"],
    w: Num[Array, "k n"],
    key: random.KeyOrWords,
    scale: Float[Array, ""] | float,
    *,
    direction: reference.Direction = "signs",
    w_scale: Float[Array, "..."] | float | None = None,
    full_shape: Sequence[int] | None = None,
    start: Array | Sequence[int] | None = None,
    implementation: str | None = None,
    config=None,
) -> Float[Array, "sides m n"]:
    """Products of activations with a weight perturbed upwards and downwards, in one pass over the weight.

    y[0] = x[0] (W + s Z) and y[1] = x[1] (W - s Z), where W = w or w * w_scale, and Z is the tile at `start` of
    direction(key) over `full_shape`, bit for bit that of `zojax.random`. Z is never in memory on an accelerator.

    float32 weights are added and multiplied in float32. Weights of bfloat16 and codes are split, x W + s (x Z), with
    operands in bfloat16 and sums in float32, since W + s Z would round the probe away; a normal Z is rounded to
    bfloat16 there.

    What is recomputed: a kernel reads the tiles of w, and makes their noise, once for every block of rows of x
    (`block_m` of the config), for both sides together. A tile of signs costs 1/32 of a draw an element, or 2/32 with a
    `start`; a tile of "normal" or "rademacher" one draw. The reference leaves it to XLA, which may draw for each side.

    The operator is this library's own, and so is the tiling.

    Args:
      x: [sides, m, k], float32 or bfloat16: the activations of the + side and, with two sides, of the - side.
      w: [k, n], float32, bfloat16, int8 or int4.
      key: typed threefry key of the leaf's noise, or its two words.
      scale: s, float32.
      direction: "signs", "normal" or "rademacher", as the functions of `zojax.random`.
      w_scale: [1, n] or a scalar, float32; None: 1.
      full_shape: shape of the leaf of which w is a tile, two axes or more; None: w's own.
      start: first coordinate of w in each axis of the leaf (uint32 or integers, traced or not); None: the origin.
      implementation: "reference", "tpu", "gpu" (Triton; no int4, few rows) or None, the first that supports the
        arguments on the platform that the program is lowered for.
      config: the `Config` of the named implementation; None: what `autotune` has stored under
        "perturbed_matmul.<direction>.<implementation>", else a default.

    Returns:
      [sides, m, n], float32.

    Raises:
      ValueError: if shapes or dtypes do not fit, or a named implementation refuses the arguments.

    Example:
      >>> import jax
      >>> key = jax.random.key(0)
      >>> x = jnp.stack([jnp.eye(64), jnp.eye(64)])
      >>> y = perturbed_matmul(x, jnp.zeros((64, 8)), key, 1.0)
      >>> bool((y[0] == random.signs(key, (64, 8))).all() and (y[1] == -y[0]).all())
      True
    """
    full_shape = tuple(w.shape if full_shape is None else full_shape)
    _check(x, w, direction, full_shape, start)
    args = (
        x,
        w,
        random.key_words(key),
        jnp.asarray(scale, jnp.float32),
        None if w_scale is None else jnp.broadcast_to(jnp.asarray(w_scale, jnp.float32), (1, w.shape[1])),
        None if start is None else jnp.asarray(start, jnp.uint32),
    )
    options = dict(direction=direction, full_shape=full_shape)
    define = partial(reference.perturbed_matmul, **options)
    if implementation == "reference" and config is None:
        return define(*args)
    from zojax.kernels.perturbed_matmul import gpu, tpu  # Pallas takes a second to import

    # Which blocks are best depends on what a draw costs, and so on the direction.
    backends = configured(f"{NAME}.{direction}", {"tpu": tpu, "gpu": gpu}, implementation, config, *args, **options)
    return dispatch(NAME, implementation, define, backends, *args)


def _check(x: Array, w: Array, direction: str, full_shape: tuple[int, ...], start) -> None:
    if x.ndim != 3 or x.shape[0] not in (1, 2) or x.shape[2] != w.shape[0]:
        raise ValueError(f"x: shape {x.shape}; [1 or 2, m, {w.shape[0]}] is needed beside w of shape {w.shape}")
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"x: {x.dtype}; float32 or bfloat16 is needed")
    if w.dtype.name not in DTYPES:
        raise ValueError(f"w: {w.dtype}; one of {', '.join(DTYPES)} is needed")
    if direction not in reference.DRAWS:
        raise ValueError(f"direction: {direction!r}; one of {', '.join(map(repr, reference.DRAWS))} is needed")
    size = (1,) * (len(full_shape) - 2) + tuple(w.shape)
    if len(full_shape) < 2 or any(n > full for n, full in zip(size, full_shape, strict=True)):
        raise ValueError(f"full_shape: {full_shape} holds no tile of shape {w.shape}")
    if start is not None and len(start) != len(full_shape):
        raise ValueError(f"start: {len(start)} coordinates in a leaf of shape {full_shape}")
