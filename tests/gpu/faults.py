"""Part `faults`: faults leave the GPU usable: after each an engine generates the same tokens again."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpu.folder import Folder
from support import damage
from tilecompile.runtime.errors import EngineError, EngineStalled, TilecompileError
from tilecompile.runtime.load import load

Json = dict[str, Any]
Generate = Callable[[], list[int]]

TOKENS = 24
PROMPT = 16
STALL_SECONDS = 0.5
LATE = 10.0
"""Seconds after which an error has come too late."""


def without_notify(engine: Path, folder: Path) -> Path:
    """A copy of an engine whose tables lack what one instruction in the middle of a step notifies."""
    copy = damage.copy(engine, folder)
    instructions = damage.table(engine, "instructions")
    telling = np.flatnonzero(instructions["notify_count"] > 0)
    victim = int(telling[np.argsort(instructions["op"][telling], kind="stable")[len(telling) // 2]])
    return damage.edit_table(copy, "instructions", lambda table: table["notify_count"].__setitem__(victim, 0))


def with_flipped_byte(engine: Path, folder: Path) -> Path:
    """A copy of an engine with one altered byte of weights, so that a hash differs."""
    copy = damage.copy(engine, folder)
    weights = copy / "weights" / "device0.bin"
    damage.flip(weights, weights.stat().st_size // 2)
    return copy


def without_numbers(engine: Path, folder: Path) -> Path:
    """A copy of an engine whose weights are NaN, and whose hashes agree."""
    copy = damage.copy(engine, folder)
    weights = copy / "weights" / "device0.bin"
    damage.put(weights, b"\xff" * weights.stat().st_size)
    damage.rehash(copy, "weights/device0.bin")
    return copy


def raised(work: Callable[[], Any], kind: type[TilecompileError] = EngineError) -> Json:
    """Whether the work ends with an error of a kind in time, and its message."""
    begin = time.monotonic()
    try:
        work()
    except kind as error:
        text, right = str(error), True
    except Exception as error:
        text, right = f"{type(error).__name__}: {error}", False
    else:
        text, right = "no error", False
    seconds = time.monotonic() - begin
    return {"passed": right and seconds < LATE and "\n" not in text, "said": text, "seconds": seconds}


def stall(path: Path, prompt: list[int], work: Path) -> Json:
    """The kernel ends itself and reports what it waited for; the engine is launched again for the next request."""
    with load(without_notify(path, work / "stall"), stall_seconds=STALL_SECONDS) as engine:
        first = raised(lambda: engine.generate(prompt, TOKENS), EngineStalled)
        second = raised(lambda: engine.generate(prompt, TOKENS), EngineStalled)
    return {**first, "passed": first["passed"] and second["passed"]}


def abort(path: Path, prompt: list[int], work: Path) -> Json:
    """A stream that is closed ends its request; the same engine then generates as before, and so after `close`."""
    with load(path) as engine:
        want = engine.generate(prompt, TOKENS).tokens
        with engine.stream(prompt, None) as stream:
            got = [next(stream) for _ in range(3)]
        after = engine.generate(prompt, TOKENS).tokens
    right = got == want[:3] and after == want
    return {"passed": right, "said": "the same tokens" if right else f"{after} instead of {want}"}


def bad_weights(path: Path, prompt: list[int], work: Path) -> Json:
    """A flipped byte is found when weights are checked."""
    return raised(lambda: load(with_flipped_byte(path, work / "flipped"), check_weights=True).close())


def no_numbers(path: Path, prompt: list[int], work: Path) -> Json:
    """NaN everywhere: an error or some ids, but an end in time."""
    with load(without_numbers(path, work / "nan"), stall_seconds=STALL_SECONDS) as engine:
        found = raised(lambda: engine.generate(prompt, TOKENS))
    ended = found["seconds"] < LATE and (found["passed"] or found["said"] == "no error")
    return {**found, "passed": ended}


def closed_while_running(path: Path, prompt: list[int], work: Path) -> Json:
    """An engine that is closed in the middle of a request frees the GPU."""
    engine = load(path)
    stream = engine.stream(prompt, None)
    next(stream)
    engine.close()
    found = raised(lambda: next(stream) and [*stream])
    return {**found, "passed": found["seconds"] < LATE}


FAULTS = {
    "stall": stall,
    "abort": abort,
    "flipped byte": bad_weights,
    "NaN weights": no_numbers,
    "closed while running": closed_while_running,
}


def run(folder: Folder, seconds: float, earlier: Json) -> Json:
    """Each fault, and after it whether a fresh engine generates what it did before all of them."""
    path = folder.path("tiny1")
    with np.load(folder.path(folder.index["tiny"]["results"])) as file:
        prompt = file["ids"][:PROMPT].tolist()
    found: list[Json] = []
    left_out: list[str] = []
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(dir=folder.files) as work:
        with load(path) as engine:
            want = engine.generate(prompt, TOKENS).tokens
        for name, fault in FAULTS.items():
            if time.monotonic() > end:
                left_out.append(name)
                continue
            result = fault(path, prompt, Path(work))
            with load(path) as engine:
                usable = engine.generate(prompt, TOKENS).tokens == want
            found.append({"fault": name, "usable": usable, **result})
    return {
        "passed": not left_out and all(one["passed"] and one["usable"] for one in found),
        "faults": found,
        "left_out": left_out,
        "summary": [
            (one["fault"], one["said"], "usable after it" if one["usable"] else "NOT usable after it") for one in found
        ],
    }
