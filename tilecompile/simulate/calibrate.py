"""calibrate: what a step costs on this machine, measured on engines, as a machine description."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tilecompile.bench.roof import ReadKernel, Roof
from tilecompile.errors import EngineError, InputError
from tilecompile.graph_json import read_graph
from tilecompile.runtime.engine import Engine, load
from tilecompile.runtime.machine import free_memory, usable_cores
from tilecompile.runtime.manifest import read_manifest
from tilecompile.schedules.machine import Machine, Simulator, load_machine
from tilecompile.simulate.fit import Sample, fit
from tilecompile.simulate.loop import Numbers
from tilecompile.simulate.step import rates_at
from tilecompile.simulate.work import work_of
from tilecompile.timeline.record import Recording, profiling_library, record
from tilecompile.timeline.spans import Tasks, gaps_of, spans_of, tasks_of

SETS = tuple(int(2**n) for n in (18, 20, 21, 22, 23, 24, 25, 26, 28, 30))
"""Working sets in bytes, from the first caches to memory."""
LIKE_BODIES = ReadKernel(streams=1, locality=3, ahead=4096, huge_pages=True)
"""Reads as the bodies of linear operators do."""
TRIES = 5
PART = 4
"""A context's place: a quarter, a half and three quarters of what the engine holds, and hardly anything."""

Progress = Callable[[str, int, int], None]
Reads = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Steps:
    """Recorded steps of an engine: its tasks' mean times, and what waiting for events and looking at workers took.

    `event_ns` holds what lay between the last notification and the task, where it came from another thread and the
    thread was free; `looks` pairs the time between two tasks of a thread with the workers that it looked at meanwhile.
    """

    tasks: Tasks
    context: int
    times: Numbers
    event_ns: Numbers
    looks: Numbers


def calibrate(
    engines: Sequence[Path], name: str, progress: Progress = lambda stage, done, total: None
) -> tuple[Machine, list[str]]:
    """Measures this machine: a description with costs, and what was recorded, in words.

    Each engine is recorded at several contexts, on one thread for the ops' costs and on two for events.
    InputError without engines or a C++ compiler; EngineError as `load` and `profiling_library` do.
    """
    if not engines:
        raise InputError("no engine is given; a calibration records steps of one or more")
    for path in engines:
        read_manifest(path)
    samples: list[Sample] = []
    latencies: list[Numbers] = []
    looks: list[Numbers] = []
    recorded: list[str] = []
    reads: Reads = ()
    for number, path in enumerate(engines):
        workers = read_manifest(path).workers
        for threads in range(1, min(2, workers, usable_cores()) + 1):
            progress("record", number, len(engines))
            with load(path, threads) as engine:
                if not reads:
                    reads = measure_reads(engine, lambda done, total: progress("read", done, total))
                for steps in record_steps(engine):
                    looks.append(steps.looks)
                    latencies.append(steps.event_ns)
                    if threads == 1:
                        samples.append(_sample(engine, steps, reads))
                    recorded.append(f"{path.name}, context {steps.context}, {threads} thread(s)")
    latency = np.concatenate(latencies)
    between = np.concatenate(looks)
    event_ns = float(np.median(latency)) if len(latency) else 0.0
    when = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    simulator = Simulator(
        read=reads,
        task_ns=0.0,
        event_ns=event_ns,
        remote_event_ns=event_ns,
        poll_ns=float(between[:, 0].sum() / max(1.0, between[:, 1].sum())),
        ops=fit(samples),
        calibrated=f"measured {when} on {len(recorded)} recordings: {'; '.join(recorded)}",
        sources={
            "read": "measured: [working set, GB/s of one thread, GB/s of all], read as the bodies of linear do",
            "task_ns": "part of the ops' costs",
            "event_ns": "measured: median time from the last notification by another thread to the task",
            "remote_event_ns": "virtual devices share one memory: as event_ns",
            "poll_ns": "measured: mean time of a look at a worker that waits",
            "ops": "fitted to the recorded tasks on one thread",
        },
    )
    return replace(load_machine("cpu"), name=name, simulator=simulator, sources={}), recorded


def measure_reads(engine: Engine, progress: Callable[[int, int], None] = lambda done, total: None) -> Reads:
    """The read bandwidth of one thread and of all cores, by working set; sets that memory has room for."""
    cores = usable_cores()
    free = free_memory()
    sets = [size for size in SETS if free is None or size < free // 8]
    found = []
    for i, size in enumerate(sets):
        progress(i, len(sets))
        roof = Roof(engine, size)
        single, total = 0.0, 0.0
        for _ in range(TRIES):
            roof.threads = 1
            single = max(single, roof.gbs(LIKE_BODIES))
            roof.threads = cores
            total = max(total, roof.gbs(LIKE_BODIES))
        found.append((float(roof.size), single, max(single, total)))
    return tuple(found)


def contexts_of(max_seq_len: int) -> list[int]:
    """Contexts to record: hardly any positions, and parts of what the engine holds."""
    return sorted({max(8, max_seq_len // 16), *(max_seq_len * part // PART for part in range(1, PART))})


def record_steps(engine: Engine) -> list[Steps]:
    """Records an engine at each of its contexts."""
    library = profiling_library(engine)
    tasks = tasks_of(engine.manifest, engine.tables, engine.threads)
    return [
        steps_of(tasks, record(engine, library, context), context)
        for context in contexts_of(engine.manifest.max_seq_len)
    ]


def steps_of(tasks: Tasks, found: Recording, context: int) -> Steps:
    """What a recording says. Of its steps the middle half by duration counts: the others were disturbed, or lucky."""
    low, high = np.percentile(found.durations, (25, 75))
    middle = np.flatnonzero((found.durations >= low) & (found.durations <= high))
    if not middle.size:
        raise EngineError("a recording has no steps")
    times = (found.ends - found.begins)[np.ix_(middle, tasks.instruction)].mean(0)
    event, looks = [], []
    on_thread = np.bincount(tasks.thread[np.append(True, tasks.worker[1:] != tasks.worker[:-1])])
    for i in middle:
        spans = spans_of(tasks, found.begins[i], found.ends[i], float(found.durations[i]))
        gaps = gaps_of(spans)
        waited = (gaps.event > 0) & (gaps.thread == 0) & (gaps.latest >= 0)
        other = waited & (tasks.thread[gaps.latest] != tasks.thread) & (on_thread[tasks.thread] == 1)
        event.append(gaps.loop[other])
        before = gaps.before
        passed = (tasks.worker - tasks.worker[before]) % on_thread[tasks.thread]
        switched = (before >= 0) & (passed > 0) & (on_thread.size == 1)
        looks.append(np.stack([(spans.begin - gaps.free)[switched], passed[switched]], 1))
    return Steps(tasks, context, times, np.concatenate(event), np.concatenate(looks))


def _sample(engine: Engine, steps: Steps, reads: Reads) -> Sample:
    tasks = steps.tasks
    nodes = read_graph(engine.manifest).nodes
    work = work_of(engine.tables, nodes, tasks.instruction, tasks.device, steps.context)
    sizes = work.streamed + work.distinct
    single, total = rates_at(Simulator(reads, 0, 0, 0), float(sizes.sum()))
    return Sample(tasks.ops, work, steps.times, (work.streamed + work.caches) / min(single, total))
