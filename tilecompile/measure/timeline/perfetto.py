"""One step in the trace-event format, which Perfetto (ui.perfetto.dev) and chrome://tracing show.

The format is described in "Trace Event Format", the document of the Chromium project. Of it are used: complete events
(X), flow events (s, f), counter events (C) and metadata (M), in the object form. Times are in microseconds from the
step's beginning, rounded to nanoseconds, which is what Perfetto keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilecompile.cost.step_time.path import critical_path
from tilecompile.cost.step_time.spans import Gaps, Spans, gaps_of

Event = dict[str, Any]

STEP_PROCESS = 1
"""Process of the step as a whole; device d is process DEVICE_PROCESS + d. Number 0 means the idle task to Perfetto."""
DEVICE_PROCESS = 2
PATH_TRACK = 1
"""Its track with the critical path. A worker w has the track WORKER_TRACK + w of its device's process."""
WORKER_TRACK = 2

ROUND_TRACK = 2
"""The track of the steps of a round, in the process of the step."""

COUNTER = "weights, GB/s"


@dataclass(frozen=True)
class NamedStep:
    """A step of a round: its program, how many tokens it has, when it begins (ns from the round's) and its spans."""

    program: str
    tokens: int
    begin: float
    spans: Spans


def round_trace(steps: Sequence[NamedStep], about: dict[str, Any]) -> dict[str, Any]:
    """The traces of a round's steps one after another, and a track with their programs; `about` as in `trace`."""
    where = {"pid": STEP_PROCESS, "tid": ROUND_TRACK}
    names = {"thread_name": {"name": "steps"}, "thread_sort_index": {"sort_index": ROUND_TRACK}}
    events: list[Event] = [{"ph": "M", "name": key, **where, "args": args} for key, args in names.items()]
    known: set[tuple[Any, ...]] = set()
    flows, end = 0, 0
    for step in steps:
        begin, end = end, end + round(step.spans.duration)  # of whole nanoseconds, as the times within steps are
        args = {"program": step.program, "tokens": step.tokens}
        events.append(_slice(where, f"{step.program}, {step.tokens} token(s)", "step", begin, end, args))
        for event in trace(step.spans, {})["traceEvents"]:
            if event["ph"] == "M":
                key = (event["name"], event["pid"], event.get("tid"))
                if key in known:
                    continue
                known.add(key)
            else:
                event["ts"] = round(1e3 * event["ts"] + begin) / 1e3
            if "id" in event:
                event["id"] += flows
            events.append(event)
        flows += len(step.spans.tasks)
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": about}


def trace(spans: Spans, about: dict[str, Any]) -> dict[str, Any]:
    """The trace of a step, as JSON values; `about` says what the step is of.

    A process for each device with a track for each worker: slices of the category `work`, one for each task, by the
    name of its operator, and of the category `wait`, by cause. An arrow leads to each task that waits for events from
    the one that notified the last of them. A counter shows the bytes of weights that a device's workers stream, as an
    even rate over each task. A process of its own shows the critical path.
    """
    gaps = gaps_of(spans)
    events = [*_names(spans), *_path(spans, gaps), *_work(spans, gaps), *_waits(spans, gaps), *_flows(spans, gaps)]
    for device in np.unique(spans.tasks.device):
        events += _counters(spans, int(device))
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": about}


def _us(nanoseconds: float) -> float:
    """A time in a trace: microseconds, to the nanosecond."""
    return round(nanoseconds) / 1e3


def _track(spans: Spans, task: int) -> Event:
    """Where a task's slices are."""
    return {
        "pid": DEVICE_PROCESS + int(spans.tasks.device[task]),
        "tid": WORKER_TRACK + int(spans.tasks.worker[task]),
    }


def _slice(where: Event, name: str, category: str, begin: float, end: float, args: Event) -> Event:
    """A complete event; both of its ends are rounded, so that slices that touch still do."""
    dur = (round(end) - round(begin)) / 1e3
    return {"ph": "X", "name": name, "cat": category, **where, "ts": _us(begin), "dur": dur, "args": args}


def _names(spans: Spans) -> list[Event]:
    """Names of processes and tracks, and their order."""
    tasks = spans.tasks
    processes = {STEP_PROCESS: "step"}
    tracks = {(STEP_PROCESS, PATH_TRACK): "critical path"}
    for task in np.unique(tasks.worker, return_index=True)[1]:
        where = _track(spans, int(task))
        processes[where["pid"]] = f"device {tasks.device[task]}"
        tracks[where["pid"], where["tid"]] = f"worker {tasks.worker[task]} (thread {tasks.thread[task]})"
    out: list[Event] = []
    for pid, name in processes.items():
        out.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}})
        out.append({"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}})
    for (pid, tid), name in tracks.items():
        out.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}})
        out.append({"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}})
    return out


def _args(spans: Spans, task: int) -> Event:
    """What a task is."""
    tasks = spans.tasks
    time, size = float(spans.end[task] - spans.begin[task]), int(tasks.bytes[task])
    args: Event = {
        "op": tasks.ops[task],
        "kind": tasks.kinds[task],
        "tile": tasks.tiles[task].tolist(),
        "instruction": int(tasks.instruction[task]),
        "bytes": size,
    }
    return args | ({"GB/s": round(size / time, 3)} if size and time else {})


def _work(spans: Spans, gaps: Gaps) -> list[Event]:
    """A slice for each task."""
    tasks = spans.tasks
    out = []
    for task, latest in enumerate(gaps.latest):
        args = _args(spans, task)
        if latest >= 0:
            args["last event from"] = tasks.operators[latest]
        where = _track(spans, task)
        out.append(_slice(where, tasks.operators[task], "work", spans.begin[task], spans.end[task], args))
    return out


def _waits(spans: Spans, gaps: Gaps) -> list[Event]:
    """The time between tasks by cause: until the last event arrived, the thread was free, the loop had seen it; and
    each worker's time from its last task to the step's end."""
    tasks = spans.tasks
    out = []

    def add(task: int, cause: str, begin: float, end: float, args: Event) -> None:
        if round(end) > round(begin):
            out.append(_slice(_track(spans, task), f"wait: {cause}", "wait", begin, end, {"cause": cause, **args}))

    for task, begin in enumerate(spans.wait_begin):
        latest, before = int(gaps.latest[task]), int(gaps.before[task])
        arrived = begin + gaps.event[task]
        free = arrived + gaps.thread[task]
        add(task, "event", begin, arrived, {"from": tasks.operators[latest]} if latest >= 0 else {})
        add(task, "thread", arrived, free, {"busy with": tasks.operators[before]} if before >= 0 else {})
        add(task, "loop", free, spans.begin[task], {})
        if task + 1 == len(tasks) or tasks.worker[task + 1] != tasks.worker[task]:
            add(task, "end", spans.end[task], spans.duration, {})
    return out


def _flows(spans: Spans, gaps: Gaps) -> list[Event]:
    """Arrows to each task from the one whose event arrived last."""
    out: list[Event] = []
    for task, latest in enumerate(gaps.latest.tolist()):
        if latest < 0:
            continue
        same = {"name": "last event", "cat": "event", "id": task}
        until = round(spans.begin[task])
        begin, end = round(spans.begin[latest]), round(spans.end[latest])
        left = max(begin, min(end - 1, until))  # within its slice, whose end belongs to the next one
        out.append({"ph": "s", **same, **_track(spans, latest), "ts": left / 1e3})
        out.append({"ph": "f", "bp": "e", **same, **_track(spans, task), "ts": until / 1e3})
    return out


def _path(spans: Spans, gaps: Gaps) -> list[Event]:
    """The critical path: its tasks for the time that they are on it."""
    where = {"pid": STEP_PROCESS, "tid": PATH_TRACK}
    tasks = spans.tasks
    out = []
    for link in critical_path(spans, gaps):
        args = _args(spans, link.task) | {"worker": int(tasks.worker[link.task]), "began after": link.via}
        out.append(_slice(where, tasks.operators[link.task], "path", link.begin, link.until, args))
    return out


def _counters(spans: Spans, device: int) -> list[Event]:
    """The rate at which a device's workers stream weights, wherever it changes."""
    tasks = spans.tasks
    begin, end = np.round(spans.begin), np.round(spans.end)
    mine = np.flatnonzero((tasks.device == device) & (tasks.bytes > 0) & (end > begin))
    rate = tasks.bytes[mine] / (end[mine] - begin[mine])
    times, place = np.unique(np.concatenate([begin[mine], end[mine]]), return_inverse=True)
    change = np.bincount(place, np.concatenate([rate, -rate]), minlength=len(times))
    values = np.maximum(np.round(np.cumsum(change), 3), 0)  # not -0.0 or a rounding error below it
    where = {"ph": "C", "name": COUNTER, "pid": DEVICE_PROCESS + device}
    return [
        {**where, "ts": _us(time), "args": {"GB/s": float(value)}}
        for time, value in zip(times.tolist(), values.tolist(), strict=True)
    ]
