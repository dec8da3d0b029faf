"""Claims to an engine: one request holds it at a time, and never beyond its end, however it ends; others may queue."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tilecompile.runtime.errors import EngineBusy

Claim = threading.Lock
"""A request's claim: a lock of its own, which is locked as long as the request has the engine or waits for it.

No interrupt, wherever it falls, may leave an engine taken. So a request holds its claim with `with claim:`, which
unlocks it in C, where no interrupt is raised; and `Claims` refers to it weakly, so that dropping a claim gives it
up, too.
"""

WAKE_SECONDS = 0.02
"""Time after which a waiting claim looks by itself whether it is first: an interrupt may have kept others from waking
it."""


class Claims:
    """The claims to an engine in the order in which they came: the first that is still held has the engine.

    Each has a bell beside it, a locked lock that is unlocked to wake who waits. The line is replaced, never changed: a
    stream that is collected as garbage gives up its claim in the middle of whatever else its thread does.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guard = threading.Lock()
        self._line: tuple[tuple[weakref.ref[threading.Lock], threading.Lock], ...] = ()

    def take(self, claim: threading.Lock, wait: bool = False, check: Callable[[], None] = lambda: None) -> None:
        """Assigns the engine to a claim, which must be locked.

        While other claims are held: EngineBusy, or with `wait` it waits for those that came before. `check` is called
        whenever it wakes, and at least every WAKE_SECONDS; what it raises ends the waiting.
        """
        bell = threading.Lock()
        bell.acquire()
        with self._guard:
            self._line = tuple(entry for entry in self._line if _locked(entry[0]))
            first = not self._line
            if not first and not wait:
                raise EngineBusy(
                    f"{self._folder}: a request is running and an engine runs one at a time; "
                    "wait for it or close its stream, or queue with wait=True"
                )
            self._line += ((weakref.ref(claim), bell),)
        while not first:
            bell.acquire(timeout=WAKE_SECONDS)
            check()
            first = self._first() is bell

    def pass_on(self) -> None:
        """Wakes the claim that is first in the line, after another was given up."""
        bell = self._first()
        if bell is not None and bell.locked():
            with suppress(RuntimeError):  # another thread was quicker
                bell.release()

    def _first(self) -> threading.Lock | None:
        """The bell of the first claim that is held, if any."""
        return next((bell for claim, bell in self._line if _locked(claim)), None)


def _locked(claim: weakref.ref[threading.Lock]) -> bool:
    lock = claim()
    return lock is not None and lock.locked()
