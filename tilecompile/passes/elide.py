"""elide: which waits a schedule must emit; the others follow from them and from the order of each worker.

Vector clocks over the workers decide: a task's clock holds how many tasks of every worker are done before it starts. A
wait whose producers are all in the clock already is left out, whether they got there by the worker's own order, by a
wait of an earlier task of the worker, or by another wait of the same task.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from tilecompile.ir.tasks import EventTensors, Ints

Pair = tuple[int, int]
"""An event: index of its tensor, element."""


def needed_waits(plan: EventTensors, assignment: list[Ints], workers: int) -> dict[Pair, list[Pair]]:
    """The events that each (grid, task) must wait for, when workers run their tasks in the order of the grids.

    `assignment` has the worker (of `workers` within its device) of each task of each grid.
    """
    grids = plan.grids.grids
    streams = plan.grids.placement.devices * workers
    clocks = np.zeros((streams, streams), np.int32)
    joined: dict[Pair, np.ndarray] = {}  # clocks of the producers that an event has had so far
    produced = defaultdict(list)
    for t in plan.tensors:
        produced[t.producer].append((t.index, t.notify.tolist()))
    needed: dict[Pair, list[Pair]] = {}
    for grid, chosen, waits in zip(grids, assignment, plan.waits, strict=True):
        for task, worker in enumerate(chosen.tolist()):
            stream = grid.device * workers + worker
            clock = clocks[stream]
            kept = []
            # Late producers with many tasks first: waiting for them says the most about the others.
            for pair in sorted(waits[task], key=lambda p: _reach(plan, p), reverse=True):
                if (clock < joined[pair]).any():
                    clock = np.maximum(clock, joined[pair])
                    kept.append(pair)
            needed[grid.index, task] = sorted(kept)
            clocks[stream] = clock
            clocks[stream, stream] += 1
            for tensor, notify in produced[grid.index]:
                event = (tensor, notify[task])
                done = joined.get(event)
                joined[event] = clocks[stream].copy() if done is None else np.maximum(done, clocks[stream])
    return needed


def _reach(plan: EventTensors, pair: Pair) -> tuple[int, int]:
    tensor = plan.tensors[pair[0]]
    return tensor.producer, int(tensor.wait_counts[pair[1]])
