"""Callbacks that report the progress of long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total): the stage in words, then parts or bytes; (0, 1) where nothing is counted."""

Count = Callable[[int, int], None]
"""Called with (done, total) by work of a single stage; `partial(progress, stage)` is one."""


def silent(*_: object) -> None:
    """A Progress or Count that does nothing."""
