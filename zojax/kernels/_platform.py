"""What the operators share: the choice of an implementation, and sizes rounded up to blocks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from jax import lax

from zojax.kernels.autotune import cached


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to compute an operator on one platform.

    Attributes:
      platform: the platform as `jax.lax.platform_dependent` names it: "tpu" or "cuda".
      supported: of the operator's arguments: None, or the reason why this back end refuses them.
      run: the operator, with its block sizes bound.
    """

    platform: str
    supported: Callable[..., str | None]
    run: Callable[..., Any]


def configured(
    operator: str, modules: Mapping[str, Any], implementation: str | None, config: Any, *args, **options
) -> dict[str, Backend]:
    """The back ends of an operator with their block sizes bound, for `dispatch`.

    Args:
      operator: name of the operator.
      modules: the back ends' modules by name, each with `PLATFORM`, `Config`, `default_config(*args)`, and with
        `supported` and `run`, which take (*args, config=..., **options).
      implementation: as in `dispatch`.
      config: the named implementation's `Config`; None, and for all other back ends: the choice that autotune has
        stored for these arguments, else the back end's default.
      *args: arrays.
      **options: static arguments.

    Returns:
      Back ends by name.

    Raises:
      ValueError: if a config is given without the implementation that it is for, or is of another class.
    """
    wanted = modules[implementation].Config if implementation and implementation in modules else None
    if config is not None and (wanted is None or not isinstance(config, wanted)):
        raise ValueError(
            f"config: {type(config).__module__}.{type(config).__name__} with implementation={implementation!r}; name "
            "the implementation that it is for"
        )
    backends = {}
    for name, module in modules.items():
        if config is not None and name == implementation:
            chosen = config
        else:
            chosen = cached(f"{operator}.{name}", module.Config, *args) or module.default_config(*args)
        backends[name] = Backend(
            platform=module.PLATFORM,
            supported=partial(module.supported, config=chosen, **options),
            run=partial(module.run, config=chosen, **options),
        )
    return backends


def dispatch(
    operator: str,
    implementation: str | None,
    reference: Callable[..., Any],
    backends: Mapping[str, Backend],
    *args,
) -> Any:
    """reference(*args), computed by a back end.

    Args:
      operator: name of the operator, for messages.
      implementation: "reference", or a name in `backends`: that one and no other; None: on each platform that the
        program is lowered for, the first back end of that platform that supports the arguments, else the reference.
      reference: the definition.
      backends: back ends by name, the preferred one of a platform first.
      *args: arrays.

    Returns:
      The operator's result.

    Raises:
      ValueError: if the named implementation does not exist or does not support the arguments.
    """
    if implementation == "reference":
        return reference(*args)
    if implementation is not None:
        if implementation not in backends:
            names = ", ".join(repr(name) for name in ("reference", *backends))
            raise ValueError(f"implementation: {operator} has none named {implementation!r}; it has {names}")
        if reason := backends[implementation].supported(*args):
            raise ValueError(f"implementation: {operator} cannot run as {implementation!r}: {reason}")
        return backends[implementation].run(*args)
    chosen: dict[str, Callable[..., Any]] = {}
    for backend in backends.values():
        if backend.platform not in chosen and backend.supported(*args) is None:
            chosen[backend.platform] = backend.run
    return lax.platform_dependent(*args, default=reference, **chosen) if chosen else reference(*args)


def cdiv(n: int, block: int) -> int:
    """The number of blocks that cover n."""
    return -(-n // block)


def round_up(n: int, block: int) -> int:
    """The least multiple of block that is not below n."""
    return cdiv(n, block) * block


def is_power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0
