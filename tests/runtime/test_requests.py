"""Requests of the runtime, and bad ones, on a stand-in kernel."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilecompile
from support import fake_engine as fake
from support.errors import one_line
from tilecompile.errors import EngineError, EngineStalled, InputError
from tilecompile.runtime.generate import Output

PROMPT = [1, 2, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.make_engine(tmp_path_factory.mktemp("fake") / "engine")


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.make_engine(tmp_path_factory.mktemp("slow") / "engine", step_us=20_000)


@pytest.fixture
def engine(folder: Path) -> Iterator[tilecompile.Engine]:
    with tilecompile.load(folder) as engine:
        yield engine


# Requests


def test_generate_returns_the_greedy_tokens_and_counts_them(engine: tilecompile.Engine) -> None:
    for prompt, count in ((PROMPT, 10), ([7], 1), (np.array([4, 298], np.int64), 30)):
        out = engine.generate(prompt, max_new_tokens=count)
        assert out.tokens == fake.greedy(list(prompt), count)
        assert out.stats.prompt_tokens == len(prompt)
        assert out.stats.steps == len(prompt) + len(out.tokens) - 1
        assert out.stats.finish == "length"
        assert out.stats.ms_per_step > 0
    stats = engine.stats
    assert (stats.launches, stats.requests, stats.prompt_tokens, stats.tokens) == (1, 3, 6, 41)
    assert stats.steps == 6 + 41 - 3


def test_generation_ends_at_a_stop_id(engine: tilecompile.Engine) -> None:
    before = next(i for i in range(fake.VOCAB) if fake.next_id(i) == fake.EOS)
    out = engine.generate([before], max_new_tokens=10)
    assert out.tokens == [fake.EOS]
    assert out.text == ""
    assert out.stats.finish == "stop"
    assert list(engine.stream([before])) == [fake.EOS]


def test_generation_ends_where_the_context_is_full(engine: tilecompile.Engine) -> None:
    out = engine.generate(PROMPT, max_new_tokens=None)
    assert len(out.tokens) == fake.MAX_SEQ_LEN - len(PROMPT) + 1
    assert out.stats.finish == "context"
    assert len(engine.generate([1] * fake.MAX_SEQ_LEN, None).tokens) == 1


def test_score_returns_the_logits_of_every_position(engine: tilecompile.Engine) -> None:
    logits = engine.score(PROMPT)
    assert logits.dtype == np.float32
    assert logits.shape == (3, fake.VOCAB)
    for i, token in enumerate(PROMPT):
        assert logits[i, fake.next_id(token)] == 1 + i
        assert (np.delete(logits[i], fake.next_id(token)) == token).all()


def test_stream_gives_the_tokens_and_text_of_generate(engine: tilecompile.Engine) -> None:
    out = engine.generate("Hé", 40)
    stream = engine.stream("Hé", 40)
    pieces, tokens = [], []
    for token in stream:
        tokens.append(token)
        pieces.append(stream.piece)
    assert tokens == out.tokens
    assert "".join(pieces) + stream.piece == out.text
    assert stream.stats is not None
    assert stream.stats.finish == "length"
    assert list(stream) == []


def test_unused_stream_does_not_hold_the_engine(engine: tilecompile.Engine) -> None:
    stream = engine.stream(PROMPT)
    assert engine.generate(PROMPT, 2).tokens == fake.greedy(PROMPT, 2)
    assert next(stream) == fake.next_id(3)


@pytest.mark.parametrize("how", ["close", "with", "drop", "exception"])
def test_a_stream_that_is_given_up_aborts_its_request(slow_folder: Path, how: str) -> None:
    with tilecompile.load(slow_folder) as engine:
        stream = engine.stream(PROMPT, None)
        assert next(stream) == fake.next_id(3)
        if how == "close":
            stream.close()
            assert stream.stats is not None
            assert stream.stats.finish == "aborted"
        elif how == "with":
            with stream:
                next(stream)
        elif how == "drop":
            del stream
            gc.collect()
        else:
            with pytest.raises(RuntimeError), stream:
                raise RuntimeError("of the caller")
        assert engine.generate(PROMPT, 2).tokens == fake.greedy(PROMPT, 2)
        assert engine.stats.steps < 16
        assert engine.stats.launches == 1


@pytest.mark.parametrize("call", ["generate", "stream", "score"])
def test_an_interrupt_ends_the_request_and_leaves_the_engine_usable(slow_folder: Path, call: str) -> None:
    with tilecompile.load(slow_folder) as engine:
        calls: dict[str, Callable[[], Any]] = {
            "generate": lambda: engine.generate([1] * 30, None),
            "stream": lambda: list(engine.stream([1] * 30, None)),
            "score": lambda: engine.score([1] * 60),
        }
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            calls[call]()
        steps = engine.stats.steps
        assert steps < 30
        assert engine.generate(PROMPT, 2).tokens == fake.greedy(PROMPT, 2)
        assert engine.stats.steps == steps + 3, "the first id of the prompt is in the caches"


def test_a_second_request_is_refused_while_one_runs(slow_folder: Path) -> None:
    with tilecompile.load(slow_folder) as engine:
        results: list[Output] = []
        thread = threading.Thread(target=lambda: results.append(engine.generate(PROMPT, 10)))
        thread.start()
        time.sleep(0.05)
        for call in (engine.generate, engine.score, lambda ids: next(engine.stream(ids))):
            with pytest.raises(EngineError, match="a request is running") as error:
                call(PROMPT)
            one_line(error)
        thread.join()
        assert results[0].tokens == fake.greedy(PROMPT, 10)
        stream = engine.stream(PROMPT)
        next(stream)
        with pytest.raises(EngineError, match="close its stream"):
            engine.generate(PROMPT)
        stream.close()
        engine.generate(PROMPT, 1)


def test_close_during_a_request_ends_it_with_an_error(slow_folder: Path) -> None:
    engine = tilecompile.load(slow_folder)
    errors: list[str] = []

    def score() -> None:
        try:
            engine.score([1] * 60)
        except EngineError as error:
            errors.append(str(error))

    thread = threading.Thread(target=score)
    thread.start()
    time.sleep(0.1)
    engine.close()
    thread.join(5)
    assert errors == ["the engine is closed"]
    engine.close()
    for call in (engine.generate, engine.score, lambda ids: next(engine.stream(ids))):
        with pytest.raises(EngineError, match="the engine is closed"):
            call(PROMPT)
    assert engine.stats.launches == 1


def test_a_stall_names_the_waiting_task_and_the_next_request_runs(engine: tilecompile.Engine) -> None:
    wanted = r"worker 1 waits before task k2_linear of layers\.0\.second, tile \(4, 0, 0, 0\).*event 0, have 3, want 4"
    for call in (engine.generate, engine.score, lambda ids: list(engine.stream(ids))):
        with pytest.raises(EngineStalled, match=wanted) as error:
            call([1, fake.VOCAB - 1])
        one_line(error)
    assert engine.generate(PROMPT, 5).tokens == fake.greedy(PROMPT, 5)
    assert engine.stats.launches == 4
    assert engine.stats.steps == 3 + 7


def test_an_engine_that_is_dropped_leaves_another_running(folder: Path, slow_folder: Path) -> None:
    first, second = tilecompile.load(folder), tilecompile.load(slow_folder)
    assert first.generate(PROMPT, 3).tokens == second.generate(PROMPT, 3).tokens
    count = threading.active_count()
    del first
    gc.collect()
    assert second.generate(PROMPT, 3).tokens == fake.greedy(PROMPT, 3)
    assert threading.active_count() == count


def test_replaced_kernel_is_the_one_that_runs(tmp_path: Path) -> None:
    """The system's loader would return the first library for the same path."""
    path = fake.make_engine(tmp_path / "engine")
    old = tilecompile.load(path)
    path.rename(tmp_path / "old")
    fake.make_engine(tmp_path / "engine", change=lambda data, tables: None)
    new = tilecompile.load(path)
    assert old.cpu.library._handle != new.cpu.library._handle


# Bad input


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "prompt is empty"),
        ("", "prompt is empty"),
        ([1] * 65, "has 65 tokens, the engine's max_seq_len is 64"),
        ([1, 300], "id 300 at position 1 is outside the vocabulary, want 0 to 299"),
        ([-1], "id -1 at position 0 is outside"),
        ([1, 2.5], "position 1 is 2.5, want a whole number"),
        (b"abc", "prompt is bytes"),
        (3, "prompt is a int"),
    ],
)
def test_a_bad_prompt_is_refused_by_every_call(engine: tilecompile.Engine, prompt: Any, words: str) -> None:
    for call in (engine.generate, engine.score, engine.stream):
        with pytest.raises(InputError, match=words) as error:
            call(prompt)
        one_line(error)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_a_bad_max_new_tokens_is_refused(engine: tilecompile.Engine, value: Any) -> None:
    with pytest.raises(InputError, match="max_new_tokens is"):
        engine.generate(PROMPT, value)


@pytest.mark.parametrize("threads", [0, 3, -1, 1.0, True])
def test_a_bad_number_of_threads_is_refused(folder: Path, threads: Any) -> None:
    with pytest.raises(InputError, match="want 1 to 2"):
        tilecompile.load(folder, threads=threads)


def test_stats_state_the_threads_of_load(folder: Path) -> None:
    with tilecompile.load(folder, threads=1) as engine:
        assert engine.stats.threads == 1


def test_an_engine_without_tokenizer_takes_ids_only(tmp_path: Path) -> None:
    with tilecompile.load(fake.make_engine(tmp_path / "e", text=False)) as engine:
        assert engine.generate(PROMPT, 3).text is None
        assert len(list(engine.stream(PROMPT, 3))) == 3
        with pytest.raises(InputError, match="has no tokenizer"):
            engine.generate("text")


def test_load_refuses_a_kernel_that_can_not_be_launched(folder: Path) -> None:
    with pytest.raises(EngineError, match="can't be launched"):
        tilecompile.load(folder, stall_seconds=0.001)
