"""Caches that outlive a request: what each end leaves valid, and that the next one computes the rest, to the bit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tilecompile
from support.using import PROMPT, feeding
from tilecompile.errors import EngineStalled
from tilecompile.measure.steps import fill_caches, kernel_for_steps, time_steps, window
from tilecompile.runtime.cached import Cached
from tilecompile.runtime.replay.selections import Selections
from tilecompile.runtime.sampling import SamplingParams

LONG = 100_000

# The value by itself, against the memory that it describes.


class Memory:
    """Rows of the main caches and of the MTP layer's, each with all that it was computed from."""

    def __init__(self) -> None:
        self.main: list[Any] = [None] * 40
        self.drafts: list[Any] = [None] * 40

    def compute(self, ids: list[int], begin: int, drafting: bool, given: bool) -> None:
        for i in range(begin, len(ids)):
            self.main[i] = (tuple(ids[: i + 1]), given or (i > 0 and self.main[i - 1][1]))
        if drafting:
            for i in range(begin, len(ids) - 1):
                self.drafts[i] = tuple(ids[: i + 2])

    def holds(self, ids: list[int], count: int, drafts: int) -> bool:
        """Whether the first rows are those of these ids, of a request that computes all of them."""
        main = all(self.main[i] == (tuple(ids[: i + 1]), False) for i in range(count))
        return main and all(self.drafts[i] == tuple(ids[: i + 2]) for i in range(drafts))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_is_taken_over_is_what_the_request_would_compute(data: st.DataObject) -> None:
    memory, cached = Memory(), Cached()
    for _ in range(data.draw(st.integers(1, 8))):
        prompt = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=12))
        drafting, given = data.draw(st.booleans()), data.draw(st.booleans())
        begin = cached.reusable(np.array(prompt, np.int32), drafting)
        assert 0 <= begin < len(prompt)
        assert memory.holds(prompt, begin, begin if drafting else 0)
        cached = cached.before(begin)
        fed = data.draw(st.integers(begin, len(prompt)))  # fewer than all: aborted
        if data.draw(st.booleans()):
            memory.compute(prompt[:fed], begin, drafting, given)
            cached = cached.after(prompt[begin:fed], given, fed - 1 if drafting else None)
            assert cached.ids.tolist() == prompt[:fed]
        else:  # an end that no one saw
            memory.compute(prompt[:fed], begin, drafting, given)


def test_the_longest_common_prefix_is_taken_over() -> None:
    cached = Cached().after([5, 6, 7, 8])
    for prompt, common in (([5, 6, 7, 8, 9], 4), ([5, 6, 7, 8], 3), ([5, 6, 1, 8], 2), ([6], 0), ([5], 0), ([5, 6], 1)):
        assert cached.reusable(np.array(prompt, np.int32)) == common
    assert Cached().after([5, 6], given=True).reusable(np.array([5, 6, 7], np.int32)) == 0


# Engines


@pytest.fixture(scope="module")
def fresh(tiny: Path) -> Iterator[tilecompile.Engine]:
    """An engine that tests let compute everything."""
    with tilecompile.load(tiny, threads=2) as engine:
        yield engine


def alone(count: int) -> SamplingParams:
    """So many tokens without drafts, each of which is a step."""
    return SamplingParams(count, drafts=0)


def check_next(engine: tilecompile.Engine, fresh: tilecompile.Engine, held: list[int]) -> None:
    """The caches hold these ids; what follows computes only what is new, with the bits of a fresh run."""
    assert engine.cached == held
    text, steps = [*held, 7, 8, 9], engine.stats.steps
    logits = engine.score(text[len(held) :], start=len(held))
    assert engine.stats.steps == steps + feeding(engine, 3, every=True)
    np.testing.assert_array_equal(logits, fresh.score(text)[len(held) :])
    out = engine.generate([*text, 4], alone(6))
    assert (out.stats.prompt_tokens, out.stats.cached_tokens, out.stats.steps) == (len(text) + 1, len(text), 6)
    fresh.reset()
    assert out.tokens == fresh.generate([*text, 4], alone(6)).tokens


def aborted_in_the_prompt(engine: tilecompile.Engine) -> list[int]:
    """Feeds a long prompt, aborted on the way."""
    text = [1 + i % 50 for i in range(15_000)]
    stream = engine.stream(text, alone(1))
    threading.Timer(0.02, stream.abort).start()
    assert list(stream) == []
    assert 0 < len(engine.cached) < len(text)
    return text[: len(engine.cached)]


def aborted_in_the_answer(engine: tilecompile.Engine) -> list[int]:
    with engine.stream(PROMPT, alone(LONG)) as stream:
        tokens = [next(stream) for _ in range(5)]
    assert stream.stats is not None
    tokens = engine.generate(PROMPT, alone(stream.stats.tokens)).tokens  # of which the stream was given 5
    return [*PROMPT, *tokens[:-1]]


def interrupted(engine: tilecompile.Engine) -> list[int]:
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPT, alone(LONG))
    held = engine.cached
    assert len(held) > len(PROMPT)
    tokens = engine.generate(PROMPT, alone(len(held) - len(PROMPT) + 1)).tokens
    assert [*PROMPT, *tokens[:-1]] == held
    return held


def stalled(engine: tilecompile.Engine) -> list[int]:
    """A stall leaves nothing, and the next request relaunches."""
    engine.generate(PROMPT, 5)
    count = engine.tables["waits"]["count"]
    count[9] += 1
    with pytest.raises(EngineStalled):
        engine.generate([*PROMPT, 5], 5)
    count[9] -= 1
    return []


def replayed(engine: tilecompile.Engine) -> list[int]:
    """Only what came before the replay is taken over; `score` itself goes on from it."""
    engine.score([1, 2, 3, 4])
    chosen = engine.selections([5, 6], 4)
    tables = (chosen.positions, chosen.experts, chosen.weights)
    first = Selections(4, *({layer: rows[:1] for layer, rows in table.items()} for table in tables))
    engine.score([5], 4, selections=first)
    assert engine.cached == [1, 2, 3, 4]
    engine.score([6], 5)
    return [1, 2, 3, 4]


def measured(engine: tilecompile.Engine) -> list[int]:
    engine.generate(PROMPT, 5)
    fill_caches(engine)
    assert engine.cached == []
    engine.generate(PROMPT, 5)
    with kernel_for_steps(engine) as kernel:
        time_steps(engine, kernel, window(3, 4, 100))
    return []


def read_out(engine: tilecompile.Engine) -> list[int]:
    engine.generate([1, 2, 3, 4], 2)
    engine.buffers_after([1, 2, 3, 9])
    return [1, 2, 3, 9]


def reset(engine: tilecompile.Engine) -> list[int]:
    engine.generate(PROMPT, 5)
    engine.reset()
    return []


def branched(engine: tilecompile.Engine) -> list[int]:
    """A prompt that leaves the first after two ids."""
    engine.generate([1, 2, 3, 4], alone(8))
    out = engine.generate([1, 2, 9], alone(1))
    assert (out.stats.cached_tokens, out.stats.steps) == (2, 1)
    return [1, 2, 9]


EVENTS: tuple[Callable[[tilecompile.Engine], list[int]], ...] = (
    *(
        aborted_in_the_prompt,
        aborted_in_the_answer,
        interrupted,
        stalled,
        replayed,
        measured,
        read_out,
        reset,
        branched,
    ),
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_the_next_request_computes_what_is_new_only(
    tiny: Path, fresh: tilecompile.Engine, event: Callable[[tilecompile.Engine], list[int]]
) -> None:
    with tilecompile.load(tiny, threads=2, stall_seconds=0.3) as engine:
        check_next(engine, fresh, event(engine))


def test_a_second_turn_computes_its_new_tokens(engine: tilecompile.Engine, fresh: tilecompile.Engine) -> None:
    first = engine.generate(PROMPT, alone(20))
    assert first.stats.cached_tokens == 0
    history = [*PROMPT, *first.tokens]
    second = engine.generate([*history, 5, 6], alone(10))
    assert second.stats.cached_tokens == len(history) - 1  # the last token was sampled, and never fed
    assert second.stats.prompt_tokens == len(history) + 2
    assert second.stats.steps == feeding(engine, 3) + 9
    assert engine.stats.cached_tokens == len(history) - 1
    assert engine.stats.prompt_tokens == len(PROMPT) + len(history) + 2
    check_next(engine, fresh, [*history, 5, 6, *second.tokens[:-1]])


def test_the_same_prompt_again_takes_one_step(engine: tilecompile.Engine, tokens: list[int]) -> None:
    for steps in (feeding(engine, len(PROMPT)), 1):
        out = engine.generate(PROMPT, alone(1))
        assert (out.tokens, out.stats.steps) == (tokens[:1], steps)
    with engine.stream(PROMPT, alone(3)) as stream:
        assert list(stream) == tokens[:3]
    assert stream.stats is not None
    assert (stream.stats.cached_tokens, stream.stats.steps) == (len(PROMPT) - 1, 3)
