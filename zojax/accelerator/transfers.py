"""Operators that leave the accelerator: run in float32 elsewhere, and counted.

An accelerator names what it lacks. Softmax and layer norm take codes, compute the real function in float32 and round
the result to codes; operators that are made of others (attention, squeeze-and-excitation) keep their integers there. In
a program such an operator is a call of its own, whose name says that it leaves, so the transfers of a whole model are
counted by reading its program; nothing is counted while it runs.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxprs_in_params

from zojax.accelerator.device import Accelerator

__all__ = ["Transfer", "leave", "transfers"]

_MARK = "leaves_accelerator_"


class Transfer(NamedTuple):
    """How often a program leaves the accelerator for an operator, and what crosses.

    Attributes:
      operator: its name, one of `device.OPERATORS`.
      calls: how often, loops counted with their lengths.
      bytes: of arguments and results of all calls together, weights not among them. In the integer mode that is what
        crosses; an emulated value has its float beside the codes.
    """

    operator: str
    calls: int
    bytes: int


def leave(operator: str, function: Callable, *args: Any) -> Any:
    """function(*args), marked as running outside of the accelerator.

    Args:
      operator: which operator it is.
      function: from codes to codes; what it closes over is there already.
      *args: what crosses.

    Returns:
      What the function returns.

    Example:
      >>> import jax.numpy as jnp
      >>> leave("softmax", lambda x: x + 1, jnp.int32(1)).tolist()
      2
    """

    def call(*args):
        return function(*args)

    # The number of arrays that cross: what the function closes over stands before them in the program.
    call.__name__ = f"{_MARK}{operator}_{len(jax.tree.leaves(args))}"
    return jax.jit(call)(*args)


def lacks(accelerator: Accelerator, operator: str) -> bool:
    """Whether an operator runs outside."""
    return operator in accelerator.lacks


def transfers(function: Callable, *args: Any) -> tuple[Transfer, ...]:
    """The transfers of function(*args), read from its program.

    Loops count by their length; of the branches of a condition, each counts; loops without a fixed length once.

    Args:
      function: any traceable function.
      *args: its arguments, or `jax.ShapeDtypeStruct`s of them.

    Returns:
      One `Transfer` an operator, by name.

    Example:
      >>> import jax.numpy as jnp
      >>> def model(x):
      ...     step = lambda c, _: (leave("softmax", lambda v: v + 1, c), None)
      ...     return jax.lax.scan(step, x, None, length=5)[0]
      >>> transfers(model, jnp.zeros((4,), jnp.int8))
      (Transfer(operator='softmax', calls=5, bytes=40),)
    """
    found: dict[str, Transfer] = {}
    for operator, calls, size in _calls(jax.make_jaxpr(function)(*args).jaxpr):
        old = found.get(operator, Transfer(operator, 0, 0))
        found[operator] = Transfer(operator, old.calls + calls, old.bytes + calls * size)
    return tuple(found[name] for name in sorted(found))


def _calls(jaxpr: Any) -> Iterator[tuple[str, int, int]]:
    for equation in jaxpr.eqns:
        name = equation.params.get("name", "")
        if isinstance(name, str) and name.startswith(_MARK):
            operator, given = name[len(_MARK) :].rsplit("_", 1)
            crossing = (*equation.invars[len(equation.invars) - int(given) :], *equation.outvars)
            yield operator, 1, sum(v.aval.size * v.aval.dtype.itemsize for v in crossing)
            continue
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(equation.params):
            yield from ((operator, calls * times, size) for operator, calls, size in _calls(inner))
