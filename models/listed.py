"""Names in one line."""

from __future__ import annotations

from collections.abc import Iterable

NAMED = 10
"""Most names in a line."""


def listed(names: Iterable[str]) -> str:
    """Names in one line, cut after NAMED."""
    found = list(names)
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more
