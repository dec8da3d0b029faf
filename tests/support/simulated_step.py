"""One step simulated in plain Python, slowly: in small steps of time, for comparison with the event loop."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilecompile.cost.simulate.loop import Loop


def loop(streams: list[list[dict[str, Any]]], **machine: Any) -> Loop:
    """A loop from the tasks of each worker: `waits` and `notifies` name events; see `Loop` for the rest."""
    tasks = [task for stream in streams for task in stream]
    events = sorted({e for t in tasks for e in (*t.get("waits", ()), *t.get("notifies", ()))})
    number = {e: i for i, e in enumerate(events)}
    notified = [number[e] for t in tasks for e in t.get("notifies", ())]
    threads = machine.pop("threads", list(range(len(streams))))
    memories = machine.pop("memories", [0] * len(streams))
    places = max(memories) + 1

    def begins(what: str) -> np.ndarray:
        return np.cumsum([0, *(len(t.get(what, ())) for t in tasks)]).astype(np.int64)

    def each(what: str, otherwise: float = 0) -> np.ndarray:
        return np.array([t.get(what, otherwise) for t in tasks], np.float64)

    return Loop(
        worker_begin=np.cumsum([0, *map(len, streams)]).astype(np.int64),
        worker_thread=np.array(threads, np.int64),
        worker_memory=np.array(memories, np.int64),
        worker_link=np.array(memories, np.int64),
        wait_begin=begins("waits"),
        wait_event=np.array([number[e] for t in tasks for e in t.get("waits", ())], np.int64),
        notify_begin=begins("notifies"),
        notify_event=np.array(notified, np.int64),
        event_count=np.bincount(np.array(notified, np.int64), minlength=len(events)).astype(np.int64),
        notify_ns=np.full(len(notified), float(machine.pop("event_ns", 0))),
        start_ns=each("start"),
        body_ns=each("body"),
        bytes=each("bytes"),
        link_ns=each("link"),
        filler=np.array([t.get("filler", -1) for t in tasks], np.int64),
        single_rate=np.full(places, float(machine.pop("single", 1))),
        total_rate=np.full(places, float(machine.pop("total", 1e9))),
        **machine,
    )


def by_small_steps(given: Loop, step: float) -> tuple[np.ndarray, np.ndarray]:
    """(begin, end) of every task, right to a few steps of time; for a thread a worker, without links and fillers."""
    tasks, workers = len(given.bytes), len(given.worker_thread)
    begin, end = np.full(tasks, np.nan), np.full(tasks, np.nan)
    came = np.zeros(tasks)
    pc, count = given.worker_begin[:-1].copy(), given.event_count.copy()
    seen = np.zeros((len(count), workers))
    now = 0.0
    while (pc < given.worker_begin[1:]).any():
        for w in range(workers):
            task = pc[w]
            if task == given.worker_begin[w + 1]:
                continue
            waits = given.wait_event[given.wait_begin[task] : given.wait_begin[task + 1]]
            if np.isnan(begin[task]) and all(count[e] == 0 and seen[e, w] <= now for e in waits):
                begin[task] = now
            worked = now - begin[task] >= given.body_ns[task] and came[task] >= given.bytes[task]
            if not np.isnan(begin[task]) and worked:
                if np.isnan(end[task]):
                    end[task] = now + given.start_ns[task]
                if now >= end[task]:
                    for e in given.notify_event[given.notify_begin[task] : given.notify_begin[task + 1]]:
                        count[e] -= 1
                        late = now + given.notify_ns[0]
                        for other in range(workers):
                            seen[e, other] = max(seen[e, other], now if other == w else late)
                    pc[w] += 1
        reading = []
        for w in range(workers):
            first, last = given.worker_begin[w], given.worker_begin[w + 1]
            running = pc[w] < last and not np.isnan(begin[pc[w]])
            upto = given.bytes[first : pc[w] + running].sum() + given.ring_bytes
            left = [t for t in range(first, last) if came[t] < given.bytes[t]]
            if left and came[first:last].sum() < upto:
                reading.append(left[0])
        if reading:
            rate = min(given.single_rate[0], given.total_rate[0] / len(reading))
            for t in reading:
                came[t] = min(came[t] + rate * step, given.bytes[t])
        now += step
    return begin, end
