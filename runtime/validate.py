"""Checks of what JSON and TOML files state, against schemas: the first fault in words.

A schema is data:

- `int`: a whole number from 0 to MAX_INT; `float`: a number; `Number`: one within limits.
- `str`, `dict`, `None`: any string, any object, null; `Choice`: one of some strings.
- `[schema]`: a list of any length; `[first, second, …]`: a list of as many items.
- `{key: schema}`: an object with these keys and maybe others; `Table`: one with no others, as people write it.
- `MapOf`: an object whose values all have one schema.
- `(schema, schema)`: what matches one of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

Schema = Any

MAX_INT = (1 << 63) - 1
"""Largest whole number: sums of a few stay within 64 bits."""


@dataclass(frozen=True)
class Number:
    """A number from `least` on, or above it, and at most `most`; `whole` for integers."""

    least: float = 0
    above: bool = False
    whole: bool = False
    most: float = 10**18

    def allows(self, value: Any) -> bool:
        """Whether a value is such a number; NaN is not."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return bool(self.least <= value <= self.most and not (self.above and value == self.least))

    def __str__(self) -> str:
        limits = f"above {self.least:g}, up to" if self.above else f"from {self.least:g} to"
        return f"a {'whole ' if self.whole else ''}number {limits} {self.most:g}"


@dataclass(frozen=True)
class Choice:
    """One of these strings."""

    of: Collection[str]


@dataclass(frozen=True)
class MapOf:
    """An object whose values all have one schema, under any keys or some of `names`."""

    values: Schema
    names: Collection[str] = ()


@dataclass(frozen=True)
class Table:
    """An object with no other keys than these; those that are not `needed` may be absent."""

    keys: Mapping[str, Schema]
    needed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Notation:
    """How a file's format writes things: what it calls an object, a value on one line, and the member of a map."""

    table: str
    value: Callable[[Any], str]
    member: Callable[[str], str]


def _python(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


JSON = Notation("an object", lambda value: json.dumps(value)[:80], lambda key: f"[{json.dumps(key)}]")
TOML = Notation("a table", _python, lambda key: f".{key if key.replace('-', '_').isidentifier() else repr(key)}")


def mismatch(value: Any, schema: Schema, path: str = "", notation: Notation = JSON) -> str | None:
    """The first place where a value doesn't match a schema, in one line, or None.

    It says "KEY is VALUE, want …", or which keys are missing or unknown. `path` is the key of the value itself.
    """
    if not _is_kind(value, schema):
        return f"{path or 'the content'} is {notation.value(value)}, want {_describe(schema, notation)}"
    if isinstance(schema, list):
        schemas = schema * len(value) if len(schema) == 1 else schema
        inner = [(item, schemas[i], f"{path}[{i}]") for i, item in enumerate(value)]
    elif isinstance(schema, dict):
        for key, expected in schema.items():
            if key not in value:
                return f"{_joined(path, f'.{key}')} is missing, want {_describe(expected, notation)}"
        inner = [(value[key], schema[key], _joined(path, f".{key}")) for key in schema]
    elif isinstance(schema, (MapOf, Table)):
        known = schema.names if isinstance(schema, MapOf) else tuple(schema.keys)
        if known and (unknown := sorted(set(value) - set(known))):
            words = ", ".join(_joined(path, notation.member(key)) for key in unknown)
            return f"unknown key {words}; keys are: {', '.join(known)}"
        if isinstance(schema, Table) and (missing := [key for key in schema.needed if key not in value]):
            return f"missing key {', '.join(_joined(path, f'.{key}') for key in missing)}"
        of = dict.fromkeys(value, schema.values) if isinstance(schema, MapOf) else schema.keys
        inner = [(item, of[key], _joined(path, notation.member(key))) for key, item in value.items()]
    else:
        return None
    return next((found for item, one, at in inner if (found := mismatch(item, one, at, notation))), None)


def _joined(path: str, member: str) -> str:
    return f"{path}{member}" if path else member.removeprefix(".")


def _is_kind(value: Any, schema: Schema) -> bool:
    """Whether a value is what a schema asks for, apart from what is in it; of alternatives, all of one of them."""
    if isinstance(schema, tuple):
        return any(mismatch(value, one) is None for one in schema)
    if isinstance(schema, list):
        return isinstance(value, list) and len(schema) in (1, len(value))
    if isinstance(schema, (dict, MapOf, Table)):
        return isinstance(value, dict)
    if isinstance(schema, Number):
        return schema.allows(value)
    if isinstance(schema, Choice):
        return isinstance(value, str) and value in schema.of
    if schema is int:
        return type(value) is int and 0 <= value <= MAX_INT
    if schema is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, type(None) if schema is None else schema)


def _describe(schema: Schema, notation: Notation) -> str:
    if isinstance(schema, tuple):
        return " or ".join(_describe(one, notation) for one in schema)
    if isinstance(schema, list):
        words = [_describe(one, notation) for one in schema]
        return f"a list, each {words[0]}" if len(words) == 1 else f"a list of {len(words)}: {'; '.join(words)}"
    if isinstance(schema, dict):
        return f"{notation.table} with {', '.join(schema)}"
    if isinstance(schema, (MapOf, Table)) or schema is dict:
        return notation.table
    if isinstance(schema, Choice):
        return f"one of: {', '.join(schema.of)}"
    names = {int: "a whole number from 0", float: "a number", str: "a string", None: "null"}
    return str(schema) if isinstance(schema, Number) else names[schema]
