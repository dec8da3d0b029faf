"""Fields of a `config.json`, checked: what the configuration classes of the models are read with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tilecompile.runtime.errors import InputError

STORED = ("bfloat16", "float16", "float32")
"""Types of a checkpoint's matrices as `dtype` names them."""


def refuse(source: str, field: str, found: object, required: str) -> InputError:
    """The error about a field's value."""
    return InputError(f"{source}: {field} is {found!r}, want {required}")


def check_only(values: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]], source: str) -> None:
    """InputError for a field whose value isn't one of those that are supported; absent fields are supported."""
    for field, supported in only.items():
        if values.get(field, supported[0]) not in supported:
            raise refuse(source, field, values[field], " or ".join(map(repr, supported)))


def agreed(stated: Mapping[str, Any], source: str) -> Any:
    """The value that fields state, by their names; None where none of them does (None stands for no value).

    InputError that names two fields whose values contradict each other.
    """
    found = [(field, value) for field, value in stated.items() if value is not None]
    for field, value in found[1:]:
        if value != found[0][1]:
            raise InputError(
                f"{source}: {found[0][0]} is {found[0][1]!r} and {field} is {value!r}: they contradict each other"
            )
    return found[0][1] if found else None


def check_stored(values: Mapping[str, Any], source: str) -> None:
    """InputError for a checkpoint whose weights are quantised."""
    if (quantization := values.get("quantization_config")) is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise refuse(source, "quantization_config.quant_method", method, "no quantization (f32, bf16 or f16 weights)")


def plain_fields(
    cls: type, values: Mapping[str, Any], source: str, derived: tuple[str, ...] = (), least: Mapping[str, int] = {}
) -> dict[str, Any]:
    """The fields of a configuration class that stand in the values, each in its type and within its range.

    `derived` are those that the caller makes. Numbers are positive, integers at least 1 or what `least` says.
    InputError for missing fields, and for a value of another type or range.
    """
    plain = [f for f in dataclasses.fields(cls) if f.name not in derived]
    missing = [f.name for f in plain if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        raise InputError(f"{source}: missing {', '.join(missing)}")
    return {
        f.name: _checked(f.name, str(f.type), values[f.name], least.get(f.name, 1), source)
        for f in plain
        if f.name in values
    }


def _checked(name: str, kind: str, value: Any, least: int, source: str) -> Any:
    """A field's value in its type, within its range."""
    if kind == "tuple[int, ...]":
        if not isinstance(value, (list, tuple)) or not all(type(v) is int for v in value):
            raise refuse(source, name, value, "an integer or a list of integers")
        return tuple(value)
    if kind == "bool":
        if not isinstance(value, bool):
            raise refuse(source, name, value, "true or false")
        return value
    if kind == "str":
        if value not in STORED:
            raise refuse(source, name, value, f"{', '.join(STORED[:-1])} or {STORED[-1]}")
        return value
    number = isinstance(value, int if kind == "int" else (int, float)) and not isinstance(value, bool)
    if not number or (value < least if kind == "int" else not 0 < value < float("inf")):
        raise refuse(source, name, value, f"an integer of at least {least}" if kind == "int" else "a positive number")
    return value if kind == "int" else float(value)
