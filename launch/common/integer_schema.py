"""What the `integer` fields of a config may hold together, and with the others."""

from typing import Any

Config = Any

# What the fields hold where there is no accelerator.
UNUSED = {"weights": "absmax", "bits": 8, "allocation": (), "soft_steps": 0, "every": 1, "strength": 1.0}

# Fields that one way of quantising weights alone reads.
OWN = {
    "bits": ("gq", "s8bqat"),
    "allocation": ("gq", "s8bqat"),
    "every": ("gq", "s8bqat"),
    "soft_steps": ("gq",),
    "centroids": ("gq",),
    "strength": ("s8bqat",),
}


def depth(text: str) -> tuple[str, int] | None:
    """The pattern and the bits of "PATTERN=BITS", or None if it is none."""
    pattern, equals, bits = text.rpartition("=")
    return (pattern, int(bits)) if equals and pattern and bits in tuple("12345678") else None


def check_integer(config: Config) -> None:
    """Says what is wrong with the `integer` fields.

    Raises:
      ValueError: naming the field, its value and what would be right.
    """
    integer, default = config.integer, UNUSED | {"centroids": "uniform"}

    def refuse(name: str, value: Any, why: str) -> None:
        raise ValueError(f"config.{name} is {value!r}; {why}")

    def held(name: str) -> Any:
        value = integer[name]
        return tuple(value) if isinstance(value, tuple | list) else value

    for name, ways in OWN.items():
        if held(name) != default[name] and integer.weights not in ways:
            needed = f"with config.integer.weights={integer.weights!r} it must be {default[name]!r}"
            refuse(f"integer.{name}", held(name), needed)
    if integer.accelerator == "none":
        if integer.weights != "absmax":
            refuse("integer.weights", integer.weights, "without an accelerator it must be 'absmax'")
        if integer.scales != "column":
            refuse("integer.scales", integer.scales, "without an accelerator it must be 'column'")
        return
    speech, method = config.speech, config.method
    for name, value, needed in (
        ("model.name", config.model.name, "transducer"),
        ("speech.encoder", speech.encoder, "lstm"),
        ("speech.band", speech.band, 0),
        ("speech.fusion", speech.fusion, "none"),
    ):
        if value != needed:
            refuse(name, value, f"with an accelerator it must be {needed!r}")
    if method.name != "first_order":
        for name, value, needed in (
            ("integer.weights", integer.weights, "absmax"),
            ("method.probe", method.probe, "codes"),
            ("speech.dropout", speech.dropout, 0),
        ):
            if value != needed:
                refuse(name, value, f"with an accelerator and {method.name} it must be {needed!r}")
    elif integer.forward == "emulation" and speech.dropout:
        refuse("speech.dropout", speech.dropout, "with config.integer.forward='emulation' it must be 0")
