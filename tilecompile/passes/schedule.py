"""schedule: tasks to workers, in a fixed order, as the tables that a kernel executes.

Every choice is made here: which worker runs a task, in which order, what it waits for and whom it notifies, where each
weight tile lies in the pool. Waits that follow from others are not emitted (`elide`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sized

import numpy as np

from tilecompile.ir.program import Program
from tilecompile.ir.tasks import EventTensors, Ints, TaskGrid
from tilecompile.ops.base import op_of
from tilecompile.passes.dag import depths
from tilecompile.passes.elide import Pair, needed_waits
from tilecompile.passes.program_tables import Layout, Task, by_worker
from tilecompile.passes.repetition import Repeat
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
    and equal ones look the same. Grids whose tasks divide evenly go round the workers, so that row tile i is always
    worker i's. Sinks are the first worker's in all programs: on a GPU it is the one that takes requests.
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


class _Scheduler(Layout):
    """Builds the tables step program by step program; tiles and buffers are shared between the programs."""

    def __init__(
        self,
        plans: list[EventTensors],
        workers: int,
        kind_of: Mapping[tuple[str, str], int],
        kinds: list[str],
        repeat: Repeat | None,
    ) -> None:
        super().__init__(plans, workers, repeat)
        self.kind_of, self.kinds = kind_of, kinds
        self.operators: list[str] = []
        self.scratch = ALIGN

    def run(self) -> Program:
        assignments = [assign(plan.grids.grids, depths(plan.grids.graph), self.workers) for plan in self.plans]
        self.weight_rows()
        tasks = [by_worker(p.grids, a, self.workers) for p, a in zip(self.plans, assignments, strict=True)]
        self.place_tiles(tasks, gathered=False)
        self.place_tiles(tasks, gathered=True)
        for index, (plan, assignment) in enumerate(zip(self.plans, assignments, strict=True)):
            self.program(index, plan, assignment, tasks[index])
        self.tile_rows()
        tables = {name: self.table(name) for name in fmt.TABLES}
        io = {}
        for b in self.buffers.values():
            if b.arena == "io":
                io[b.tensor.name] = b.index
        for plan in self.plans[:1]:
            for name, tensor in zip(("logits", "next"), plan.grids.graph.outputs, strict=True):
                io[name] = self.buffer(0, plan, tensor).index
        return Program(
            tables=tables,
            programs=[p.grids.graph.program for p in self.plans],
            weights=list(self.weights),
            operators=self.operators,
            kinds=self.kinds,
            tiles=list(self.tiles.values()),
            buffers=list(self.buffers.values()),
            arena_bytes=[{k: v for k, v in a.items() if k != "weight"} for a in self.arena_bytes],
            pool_bytes=[a["weight"] for a in self.arena_bytes],
            scratch_bytes=self.scratch,
            io=io,
        )

    def table(self, name: str) -> np.ndarray:
        record = fmt.TABLES[name]
        out = np.zeros(len(self.rows[name]), record.dtype)
        for i, field in enumerate(f.name for f in record.fields):
            if self.rows[name] and i < len(self.rows[name][0]):
                out[field] = [row[i] for row in self.rows[name]]
        return out

    def program(self, index: int, plan: EventTensors, assignment: list[Ints], tasks: list[list[Task]]) -> None:
        """Appends one step program's streams, instructions, events and all that they refer to."""
        grids = plan.grids.grids
        op_base = len(self.operators)
        operands: dict[int, tuple[int, int]] = {}
        lines: dict[str, Sized] = {
            "operators": self.operators,
            "operands": self.rows["operands"],
            "buffers": self.rows["buffers"],
        }
        with self.repeated(plan, lines) as cut:
            for grid in grids:
                cut(grid.index)
                operands[grid.index] = self.operand_rows(plan, grid)
                self.operators.append(grid.node.name)
        events = self.event_rows(index, plan, emitted := needed_waits(plan, assignment, self.workers))
        by_producer: dict[int, list[int]] = defaultdict(list)
        for t in plan.tensors:
            by_producer[t.producer].append(t.index)
        self.scratch = max(self.scratch, *(g.tiling.scratch for g in grids))
        for number, mine in enumerate(tasks):
            begin = len(self.rows["instructions"])
            with self.repeated(plan, {"instructions": self.rows["instructions"]}) as cut:
                for grid, task in mine:
                    cut(grid.index)
                    notified = [
                        events[pair]
                        for t in by_producer[grid.index]
                        if (pair := (t, int(plan.tensors[t].notify[task]))) in events
                    ]
                    awaited = [
                        (events[pair], int(plan.tensors[pair[0]].wait_counts[pair[1]]))
                        for pair in emitted[grid.index, task]
                    ]
                    kind = self.kind_of[plan.grids.graph.program, grid.node.name]
                    self.instruction(plan, grid, task, kind, op_base, operands[grid.index], awaited, notified)
            end = len(self.rows["instructions"])
            self.rows["streams"].append((index, number // self.workers, number, 0, begin, end))
            self.hint(begin, end)

    def event_rows(self, index: int, plan: EventTensors, emitted: Mapping[Pair, list[Pair]]) -> dict[Pair, int]:
        """Appends the events that somebody waits for, in the order of their first waits; their rows."""
        events: dict[Pair, int] = {}
        tensors: dict[int, int] = {}
        with self.repeated(plan, {"events": self.rows["events"], "event_tensors": tensors}) as cut:
            for (number, _), pairs in emitted.items():
                cut(number)
                for tensor, element in pairs:
                    if (tensor, element) not in events:
                        events[tensor, element] = len(self.rows["events"])
                        t = plan.tensors[tensor]
                        which = tensors.setdefault(tensor, len(tensors))
                        self.rows["events"].append((index, t.device, int(t.wait_counts[element]), which))
        return events

    def operand_rows(self, plan: EventTensors, grid: TaskGrid) -> tuple[int, int]:
        """Appends the operands of a grid's node; returns (begin, count)."""
        begin = len(self.rows["operands"])
        for view in grid.node.operands:
            buffer = self.buffer(grid.device, plan, view.tensor)
            self.rows["operands"].append((buffer.index, 0, view.offset * fmt.DTYPE_BYTES[view.dtype]))
        return begin, len(grid.node.operands)

    def instruction(
        self,
        plan: EventTensors,
        grid: TaskGrid,
        task: int,
        kind: int,
        op_base: int,
        operands: tuple[int, int],
        awaited: list[tuple[int, int]],
        notified: list[int],
    ) -> None:
        rows = self.rows
        begins = {name: len(rows[name]) for name in ("waits", "notifies", "tape", "regions")}
        rows["waits"] += awaited
        rows["notifies"] += [(event, int(rows["events"][event][1] != grid.device)) for event in notified]
        for tile, slot in grid.tiling.weights[task]:
            placed = self.tiles[grid.device, tile]
            rows["tape"].append((placed.offset, placed.bytes, placed.bytes if tile.gathered else 0, slot, placed.index))
        for regions, mode in ((grid.reads, fmt.READ), (grid.writes, fmt.WRITE)):
            for r in regions:
                box = tuple(int(b[task]) for b in (r.row_begin, r.row_end, r.col_begin, r.col_end))
                rows["regions"].append((self.buffer(grid.device, plan, r.tensor).index, mode, *box))
        counts = {name: len(rows[name]) - begin for name, begin in begins.items()}
        rows["instructions"].append(
            (
                kind,
                fmt.GATED if grid.node.predicate else 0,
                op_base + grid.index,
                tuple(map(int, grid.tiling.coords[task])),
                operands[0],
                begins["waits"],
                begins["notifies"],
                begins["tape"],
                begins["regions"],
                fmt.NONE,
                counts["waits"],
                counts["notifies"],
                counts["tape"],
                counts["regions"],
                operands[1],
            )
        )

    def hint(self, begin: int, end: int) -> None:
        """Gives each instruction the next unconditional weight run of its worker to prefetch while it waits."""
        instructions, tape = self.rows["instructions"], self.rows["tape"]
        following = fmt.NONE
        for i in range(end - 1, begin - 1, -1):
            row = list(instructions[i])
            tape_begin, tape_count = int(row[7]), int(row[12])  # type: ignore[call-overload]
            if tape_count and tape[tape_begin][3] == -1:
                following = tape_begin
            row[9] = following
            instructions[i] = tuple(row)
