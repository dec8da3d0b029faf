"""What a step costs by its number of tokens, estimated from the tasks of its operators, before there are any tables.

The costs are the machine's, as the simulator takes them; but nothing is executed. Operators that can run beside each
other make a level, and a step is one level after the other: the longest wait and start of a task, then what takes
longest of computing, reading and sending. A loader that runs ahead hides the reading of what isn't chosen by the step
itself, up to the time that all of the step's bytes take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from tilecompile.cost.simulate.loop import Indices, Numbers
from tilecompile.cost.simulate.step import DEFAULT, rates_at, simulator_of
from tilecompile.ir.graph import OpGraph, pushes
from tilecompile.ir.tasks import Region, TaskGrid, TaskGrids
from tilecompile.ops.base import op_of
from tilecompile.runtime.format import DTYPE_BYTES
from tilecompile.schedules.machine import Machine, OpCost

FURTHER = 0.5
"""Computing that a further token adds to a weight, as a part of what the first one takes. A body for CPUs widens a
weight once and then multiplies: 4 of its about 7 instructions for two weights come again with each token."""

COLUMNS = (
    *("tasks", "by_slot", "event", "latency", "latency_token", "slot_latency"),
    *("products", "weights", "slot_weights", "fixed", "slots", "caches", "link", "rows"),
)
"""Of each operator, where "all slots" means that each of the stacked matrices is in one:

tasks, and the part of them that a token adds, 0 where they are as many for any number of tokens;
ns until its notifications are seen; ns of a task's fixed costs, what a token adds to them, and what all slots add;
ns of computing products with caches for a token, with its weights and with those of all slots for one token;
bytes of weights, of all slots and of caches; ns on the link for a token; 1 where it has a row for each of the tokens.
"""


@dataclass(frozen=True)
class StepEstimate:
    """The parts of a step's time: `columns`, [operators] each (see COLUMNS), and how often an operator occurs in the
    model (`copies`). `level` numbers those that run beside each other, `place` the devices whose memory and `workers`
    they share. `chosen` is the part of the stacked matrices that one token chooses."""

    machine: Machine
    workers: int
    columns: dict[str, Numbers]
    copies: Numbers
    level: Indices
    place: Indices
    chosen: float

    def ms(self, tokens: int) -> float:
        """Milliseconds of a step with so many tokens."""
        c, costs = self.columns, simulator_of(self.machine)
        n = np.where(c["rows"] > 0, tokens, 1)
        part = 1 - (1 - self.chosen) ** n
        again = FURTHER * (n * self.chosen - part)  # tokens after the first that a matrix computes
        tasks = np.where(c["by_slot"] > 0, c["by_slot"] * tokens, c["tasks"])
        start = c["latency"] + c["latency_token"] * n + c["slot_latency"] * part
        body = c["products"] * n + c["weights"] * (1 + FURTHER * (n - 1)) + c["slot_weights"] * (part + again)
        given, known = c["slots"] * part + c["caches"], c["fixed"]
        whole = np.zeros(int(self.place.max()) + 1)
        np.add.at(whole, self.place, (given + known) * self.copies)
        single, total = np.array([rates_at(costs, size) for size in whole]).T
        used = np.minimum(tasks, self.workers)

        def beside(each: Numbers, alone: Numbers) -> Numbers:
            """Nanoseconds [levels, places] of operators beside each other: all their work, or the longest of them."""
            shape = (int(self.level.max()) + 1, len(whole))
            at, all_of, longest = (self.level, self.place), np.zeros(shape), np.zeros(shape)
            np.add.at(all_of, at, each)
            np.maximum.at(longest, at, alone)
            return np.maximum(all_of, longest)

        def reading(size: Numbers) -> Numbers:
            return beside(size / total[self.place], size / (single[self.place] * used))

        late = 1 if costs.ring_bytes else 0
        waits = beside(0 * start, c["event"]) + beside(start * tasks / self.workers, start)
        works = beside(body / self.workers, body / used)
        sends = beside(c["link"] * n, c["link"] * n)
        reads = reading(given if late else given + known)
        copies = np.zeros(int(self.level.max()) + 1)
        np.maximum.at(copies, self.level, self.copies)
        steps = ((waits + np.maximum(np.maximum(works, sends), reads)).max(axis=1) * copies).sum()
        return float(max(steps, (whole / total).max() if late else 0.0)) / 1e6


def step_estimate(
    tiled: TaskGrids,
    machine: Machine,
    workers: int,
    context: int,
    depth: Mapping[str, int],
    copies: Callable[[int | None], float],
    chosen: float,
) -> StepEstimate:
    """The estimate of a step program at a context, from its graph in tasks for `workers` workers of each device.

    Operators whose `depth` is equal, by their names, run beside each other if they occur equally often. `copies` says
    for how many layers of the whole model one of a short model stands, `chosen` which part of the stacked matrices one
    token chooses; tokens choose independently of each other. InputError for a machine without costs.
    """
    rows = [_columns(grid, tiled.graph, machine, context) for grid in tiled.grids]
    columns = {name: np.array([row[name] for row in rows], np.float64) for name in COLUMNS}
    nodes = [grid.node for grid in tiled.grids]
    if machine.is_cpu:
        workers = min(workers * tiled.placement.devices, machine.cores or workers)
    seen: dict[tuple[float, int], int] = {}
    return StepEstimate(
        machine,
        workers,
        columns,
        copies=np.array([copies(node.layer) for node in nodes], np.float64),
        level=np.array(
            [seen.setdefault((copies(node.layer), depth[node.name]), len(seen)) for node in nodes], np.int64
        ),
        place=np.array([0 if machine.is_cpu else node.device for node in nodes], np.int64),
        chosen=chosen,
    )


def _columns(grid: TaskGrid, graph: OpGraph, machine: Machine, context: int) -> dict[str, float]:
    """The columns of an operator."""
    costs, node, op, tasks = simulator_of(machine), grid.node, op_of(grid.node), grid.tasks
    cost = costs.ops.get(node.op, costs.ops.get(DEFAULT, OpCost()))
    rows = node.outputs[0].shape[0] if node.outputs else graph.tokens
    each = rows == graph.tokens
    found = dict.fromkeys(COLUMNS, 0.0) | {"tasks": float(tasks), "rows": float(each)}
    if op.work is None:
        elements = _areas(graph, grid) / (rows if each else 1)
    else:
        work = op.work(node, grid.tiling.coords.astype(np.int64), context)
        elements = _sum(work.elements, tasks)
        found["products"] = cost.product_ns * _sum(work.products, tasks)
        found["caches"] = _sum(work.distinct, tasks)
    away = pushes(graph, node)
    found["event"] = costs.remote_event_ns if away else costs.event_ns
    found["latency"] = costs.task_ns + cost.task_ns
    found["latency_token"] = cost.element_ns * elements / tasks
    if machine.link_gbs:
        size = sum(prod(view.shape) * DTYPE_BYTES[view.dtype] for view in away)
        found["link"] = size / (rows if each else 1) / machine.link_gbs
    return found | _weights(grid, graph.tokens, cost, found)


def _weights(grid: TaskGrid, tokens: int, cost: OpCost, found: Mapping[str, float]) -> dict[str, float]:
    """The columns that weights add to or change."""
    node, tasks = grid.node, grid.tasks
    dtype = {w.tensor: w.dtype for w in node.weights}
    streamed = [(dtype[t.tensors[0]], t, slot) for task in grid.tiling.weights for t, slot in task]
    slots = 1 + max((slot for _, _, slot in streamed), default=-1)
    size, compute, runs = [0.0, 0.0], [0.0, 0.0], [0, 0]
    for stored, tile, slot in streamed:
        by_slot = int(slot >= 0)
        size[by_slot] += tile.bytes(stored)
        compute[by_slot] += tile.bytes(stored) * cost.byte_ns.get(stored, 0.0)
        runs[by_slot] += 1
    full = node.weights[0].shape[0] / slots if slots else 0.0
    made = {
        "fixed": size[0],
        "weights": compute[0],
        "slots": size[1] * full,
        "slot_weights": compute[1] * full,
        "latency": found["latency"] + cost.run_ns * runs[0] / tasks,
        "slot_latency": cost.run_ns * runs[1] / tasks * full,
    }
    if slots > 1 and all(len({slot for _, slot in task}) == 1 for task in grid.tiling.weights):
        # A task has one slot, so further tokens bring tasks and no more runs or activations to a task.
        own = found["latency_token"] * tokens + cost.run_ns * runs[1] / tasks
        made |= {"latency": made["latency"] + own, "latency_token": 0.0, "slot_latency": 0.0, "by_slot": tasks / tokens}
    return made


def _areas(graph: OpGraph, grid: TaskGrid) -> float:
    """Activations that the tasks of an operator read and write."""

    def area(region: Region) -> float:
        return float(((region.row_end - region.row_begin) * (region.col_end - region.col_begin)).sum())

    counted = ("activation", "input")
    return sum(area(region) for region in (*grid.reads, *grid.writes) if graph.tensors[region.tensor].role in counted)


def _sum(counts: object, tasks: int) -> float:
    return float((np.asarray(counts, np.float64) * np.ones(tasks)).sum())
