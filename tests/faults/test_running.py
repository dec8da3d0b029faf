"""Failures while an engine runs, on the real kernel: stalls, interrupts, threads, forks, exits."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import tilecompile
from support import damage
from support.using import PROMPT, script
from tilecompile.errors import EngineStalled
from tilecompile.runtime import load as loading
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.tables import Tables, load_tables
from tilecompile.runtime.format import COMMIT_KIND

LONG = 100_000


# Stalls


def check_stall(engine: tilecompile.Engine, call: Callable[[], Any]) -> str:
    """The call stalls within two seconds; the message agrees with the tables. Returns it."""
    begin = time.perf_counter()
    with pytest.raises(EngineStalled) as error:
        call()
    assert time.perf_counter() - begin < 2
    text = str(error.value)
    found = re.search(
        r"stalled: worker (\d+) waits before task (\S+) of (\S+), tile \((\d+), (\d+), (\d+), (\d+)\) "
        r"\(instruction (\d+)\) for event (\d+), have (\d+), want (\d+); it is launched again at the next request$",
        text,
    )
    assert found, text
    worker, *tile, instruction, event, have, want = (int(found[i]) for i in (1, 4, 5, 6, 7, 8, 9, 10, 11))
    tables, data = engine.tables, engine.manifest.data
    record = tables["instructions"][instruction]
    assert (data["kinds"][record["kind"]], data["operators"][record["op"]]) == (found[2], found[3])
    assert record["tile"].tolist() == tile
    streams = tables["streams"][tables["streams"]["worker"] == worker]
    assert ((streams["begin"] <= instruction) & (instruction < streams["end"])).any()
    waits = tables["waits"][record["wait_begin"] : record["wait_begin"] + record["wait_count"]]
    assert event in waits["event"]
    assert have < want
    return text


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("plant", ["threshold raised", "notify removed"])
def test_a_planted_stall_names_the_first_task_that_can_not_run(
    tiny: Path, tmp_path: Path, plant: str, threads: int
) -> None:
    """The task that is named is the first one that can't run, however many wait for it, directly or not."""
    tables = {name: damage.table(tiny, name) for name in ("instructions", "waits", "notifies", "streams")}
    first = tables["instructions"][: int(tables["streams"]["end"][3])]
    waiting = first[first["wait_count"] > 0]
    victim = waiting[np.argsort(waiting["op"], kind="stable")[len(waiting) // 2]]
    wait = tables["waits"][victim["wait_begin"]]
    path = damage.copy(tiny, tmp_path / "e")
    if plant == "threshold raised":
        damage.edit_table(path, "waits", lambda t: t["count"].__setitem__(int(victim["wait_begin"]), wait["count"] + 1))
        ops = {int(victim["op"])}
    else:
        of = [i for i, ins in enumerate(first) if wait["event"] in notified(tables, ins)]
        damage.edit_table(path, "instructions", lambda t: t["notify_count"].__setitem__(of[-1], 0))
        events = notified(tables, first[of[-1]])
        ops = {int(i["op"]) for i in waiting if {int(w["event"]) for w in awaited(tables, i)} & events}
    with tilecompile.load(path, threads=threads) as engine:
        names = [engine.manifest.data["operators"][op] for op in ops]
        text = check_stall(engine, lambda: engine.generate(PROMPT, 5))
        assert any(f" of {name}, tile" in text for name in names), (text, names)


def notified(tables: dict[str, np.ndarray], ins: Any) -> set[int]:
    """The events that an instruction notifies."""
    return set(tables["notifies"]["event"][ins["notify_begin"] : ins["notify_begin"] + ins["notify_count"]].tolist())


def awaited(tables: dict[str, np.ndarray], ins: Any) -> Any:
    """The waits of an instruction."""
    return tables["waits"][ins["wait_begin"] : ins["wait_begin"] + ins["wait_count"]]


def first_waits(engine: tilecompile.Engine) -> list[int]:
    """The first wait of each step program."""
    found = {}
    for stream in engine.tables["streams"]:
        mine = engine.tables["instructions"][stream["begin"] : stream["end"]]
        waiting = mine[mine["wait_count"] > 0]
        if len(waiting):
            found.setdefault(int(stream["program"]), int(waiting["wait_begin"][0]))
    return list(found.values())


def test_the_engine_is_usable_after_a_stall(tiny: Path, tokens: list[int]) -> None:
    """A stall in the middle of a text: what came before is delivered, and the next request has a fresh kernel."""
    engine = tilecompile.load(tiny, stall_seconds=0.3)
    count, late = engine.tables["waits"]["count"], first_waits(engine)
    for call in ("stream", "generate", "score"):
        assert engine.generate(PROMPT, 20).tokens == tokens[:20]
        if call == "stream":
            stream = engine.stream(PROMPT, LONG)
            got = [next(stream) for _ in range(5)]
            count[late] += 1
            check_stall(engine, lambda: got.extend(stream))  # noqa: B023
            assert got[:200] == tokens[: len(got)]
        else:
            count[late] += 1
            check_stall(engine, lambda: getattr(engine, call)(PROMPT))  # noqa: B023
        count[late] -= 1
    assert engine.generate(PROMPT, 200).tokens == tokens
    assert engine.stats.launches == 4
    engine.close()


def test_a_step_that_ends_without_its_sink_is_a_stall(tiny: Path, tokens: list[int]) -> None:
    """Loading refuses such tables; a kernel that is launched with them says so, and the next one has others."""
    found: list[np.void] = []

    def cut(manifest: Manifest) -> Tables:
        tables = load_tables(manifest)
        kinds = tables["instructions"]["kind"]
        for stream in tables["streams"]:
            if stream["program"] == 0 and COMMIT_KIND in kinds[stream["begin"] : stream["end"]]:
                stream["end"] -= 1
                found.append(stream)
        return tables

    with mock.patch.object(loading, "load_tables", cut):
        engine = tilecompile.load(tiny, stall_seconds=0.3)
    with engine:
        with pytest.raises(EngineStalled, match="a step ended without its sink"):
            engine.generate(PROMPT, 5)
        (stream,) = found
        stream["end"] += 1
        assert engine.generate(PROMPT, 200).tokens == tokens


BUSY = "import os, sys\nos.sched_setaffinity(0, {%d})\nwhile os.getppid() == %d: pass"


@pytest.mark.parametrize(("nice", "count"), [(0, 40), (10, 5)])
def test_threads_starved_of_a_core_do_not_stall(tiny: Path, tokens: list[int], nice: int, count: int) -> None:
    """Four threads share one core with two busy processes, in one case at a lower priority."""
    core = min(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", BUSY % (core, os.getpid())]) for _ in range(2)]
    try:
        text = f"""
os.nice({nice}); e.close(); os.sched_setaffinity(0, {{{core}}})
e = tilecompile.load({str(tiny)!r}, threads=4, stall_seconds=0.2)
out = e.generate(PROMPT, {count})
print(out.tokens, e.stats.launches)
"""
        assert script(tiny, text) == f"{tokens[:count]} 1\n"
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_a_stopped_and_continued_process_does_not_stall(tiny: Path, tokens: list[int]) -> None:
    """Ctrl-Z and fg: the time in between isn't counted."""
    text = "for i, t in enumerate(e.stream(PROMPT, 5000)):\n    print(t, flush=True)\nprint(e.stats.launches)"
    lines = f"import tilecompile\nPROMPT = {PROMPT}\ne = tilecompile.load({str(tiny)!r})\n{text}"
    process = subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    got = [int(process.stdout.readline()) for _ in range(50)]
    for seconds in (4, 0.5):
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)
        got += [int(process.stdout.readline()) for _ in range(1000)]
    got += [int(line) for line in process.stdout]
    assert process.wait() == 0
    assert got[:200] == tokens
    assert got[-1] == 1
    with tilecompile.load(tiny) as engine:
        assert got[:-1] == engine.generate(PROMPT, 5000).tokens


# Interrupts


def test_an_interrupted_generate_command_exits_with_130(tiny: Path) -> None:
    command = [sys.executable, "-m", "tilecompile", "generate", str(tiny), "--ids", "1", "--max-new-tokens", str(LONG)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    begin = time.perf_counter()
    assert "Traceback" not in process.communicate(timeout=5)[1]
    assert process.returncode == 130
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize("call", ["generate", "stream", "score"])
def test_an_interrupt_ends_each_kind_of_request(engine: tilecompile.Engine, tokens: list[int], call: str) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "generate": lambda: engine.generate(PROMPT, LONG),
        "stream": lambda: list(engine.stream(PROMPT, LONG)),
        "score": lambda: engine.score([1] * 10_000),
    }
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        calls[call]()
    begin = time.perf_counter()
    assert engine.generate(PROMPT, 50).tokens == tokens[:50]
    assert time.perf_counter() - begin < 1
    assert engine.stats.launches == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_engine_is_usable_after_an_interrupt_at_any_moment(engine: tilecompile.Engine, tokens: list[int]) -> None:
    """Wherever the interrupt falls (in a `__del__`, Python only reports it), the next request runs."""
    rng = random.Random(0)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    try:
        for i in range(400):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 3e-3))
                    if i % 2:
                        engine.generate(PROMPT, 3)
                    else:
                        for _ in engine.stream(PROMPT, 3):
                            pass
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            assert engine.generate(PROMPT, 3).tokens == tokens[:3]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert interrupted > 20
    assert engine.stats.launches == 1
