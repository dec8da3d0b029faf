"""Builds the event loop (`parts.h`, `loop.h`) with the system's C++ compiler at its first use, and calls it."""

from __future__ import annotations

import ctypes
import tempfile
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecompile.targets.cpu.build import ISAS, build

Numbers = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

SOURCES = tuple(Path(__file__).with_name(name) for name in ("parts.h", "loop.h"))


@dataclass(frozen=True)
class Loop:
    """What is simulated; times in nanoseconds, rates in bytes a nanosecond. Tasks are numbered worker by worker.

    Of workers: `worker_begin` [workers + 1] is the first task, `worker_thread` the thread that runs it, `worker_memory`
    the memory that it reads, `worker_link` the link that it pushes through. Of tasks: the events that task i waits for
    are `wait_event` [wait_begin[i] : wait_begin[i + 1]], likewise `notify_event`; another thread sees a notification
    `notify_ns` later. An event is complete after `event_count` notifications. A task lasts until its `bytes` have come
    and `body_ns` have passed, and it has had its link to itself for `link_ns`; then `start_ns` more. Its loader can't
    read the bytes until `filler_ns` after the end of task `filler` (-1: none). Of memories: `single_rate` is what one
    reader gets at most, `total_rate` what all get. A loader runs `ring_bytes` ahead; blocked by a filler, it prefetches
    `hint_bytes` of what follows. Threads other than `first_thread` see the beginning of the step `wake_ns` later; a
    poll of a waiting worker takes `poll_ns`.
    """

    worker_begin: Indices
    worker_thread: Indices
    worker_memory: Indices
    worker_link: Indices
    wait_begin: Indices
    wait_event: Indices
    notify_begin: Indices
    notify_event: Indices
    event_count: Indices
    notify_ns: Numbers
    start_ns: Numbers
    body_ns: Numbers
    bytes: Numbers
    link_ns: Numbers
    filler: Indices
    single_rate: Numbers
    total_rate: Numbers
    ring_bytes: float = 0
    hint_bytes: float = 0
    filler_ns: float = 0
    wake_ns: float = 0
    poll_ns: float = 0
    first_thread: int = 0


@dataclass(frozen=True)
class Times:
    """The result; arrays [tasks] in nanoseconds from the step's beginning, NaN for tasks that never begin.

    `streamed` is when the last byte of a task had come, `arrival` when its thread saw the last of its events, which
    task `latest` notified (-1: it waited for none), `free` when its thread had done its task `before` (-1: none).
    `read` [memories] counts the bytes that were read.
    """

    begin: Numbers
    end: Numbers
    streamed: Numbers
    arrival: Numbers
    free: Numbers
    read: Numbers
    latest: Indices
    before: Indices


def run_loop(loop: Loop) -> Times:
    """Simulates one step. InputError without a C++ compiler."""
    tasks = len(loop.bytes)
    begin, end, streamed, arrival, free = (np.full(tasks, np.nan) for _ in range(5))
    latest, before = (np.full(tasks, -1, np.int64) for _ in range(2))
    times = Times(begin, end, streamed, arrival, free, np.zeros(len(loop.single_rate)), latest, before)
    counts = (tasks, len(loop.worker_thread), int(loop.worker_thread.max(initial=-1)) + 1, len(loop.event_count))
    step = _struct(loop, (*counts, len(loop.single_rate)))
    library().tc_simulate(ctypes.byref(step), ctypes.byref(_struct(times, ())))
    return times


def _struct(value: Any, counts: tuple[int, ...]) -> ctypes.Structure:
    """The C struct: the counts, then the fields of a dataclass in their order."""
    kinds: list[tuple[str, Any]] = [(f"count{i}", ctypes.c_int64) for i in range(len(counts))]
    values: list[Any] = list(counts)
    for f in fields(value):
        found = getattr(value, f.name)
        if isinstance(found, np.ndarray):
            expected = np.dtype(np.int64 if f.type == "Indices" else np.float64)
            if found.dtype != expected or not found.flags.c_contiguous:
                raise TypeError(f"{f.name} is {found.dtype}, want a contiguous array of {expected}")
            kinds.append((f.name, ctypes.c_void_p))
            values.append(found.ctypes.data)
        else:
            kinds.append((f.name, ctypes.c_int64 if isinstance(found, int) and f.type == "int" else ctypes.c_double))
            values.append(found)
    struct: type[ctypes.Structure] = type(type(value).__name__, (ctypes.Structure,), {"_fields_": kinds})
    return struct(*values)


@cache
def library() -> ctypes.CDLL:
    """The event loop, built once a process. InputError without a C++ compiler."""
    with tempfile.TemporaryDirectory(prefix="tilecompile-simulate-") as folder:
        source, built = Path(folder) / "loop.cpp", Path(folder) / "loop.so"
        source.write_text("\n".join(part.read_text() for part in SOURCES))
        build(source, built, ISAS["portable"])
        loaded = ctypes.CDLL(str(built))
    loaded.tc_simulate.restype = ctypes.c_int64
    loaded.tc_simulate.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return loaded
