"""What the configurations of the language models share: reading a Hugging Face config.json into a dataclass."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["check_sizes", "fill", "read"]

T = TypeVar("T")


def read(path: Path | str) -> dict[str, Any]:
    """Reads the JSON object of a config.json.

    Args:
      path: the file.

    Returns:
      The object.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is no JSON object.

    Example:
      >>> import tempfile
      >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
      ...     _ = file.write('{"model_type": "bert"}'), file.flush()
      ...     read(file.name)
      {'model_type': 'bert'}
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a JSON {type(values).__name__}; it must hold an object")
    return values


def fill(cls: type[T], values: Mapping[str, Any]) -> T:
    """Makes a dataclass from the keys of config.json that have the names of its fields; other keys are passed over.

    A null is taken for a missing key. Fields of int, float, bool and str are checked; others are taken as they are.

    Args:
      cls: the dataclass.
      values: the parsed object.

    Returns:
      The dataclass.

    Raises:
      ValueError: if a field without default is missing, or a value is of another type.

    Example:
      >>> @dataclasses.dataclass
      ... class Sizes:
      ...     width: int
      ...     eps: float = 1e-5
      >>> fill(Sizes, {"width": 4, "eps": 1, "comment": "x"})
      Sizes(width=4, eps=1.0)
    """
    values = {name: value for name, value in values.items() if value is not None}
    fields = [f for f in dataclasses.fields(cls) if f.init]  # pyright: ignore[reportArgumentType]
    types, given = typing.get_type_hints(cls), {}
    for name in (f.name for f in fields if f.name in values):
        kind, value = types[name], values[name]
        if kind in (int, float, bool, str):
            # JSON writes the float 1.0 as 1, too; and True is an int to Python.
            allowed = (int, float) if kind is float else kind
            if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"config.json: {name} is {value!r}; it must be of type {kind.__name__}")
            value = kind(value)
        given[name] = value
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    return cls(**given)


def check_sizes(config: Any, *, may_be_zero: tuple[str, ...] = ()) -> None:
    """Refuses a configuration with an integer that is not positive.

    Args:
      config: a dataclass.
      may_be_zero: fields for which 0 is a value.

    Raises:
      ValueError: naming the field.

    Example:
      >>> Sizes = dataclasses.make_dataclass("Sizes", [("width", int)])
      >>> check_sizes(Sizes(0))
      Traceback (most recent call last):
      ...
      ValueError: Sizes.width is 0; it must be positive
    """
    for field in dataclasses.fields(config):
        size = getattr(config, field.name)
        if field.type is int and size < (0 if field.name in may_be_zero else 1):
            kind = "0 or more" if field.name in may_be_zero else "positive"
            raise ValueError(f"{type(config).__name__}.{field.name} is {size}; it must be {kind}")
