"""Runs work that an interrupt (Ctrl-C) can't cut short: half-released resources are unusable."""

from __future__ import annotations

import threading
from collections.abc import Callable


def uninterrupted(work: Callable[[], None]) -> None:
    """Runs the work in a thread, which signals don't reach; then raises an interrupt or the work's error, if any."""
    errors: list[BaseException] = []
    done = threading.Event()  # an interrupted `join` may report the thread as ended

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # whatever it is: the caller gets it
            errors.append(error)
        finally:
            done.set()

    if threading.current_thread() is not threading.main_thread():
        return work()  # signals go to the main thread only
    thread = threading.Thread(target=guarded)
    try:
        thread.start()
    except RuntimeError:  # at the interpreter's end there are no new threads
        return work()
    interrupt: BaseException | None = None
    while not done.is_set():
        try:
            done.wait()
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
    if errors:
        raise errors[0]
    return None
