"""Requests of asyncio tasks: the same tokens, aborted with the task, and no thread that outlives its request."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import tilecompile
from support import fake_engine as fake
from tilecompile.errors import EngineBusy, EngineError, EngineStalled, InputError
from tilecompile.runtime.asynchronous import AsyncTokenStream
from tilecompile.runtime.sampling import SamplingParams

PROMPT = [1, 2, 3]


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.make_engine(tmp_path_factory.mktemp("slow") / "engine", step_us=10_000)


@pytest.fixture
def engine(slow_folder: Path) -> Iterator[tilecompile.Engine]:
    with tilecompile.load(slow_folder) as engine:
        yield engine


def run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine; no thread of it may be left afterwards."""
    before = threading.active_count()
    asyncio.run(work)
    end = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < end, threading.enumerate()
        time.sleep(0.01)


def test_a_task_gets_the_tokens_and_text_of_generate(engine: tilecompile.Engine) -> None:
    async def work() -> None:
        out = await engine.agenerate("Hé", 9)
        stream = engine.astream("Hé", 9)
        tokens, text = [], ""
        async for token in stream:
            tokens.append(token)
            text += stream.piece
        text += stream.piece
        want = engine.generate("Hé", 9)
        assert (out.tokens, out.text) == (want.tokens, want.text) == (tokens, text)
        assert out.stats.finish == "length"
        assert stream.stats is not None
        assert (stream.stats.cached_tokens, stream.stats.steps) == (1, 9)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        with pytest.raises(EngineError, match="the stream has begun already or was closed"):
            await stream.output()
        assert (await engine.agenerate("Hé", SamplingParams(30, stop=tuple(want.text[3:5])))).text == want.text[:3]

    run(work())


def test_the_event_loop_goes_on_meanwhile(engine: tilecompile.Engine) -> None:
    async def work() -> None:
        task = asyncio.create_task(engine.agenerate(PROMPT, 20))
        turns = 0
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert task.result().tokens == fake.greedy(PROMPT, 20)
        assert turns > 20

    run(work())


async def rest(stream: AsyncTokenStream) -> list[int]:
    """What is left of a stream."""
    return [token async for token in stream]


@pytest.mark.parametrize("how", ["cancel", "timeout", "aclose", "async with", "drop", "leave"])
def test_a_stream_that_is_given_up_ends_its_request(engine: tilecompile.Engine, how: str) -> None:
    async def work() -> None:
        stream = engine.astream(PROMPT, None)
        assert [await anext(stream) for _ in range(3)] == fake.greedy(PROMPT, 3)
        begin = time.perf_counter()
        if how == "cancel":
            task = asyncio.create_task(rest(stream))
            await asyncio.sleep(0.03)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.03):
                    await rest(stream)
        elif how == "aclose":
            await stream.aclose()
        elif how == "async with":
            with pytest.raises(ZeroDivisionError):
                async with stream:
                    _ = 1 / 0
        elif how == "drop":
            del stream
            gc.collect()
            assert engine.generate(PROMPT, 1, wait=True).tokens == fake.greedy(PROMPT, 1)
            return
        else:
            return
        assert time.perf_counter() - begin < 1
        assert stream.stats is not None
        assert stream.stats.finish == "aborted"
        assert engine.generate(PROMPT, 2).tokens == fake.greedy(PROMPT, 2)

    run(work())
    assert engine.generate(PROMPT, 2, wait=True).tokens == fake.greedy(PROMPT, 2)


def test_cancelling_ends_a_request_that_is_still_in_its_prompt(engine: tilecompile.Engine) -> None:
    async def work() -> None:
        task = asyncio.create_task(engine.agenerate([1] * 60, 1))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work())
    assert engine.stats.steps < 40
    assert 0 < len(engine.cached) < 40


def test_tasks_queue_or_are_refused(engine: tilecompile.Engine) -> None:
    async def work() -> None:
        first = asyncio.create_task(engine.agenerate([5], 5))
        await asyncio.sleep(0.02)
        with pytest.raises(EngineBusy):
            await engine.agenerate([6], 5)
        waiting = [asyncio.create_task(engine.agenerate([i], 2, wait=True)) for i in (7, 8, 9)]
        await asyncio.sleep(0.01)
        waiting[1].cancel()
        assert (await first).tokens == fake.greedy([5], 5)
        assert (await waiting[0]).tokens == fake.greedy([7], 2)
        assert (await waiting[2]).tokens == fake.greedy([9], 2)
        with pytest.raises(asyncio.CancelledError):
            await waiting[1]
        assert engine.stats.requests == 3

    run(work())


def test_errors_come_to_the_task(slow_folder: Path) -> None:
    async def work() -> None:
        with pytest.raises(InputError, match="prompt is empty"):
            await engine.agenerate([])
        with pytest.raises(EngineStalled):
            await engine.agenerate([1, fake.VOCAB - 1])
        task = asyncio.create_task(engine.agenerate(PROMPT, None))
        await asyncio.sleep(0.05)
        engine.close()
        with pytest.raises(EngineError, match="the engine is closed"):
            await task

    engine = tilecompile.load(slow_folder)
    run(work())
    engine.close()
