"""Recording: steps of an engine on a kernel that is built again for profiling, beside the same steps on its own kernel.

The two take turns, so that what the recording costs is known from the same run.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tilecompile.build import ISAS, build
from tilecompile.errors import EngineError, InputError
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.kernel import Kernel, open_kernel
from tilecompile.runtime.machine import cpu_features
from tilecompile.steps import another_kernel, fill_caches, time_steps, window

KEPT = 16
"""Steps whose records the profiling kernel keeps: the last of a request. More would push weights out of the caches."""
REQUEST = 64
"""Steps of a request at most, and REQUESTS are made at least: medians are taken over them."""
REQUESTS, MAX_REQUESTS = 16, 200
MIN_STEPS = 64
SECONDS = 1.5
"""Time that the steps take on each kernel where their number isn't given."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recording:
    """Steps of one engine, recorded in requests of equally many; all times in nanoseconds.

    `contexts` int64 [steps] in positions; `durations` [steps] from a step's beginning to the next one's; `begins` and
    `ends` [steps, instructions] from the step's beginning. `request` [steps] numbers the request of each. `measured`
    and `profiled` [requests] are the host's time a step: on the engine's kernel, and on the one that records; a request
    ran `steps` of them.
    """

    contexts: npt.NDArray[np.int64]
    request: npt.NDArray[np.int64]
    durations: Numbers
    begins: Numbers
    ends: Numbers
    measured: Numbers
    profiled: Numbers
    steps: int
    clock: str

    def typical(self) -> int:
        """The step that is nearest to the median request's mean step, so that it stands for the time that a user sees.

        The median step is a little shorter: what seldom happens, like an interrupt, is in the mean of every request.
        """
        means = np.bincount(self.request, self.durations) / np.bincount(self.request)
        return int(np.abs(self.durations - np.median(means)).argmin())


def clock() -> str:
    """The clock that a profiling kernel reads: the time-stamp counter where it runs evenly and equally on all cores."""
    features = cpu_features()
    return "tsc" if {"constant_tsc", "nonstop_tsc"} <= features else "steady_clock"


def profiling_library(engine: Engine) -> ctypes.CDLL:
    """The engine's kernel, built again from its source so that it records.

    InputError without a C++ compiler, EngineError where the source knows no recording.
    """
    source = engine.manifest.folder / "kernel.cpp"
    if not source.is_file() or "TC_PROFILE" not in source.read_text():
        raise EngineError(f"{source}: doesn't know how to record a timeline; compile the model again")
    isa = ISAS[engine.manifest.data["target"]["isa"]]
    flags = (f"-DTC_PROFILE={KEPT}", *(("-DTC_STEADY",) if clock() == "steady_clock" else ()))
    with tempfile.TemporaryDirectory(prefix="tilecompile-timeline-") as folder:
        copy, built = Path(folder) / source.name, Path(folder) / "kernel.so"
        shutil.copyfile(source, copy)
        build(copy, built, isa, flags)
        library = open_kernel(built)
    library.tc_profile.restype = ctypes.c_void_p
    library.tc_profile.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return library


def record(
    engine: Engine,
    library: ctypes.CDLL,
    context: int,
    steps: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Recording:
    """Runs `steps` steps around a context on both kernels (by default as many as take about SECONDS), and records.

    `library` is one of `profiling_library`. The caches are filled with random numbers first. InputError for a context
    that the engine can't hold, or too few steps.
    """
    if steps is not None and steps < MIN_STEPS:
        raise InputError(f"steps is {steps}, want {MIN_STEPS} at least")
    limit = engine.manifest.max_seq_len
    short = window(context, 8, limit)
    fill_caches(engine)
    with another_kernel(engine) as plain, another_kernel(engine, library) as recording:
        kernels = (plain, recording)
        most = steps or MAX_REQUESTS * REQUEST
        if steps is None:
            ms = max(time_steps(engine, kernel, short).ms_per_step for kernel in kernels)
            steps = int(np.clip(1e3 * SECONDS / ms, MIN_STEPS, most))
        contexts = window(context, int(np.clip(steps // REQUESTS, 4, REQUEST)), limit)
        requests = max(1, steps // len(contexts))
        times, rows = np.zeros((2, requests)), []
        first = _read(library, recording)
        for i in range(requests):
            for which in (0, 1) if i % 2 else (1, 0):
                times[which, i] = 1e6 * time_steps(engine, kernels[which], contexts).ms_per_step
            last = _read(library, recording)
            rows.append(last.rows[np.argsort(last.rows[:, 0])][-len(contexts) :])  # a first step isn't timed
            progress(i + 1, requests)
    rate = (last.nanoseconds - first.nanoseconds) / (last.ticks - first.ticks)
    return _recording(contexts, rows, rate, times)


@dataclass(frozen=True)
class _Reading:
    """What `tc_profile` hands out: a row for each kept step, and the clock in ticks and in nanoseconds."""

    rows: npt.NDArray[np.uint64]
    ticks: int
    nanoseconds: int


def _read(library: ctypes.CDLL, kernel: Kernel) -> _Reading:
    about = (ctypes.c_uint64 * 4)()
    start = library.tc_profile(kernel.handle, about)
    count, width, ticks, nanoseconds = (int(value) for value in about)
    rows = np.ctypeslib.as_array((ctypes.c_uint64 * (count * width)).from_address(start)).reshape(count, width)
    return _Reading(rows.copy(), ticks, nanoseconds)


def _recording(contexts: range, rows: list[npt.NDArray[np.uint64]], rate: float, times: Numbers) -> Recording:
    """The last steps of each request but its very last, which no other step's beginning ends; `rate` in ns a tick."""
    durations, stamps = [], []
    for found in rows:
        published = found[:, 1]
        durations.append(rate * np.diff(published).astype(np.float64))
        since = found[:-1, 2:] - published[:-1, None]  # wraps for instructions of other programs: nobody looks at them
        stamps.append(rate * since.view(np.int64).astype(np.float64))
    every = np.concatenate(stamps)
    kept = len(rows[0]) - 1
    return Recording(
        contexts=np.tile(np.arange(contexts.stop - 1 - kept, contexts.stop - 1), len(rows)),
        request=np.repeat(np.arange(len(rows)), kept),
        durations=np.concatenate(durations),
        begins=every[:, 0::2],
        ends=every[:, 1::2],
        measured=times[0],
        profiled=times[1],
        steps=len(contexts),
        clock=clock(),
    )
