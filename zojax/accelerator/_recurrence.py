"""Gradients of a recurrence's products: of matrices as one product over all frames, of states by transposed matrices.

Differentiated as it stands, a scan adds an outer product to the gradient of each of its matrices at every frame: for a
few rows of a batch that is one pass over all weights a frame, and most of the time of a step. Here the backward scan
carries states alone, and multiplies them by matrices that were transposed once, not at every frame.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["Link", "linked", "run_with_weights_outside"]

Run = Callable[..., tuple[Any, tuple[jax.Array, ...]]]


class Link(NamedTuple):
    """How gradients leave a product x W.

    Attributes:
      back: W transposed, [n_out, n_in].
      tap: takes the gradient of the product: [batch, n_out] of a frame, [time, batch, n_out] of all.
    """

    back: jax.Array
    tap: jax.Array


@jax.custom_vjp
def linked(x: jax.Array, link: Link) -> jax.Array:
    """Zeros that have the gradient of x W to x, and to the tap; for `emulate.emulated`, which reads nothing else."""
    return jnp.zeros((*x.shape[:-1], link.back.shape[0]))


def _linked_backward(back, of_product):
    return of_product @ back, Link(back=jnp.zeros_like(back), tap=of_product)


linked.defvjp(lambda x, link: (linked(x, link), link.back), _linked_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_with_weights_outside(run: Run, weights: tuple[jax.Array, ...], *args: Any) -> Any:
    """The result of a recurrence of products y_t = x_t W, with the gradient dW = sum_t x_t' dy_t.

    Args:
      run: (links, *args) -> (result, seen): makes the nth product of each frame by links[n], unless there are none,
        and tells as seen[n] [time, batch, n_in] what the nth matrix was multiplied with. They are in `args`, too.
      weights: the matrices [n_in, n_out], for their gradient.
      *args: lists of arrays.

    Returns:
      The result of `run`.
    """
    del weights
    return run((), *args)[0]


def _forward(run: Run, weights, *args):
    _, seen = jax.eval_shape(functools.partial(run, ()), *args)
    backs = [w.T for w in weights]
    taps = [jnp.zeros((*x.shape[:-1], w.shape[-1])) for x, w in zip(seen, weights, strict=True)]

    def tapped(taps, *args):
        return run(tuple(map(Link, backs, taps)), *args)

    result, pull, seen = jax.vjp(tapped, taps, *args, has_aux=True)
    return result, (pull, seen)


def _backward(run: Run, residuals, of_result):
    del run
    pull, seen = residuals
    of_taps, *of_args = pull(of_result)
    return tuple(jnp.einsum("tbk,tbn->kn", *pair) for pair in zip(seen, of_taps, strict=True)), *of_args


run_with_weights_outside.defvjp(_forward, _backward)
