"""Requests that queue for an engine: in the order in which they came, and never for ever."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tilecompile
from support import fake_engine as fake
from tilecompile.errors import EngineBusy, EngineError
from tilecompile.runtime.claims import Claim, Claims

PROMPT = [1, 2, 3]


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.make_engine(tmp_path_factory.mktemp("slow") / "engine", step_us=10_000)


@pytest.fixture
def slow(slow_folder: Path) -> Iterator[tilecompile.Engine]:
    with tilecompile.load(slow_folder) as engine:
        yield engine


def in_order(calls: list[Callable[[], object]]) -> list[threading.Thread]:
    """Starts a thread for each call, one after another."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
        time.sleep(0.03)
    return threads


def test_requests_are_served_in_the_order_in_which_they_came(slow: tilecompile.Engine) -> None:
    done: list[int] = []

    def use(i: int) -> None:
        tokens = list(slow.stream([i], 3, wait=True)) if i % 2 else slow.generate([i], 3, wait=True).tokens
        assert tokens == fake.greedy([i], 3)
        done.append(i)

    threads = in_order([lambda i=i: use(i) for i in range(6)])  # type: ignore[misc]
    with pytest.raises(EngineBusy, match="queue with wait=True"):
        slow.generate(PROMPT)
    with pytest.raises(EngineBusy):
        slow.reset()
    for thread in threads:
        thread.join(10)
    assert done == list(range(6))
    assert slow.generate(PROMPT, 2).tokens == fake.greedy(PROMPT, 2)


def test_a_waiting_request_begins_as_soon_as_the_one_before_has_ended(slow: tilecompile.Engine) -> None:
    with slow.stream([1], 100) as stream:
        next(stream)
        began: list[float] = []
        other = slow.stream([2], 1, wait=True)
        thread = threading.Thread(target=lambda: began.append(next(other) and time.perf_counter()))
        thread.start()
        time.sleep(0.1)
        assert not began
        stream.close()
        end = time.perf_counter()
        thread.join()
        assert began[0] - end < 0.5


def test_closing_the_engine_ends_who_waits(slow_folder: Path) -> None:
    engine = tilecompile.load(slow_folder)
    stream = engine.stream([1], None)
    next(stream)
    errors: list[str] = []

    def use() -> None:
        try:
            engine.generate(PROMPT, wait=True)
        except EngineError as error:
            errors.append(str(error))

    threads = in_order([use] * 3)
    engine.close()
    for thread in threads:
        thread.join(5)
    assert [error.rpartition(": ")[2] for error in errors] == ["the engine is closed"] * 3


def test_who_waits_goes_on_waiting_while_the_kernel_is_launched_again(
    slow: tilecompile.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear, done = slow.backend.clear, list[str]()

    def slowly() -> None:
        time.sleep(0.2)
        clear()

    def use(prompt: list[int]) -> None:
        try:
            done.append(str(slow.generate(prompt, 2, wait=True).tokens))
        except EngineError as error:
            done.append(type(error).__name__)

    monkeypatch.setattr(slow.backend, "clear", slowly)
    threads = in_order([lambda p=p: use(p) for p in ([1, 1, 1, fake.VOCAB - 1], [2], [3], [4])])  # type: ignore[misc]
    for thread in threads:
        thread.join(10)
    assert done == ["EngineStalled", *(str(fake.greedy([i], 2)) for i in (2, 3, 4))]
    assert slow.stats.launches == 2


def test_a_claim_that_gives_up_waiting_leaves_the_line() -> None:
    claims, order = Claims(Path("folder")), list[int]()
    first, gave_up = Claim(), threading.Event()
    first.acquire()
    claims.take(first)

    def give_up() -> None:
        raise InterruptedError

    def second() -> None:
        with pytest.raises(InterruptedError), (claim := Claim()):
            claims.take(claim, True, lambda: gave_up.is_set() and give_up())  # type: ignore[func-returns-value]
        claims.pass_on()
        order.append(2)

    def third() -> None:
        with (claim := Claim()):
            claims.take(claim, True)
            order.append(3)

    threads = in_order([second, third])
    gave_up.set()
    threads[0].join(5)
    with pytest.raises(EngineBusy), (claim := Claim()):
        claims.take(claim)
    first.release()
    claims.pass_on()
    threads[1].join(5)
    assert order == [2, 3]


def test_a_claim_that_is_lost_without_a_word_is_passed_on() -> None:
    claims, first, taken = Claims(Path("folder")), Claim(), list[float]()
    first.acquire()
    claims.take(first)

    def wait() -> None:
        with (claim := Claim()):
            claims.take(claim, True)
            taken.append(time.perf_counter())

    threads = in_order([wait])
    lost = time.perf_counter()
    del first
    gc.collect()
    threads[0].join(5)
    assert taken[0] - lost < 3  # the machine may be busy


def test_a_stream_that_is_aborted_while_it_waits_never_begins(slow: tilecompile.Engine) -> None:
    stream = slow.stream([1], None)
    next(stream)
    got: list[list[int]] = []
    other = slow.stream([2], 3, wait=True)
    threads = in_order([lambda: got.append(list(other))])
    other.abort()
    threads[0].join(5)
    assert got == [[]]
    assert other.stats is None
    assert slow.stats.requests == 0
    assert next(stream) == fake.greedy([1], 2)[1]
