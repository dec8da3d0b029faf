"""Which request holds an engine: interrupts at every moment of a request, and claims that are lost."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import tilecompile
from support import fake_engine as fake
from tilecompile.errors import EngineError
from tilecompile.runtime.claims import Claim, Claims

PROMPT = [1, 2, 3]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tilecompile.Engine]:
    with tilecompile.load(fake.make_engine(tmp_path_factory.mktemp("claims") / "engine")) as engine:
        yield engine


def interrupted(work: Callable[[], Any], moment: int) -> KeyboardInterrupt | None:
    """Does the work with an interrupt at its nth moment at which Python raises one; None if it ended before that.

    These are the starts of functions in Python and the returns of those in C. Jumps back are left out.
    """
    left = moment

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        work()
    except KeyboardInterrupt as error:
        return error
    finally:
        sys.setprofile(None)
    return None


CALLS: dict[str, Callable[[tilecompile.Engine], Any]] = {
    "generate": lambda engine: engine.generate(PROMPT, 3),
    "queued": lambda engine: engine.generate(PROMPT, 3, wait=True),
    "reset": lambda engine: engine.reset(),
    "score": lambda engine: engine.score(PROMPT),
    "buffers_after": lambda engine: engine.buffers_after(PROMPT),
    "stream": lambda engine: list(engine.stream(PROMPT, 3)),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("call", CALLS)
def test_engine_is_free_after_an_interrupt_at_any_moment(engine: tilecompile.Engine, call: str) -> None:
    """Even while the exception is kept, and with it all that its frames refer to; but that keeps a stream open."""
    want = fake.greedy(PROMPT, 3)
    moment = 0
    while (error := interrupted(lambda: CALLS[call](engine), moment)) is not None:
        if call == "stream":
            del error
        assert engine.generate(PROMPT, 3).tokens == want, f"after an interrupt at moment {moment}"
        moment += 1
    assert moment > 25
    assert engine.stats.launches == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_engine_is_free_after_an_interrupt_at_any_moment_of_the_queue(engine: tilecompile.Engine) -> None:
    errors = []  # kept, with all that their frames refer to
    for moment in range(70):
        with engine.stream(PROMPT, 3) as stream:
            next(stream)
            error = interrupted(lambda: engine.generate(PROMPT, 3, wait=True), moment)
            assert error is not None
            errors.append(error)
        assert engine.generate(PROMPT, 3).tokens == fake.greedy(PROMPT, 3), f"after an interrupt at moment {moment}"


def test_claim_that_is_held_refuses_others() -> None:
    claims, first, second = Claims(Path("folder")), Claim(), Claim()
    with first:
        claims.take(first)
        with second, pytest.raises(EngineError, match="folder: a request is running"):
            claims.take(second)
    with second:
        claims.take(second)
        assert second.locked()


def test_claim_that_is_lost_is_given_up() -> None:
    claims = Claims(Path("folder"))
    first, second = Claim(), Claim()
    first.acquire()
    claims.take(first)
    del first
    gc.collect()
    with second:
        claims.take(second)


def test_one_of_many_threads_gets_the_engine() -> None:
    claims, start, taken = Claims(Path("folder")), threading.Barrier(8), threading.Barrier(8)
    refused: list[str] = []

    def use() -> None:
        with (claim := Claim()):
            start.wait(10)
            try:
                claims.take(claim)
            except EngineError as error:
                refused.append(str(error))
            taken.wait(10)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
