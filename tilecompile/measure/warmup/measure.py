"""Runs the systems, each in fresh processes, from a warm and from a cold file cache."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilecompile.errors import InputError, TilecompileError
from tilecompile.measure.children import Child, module_command
from tilecompile.measure.warmup import file_cache as cache
from tilecompile.measure.warmup.marks import MARKS
from tilecompile.measure.warmup.systems import System
from tilecompile.runtime.progress import Progress

PHASES = ("import", "load", "compile", "first_step")
"""The phase that each mark ends."""

ONCE_SECONDS = 20.0
"""A system that takes longer is measured once, not `repeat` times."""

LEAST_EVICTED = 0.5
"""Least fraction of the cached bytes that eviction must remove for a start to count as cold."""

PROMPT = (1, 2, 3, 4)
"""Token ids that every system is given; modulo the vocabulary."""


class SystemFailed(TilecompileError):
    """A system's process ended without a first token; one line that names it and says why."""


@dataclass(frozen=True)
class Run:
    """One process: seconds from its start to each mark that it reported, the first token, the files that it read."""

    marks: dict[str, float]
    token: int | None
    files: tuple[str, ...] | None

    @property
    def total(self) -> float:
        """Seconds from process start to first token."""
        return self.marks[MARKS[-1]]

    def phases(self) -> dict[str, float | None]:
        """Seconds of each phase; None where the system doesn't report it."""
        found: dict[str, float | None] = {}
        last = 0.0
        for name, phase in zip(MARKS, PHASES, strict=True):
            found[phase] = self.marks[name] - last if name in self.marks else None
            last = self.marks.get(name, last)
        return found


def describe(engine: Path, model: str | None, threads: int | None, peers: bool, checkpoint: Path | None = None) -> Any:
    """What `describe.py` finds out, as a dictionary. InputError with its error."""
    question = {"engine": str(engine), "model": model, "threads": threads, "peers": peers}
    question["checkpoint"] = None if checkpoint is None else str(checkpoint)
    with Child(module_command("tilecompile.measure.warmup.describe", json.dumps(question)), offline()) as child:
        for found in child.objects():
            if "about" in found:
                return found["about"]
            if "error" in found:
                raise InputError(str(found["error"]))
        raise InputError(f"{engine}: can't be looked at: {child.ended()}")


def offline() -> dict[str, str]:
    """Environment of every process: no network, no chatter."""
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run(system: System, values: dict[str, str], compile_cache: Path) -> Run:
    """Runs a system once. SystemFailed if there is no first token."""
    variables = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "CUDA_CACHE_PATH")
    environment = {**offline(), **{name: str(compile_cache / name.lower()) for name in variables}}
    if system.command and "{threads}" in " ".join(system.command):
        environment["OMP_NUM_THREADS"] = values["threads"]
    marks: dict[str, float] = {}
    token, files = None, None
    begin = time.monotonic()
    try:
        with Child(system.filled(values), environment) as child:
            for found in child.objects():
                if "error" in found:
                    raise SystemFailed(f"{system.name}: {' '.join(str(found['error']).split())}")
                if found.get("mark") in MARKS and isinstance(found.get("time"), (int, float)):
                    marks[found["mark"]] = found["time"] - begin
                    token = found.get("token", token)
                elif isinstance(found.get("files"), list):
                    files = tuple(str(name) for name in found["files"])
            if MARKS[-1] not in marks:
                raise SystemFailed(f"{system.name}: ended before its first token: {child.ended()}")
    except OSError as error:
        raise SystemFailed(f"{system.name}: can't be started: {error.strerror or error}") from error
    given = [marks[name] for name in MARKS if name in marks]
    if given != sorted(given) or given[0] < 0:
        raise SystemFailed(f"{system.name}: its marks are not in order, want {', '.join(MARKS)} in CLOCK_MONOTONIC")
    return Run(marks, token, files)


def measure(
    system: System, values: dict[str, str], folders: Iterable[Path], repeat: int, progress: Progress
) -> dict[str, Any]:
    """A system's warm and cold starts, as JSON values; `unavailable` with a reason where there is nothing to run.

    A first run, which isn't counted, brings its files into the cache and reports which they are; those in `folders`
    count too. Before each cold run they are evicted. `seconds`, `phases` and `spread` are those of `_figures`;
    `evicted` is the part, of `bytes` that were in the file cache, that left it before each run.
    """
    about = {"name": system.name, "about": system.about}
    if reason := system.unavailable():
        return {**about, "unavailable": reason}
    with tempfile.TemporaryDirectory(prefix="tilecompile-warmup-") as temporary:
        compile_cache = Path(temporary) / "cache"

        def once() -> Run:
            if not system.keeps_cache:
                shutil.rmtree(compile_cache, ignore_errors=True)
            compile_cache.mkdir(exist_ok=True)
            return run(system, values, compile_cache)

        progress(f"{system.name}, first", 0, 1)
        first = once()
        files = sorted({*(first.files or ()), *(name for folder in folders for name in cache.tree(folder))})
        warm: list[Run] = []
        while len(warm) < repeat and not (warm and warm[0].total > ONCE_SECONDS):
            progress(f"{system.name}, warm", len(warm), repeat)
            warm.append(once())
        cold = _cold(system, first, files, len(warm), once, progress)
    return {**about, "token": warm[0].token, "warm": _figures(warm), "cold": cold}


def _cold(
    system: System, first: Run, files: list[str], count: int, once: Callable[[], Run], progress: Progress
) -> dict[str, Any]:
    if first.files is None:
        return {"unavailable": "the command doesn't report the files that it reads"}
    runs, shares, size = [], [], 0
    for index in range(count):
        progress(f"{system.name}, cold", index, count)
        before = cache.cached(files)
        if not before.known or not before.cached:
            return {"unavailable": "the system doesn't report what of the files is in its cache"}
        cache.evict(files)
        left = cache.cached(files)
        shares.append(1 - left.cached / before.cached)
        size = max(size, before.cached)
        if shares[-1] < LEAST_EVICTED:
            return {"unavailable": f"{1 - shares[-1]:.0%} of what was in the file cache stayed there"}
        runs.append(once())
    return {**_figures(runs), "evicted": _rounded(min(shares)), "bytes": size, "files": len(files)}


def _figures(runs: list[Run]) -> dict[str, Any]:
    """The median run with its phases, and the spread."""
    totals = sorted(run.total for run in runs)
    middle = min(runs, key=lambda run: abs(run.total - statistics.median_low(totals)))
    return {
        "seconds": _rounded(middle.total),
        "spread": [_rounded(totals[0]), _rounded(totals[-1])],
        "runs": len(runs),
        "phases": {name: _rounded(value) for name, value in middle.phases().items()},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
