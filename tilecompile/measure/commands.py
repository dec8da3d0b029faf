"""Commands that a user gives for a peer: NAME=COMMAND, with places in braces that are filled in."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from tilecompile.errors import InputError


def named_command(text: str) -> tuple[str, tuple[str, ...]]:
    """Name and words of a --peer NAME=COMMAND. InputError if it isn't one."""
    name, equals, command = text.partition("=")
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise InputError(f"--peer {text!r}: {error}") from None
    if not equals or not name.strip() or not words:
        raise InputError(f"--peer is {text!r}, want NAME=COMMAND")
    return name.strip(), words


def check_names(names: Sequence[str]) -> None:
    """Raises InputError if a name occurs twice."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name!r} is named twice, want every name once")


def filled(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The words of a command with {PLACE} replaced by its value; other braces stay."""
    out = []
    for word in words:
        for place, value in values.items():
            word = word.replace(f"{{{place}}}", value)
        out.append(word)
    return out
