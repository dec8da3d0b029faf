"""Claims to an engine: one request holds it at a time, and never beyond its end, however it ends."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from tilecompile.runtime.errors import EngineError

Claim = threading.Lock
"""A request's claim: a lock of its own, which is locked as long as the request has the engine.

No interrupt, wherever it falls, may leave an engine taken. So a request holds its claim with `with claim:`, which
unlocks it in C, where no interrupt is raised; and `Claims` refers to it weakly, so that dropping a claim gives it
up, too.
"""


class Claims:
    """The claim that holds an engine, if any."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guard = threading.Lock()
        self._holder: Callable[[], threading.Lock | None] = lambda: None

    def take(self, claim: threading.Lock) -> None:
        """Assigns the engine to a claim, which must be locked. EngineError if another locked claim holds it."""
        with self._guard:
            holder = self._holder()
            if holder is not None and holder.locked():
                raise EngineError(
                    f"{self._folder}: a request is running and an engine runs one at a time; "
                    "wait for it or close its stream"
                )
            self._holder = weakref.ref(claim)
