"""Misuse of an engine, on the real kernel: streams left, threads, closing, exits, forks."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tilecompile
from support.using import PROMPT, script
from tilecompile.errors import EngineError

LONG = 100_000

# Streams


def consume(engine: tilecompile.Engine) -> None:
    """A consumer that fails in the middle of a stream."""
    for i, _ in enumerate(engine.stream(PROMPT, LONG)):
        if i == 5:
            raise RuntimeError("of the consumer")


def test_an_exception_in_the_consumer_of_a_stream_frees_the_engine(
    engine: tilecompile.Engine, tokens: list[int]
) -> None:
    begin = time.perf_counter()
    with pytest.raises(RuntimeError) as error:
        consume(engine)
    assert engine.generate(PROMPT, 50).tokens == tokens[:50], "the traceback must not keep the request"
    del error
    stream = engine.stream(PROMPT, LONG)
    next(stream)
    with pytest.raises(RuntimeError), stream:
        raise RuntimeError
    assert engine.generate(PROMPT, 50).tokens == tokens[:50]
    assert time.perf_counter() - begin < 1


def test_a_dropped_stream_frees_the_engine(engine: tilecompile.Engine, tokens: list[int]) -> None:
    for _ in range(20):
        stream = engine.stream(PROMPT, LONG)
        assert [next(stream) for _ in range(3)] == tokens[:3]
        del stream
    gc.collect()
    assert engine.generate(PROMPT, 50).tokens == tokens[:50]


def test_a_stream_in_a_reference_cycle_holds_the_engine_until_collected(
    engine: tilecompile.Engine, tokens: list[int]
) -> None:
    """A stream that is unreachable, but isn't collected yet, holds the engine: the error says what to do."""
    holder: list[Any] = [engine.stream(PROMPT, LONG)]
    holder.append(holder)
    next(holder[0])
    gc.disable()
    try:
        del holder
        with pytest.raises(EngineError, match="wait for it or close its stream"):
            engine.generate(PROMPT, 1)
    finally:
        gc.enable()
    gc.collect()
    assert engine.generate(PROMPT, 50).tokens == tokens[:50]


# Threads


def test_requests_of_many_threads_are_served_or_refused_whole(engine: tilecompile.Engine, tokens: list[int]) -> None:
    """Each call either has the engine exclusively or is refused; no answers are mixed."""
    wrong: list[Any] = []
    done: list[int] = []

    def use(seed: int) -> None:
        for i in range(60):
            count = 1 + (seed * 7 + i) % 40
            try:
                if (seed + i) % 3 == 0:
                    got = list(engine.stream(PROMPT, count))
                elif (seed + i) % 3 == 1:
                    engine.score(PROMPT)
                    got = tokens[:count]
                else:
                    got = engine.generate(PROMPT, count).tokens
                done.append(seed)
                if got != tokens[:count]:
                    wrong.append(got)
            except EngineError as error:
                if "a request is running" not in str(error):
                    wrong.append(error)

    threads = [threading.Thread(target=use, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(done) >= 60
    assert engine.stats.launches == 1


@pytest.mark.parametrize("call", ["generate", "stream", "score"])
def test_close_during_a_request_ends_it_in_time(tiny: Path, call: str) -> None:
    for delay in (0.0, 0.002, 0.1):
        engine = tilecompile.load(tiny)
        calls: dict[str, Callable[[], Any]] = {
            "generate": lambda: engine.generate(PROMPT, LONG),  # noqa: B023
            "stream": lambda: list(engine.stream(PROMPT, LONG)),  # noqa: B023
            "score": lambda: engine.score([1] * 10_000),  # noqa: B023
        }
        errors: list[str] = []

        def run(call: Callable[[], Any] = calls[call], errors: list[str] = errors) -> None:
            try:
                call()
            except EngineError as error:
                errors.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(delay)
        engine.close()
        thread.join(5)
        assert len(errors) == 1
        assert errors[0].endswith("the engine is closed")
        for again in calls.values():
            with pytest.raises(EngineError, match="the engine is closed"):
                again()
        engine.close()
        assert engine.stats.launches == 1


# The end of the interpreter

ENDINGS = {
    "open": "",
    "used": "e.generate(PROMPT, 5)",
    "stream left open": "s = e.stream(PROMPT, 100000); next(s)",
    "stream in a global cycle": "s = [e.stream(PROMPT, 100000)]; s.append(s); next(s[0])",
    "exit in a stream": "for t in e.stream(PROMPT, 100000): sys.exit()",
    "closed at exit": "import atexit; atexit.register(e.close)",
    "os._exit": "s = e.stream(PROMPT, 100000); next(s); os._exit(0)",
    "several engines": "f = [tilecompile.load(e.manifest.folder) for _ in '123']; s = f[0].stream(PROMPT, 9); next(s)",
    "thread": "threading.Thread(target=e.generate, args=(PROMPT, 500)).start(); time.sleep(0.05)",
}
DAEMON = """
def run():
    try:
        while True: {call}
    except tilecompile.errors.EngineError: pass
for _ in range({threads}): threading.Thread(target=run, daemon=True).start()
time.sleep(0.1)
"""


@pytest.mark.parametrize("name", ENDINGS)
def test_the_interpreter_exits_with_an_engine_in_any_state(tiny: Path, name: str) -> None:
    script(tiny, ENDINGS[name], timeout=20)


@pytest.mark.parametrize(
    "call", ["e.generate(PROMPT, 100000)", "list(e.stream(PROMPT, 100000))", "e.score([1] * 9000)"]
)
def test_the_interpreter_exits_while_a_daemon_thread_waits_for_the_engine(tiny: Path, call: str) -> None:
    script(tiny, "import tilecompile.errors\n" + DAEMON.format(call=call, threads=1), timeout=20)


def test_an_uncaught_exception_amid_a_stream_ends_the_process(tiny: Path) -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        script(tiny, "s = e.stream(PROMPT, 100000)\nfor t in s: 1 / 0", code=1, timeout=20)


# Forks

CHILD = """
{before}
child = os.fork()
if child == 0:
    from tilecompile.errors import EngineError
    for call in (lambda: e.generate(PROMPT, 3), lambda: e.score(PROMPT), lambda: next(e.stream(PROMPT)), {more}):
        try:
            call()
        except EngineError as error:
            assert "fork" in str(error), error
        else:
            raise AssertionError("not refused")
    {end}
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
{after}
print(e.generate(PROMPT, 50).tokens, e.stats.launches)
"""
NOT = "lambda: e.generate('a', 1)"


@pytest.mark.parametrize("end", ["sys.exit()", "e.close(); sys.exit()", "del e; sys.exit()", "os._exit(0)"])
def test_a_fork_can_not_use_the_engine_and_the_parent_can(tiny: Path, tokens: list[int], end: str) -> None:
    text = CHILD.format(before="e.generate(PROMPT, 3)", more=NOT, end=end, after="")
    assert script(tiny, text, timeout=20) == f"{tokens[:50]} 1\n"


def test_a_fork_amid_a_stream_leaves_it_to_the_parent(tiny: Path, tokens: list[int]) -> None:
    """The child can't go on with the parent's stream; the parent can."""
    before = "s = e.stream(PROMPT, 3000)\nfirst = [next(s) for _ in range(3)]"
    more = "lambda: list(s), lambda: s.close() or e.generate(PROMPT)"
    text = CHILD.format(before=before, more=more, end="sys.exit()", after="rest = list(s)\nprint(len(rest))")
    assert script(tiny, text, timeout=20) == f"2997\n{tokens[:50]} 1\n"


def test_a_fork_while_a_thread_generates_leaves_it_running(tiny: Path, tokens: list[int]) -> None:
    """The thread may hold the engine's mutex at that moment, and isn't there to give it back."""
    for _ in range(3):
        before = "t = threading.Thread(target=e.generate, args=(PROMPT, 3000)); t.start(); time.sleep(0.02)"
        text = CHILD.format(before=before, more=NOT, end="sys.exit()", after="t.join()")
        assert script(tiny, text, timeout=20) == f"{tokens[:50]} 1\n"


def test_a_multiprocessing_pool_runs_beside_an_engine(tiny: Path) -> None:
    text = """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(abs, [-1]), len(e.generate(PROMPT, 3).tokens))
"""
    assert script(tiny, text, timeout=20) == "[1] 3\n"
