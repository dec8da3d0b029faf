"""A machine description as a TOML file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tilecompile.schedules.machine import Machine

DIGITS = 5
"""Significant digits of what was measured."""


def machine_toml(machine: Machine) -> str:
    """The text of a file from which `load_machine` reads the same machine, but for digits beyond DIGITS."""
    values = _plain(machine)
    lines = ["# What a step costs on a machine: see `tilecompile calibrate --help`."]
    _write(values, "", lines)
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """Dataclasses as tables; None, empty tables and lists left out."""
    if hasattr(value, "__dataclass_fields__"):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        found = {str(key): _plain(item) for key, item in value.items()}
        return {key: item for key, item in found.items() if item is not None and item != {} and item != []}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _write(table: dict[str, Any], path: str, lines: list[str]) -> None:
    lines += [f"{key} = {_text(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            inner = f"{path}.{key}" if path else key
            lines += ["", f"[{inner}]"]
            _write(value, inner, lines)


def _text(value: Any) -> str:
    return "[" + ", ".join(map(_text, value)) + "]" if isinstance(value, list) else json.dumps(value)
