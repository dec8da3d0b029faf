"""calibrate: what a step costs on this machine, measured on engines, as a machine description."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from tilecompile.cost.simulate.loop import Numbers
from tilecompile.cost.simulate.step import at_rate, rates_at, simulate
from tilecompile.cost.simulate.work import Work, work_of
from tilecompile.cost.step_time.spans import Tasks, gaps_of, spans_of, tasks_of
from tilecompile.engine.graph_json import read_graph
from tilecompile.errors import EngineError, InputError
from tilecompile.measure.calibrate.fit_costs import Sample, fit
from tilecompile.measure.roof import ReadKernel, Roof
from tilecompile.measure.timeline.record import Recording, profiling_library, record
from tilecompile.runtime.engine import Engine
from tilecompile.runtime.folder.manifest import read_manifest
from tilecompile.runtime.folder.tables import load_tables
from tilecompile.runtime.format import PREFETCH_BYTES
from tilecompile.runtime.load import load
from tilecompile.runtime.machine import free_memory, usable_cores
from tilecompile.runtime.progress import Count, Progress, silent
from tilecompile.schedules.machine import Machine, OpCost, Simulator, load_machine

SETS = tuple(int(2**n) for n in (18, 20, 21, 22, 23, 24, 25, 26, 28, 30))
"""Working sets in bytes, from the first caches to memory."""
LIKE_BODIES = ReadKernel(streams=1, locality=3, ahead=PREFETCH_BYTES, huge_pages=True)
"""Reads as the bodies of linear operators do."""
TRIES = 5
PART = 4
"""Contexts are quarters of what the engine holds, and one with hardly any positions."""
QUIET = (10, 50)
"""Steps that count, in percent of all by duration: the longer ones were disturbed, the shortest were lucky."""

STEADY = 0.08
"""Fraction by which the memory's rate may differ between the moments before and after a recording."""
ATTENDED = 0.85
"""Fraction of their cores' time that the threads must have had (they sleep between requests); else others took it."""
UNDISTURBED, RECORDINGS, PAUSE = 3, 12, 2.0
"""Undisturbed recordings of a context, recordings at most, and seconds before the next one after a disturbed one."""

Reads = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Steps:
    """Recorded steps of an engine: its tasks' mean times, and the costs of waiting for events and polling workers.

    `step_ns` is their mean duration. `memory_rates` are the rates at which the engine's working set was read just
    before and just after, relative to the calibration's. `event_ns` holds the times from the last notification to the
    task's beginning, where it came from another thread and the task's own was free. `polls` [n, 2] pairs the time
    between two tasks of a thread with the number of workers that it polled meanwhile. `attended`: see `Recording`.
    """

    tasks: Tasks
    context: int
    step_ns: float
    times: Numbers
    event_ns: Numbers
    polls: Numbers
    attended: float
    memory_rates: tuple[float, float] = (1.0, 1.0)

    @property
    def memory_rate(self) -> float:
        """The rate of the memory during the recording, relative to the calibration's."""
        return float(np.sqrt(self.memory_rates[0] * self.memory_rates[1]))

    @property
    def disturbance(self) -> float:
        """Drift of the memory's rate or missing time on cores, the greater, relative to what is allowed."""
        drift = abs(np.log(self.memory_rates[1] / self.memory_rates[0])) / np.log1p(STEADY)
        return float(max(drift, (1 - self.attended) / (1 - ATTENDED)))


@dataclass(frozen=True)
class Check:
    """A recording that the calibration used, and the simulation of the same step with the calibration's result.

    `pace` is the rate of the memory during the recording, relative to the calibration's.
    """

    engine: str
    context: int
    threads: int
    measured_ms: float
    simulated_ms: float
    pace: float


def calibrate(
    engines: Sequence[Path],
    name: str,
    steps: int | None = None,
    progress: Progress = silent,
) -> tuple[Machine, list[Check]]:
    """Measures this machine: a description with costs, and how well it explains what it was made from.

    Each engine is recorded at several contexts, on one thread for the ops' costs and on two for events; `steps` steps
    each time, by default as many as `record` chooses.
    InputError without engines or a C++ compiler; EngineError as `load` and `profiling_library` do.
    """
    if not engines:
        raise InputError("no engine is given; a calibration records steps of one or more")
    for path in engines:
        read_manifest(path)
    samples: list[Sample] = []
    recorded: list[tuple[Path, int, Steps]] = []
    reads: Reads = ()
    for number, path in enumerate(engines):
        for threads in range(1, min(2, read_manifest(path).workers, usable_cores()) + 1):
            progress(f"record {path.name}", number, len(engines))
            with load(path, threads) as engine:
                reads = reads or measure_reads(engine, partial(progress, "read"))
                for one in record_steps(engine, contexts_of(engine.manifest.max_seq_len), reads, steps):
                    recorded.append((path, threads, one))
                    if threads == 1:
                        samples.append(_sample(engine, one, reads))
    found = [one for _, _, one in recorded]
    names = "; ".join(f"{path.name}, context {s.context}, {threads} thread(s)" for path, threads, s in recorded)
    when = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    simulator = _simulator(reads, found, fit(samples), f"measured {when} on: {names}")
    machine = replace(load_machine("cpu"), name=name, simulator=simulator, sources={})
    return machine, [_check(machine, *row) for row in recorded]


def _simulator(reads: Reads, found: Sequence[Steps], ops: Mapping[str, OpCost], calibrated: str) -> Simulator:
    latency = np.concatenate([steps.event_ns for steps in found])
    polls = np.concatenate([steps.polls for steps in found])
    event_ns = float(np.median(latency)) if len(latency) else 0.0
    return Simulator(
        read=reads,
        task_ns=0.0,
        event_ns=event_ns,
        remote_event_ns=event_ns,
        poll_ns=float(polls[:, 0].sum() / max(1.0, polls[:, 1].sum())),
        ops=ops,
        calibrated=calibrated,
        sources={
            "read": "measured: [working set, GB/s of one thread, GB/s of all], read as the bodies of linear do",
            "task_ns": "part of the ops' costs",
            "event_ns": "measured: median time from the last notification by another thread to the task",
            "remote_event_ns": "virtual devices share one memory: as event_ns",
            "poll_ns": "measured: mean time of a poll of a waiting worker",
            "ops": "fitted to the recorded tasks on one thread",
        },
    )


def _check(machine: Machine, path: Path, threads: int, steps: Steps) -> Check:
    manifest = read_manifest(path)
    nodes = read_graph(manifest).nodes
    then = at_rate(machine, steps.memory_rate)
    found = simulate(manifest, load_tables(manifest), nodes, then, steps.context, threads)
    return Check(str(path), steps.context, threads, steps.step_ns / 1e6, found.ms, steps.memory_rate)


def measure_reads(engine: Engine, progress: Count = silent) -> Reads:
    """The read bandwidth of one thread and of all cores, by working set; sets that memory has room for."""
    cores = usable_cores()
    free = free_memory()
    sets = [size for size in SETS if free is None or size < free // 8]
    found = []
    for i, size in enumerate(sets):
        progress(i, len(sets))
        roof = Roof(engine, size)
        single, total = _gbs(roof, 1), _gbs(roof, cores)
        found.append((float(roof.size), single, max(single, total)))
    return tuple(found)


def _gbs(roof: Roof, threads: int) -> float:
    """The bandwidth of so many threads: a median, since the fastest of some tries may be the memory's best moment."""
    roof.threads = threads
    return median(roof.gbs(LIKE_BODIES) for _ in range(TRIES))


def contexts_of(max_seq_len: int) -> list[int]:
    """Contexts to record: hardly any positions, and parts of what the engine holds."""
    return sorted({max(8, max_seq_len // 16), *(max_seq_len * part // PART for part in range(1, PART))})


def record_steps(engine: Engine, contexts: Sequence[int], reads: Reads, steps: int | None = None) -> list[Steps]:
    """Records an engine at some contexts, with the rate that the memory has each time.

    The fastest of UNDISTURBED undisturbed recordings counts, since what disturbs one as a whole only lengthens it.
    Where none of RECORDINGS is undisturbed, it is the least disturbed one. The memory's rates are relative to `reads`.
    """
    library = profiling_library(engine)
    tasks = tasks_of(engine.manifest, engine.tables, engine.threads)
    size = float(_work(engine, tasks, max(contexts)).read)
    roof = Roof(engine, size)

    def memory_rate() -> float:
        return _gbs(roof, engine.threads) / _rate(reads, roof.size, engine.threads)

    def once(context: int) -> Steps:
        before = memory_rate()
        found = steps_of(tasks, record(engine, library, context, steps), context)
        return replace(found, memory_rates=(before, memory_rate()))

    result = []
    for context in contexts:
        found: list[Steps] = []
        while len(found) < RECORDINGS and sum(s.disturbance <= 1 for s in found) < UNDISTURBED:
            if found and found[-1].disturbance > 1:
                time.sleep(PAUSE)
            found.append(once(context))
        quiet = [s for s in found if s.disturbance <= 1] or [min(found, key=lambda s: s.disturbance)]
        result.append(min(quiet, key=lambda s: s.step_ns))
    return result


def _work(engine: Engine, tasks: Tasks, context: int) -> Work:
    nodes = read_graph(engine.manifest).nodes
    return work_of(engine.tables, nodes, tasks.instruction, tasks.device, context)


def _rate(reads: Reads, size: float, threads: int) -> float:
    """Bytes a nanosecond of so many threads, up to all cores, on a working set."""
    single, total = rates_at(Simulator(reads, 0, 0, 0), size)
    return min(single * threads, total)


def steps_of(tasks: Tasks, found: Recording, context: int) -> Steps:
    """The mean figures of a recording's QUIET steps."""
    low, high = np.percentile(found.durations, QUIET)
    quiet = np.flatnonzero((found.durations >= low) & (found.durations <= high))
    if not quiet.size:
        raise EngineError("a recording has no steps")
    times = (found.ends - found.begins)[np.ix_(quiet, tasks.instruction)].mean(0)
    event, polls = [], []
    on_thread = np.bincount(tasks.thread[np.append(True, tasks.worker[1:] != tasks.worker[:-1])])
    for i in quiet:
        spans = spans_of(tasks, found.begins[i], found.ends[i], float(found.durations[i]))
        gaps = gaps_of(spans)
        waited = (gaps.event > 0) & (gaps.thread == 0) & (gaps.latest >= 0)
        other = waited & (tasks.thread[gaps.latest] != tasks.thread) & (on_thread[tasks.thread] == 1)
        event.append(gaps.loop[other])
        before = gaps.before
        passed = (tasks.worker - tasks.worker[before]) % on_thread[tasks.thread]
        switched = (before >= 0) & (passed > 0) & (on_thread.size == 1)
        polls.append(np.stack([(spans.begin - gaps.free)[switched], passed[switched]], 1))
    step_ns = float(found.durations[quiet].mean())
    return Steps(tasks, context, step_ns, times, np.concatenate(event), np.concatenate(polls), found.attended)


def _sample(engine: Engine, steps: Steps, reads: Reads) -> Sample:
    work = _work(engine, steps.tasks, steps.context)
    rate = _rate(reads, float(work.read), 1) * steps.memory_rate
    return Sample(steps.tasks.ops, work, steps.times, (work.streamed + work.caches) / rate)
