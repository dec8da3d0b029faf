"""Recording: steps of an engine on a kernel that is built again for profiling, beside the same steps on its own kernel.

Requests alternate between the two kernels, so that one run also gives the cost of recording.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tilecompile.errors import EngineError, InputError
from tilecompile.measure.steps import another_kernel, fill_caches, time_steps, window
from tilecompile.runtime.cpu.kernel import Kernel, open_kernel
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.machine import cpu_features, usable_cores
from tilecompile.runtime.progress import Count, silent
from tilecompile.targets.cpu.build import ISAS, build, find_compiler

SOURCE = "kernel.cpp"
"""The kernel's source in an engine for CPUs."""

KEPT = 16
"""Steps of a request whose records the profiling kernel keeps. More would push weights out of the caches."""
REQUEST = 128
"""Steps of a request at most, and about REQUESTS are made at least: medians are taken over them."""
REQUESTS, MAX_REQUESTS = 16, 100
MIN_STEPS, MAX_STEPS = 64, 1_000_000
LEAST_POSITIONS = 8
SECONDS = 1.5
"""Time that the steps take on each kernel where their number isn't given."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recording:
    """Steps of one engine, recorded in requests of equally many; all times in nanoseconds.

    `contexts` int64 [records] in positions; `durations` [records] from a step's beginning to the next one's; `begins`
    and `ends` [records, instructions] from the step's beginning. `stamped` [requests] is the mean time of a request's
    steps, recorded or not, by the clock of the kernel that records, `profiled` the same by the host's, and `measured`
    that of the engine's own kernel by the host's. A request ran `steps` of them. `attended` is the part of their cores
    that the threads had: what is missing went to other processes, or to other machines on the same hardware.
    """

    contexts: npt.NDArray[np.int64]
    durations: Numbers
    begins: Numbers
    ends: Numbers
    stamped: Numbers
    profiled: Numbers
    measured: Numbers
    steps: int
    clock: str
    attended: float

    def typical(self) -> int:
        """The record that is nearest to the median request's mean step, so that it stands for what a user sees.

        The median step is a little shorter: what seldom happens, like an interrupt, is in the mean of every request.
        """
        return int(np.abs(self.durations - np.median(self.stamped)).argmin())


def clock() -> str:
    """The clock that a profiling kernel reads: the time-stamp counter where it runs evenly and equally on all cores."""
    features = cpu_features()
    return "tsc" if {"constant_tsc", "nonstop_tsc"} <= features else "steady_clock"


def check_recordable(manifest: Manifest) -> None:
    """InputError without a C++ compiler, EngineError where the kernel's source can't record."""
    find_compiler()
    source = manifest.folder / SOURCE
    if not source.is_file() or "tc_profile_steps" not in source.read_text():
        raise EngineError(f"{source}: doesn't know how to record a timeline; compile the model again")


def profiling_library(engine: Engine) -> ctypes.CDLL:
    """The engine's kernel, built again from its source so that it records. Errors as in `check_recordable`."""
    check_recordable(engine.manifest)
    source = engine.manifest.folder / SOURCE
    isa = ISAS[engine.manifest.data["target"]["isa"]]
    flags = (f"-DTC_PROFILE={KEPT}", *(("-DTC_STEADY",) if clock() == "steady_clock" else ()))
    with tempfile.TemporaryDirectory(prefix="tilecompile-timeline-") as folder:
        copy, built = Path(folder) / source.name, Path(folder) / "kernel.so"
        shutil.copyfile(source, copy)
        build(copy, built, isa, flags)
        library = open_kernel(built)
    library.tc_profile.restype = ctypes.c_void_p
    library.tc_profile.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.tc_profile_steps.restype = ctypes.c_void_p
    library.tc_profile_steps.argtypes = [ctypes.c_void_p]
    library.tc_profile_every.restype = None
    library.tc_profile_every.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    return library


def check_steps(steps: int | None, max_seq_len: int) -> None:
    """InputError for too few or too many steps, or an engine that is too short for a request."""
    if steps is not None and not MIN_STEPS <= steps <= MAX_STEPS:
        raise InputError(f"--steps is {steps}, want {MIN_STEPS} to {MAX_STEPS}")
    if max_seq_len < LEAST_POSITIONS:
        raise InputError(f"the engine's max_seq_len is {max_seq_len}, a timeline takes {LEAST_POSITIONS} at least")


def record(
    engine: Engine,
    library: ctypes.CDLL,
    context: int,
    steps: int | None = None,
    progress: Count = silent,
) -> Recording:
    """Runs `steps` steps around a context on both kernels (by default as many as take about SECONDS), and records.

    `library` is one of `profiling_library`. The caches are filled with random numbers first. InputError for a context
    that the engine can't hold, too few steps, or an engine that is too short for two.
    """
    limit = engine.manifest.max_seq_len
    check_steps(steps, limit)
    short = window(context, 8, limit)
    fill_caches(engine)
    with another_kernel(engine) as plain, another_kernel(engine, library) as recording:
        kernels = (plain, recording)
        if steps is None:
            ms = max(time_steps(engine, kernel, short).ms_per_step for kernel in kernels)
            steps = int(np.clip(1e3 * SECONDS / ms, MIN_STEPS, MAX_REQUESTS * REQUEST))
        contexts = window(context, int(np.clip(steps // REQUESTS, 4, REQUEST)), limit)
        requests = max(1, steps // len(contexts))
        library.tc_profile_every(recording.handle, -(-len(contexts) // KEPT))
        times, readings = np.zeros((2, requests)), [read_profile(library, recording)]
        begin, used = time.perf_counter(), time.process_time()
        for i in range(requests):
            for which in (0, 1) if i % 2 else (1, 0):
                times[which, i] = 1e6 * time_steps(engine, kernels[which], contexts).ms_per_step
            readings.append(read_profile(library, recording))
            progress(i + 1, requests)
        had = (time.perf_counter() - begin) * min(engine.threads, usable_cores())
        attended = (time.process_time() - used) / had
    return _recording(contexts, readings, times, attended)


@dataclass(frozen=True)
class Reading:
    """What `tc_profile` returns: a row for each step that was kept, when each of the last steps up to `last` was
    published, what they were (program and number of tokens), and the clock in ticks and in nanoseconds."""

    rows: npt.NDArray[np.uint64]
    marks: npt.NDArray[np.uint64]
    steps: npt.NDArray[np.uint32]
    last: int
    ticks: int
    nanoseconds: int


def read_profile(library: ctypes.CDLL, kernel: Kernel) -> Reading:
    """What an idle kernel of `profiling_library` has recorded."""
    about = (ctypes.c_uint64 * 7)()
    start = library.tc_profile(kernel.handle, about)
    count, width, marks, address, last, ticks, nanoseconds = (int(value) for value in about)

    def copy(address: int, size: int) -> npt.NDArray[np.uint64]:
        return np.ctypeslib.as_array((ctypes.c_uint64 * size).from_address(address)).copy()

    rows, published = copy(start, count * width).reshape(count, width), copy(address, marks)
    at = library.tc_profile_steps(kernel.handle)
    steps = np.ctypeslib.as_array((ctypes.c_uint32 * (2 * marks)).from_address(at)).copy().reshape(marks, 2)
    return Reading(rows, published, steps, last, ticks, nanoseconds)


def _recording(contexts: range, readings: list[Reading], times: Numbers, attended: float) -> Recording:
    """The timed steps of each request but its very last, which no other step's beginning ends."""
    rate = (readings[-1].nanoseconds - readings[0].nanoseconds) / (readings[-1].ticks - readings[0].ticks)
    where, durations, stamps, stamped = [], [], [], []
    for read in readings[1:]:
        first = read.last - len(contexts) + 1
        marks = read.marks[np.arange(first, read.last + 1) % len(read.marks)]
        stamped.append(rate * float(marks[-1] - marks[0]) / (len(marks) - 1))
        rows = read.rows[(read.rows[:, 0] >= first) & (read.rows[:, 0] < read.last)]
        place = rows[:, 0].astype(np.int64) - first
        where.append(contexts.start + place)
        durations.append(rate * (marks[place + 1] - marks[place]).astype(np.float64))
        since = rows[:, 2:] - rows[:, 1:2]  # wraps for instructions of other programs, which are unused
        stamps.append(rate * since.view(np.int64).astype(np.float64))
    every = np.concatenate(stamps)
    return Recording(
        contexts=np.concatenate(where),
        durations=np.concatenate(durations),
        begins=every[:, 0::2],
        ends=every[:, 1::2],
        stamped=np.array(stamped),
        profiled=times[1],
        measured=times[0],
        steps=len(contexts),
        clock=clock(),
        attended=attended,
    )
