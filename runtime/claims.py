"""Claims to an engine: one request holds it at a time, and never beyond its end, however it ends; others may queue."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
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

    Each has a bell beside it, a locked lock that is unlocked to wake who waits.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guard = threading.Lock()
        self._line: deque[tuple[weakref.ref[threading.Lock], threading.Lock]] = deque()

    def take(self, claim: threading.Lock, wait: bool = False, check: Callable[[], None] = lambda: None) -> None:
        """Assigns the engine to a claim, which must be locked.

        While other claims are held: EngineBusy, or with `wait` it waits for those that came before. `check` is called
        whenever it wakes, and at least every WAKE_SECONDS; what it raises ends the waiting.
        """
        bell = threading.Lock()
        bell.acquire()
        with self._guard:
            first = not self._held()
            if not first and not wait:
                raise EngineBusy(
                    f"{self._folder}: a request is running and an engine runs one at a time; "
                    "wait for it or close its stream, or queue with wait=True"
                )
            self._line.append((weakref.ref(claim), bell))
        while not first:
            bell.acquire(timeout=WAKE_SECONDS)
            check()
            with self._guard:
                first = self._held() and self._line[0][1] is bell

    def pass_on(self) -> None:
        """Wakes the claim that is first in the line, after another was given up."""
        with self._guard:
            if self._held() and self._line[0][1].locked():
                self._line[0][1].release()

    def _held(self) -> bool:
        """Whether any claim is held, once those before it that were given up are out of the line."""
        while self._line and not _locked(self._line[0][0]):
            self._line.popleft()
        return bool(self._line)


def _locked(claim: weakref.ref[threading.Lock]) -> bool:
    lock = claim()
    return lock is not None and lock.locked()
