"""The engine, from import to the first token; run by `marks.py`."""

from __future__ import annotations

from collections.abc import Callable


def main(mark: Callable[..., None], engine: str, ids: str, threads: str, device: str) -> None:
    """Does what a user's program does."""
    from tilecompile import load

    mark("imported")
    with load(engine, int(threads) if device == "cpu" else None) as loaded:
        mark("loaded")
        with loaded.stream([int(item) for item in ids.split(",")], 1) as stream:
            token = next(stream)
            mark("first_token", token)
