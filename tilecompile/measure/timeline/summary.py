"""Where the time of one step went, as figures: by op, by cause of waiting, along the critical path."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from tilecompile.cost.step_time.path import EVENT, START, THREAD, Link, critical_path
from tilecompile.cost.step_time.spans import Gaps, Spans, gaps_of

WAITS = ("event", "thread", "loop", "end")
"""Why a worker isn't at work: an event hasn't arrived, its thread is busy with another worker's task, the loop hasn't
seen it yet or is between two tasks, or the worker has done all of its step."""


def summary(spans: Spans) -> dict[str, Any]:
    """The figures of a step, as JSON values; times in microseconds, bandwidths in 10⁹ bytes a second.

    `step_us` is the step. `workers` divides it for each worker into `work_us` and the time of each of WAITS; `shares`
    are the same over all workers, and add up to 1. `thread_work_us` is how long each thread was at work. `ops` has for
    each tile op its tasks, their time and share of all threads' time, the bytes of weights that they stream and how
    fast, and what of the critical path they are. `path` divides the critical path, whose length is the step: the time
    of its tasks, and the gaps before them, by what ended each gap. `waits` are the pairs of ops of which one waits
    for the last event from the other, and for how long.
    """
    gaps = gaps_of(spans)
    path = critical_path(spans, gaps)
    workers = _workers(spans, gaps)
    whole = spans.duration / 1e3 * len(workers)
    shares = {key: sum(w[f"{key}_us"] for w in workers) / whole for key in ("work", *WAITS)}
    return {
        "step_us": spans.duration / 1e3,
        "tasks": len(spans.tasks),
        "shares": shares,
        "workers": workers,
        "thread_work_us": _threads(spans),
        "ops": _ops(spans, path),
        "path": _gaps_of_path(path),
        "waits": _pairs(spans, gaps),
    }


def _workers(spans: Spans, gaps: Gaps) -> list[dict[str, Any]]:
    """How each worker spent the step."""
    tasks = spans.tasks
    numbers, first, of_task = np.unique(tasks.worker, return_index=True, return_inverse=True)
    last_end = np.zeros(len(numbers))
    np.maximum.at(last_end, of_task, spans.end)
    times = {"work": spans.end - spans.begin, "event": gaps.event, "thread": gaps.thread, "loop": gaps.loop}
    sums = {f"{key}_us": np.bincount(of_task, value) / 1e3 for key, value in times.items()}
    sums["end_us"] = (spans.duration - last_end) / 1e3
    return [
        {
            "worker": int(number),
            "device": int(tasks.device[task]),
            "thread": int(tasks.thread[task]),
            **{key: float(value[i]) for key, value in sums.items()},
        }
        for i, (number, task) in enumerate(zip(numbers, first, strict=True))
    ]


def _threads(spans: Spans) -> list[float]:
    """How long each thread was at work."""
    return [float(us) for us in np.bincount(spans.tasks.thread, spans.end - spans.begin) / 1e3]


def _ops(spans: Spans, path: list[Link]) -> list[dict[str, Any]]:
    """Time by tile op, the longest first."""
    tasks = spans.tasks
    whole = spans.duration / 1e3 * len(np.unique(tasks.thread))
    on_path: defaultdict[str, list[float]] = defaultdict(list)
    for link in path:
        on_path[tasks.ops[link.task]].append((link.until - link.begin) / 1e3)
    names, of_task = np.unique(tasks.ops, return_inverse=True)
    time = np.bincount(of_task, spans.end - spans.begin)
    streams = tasks.bytes > 0
    busy = np.bincount(of_task, np.where(streams, spans.end - spans.begin, 0))
    size = np.bincount(of_task, tasks.bytes)
    found = [
        {
            "op": str(name),
            "tasks": int(np.sum(of_task == i)),
            "work_us": float(time[i]) / 1e3,
            "share": float(time[i]) / 1e3 / whole,
            "bytes": int(size[i]),
            "gbs": float(size[i] / busy[i]) if busy[i] else None,
            "path_tasks": len(on_path[str(name)]),
            "path_us": sum(on_path[str(name)]),
        }
        for i, name in enumerate(names)
    ]
    return sorted(found, key=lambda op: -op["work_us"])


def _gaps_of_path(path: list[Link]) -> dict[str, Any]:
    """The critical path: its tasks' time, and the gaps before them, by what ended each gap."""
    before = {via: [link.gap for link in path if link.via == via] for via in (EVENT, THREAD, START)}
    return {
        "tasks": len(path),
        "work_us": sum(link.until - link.begin for link in path) / 1e3,
        **{f"after_{via}": {"tasks": len(gap), "us": sum(gap) / 1e3} for via, gap in before.items()},
    }


def _pairs(spans: Spans, gaps: Gaps) -> list[dict[str, Any]]:
    """Waiting for events by the ops of producer and consumer, the longest first."""
    ops = spans.tasks.ops
    times: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for task in np.flatnonzero(gaps.event > 0):
        times[ops[gaps.latest[task]], ops[task]].append(float(gaps.event[task]) / 1e3)
    found = [
        {"producer": producer, "consumer": consumer, "tasks": len(us), "us": sum(us)}
        for (producer, consumer), us in times.items()
    ]
    return sorted(found, key=lambda pair: -pair["us"])
