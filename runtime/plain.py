"""Values as JSON has them, copied: what code that isn't trusted may see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from tilecompile.runtime.errors import InputError


def plain(value: Any, path: str) -> Any:
    """A copy of a value in plain objects, lists, texts, numbers, booleans and None.

    Data classes become objects, numpy's scalars and subclasses of the plain types those types. InputError for anything
    else, which names the place in the value at `path`.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, np.generic):
        return plain(value.item(), path)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key, path): plain(item, _inner(path, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item, f"{path}[{position}]") for position, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), _inner(path, field.name)) for field in fields(value)}
    raise InputError(f"{path or 'the value'} is a {type(value).__name__}, want what JSON has")


def _inner(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
