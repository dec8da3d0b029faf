"""schedule: tasks to workers, in a fixed order, as the tables that a kernel executes.

Every choice is made here: which worker runs a task, in which order, which events it waits for and
notifies, where each weight tile is in the pool. Waits that follow from others are not emitted (`elide`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sized
from dataclasses import dataclass

import numpy as np

from tilecompile.ir.program import Program
from tilecompile.ir.tasks import EventTensors, Ints, TaskGrid
from tilecompile.ops.base import op_of
from tilecompile.passes.bodies import Bodies
from tilecompile.passes.dag import depths
from tilecompile.passes.elide import Pair, needed_waits
from tilecompile.passes.program_tables import Layout, RepeatedRows, Task, by_worker
from tilecompile.passes.repetition import Repeat
from tilecompile.passes.table_builder import TableBuilder
from tilecompile.runtime import format as fmt
from tilecompile.runtime.format import ALIGN


def schedule(
    plans: list[EventTensors],
    workers: int,
    kind_of: Mapping[tuple[str, str], int],
    kinds: list[str],
    repeat: Repeat | None = None,
) -> Program:
    """The engine's program from the dependencies of its step programs, over `workers` workers a device.

    `kind_of` gives the task kind of each (program, operator); `kinds` names the kinds. With `repeat` the plans are of a
    short model, and the tables say which of their rows are repeated.
    """
    return _Scheduler(plans, workers, kind_of, kinds, repeat).run()


def assign(grids: list[TaskGrid], depth: Mapping[str, int], workers: int) -> list[Ints]:
    """The worker (within its device) of each task of each grid; `depth` is that of the operators (`order.py`).

    Operators of equal depth don't wait for each other, so they share the workers: a task goes to the worker with the
    least work at that depth, among equals to the one with the least in the layer. Layers wait for each other anyway,
    and equal layers get equal assignments. Grids whose tasks divide evenly are assigned round-robin, so that row
    tile i is always worker i's. Sinks are the first worker's in all programs: on a GPU it takes the requests.
    """
    of_depth: dict[tuple[int, int], np.ndarray] = defaultdict(lambda: np.zeros(workers))
    of_layer: dict[tuple[int, int | None], np.ndarray] = defaultdict(lambda: np.zeros(workers))
    result = []
    for grid in grids:
        now, so_far = of_depth[grid.device, depth[grid.node.name]], of_layer[grid.device, grid.node.layer]
        chosen = np.zeros(grid.tasks, np.int64)
        for i, cost in enumerate(() if op_of(grid.node).is_sink else grid.tiling.cost):
            least = np.flatnonzero(now == now.min())
            chosen[i] = i % workers if grid.tasks % workers == 0 else int(least[so_far[least].argmin()])
            now[chosen[i]] += cost
            so_far[chosen[i]] += cost
        result.append(chosen)
    return result


@dataclass(frozen=True)
class _GridRows:
    """What a grid's instructions have in common: task kind, number of the operator, first operand, and what they touch.

    `region` has the fields of the regions' rows that are the same for all tasks, `bounds` the others, [tasks] each.
    """

    grid: TaskGrid
    kind: int
    op: int
    operand_begin: int
    region: Mapping[str, list[int]]
    bounds: Mapping[str, list[list[int]]]


class _Scheduler:
    """Builds the tables step program by step program; tiles and buffers are shared between the programs."""

    def __init__(
        self,
        plans: list[EventTensors],
        workers: int,
        kind_of: Mapping[tuple[str, str], int],
        kinds: list[str],
        repeat: Repeat | None,
    ) -> None:
        self.plans, self.workers = plans, workers
        self.kind_of, self.kinds = kind_of, kinds
        self.tables = TableBuilder()
        self.repeated = RepeatedRows(plans, repeat, self.tables["repeats"])
        self.layout = Layout(plans, self.tables, self.repeated)
        self.bodies = Bodies(self.tables, plans[0].grids.placement.devices)
        self.operators: list[str] = []

    def run(self) -> Program:
        layout = self.layout
        assignments = [assign(plan.grids.grids, depths(plan.grids.graph), self.workers) for plan in self.plans]
        layout.weight_rows()
        tasks = [by_worker(p.grids, a, self.workers) for p, a in zip(self.plans, assignments, strict=True)]
        layout.place_tiles(tasks, gathered=False)
        layout.place_tiles(tasks, gathered=True)
        for index, (plan, assignment) in enumerate(zip(self.plans, assignments, strict=True)):
            self.program(index, plan, assignment, tasks[index])
        layout.tile_rows()
        io = {b.tensor.name: b.index for b in layout.buffers.values() if b.tensor.role == "input"}
        outputs = [
            {
                name: layout.buffer(0, plan, tensor).index
                for name, tensor in zip(fmt.LOOP_OUTPUTS, plan.grids.graph.outputs, strict=False)
            }
            for plan in self.plans
        ]
        return Program(
            tables=self.tables.arrays(),
            programs=[p.grids.graph.program for p in self.plans],
            weights=list(layout.weights),
            operators=self.operators,
            kinds=self.kinds,
            tiles=list(layout.tiles.values()),
            buffers=list(layout.buffers.values()),
            arena_bytes=[{k: v for k, v in a.items() if k != "weight"} for a in layout.arena_bytes],
            pool_bytes=[a["weight"] for a in layout.arena_bytes],
            scratch_bytes=max(ALIGN, *(g.tiling.scratch for plan in self.plans for g in plan.grids.grids)),
            io=io,
            outputs=outputs,
        )

    def program(self, index: int, plan: EventTensors, assignment: list[Ints], tasks: list[list[Task]]) -> None:
        """Appends one step program's streams, instructions, events and all that they refer to."""
        grids = self.grid_rows(index, plan)
        emitted = needed_waits(plan, assignment, self.workers)
        events = self.event_rows(index, plan, emitted)
        notify: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
        for t in plan.tensors:
            notify[t.producer].append((t.index, t.notify.tolist()))
        instructions = self.tables["instructions"]
        for number, mine in enumerate(tasks):
            begin = len(instructions)
            with self.repeated.noted(plan, {"instructions": instructions}) as cut:
                for grid, task in mine:
                    cut(grid.index)
                    awaited = [events[pair] for pair in emitted[grid.index, task]]
                    notified = [
                        events[pair] for t, elements in notify[grid.index] if (pair := (t, elements[task])) in events
                    ]
                    self.instruction(grids[grid.index], task, awaited, notified)
            end = len(instructions)
            device = number // self.workers
            self.tables["streams"].append(program=index, device=device, worker=number, agent=0, begin=begin, end=end)
            self.hint(begin, end)

    def grid_rows(self, index: int, plan: EventTensors) -> dict[int, _GridRows]:
        """Appends the operators of a program, with their operands and buffers; what instructions need, by grid."""
        found = {}
        operands, program = self.tables["operands"], plan.grids.graph.program
        base = len(self.operators)
        lines: dict[str, Sized] = {
            "operators": self.operators,
            "operands": operands,
            "buffers": self.tables["buffers"],
        }
        with self.repeated.noted(plan, lines) as cut:
            for grid in plan.grids.grids:
                cut(grid.index)
                begin, arenas = len(operands), []
                for view in grid.node.operands:
                    buffer = self.layout.buffer(grid.device, plan, view.tensor)
                    offset = view.offset * fmt.DTYPE_BYTES[view.dtype]
                    operands.append(buffer=buffer.index, rows=view.shape[0], offset=offset)
                    arenas.append(buffer.arena)
                self.operators.append(grid.node.name)
                kind = self.kind_of[program, grid.node.name]
                self.bodies.operator(grid, index, kind, begin, arenas, self.layout.weights)
                found[grid.index] = _GridRows(grid, kind, base + grid.index, begin, *self.regions(plan, grid))
        return found

    def regions(self, plan: EventTensors, grid: TaskGrid) -> tuple[dict[str, list[int]], dict[str, list[list[int]]]]:
        """Fields of the rows of what a grid's tasks touch: those that are the same for all tasks, and those by task."""
        regions = [*grid.reads, *grid.writes]
        buffers = [self.layout.buffer(grid.device, plan, region.tensor).index for region in regions]
        same = {"buffer": buffers, "mode": [fmt.READ] * len(grid.reads) + [fmt.WRITE] * len(grid.writes)}
        empty = np.zeros((grid.tasks, 0), np.int64)
        bounds = {
            field: np.stack([getattr(region, field) for region in regions], axis=1) if regions else empty
            for field in ("row_begin", "row_end", "col_begin", "col_end")
        }
        return same, {field: values.tolist() for field, values in bounds.items()}

    def event_rows(self, index: int, plan: EventTensors, emitted: Mapping[Pair, list[Pair]]) -> dict[Pair, int]:
        """Appends the events that are waited for, in the order of their first waits; their rows."""
        rows = self.tables["events"]
        events: dict[Pair, int] = {}
        tensors: dict[int, int] = {}
        with self.repeated.noted(plan, {"events": rows, "event_tensors": tensors}) as cut:
            for (number, _), pairs in emitted.items():
                cut(number)
                for tensor, element in pairs:
                    if (tensor, element) not in events:
                        t = plan.tensors[tensor]
                        events[tensor, element] = rows.append(
                            program=index,
                            device=t.device,
                            wait_count=int(t.wait_counts[element]),
                            tensor=tensors.setdefault(tensor, len(tensors)),
                        )
        return events

    def instruction(self, of: _GridRows, task: int, awaited: list[int], notified: list[int]) -> None:
        """Appends a task with what it refers to; `awaited` and `notified` are rows of events."""
        tables, grid = self.tables, of.grid
        counts, devices = (tables["events"].columns[field] for field in ("wait_count", "device"))
        runs = [(self.layout.tiles[grid.device, tile], slot) for tile, slot in grid.tiling.weights[task]]
        touched = len(of.region["buffer"])
        tables["instructions"].append(
            kind=of.kind,
            flags=fmt.PREDICATED if grid.node.predicate else 0,
            op=of.op,
            tile=tuple(map(int, grid.tiling.coords[task])),
            operand_begin=of.operand_begin,
            operand_count=len(grid.node.operands),
            wait_begin=tables["waits"].extend(len(awaited), event=awaited, count=[counts[e] for e in awaited]),
            wait_count=len(awaited),
            notify_begin=tables["notifies"].extend(
                len(notified), event=notified, scope=[int(devices[e] != grid.device) for e in notified]
            ),
            notify_count=len(notified),
            tape_begin=tables["tape"].extend(
                len(runs),
                offset=[placed.offset for placed, _ in runs],
                bytes=[placed.bytes for placed, _ in runs],
                stride=[placed.bytes if placed.tile.gathered else 0 for placed, _ in runs],
                slot=[slot for _, slot in runs],
                tile=[placed.index for placed, _ in runs],
            ),
            tape_count=len(runs),
            region_begin=tables["regions"].extend(
                touched, **of.region, **{field: values[task] for field, values in of.bounds.items()}
            ),
            region_count=touched,
            prefetch=fmt.NONE,
        )

    def hint(self, begin: int, end: int) -> None:
        """Gives each instruction the next unconditional weight run of its worker to prefetch while it waits."""
        columns, slot = self.tables["instructions"].columns, self.tables["tape"].columns["slot"]
        following = fmt.NONE
        for i in range(end - 1, begin - 1, -1):
            first = columns["tape_begin"][i]
            if columns["tape_count"][i] and slot[first] == -1:
                following = first
            columns["prefetch"][i] = following
