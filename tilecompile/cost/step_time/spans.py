"""One step as spans: when each worker waited for which task, when it began it and when it was done.

The spans come from a recording or from the simulator; their analysis needs only them and the tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tilecompile.runtime.folder.manifest import Manifest
from tilecompile.runtime.folder.rows import SPANS, entries, expanded, owners, sums
from tilecompile.runtime.folder.tables import Tables
from tilecompile.runtime.format import COMMIT_KIND

Numbers = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tasks:
    """The tasks of one step program, in the order of (worker, place in its stream); arrays are [tasks] but for edges.

    `instruction` indexes the engine's table, `kinds` names the task kind of each task, `ops` its tile op, `operators`
    its operator, `tiles` [tasks, 4] are its coordinates there, `bytes` counts the weights that it streams. `thread` is
    the thread that runs its worker. `consumer` and `producer` [edges]: the task waits for an event that the other
    one notifies; both are places in these arrays.
    """

    instruction: Indices
    worker: Indices
    device: Indices
    thread: Indices
    kinds: list[str]
    ops: list[str]
    operators: list[str]
    tiles: Indices
    bytes: Indices
    consumer: Indices
    producer: Indices
    sink: int

    def __len__(self) -> int:
        return len(self.instruction)


@dataclass(frozen=True)
class Spans:
    """Times of each of a program's tasks in one step: float64 [tasks], nanoseconds from the step's beginning.

    `wait_begin` is when the worker was done with the task before, or the step's beginning. `duration` is the time to
    the next step's beginning, and no time is beyond it.
    """

    tasks: Tasks
    wait_begin: Numbers
    begin: Numbers
    end: Numbers
    duration: float


@dataclass(frozen=True)
class Gaps:
    """What each task's time between `wait_begin` and `begin` was spent on: float64 [tasks], nanoseconds.

    `event`: until the last of its events arrived, notified by task `latest` (-1 where it waits for none) at `arrival`.
    `thread`: until the thread that runs the worker was done with another worker's task, `before` (-1 for the
    thread's first task). `loop`: the rest, until the loop had seen it.
    """

    latest: Indices
    arrival: Numbers
    before: Indices
    free: Numbers
    event: Numbers
    thread: Numbers
    loop: Numbers


def tasks_of(manifest: Manifest, tables: Tables, threads: int, program: int = 0) -> Tasks:
    """The tasks of a step program, on a kernel with that many threads."""
    instructions, streams = tables["instructions"], tables["streams"]
    mine = streams[(streams["program"] == program) & (streams["agent"] == 0)]
    mine = mine[np.argsort(mine["worker"])]
    counts = mine["end"].astype(np.int64) - mine["begin"]
    index, stream = expanded(mine["begin"], counts), owners(counts)
    worker = mine["worker"].astype(np.int64)[stream]
    kinds, operators = manifest.data["kinds"], manifest.data["operators"]
    rows = instructions[index]
    consumer, producer = _edges(tables, index)
    return Tasks(
        instruction=index,
        worker=worker,
        device=mine["device"].astype(np.int64)[stream],
        thread=worker * threads // manifest.workers,
        kinds=[str(kinds[kind]) for kind in rows["kind"]],
        ops=[op_of(kinds[kind]) for kind in rows["kind"]],
        operators=[str(operators[op]) for op in rows["op"]],
        tiles=rows["tile"].astype(np.int64),
        bytes=sums(tables["tape"]["bytes"].astype(np.int64), rows, "tape"),
        consumer=consumer,
        producer=producer,
        sink=int(np.flatnonzero(rows["kind"] == COMMIT_KIND)[0]),
    )


def op_of(kind: str) -> str:
    """The tile op of a task kind: k12_linear is a linear."""
    return kind.split("_", 1)[1] if kind[0] == "k" and "_" in kind else kind


def _edges(tables: Tables, index: Indices) -> tuple[Indices, Indices]:
    """(consumer, producer) of every wait, as places in `index`."""

    def pairs(field: str) -> tuple[Indices, Indices]:
        """Places, and the events that they wait for or notify."""
        entry, place = entries(tables["instructions"][index], field)
        return place, tables[SPANS[field]]["event"][entry].astype(np.int64)

    consumers, waited = pairs("wait")
    producers, notified = pairs("notify")
    order = np.argsort(notified, kind="stable")
    producers, notified = producers[order], notified[order]
    left, right = np.searchsorted(notified, waited), np.searchsorted(notified, waited, "right")
    return consumers[owners(right - left)], producers[expanded(left, right - left)]


def spans_of(tasks: Tasks, begins: Numbers, ends: Numbers, duration: float) -> Spans:
    """Spans from the times of all instructions [instructions], as a recording has them.

    A thread may lose its core between its last notify and its reading of the clock, so that an end can seem to be
    after the step's: it is cut there, as the sink's is, whose work includes the beginning of the next step. A task is
    recorded to begin when its thread ended the one before, some nanoseconds before it looks for its events: it begins
    after the tasks that notify them.
    """
    end = np.clip(ends[tasks.instruction], 0, duration)
    begin = np.clip(begins[tasks.instruction], 0, end)
    while (late := begin[tasks.producer] > begin[tasks.consumer]).any():
        np.maximum.at(begin, tasks.consumer[late], begin[tasks.producer[late]])
    end = np.maximum(begin, end)
    first = np.append(True, tasks.worker[1:] != tasks.worker[:-1])
    wait_begin = np.where(first, 0, np.append(0, end[:-1]))
    return Spans(tasks, wait_begin, np.maximum(begin, wait_begin), end, duration)


def gaps_of(spans: Spans) -> Gaps:
    """Why each task began when it did."""
    tasks, begin = spans.tasks, spans.begin
    latest, arrival = _latest(tasks, spans.end)
    # A notify is seen before its task's end is read from the clock.
    arrival = np.where(latest >= 0, np.minimum(arrival, begin), 0)
    before = _before(tasks, begin)
    free = np.where(before >= 0, np.minimum(spans.end[before], begin), 0)
    arrived = np.maximum(spans.wait_begin, arrival)
    freed = np.maximum(arrived, free)
    return Gaps(latest, arrival, before, free, arrived - spans.wait_begin, freed - arrived, begin - freed)


def _latest(tasks: Tasks, end: Numbers) -> tuple[Indices, Numbers]:
    """Of the tasks that each waits for, the one that ended last, and when; -1 and 0 where it waits for none."""
    order = np.lexsort((end[tasks.producer], tasks.consumer))
    latest = np.full(len(tasks), -1, np.int64)
    latest[tasks.consumer[order]] = tasks.producer[order]  # of equals the last one wins
    return latest, np.where(latest >= 0, end[latest], 0)


def _before(tasks: Tasks, begin: Numbers) -> Indices:
    """The task that each thread ran before each of its tasks, or -1."""
    order = np.lexsort((np.arange(len(tasks)), begin, tasks.thread))
    before = np.full(len(tasks), -1, np.int64)
    same = tasks.thread[order[1:]] == tasks.thread[order[:-1]]
    before[order[1:]] = np.where(same, order[:-1], -1)
    return before
