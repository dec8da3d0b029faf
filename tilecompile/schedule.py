"""schedule: tasks to workers, in a fixed order, as the tables that a kernel executes.

Every choice is made here: which worker runs a task, in which order, what it waits for and whom it notifies, where each
weight tile lies in the pool. Waits that follow from others are not emitted (`elide`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager

import numpy as np

from tilecompile.elide import Pair, needed_waits
from tilecompile.graph import Tensor
from tilecompile.ops.base import WeightTile
from tilecompile.plan import EventTensors, Ints, PlacedBuffer, PlacedTile, Program, TaskGrid, TaskGrids
from tilecompile.runtime import format as fmt
from tilecompile.runtime.format import ALIGN
from tilecompile.runtime.repeat import Repeat

ARENA_OF_ROLE = {"activation": "activation", "cache": "cache", "weight": "weight", "constant": "weight", "input": "io"}
"""A weight that is streamed lies in the pool as tiles; where it is an operand as well, also as it is."""


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


def assign(grids: list[TaskGrid], workers: int) -> list[Ints]:
    """The worker (within its device) of each task of each grid.

    Grids whose tasks divide evenly go round the workers, so that row tile i is always worker i's; other tasks go to the
    worker with the least work so far in the layer: layers wait for each other anyway, and equal ones look the same.
    """
    load: dict[tuple[int, int | None], np.ndarray] = defaultdict(lambda: np.zeros(workers))
    result = []
    for grid in grids:
        loads = load[grid.device, grid.node.layer]
        chosen = np.zeros(grid.tasks, np.int64)
        for i, cost in enumerate(grid.tiling.cost):
            chosen[i] = i % workers if grid.tasks % workers == 0 else int(loads.argmin())
            loads[chosen[i]] += cost
        result.append(chosen)
    return result


def repeated_grids(grids: TaskGrids, repeat: Repeat) -> tuple[int, int]:
    """The grids (begin, end) of the repeated layers: up to the first one of any later layer."""
    layers = [-1 if g.node.layer is None else g.node.layer for g in grids.grids]
    bounds = (repeat.layer, repeat.layer + repeat.layers)
    begin, end = (next((i for i, layer in enumerate(layers) if layer >= b), len(layers)) for b in bounds)
    return begin, end


def tasks_of(chosen: Ints, workers: int) -> list[list[int]]:
    """The tasks of each worker, in order."""
    tasks: list[list[int]] = [[] for _ in range(workers)]
    for task, worker in enumerate(chosen.tolist()):
        tasks[worker].append(task)
    return tasks


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
        self.plans, self.workers, self.kind_of, self.kinds, self.repeat = plans, workers, kind_of, kinds, repeat
        self.devices = plans[0].grids.placement.devices
        self.rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in fmt.TABLES}
        self.operators: list[str] = []
        self.tiles: dict[tuple[int, WeightTile], PlacedTile] = {}
        self.weights: dict[str, int] = {}
        self.buffers: dict[tuple[int, str | None, str], PlacedBuffer] = {}
        self.arena_bytes = [dict.fromkeys(fmt.ARENAS, 0) for _ in range(self.devices)]
        self.scratch = ALIGN

    def run(self) -> Program:
        assignments = [assign(plan.grids.grids, self.workers) for plan in self.plans]
        self.weight_rows()
        self.place_tiles(assignments, gathered=False)
        self.place_tiles(assignments, gathered=True)
        for index, (plan, assignment) in enumerate(zip(self.plans, assignments, strict=True)):
            self.program(index, plan, assignment)
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

    def reserve(self, device: int, arena: str, size: int) -> int:
        """Offset of `size` new bytes in an arena."""
        offset = self.arena_bytes[device][arena]
        self.arena_bytes[device][arena] = -(-(offset + size) // ALIGN) * ALIGN
        return offset

    def place_tiles(self, assignments: list[list[Ints]], gathered: bool) -> None:
        """Lays the pool out in the order in which each worker reads: its unconditional tiles are one contiguous run.

        A tile that another program or a later task reads again keeps its first place, so the first program comes first.
        """
        for plan, assignment in zip(self.plans, assignments, strict=True):
            tasks = [tasks_of(chosen, self.workers) for chosen in assignment]
            for device in range(self.devices):
                for worker in range(self.workers):
                    with self.repeated(plan, {"tiles": self.tiles}) as cut:
                        for grid, of_worker in zip(plan.grids.grids, tasks, strict=True):
                            cut(grid.index)
                            if grid.device == device:
                                for task in of_worker[worker]:
                                    self.place_task_tiles(plan, grid, task, gathered)

    def place_task_tiles(self, plan: EventTensors, grid: TaskGrid, task: int, gathered: bool) -> None:
        for tile, _ in grid.tiling.weights[task]:
            key = (grid.device, tile)
            if tile.gathered != gathered or key in self.tiles:
                continue
            dtype = plan.grids.graph.tensors[tile.tensors[0]].dtype
            size = tile.bytes(fmt.DTYPE_BYTES[dtype])
            copies = tile.end - tile.begin if gathered else 1
            offset = self.reserve(grid.device, "weight", size * copies)
            self.tiles[key] = PlacedTile(len(self.tiles), tile, grid.device, offset, size)

    def weight_rows(self) -> None:
        """Appends the streamed weights, in the order of the operators that stream them first."""
        tensors = {n: t for p in reversed(self.plans) for n, t in p.grids.graph.tensors.items()}
        programs: dict[str, int] = defaultdict(int)  # from the operators, so that the proof can miss a tile on a tape
        for index, plan in enumerate(self.plans):
            with self.repeated(plan, {"weights": self.weights}) as cut:
                for grid in plan.grids.grids:
                    cut(grid.index)
                    for name in {w.tensor: None for w in grid.node.weights}:
                        programs[name] |= 1 << index
                        self.weights.setdefault(name, len(self.weights))
        for name in self.weights:
            *matrices, rows, cols = tensors[name].shape
            dtype = fmt.DTYPES.index(tensors[name].dtype)
            self.rows["weights"].append((int(np.prod(matrices, dtype=np.int64)), rows, cols, dtype, programs[name]))

    def tile_rows(self) -> None:
        """Appends what the tiles are."""
        for placed in self.tiles.values():
            tile = placed.tile
            first, second = (*(self.weights[name] for name in tile.tensors), fmt.NONE)[:2]
            part = (tile.begin, tile.end, tile.row_begin, tile.row_end, tile.col_begin, tile.cols)
            where = (int(tile.gathered), placed.copies, 0, placed.offset, placed.bytes)
            self.rows["tiles"].append((placed.device, first, second, *part, *where))

    @contextmanager
    def repeated(self, plan: EventTensors, lines: Mapping[str, Sized]) -> Iterator[Callable[[int], None]]:
        """Notes which part of what grows meanwhile is made for the repeated grids, if any are.

        The caller says which grid comes next; `lines` are by name (format.LINES) what grows.
        """
        begin, end = (0, 0) if self.repeat is None else repeated_grids(plan.grids, self.repeat)
        marks: dict[int, list[int]] = {}

        def cut(grid: int) -> None:
            for bound in (begin, end):
                if grid >= bound and bound not in marks:
                    marks[bound] = [len(rows) for rows in lines.values()]

        yield cut
        for bound in (begin, end):
            marks.setdefault(bound, [len(rows) for rows in lines.values()])
        if self.repeat is not None and (begin < end or "instructions" in lines):
            for name, first, last in zip(lines, marks[begin], marks[end], strict=True):
                self.rows["repeats"].append((fmt.LINES.index(name), first, last, self.repeat.times))

    def buffer(self, device: int, plan: EventTensors, name: str) -> PlacedBuffer:
        """The buffer of a tensor, on its own device, or of a constant, on the given one.

        Activations belong to one program, all else is shared by the programs.
        """
        tensor: Tensor = plan.grids.graph.tensors[name]
        if tensor.role not in ("weight", "constant"):
            device = tensor.device
        program = plan.grids.graph.program if tensor.role == "activation" else None
        key = (device, program, name)
        if key not in self.buffers:
            arena = ARENA_OF_ROLE[tensor.role]
            size = tensor.rows * tensor.cols * fmt.DTYPE_BYTES[tensor.dtype]
            # Bodies load whole vectors: a pad keeps the last one inside the arena.
            offset = self.reserve(device, arena, size + ALIGN)
            buffer = PlacedBuffer(len(self.buffers), tensor, device, arena, offset, size, program)
            self.buffers[key] = buffer
            codes = (fmt.ARENAS.index(arena), offset, size, tensor.rows, tensor.cols, fmt.DTYPES.index(tensor.dtype))
            self.rows["buffers"].append((device, *codes))
        return self.buffers[key]

    def program(self, index: int, plan: EventTensors, assignment: list[Ints]) -> None:
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
        tasks = [tasks_of(chosen, self.workers) for chosen in assignment]
        for device in range(self.devices):
            for worker in range(self.workers):
                begin = len(self.rows["instructions"])
                with self.repeated(plan, {"instructions": self.rows["instructions"]}) as cut:
                    for grid, of_worker in zip(grids, tasks, strict=True):
                        cut(grid.index)
                        for task in of_worker[worker] if grid.device == device else ():
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
                self.rows["streams"].append((index, device, device * self.workers + worker, 0, begin, end))
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
                0,
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
