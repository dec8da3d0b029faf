"""Checks of what a user's TOML file states, against kinds of values: the first fault in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

MOST = 10**18
"""No number may be larger."""

SHOWN = 60
"""Characters of a wrong value that are shown."""


@dataclass(frozen=True)
class Number:
    """A number of at least `least`, or above it, and at most MOST; `whole` for integers."""

    least: float = 0
    above: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Text:
    """A string, one of `choices` where there are any."""

    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class ListOf:
    """A list with any number of items of one kind, or, for several kinds, one of each."""

    items: tuple[Kind, ...]


@dataclass(frozen=True)
class TableOf:
    """A table whose values all have one kind, under any names or some of `names`."""

    values: Kind
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table with these keys; those that are not `needed` may be absent."""

    keys: dict[str, Kind] = field(default_factory=dict)
    needed: tuple[str, ...] = ()


Kind = Number | Text | ListOf | TableOf | Table


def fault(value: Any, kind: Kind, path: str = "") -> str | None:
    """The first place where a value is not of its kind, as "KEY is VALUE, want …", or None."""
    inner: Iterable[tuple[Any, Kind, str]] = ()
    dot = f"{path}." if path else ""
    if isinstance(kind, Number):
        wrong = not _is_number(value, kind)
    elif isinstance(kind, Text):
        wrong = not isinstance(value, str) or bool(kind.choices and value not in kind.choices)
    elif isinstance(kind, ListOf):
        many = len(kind.items) > 1
        wrong = not isinstance(value, list) or (many and len(value) != len(kind.items))
        if not wrong:
            kinds = kind.items if many else kind.items * len(value)
            inner = [(v, k, f"{path}[{i}]") for i, (v, k) in enumerate(zip(value, kinds, strict=True))]
    else:
        wrong = not isinstance(value, dict)
        if not wrong:
            names = tuple(kind.keys) if isinstance(kind, Table) else kind.names
            unknown = sorted(set(value) - set(names)) if names else []
            if unknown:
                listed = ", ".join(dot + _key(name) for name in unknown)
                return f"unknown key {listed}; keys are: {', '.join(names)}"
            if isinstance(kind, Table):
                missing = [dot + name for name in kind.needed if name not in value]
                if missing:
                    return f"missing key {', '.join(missing)}"
            inner = [
                (v, kind.keys[k] if isinstance(kind, Table) else kind.values, dot + _key(k)) for k, v in value.items()
            ]
    if wrong:
        return f"{path or 'the content'} is {_shown(value)}, want {_words(kind)}"
    return next((found for v, k, p in inner if (found := fault(v, k, p))), None)


def _is_number(value: Any, kind: Number) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if kind.whole else (int, float)):
        return False
    return bool(kind.least <= value <= MOST and not (kind.above and value == kind.least))


def _key(name: str) -> str:
    """A key as TOML has it, on one line."""
    return name if name.replace("-", "_").isidentifier() else repr(name)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _words(kind: Kind) -> str:
    if isinstance(kind, Number):
        limits = f"above {kind.least:g}, up to" if kind.above else f"from {kind.least:g} to"
        return f"a {'whole ' if kind.whole else ''}number {limits} {MOST:g}"
    if isinstance(kind, Text):
        return f"one of: {', '.join(kind.choices)}" if kind.choices else "a string"
    if isinstance(kind, ListOf):
        if len(kind.items) == 1:
            return f"a list, each {_words(kind.items[0])}"
        return f"a list of {len(kind.items)}: {'; '.join(_words(k) for k in kind.items)}"
    return "a table"
