"""How long work tells its caller how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with a stage in words, and how much of it is done of how much: parts, or bytes; 0 of 1 where nobody counts."""

Count = Callable[[int, int], None]
"""Called with how much is done of how much, by work that is one stage; `partial(progress, stage)` is one."""


def silent(*_: object) -> None:
    """A Progress or Count that nobody follows."""
