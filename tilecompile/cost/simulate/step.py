"""simulate: one decode step of an engine on a machine, as the spans of its tasks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tilecompile.cost.simulate.loop import Indices, Loop, Numbers, Times, library, run_loop
from tilecompile.cost.simulate.work import Work, work_of
from tilecompile.cost.step_time.spans import Gaps, Spans, Tasks, tasks_of
from tilecompile.errors import EngineError, InputError
from tilecompile.ir.node import OpNode
from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.rows import SPANS, entries, offsets
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.names import PUSH
from tilecompile.schedules.machine import Machine, OpCost, Simulator

DEFAULT = "default"
"""The op whose costs apply to ops that a machine doesn't name."""


@dataclass(frozen=True)
class Simulated:
    """A simulated step: its spans, why tasks began when they did, what they did, and the loop's inputs and times.

    `exchange`, bool [tasks], says which tasks are exchanges between devices. `seconds` is how long the simulation took.
    """

    spans: Spans
    gaps: Gaps
    work: Work
    loop: Loop
    times: Times
    exchange: npt.NDArray[np.bool_]
    seconds: float

    @property
    def ms(self) -> float:
        """Milliseconds of the step."""
        return self.spans.duration / 1e6


def simulator_of(machine: Machine) -> Simulator:
    """The machine's costs. InputError where it has none."""
    if machine.simulator is None:
        raise InputError(
            f"machine {machine.name} states no costs ([simulator]); `tilecompile calibrate` measures them on a machine"
        )
    return machine.simulator


def slower(machine: Machine, times: float) -> Machine:
    """The machine with its event latencies multiplied by `times`. InputError where it has no costs."""
    costs = simulator_of(machine)
    local, remote = costs.event_ns * times, costs.remote_event_ns * times
    return replace(machine, simulator=replace(costs, event_ns=local, remote_event_ns=remote))


def at_rate(machine: Machine, rate: float) -> Machine:
    """The machine with its read rates multiplied by `rate`, since other programs or virtual machines take a varying
    part of the memory's bandwidth. InputError where it has no costs."""
    costs = simulator_of(machine)
    reads = tuple((size, single * rate, total * rate) for size, single, total in costs.read)
    return replace(machine, simulator=replace(costs, read=reads))


def simulate(
    manifest: Manifest,
    tables: Tables,
    nodes: Sequence[OpNode],
    machine: Machine,
    context: int,
    threads: int | None = None,
    program: int = 0,
    tokens: int | None = None,
) -> Simulated:
    """Simulates one step of a step program at a context of `context` positions, its own included.

    `nodes` are the operators by `Instruction.op`. `threads` carry the workers on a CPU (by default as many as it has
    cores); on other machines each worker is one. The step has as many tokens as its program can carry, or `tokens`.
    InputError for what the engine or the machine can't do; EngineError
    for a schedule that never ends.
    """
    simulator = simulator_of(machine)
    limit = manifest.max_seq_len
    if not 1 <= context <= limit:
        raise InputError(f"context is {context}, want 1 to {limit} (the engine's max_seq_len)")
    carried = int(manifest.data["programs"][program]["tokens"])
    if tokens is not None and not 1 <= tokens <= carried:
        raise InputError(f"tokens is {tokens}, want 1 to {carried} (those that the step program carries)")
    threads = _threads(manifest, machine, threads)
    library()
    begin = time.perf_counter()
    tasks = tasks_of(manifest, tables, threads, program)
    work = work_of(tables, nodes, tasks.instruction, tasks.device, context, carried, tokens)
    loop = loop_of(tables, tasks, work, machine, simulator)
    times = run_loop(loop)
    never = np.flatnonzero(np.isnan(times.end))
    if never.size:
        raise EngineError(f"{manifest.folder}: operator {tasks.operators[never[0]]} waits for ever")
    spans = _spans(tasks, times)
    exchange = np.array([node.role == PUSH for node in nodes])[tables["instructions"]["op"][tasks.instruction]]
    return Simulated(spans, _gaps(spans, times), work, loop, times, exchange, time.perf_counter() - begin)


def check_threads(machine: Machine, threads: int | None) -> None:
    """InputError for threads on a machine that has none to choose: a GPU's workers are SMs."""
    if not machine.is_cpu and threads is not None:
        raise InputError(f"threads is {threads}, but on machine {machine.name} every worker runs for itself")


def _threads(manifest: Manifest, machine: Machine, threads: int | None) -> int:
    """The threads that carry the workers."""
    workers = manifest.workers
    if machine.is_cpu:
        if threads is not None and not 1 <= threads <= workers:
            raise InputError(f"threads is {threads}, want 1 to {workers} (the engine's workers)")
        return threads or min(workers, machine.cores or workers)
    check_threads(machine, threads)
    if manifest.devices > machine.devices:
        raise InputError(
            f"the engine is for {manifest.devices} devices, and machine {machine.name} has {machine.devices}"
        )
    each = workers // manifest.devices
    if machine.workers is not None and each > machine.workers:
        raise InputError(f"the engine is for {each} workers a device, and machine {machine.name} has {machine.workers}")
    return workers


def loop_of(tables: Tables, tasks: Tasks, work: Work, machine: Machine, simulator: Simulator) -> Loop:
    """The inputs of the loop: the costs of the tasks' work on the machine, and their waits and notifications."""
    start, body = costs(tasks.ops, work, simulator)
    worker, first = np.unique(tasks.worker, return_index=True)
    device = tasks.device[first]
    memory = np.zeros_like(device) if machine.is_cpu else device
    places = 1 + int(memory.max())
    streamed = work.streamed
    sets = np.zeros(places)
    np.add.at(sets, memory[np.searchsorted(worker, tasks.worker)], streamed + work.distinct)
    rates = np.array([rates_at(simulator, size) for size in sets])
    rows = tables["instructions"][tasks.instruction]
    wait_begin, wait = _events(tables, rows, "wait")
    notify_begin, notify = _events(tables, rows, "notify")
    event, compact = np.unique(np.concatenate([wait, notify]), return_inverse=True)
    notifier = np.repeat(tasks.device, np.diff(notify_begin))
    remote = tables["events"]["device"][notify] != notifier
    return Loop(
        worker_begin=np.append(first, len(tasks)).astype(np.int64),
        worker_thread=tasks.thread[first],
        worker_memory=memory,
        worker_link=device,
        wait_begin=wait_begin,
        wait_event=compact[: len(wait)].astype(np.int64),
        notify_begin=notify_begin,
        notify_event=compact[len(wait) :].astype(np.int64),
        event_count=tables["events"]["wait_count"][event].astype(np.int64),
        notify_ns=np.where(remote, simulator.remote_event_ns, simulator.event_ns).astype(np.float64),
        start_ns=start,
        body_ns=body,
        bytes=streamed + work.caches,
        link_ns=work.pushed / machine.link_gbs if machine.link_gbs else np.zeros(len(tasks)),
        filler=work.filler if simulator.ring_bytes else np.full(len(tasks), -1, np.int64),
        single_rate=np.ascontiguousarray(rates[:, 0]),
        total_rate=np.ascontiguousarray(rates[:, 1]),
        ring_bytes=float(simulator.ring_bytes),
        hint_bytes=float(simulator.hint_bytes if simulator.ring_bytes else 0),
        filler_ns=simulator.event_ns,
        wake_ns=simulator.event_ns,
        poll_ns=simulator.poll_ns,
        first_thread=int(tasks.thread[tasks.sink]),
    )


def costs(ops: Sequence[str], work: Work, simulator: Simulator) -> tuple[Numbers, Numbers]:
    """Nanoseconds of each task: its fixed cost, and its body's computing, which overlaps with the reading."""
    names, which = np.unique(np.array(ops), return_inverse=True)
    default = simulator.ops.get(DEFAULT, OpCost())
    of = [simulator.ops.get(str(name), default) for name in names]

    def each(field: str) -> Numbers:
        found: Numbers = np.array([getattr(cost, field) for cost in of], np.float64)[which]
        return found

    start = simulator.task_ns + each("task_ns") + each("run_ns") * work.runs + each("element_ns") * work.elements
    body = each("product_ns") * work.products
    for name, size in work.weights.items():
        body = body + np.array([cost.byte_ns.get(name, 0.0) for cost in of])[which] * size
    return start, body


def rates_at(simulator: Simulator, size: float) -> tuple[float, float]:
    """Bytes a nanosecond of a worker alone and of all together, for a working set of `size` bytes."""
    sets, single, total = np.array(simulator.read).T
    at = np.log(max(size, 1.0))
    return float(np.interp(at, np.log(sets), single)), float(np.interp(at, np.log(sets), total))


def _events(tables: Tables, rows: npt.NDArray[np.void], field: str) -> tuple[Indices, Indices]:
    """Offsets [tasks + 1] of each task's entries, and the events of all entries."""
    entry, _ = entries(rows, field)
    return offsets(rows[f"{field}_count"]), tables[SPANS[field]]["event"][entry].astype(np.int64)


def _spans(tasks: Tasks, times: Times) -> Spans:
    duration = float(times.end[tasks.sink])
    first = np.append(True, tasks.worker[1:] != tasks.worker[:-1])
    wait_begin = np.where(first, 0, np.append(0, times.end[:-1]))
    return Spans(tasks, wait_begin, times.begin, times.end, duration)


def _gaps(spans: Spans, times: Times) -> Gaps:
    """The gaps of the spans (see `gaps_of`), from the loop's own times."""
    begin = spans.begin
    arrival = np.where(times.latest >= 0, np.minimum(spans.end[times.latest], begin), 0)
    free = np.where(times.before >= 0, np.minimum(times.free, begin), 0)
    arrived = np.maximum(spans.wait_begin, arrival)
    freed = np.maximum(arrived, free)
    event, thread = arrived - spans.wait_begin, freed - arrived
    return Gaps(times.latest, arrival, times.before, free, event, thread, begin - freed)
