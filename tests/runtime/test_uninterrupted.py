"""Work that must not be interrupted is completed, whatever signals arrive."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from tilecompile.runtime.uninterrupted import uninterrupted


def test_an_interrupt_comes_once_the_work_is_done() -> None:
    done: list[int] = []

    def work() -> None:
        for i in range(20):
            time.sleep(0.02)
            done.append(i)

    main = threading.main_thread().ident or 0
    timers = [threading.Timer(after, signal.pthread_kill, (main, signal.SIGINT)) for after in (0.05, 0.15)]
    for timer in timers:
        timer.start()
    with pytest.raises(KeyboardInterrupt):
        uninterrupted(work)
    assert done == list(range(20))


def test_an_error_of_the_work_reaches_the_caller() -> None:
    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        uninterrupted(work)
    other: list[BaseException] = []

    def elsewhere() -> None:
        try:
            uninterrupted(work)
        except ValueError as error:
            other.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert [str(error) for error in other] == ["no"]
