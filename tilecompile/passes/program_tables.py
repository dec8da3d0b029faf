"""layout: the places of weight tiles and buffers, as rows of the tables; a part of `schedule`.

Of a short model (`repetition.py`) it notes which rows are those of the repeated layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager

import numpy as np

from tilecompile.ir.graph import Tensor
from tilecompile.ir.program import PlacedBuffer, PlacedTile
from tilecompile.ir.tasks import EventTensors, Ints, TaskGrid, TaskGrids
from tilecompile.ir.tiling import WeightTile
from tilecompile.passes.repetition import Repeat
from tilecompile.passes.table_builder import Rows, TableBuilder
from tilecompile.runtime import format as fmt
from tilecompile.runtime.format import ALIGN
from tilecompile.runtime.weight_formats import FORMATS

ARENA_OF_ROLE = {
    "activation": "activation",
    "cache": "cache",
    "state": "io",
    "weight": "weight",
    "constant": "weight",
    "input": "io",
}
"""A weight that is streamed is stored in the pool as tiles; where it is an operand as well, also as it is."""

Task = tuple[TaskGrid, int]


def repeated_grids(grids: TaskGrids, repeat: Repeat) -> tuple[int, int]:
    """The grids (begin, end) of the repeated layers: up to the first one of any later layer."""
    layers = [-1 if g.node.layer is None else g.node.layer for g in grids.grids]
    bounds = (repeat.layer, repeat.layer + repeat.layers)
    begin, end = (next((i for i, layer in enumerate(layers) if layer >= b), len(layers)) for b in bounds)
    return begin, end


def by_worker(grids: TaskGrids, assignment: list[Ints], workers: int) -> list[list[Task]]:
    """The tasks of each worker of each device, in order."""
    tasks: list[list[Task]] = [[] for _ in range(grids.placement.devices * workers)]
    for grid, chosen in zip(grids.grids, assignment, strict=True):
        for task, worker in enumerate(chosen.tolist()):
            tasks[grid.device * workers + worker].append((grid, task))
    return tasks


class RepeatedRows:
    """Which rows are made for the repeated layers of a short model, as rows of the table `repeats`."""

    def __init__(self, plans: list[EventTensors], repeat: Repeat | None, repeats: Rows) -> None:
        self.repeat, self.repeats = repeat, repeats
        self.bounds = {p.grids.graph.program: repeated_grids(p.grids, repeat) if repeat else (0, 0) for p in plans}

    @contextmanager
    def noted(self, plan: EventTensors, lines: Mapping[str, Sized]) -> Iterator[Callable[[int], None]]:
        """Notes which of the rows that are appended within the block belong to the repeated grids, if any are.

        The block calls the result with each grid before its rows; `lines` are the growing tables (format.LINES).
        """
        begin, end = self.bounds[plan.grids.graph.program]
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
                line = fmt.LINES.index(name)
                self.repeats.append(line=line, begin=first, end=last, times=self.repeat.times)


class Layout:
    """The places of streamed weights, their tiles and buffers, which the step programs share.

    Buffers get their rows as they are placed, weights and tiles by `weight_rows` and `tile_rows`.
    """

    def __init__(self, plans: list[EventTensors], tables: TableBuilder, repeated: RepeatedRows) -> None:
        self.plans, self.tables, self.repeated = plans, tables, repeated
        self.tiles: dict[tuple[int, WeightTile], PlacedTile] = {}
        self.weights: dict[str, int] = {}
        self.buffers: dict[tuple[int, str | None, str], PlacedBuffer] = {}
        self.arena_bytes = [dict.fromkeys(fmt.ARENAS, 0) for _ in range(plans[0].grids.placement.devices)]

    def reserve(self, device: int, arena: str, size: int) -> int:
        """Offset of `size` new bytes in an arena."""
        offset = self.arena_bytes[device][arena]
        self.arena_bytes[device][arena] = -(-(offset + size) // ALIGN) * ALIGN
        return offset

    def place_tiles(self, tasks: list[list[list[Task]]], gathered: bool) -> None:
        """Lays out the pool in the order in which each worker reads: its unconditional tiles are contiguous.

        A tile that another program or a later task reads again keeps its first place, so the first program comes first.
        `tasks` are those of each worker, by program.
        """
        for plan, workers in zip(self.plans, tasks, strict=True):
            for mine in workers:
                with self.repeated.noted(plan, {"tiles": self.tiles}) as cut:
                    for grid, task in mine:
                        cut(grid.index)
                        self.place_task_tiles(plan, grid, task, gathered)

    def place_task_tiles(self, plan: EventTensors, grid: TaskGrid, task: int, gathered: bool) -> None:
        for tile, _ in grid.tiling.weights[task]:
            key = (grid.device, tile)
            if tile.gathered != gathered or key in self.tiles:
                continue
            dtype = plan.grids.graph.tensors[tile.tensors[0]].dtype
            size = tile.bytes(dtype)
            copies = tile.end - tile.begin if gathered else 1
            offset = self.reserve(grid.device, "weight", size * copies)
            self.tiles[key] = PlacedTile(len(self.tiles), tile, grid.device, offset, size)

    def weight_rows(self) -> None:
        """Appends the streamed weights, in the order of the operators that stream them first."""
        tensors = {n: t for p in reversed(self.plans) for n, t in p.grids.graph.tensors.items()}
        programs: dict[str, int] = defaultdict(int)  # from the operators, so that the proof can miss a tile on a tape
        for index, plan in enumerate(self.plans):
            with self.repeated.noted(plan, {"weights": self.weights}) as cut:
                for grid in plan.grids.grids:
                    cut(grid.index)
                    for name in {w.tensor: None for w in grid.node.weights}:
                        programs[name] |= 1 << index
                        self.weights.setdefault(name, len(self.weights))
        for name in self.weights:
            *matrices, rows, cols = tensors[name].shape
            self.tables["weights"].append(
                matrices=int(np.prod(matrices, dtype=np.int64)),
                rows=rows,
                cols=cols,
                dtype=FORMATS[tensors[name].dtype].code,
                programs=programs[name],
            )

    def tile_rows(self) -> None:
        """Appends the rows of the tiles."""
        for placed in self.tiles.values():
            tile = placed.tile
            first, second = (*(self.weights[name] for name in tile.tensors), fmt.NONE)[:2]
            self.tables["tiles"].append(
                device=placed.device,
                tensor=first,
                second=second,
                begin=tile.begin,
                end=tile.end,
                row_begin=tile.row_begin,
                row_end=tile.row_end,
                col_begin=tile.col_begin,
                cols=tile.cols,
                gathered=int(tile.gathered),
                copies=placed.copies,
                layout=fmt.LAYOUTS.index(tile.layout),
                offset=placed.offset,
                bytes=placed.bytes,
            )

    def _sharing(self, plan: EventTensors, name: str) -> list[EventTensors]:
        """The programs that use one buffer for a tensor of a program. Some have fewer tokens a step, and fewer rows."""
        if plan.grids.graph.tensors[name].role == "activation":
            return [plan]
        return [p for p in self.plans if name in p.grids.graph.tensors]

    def buffer(self, device: int, plan: EventTensors, name: str) -> PlacedBuffer:
        """The buffer of a tensor, on its own device, or of a constant, on the given one.

        Activations belong to one program, all else is shared by the programs.
        """
        tensor: Tensor = max((p.grids.graph.tensors[name] for p in self._sharing(plan, name)), key=lambda t: t.rows)
        if tensor.role not in ("weight", "constant"):
            device = tensor.device
        program = plan.grids.graph.program if tensor.role == "activation" else None
        key = (device, program, name)
        if key not in self.buffers:
            arena = ARENA_OF_ROLE[tensor.role]
            size = tensor.rows * tensor.cols * fmt.DTYPE_BYTES[tensor.dtype]
            # Bodies load whole vectors: padding keeps the last one inside the arena.
            offset = self.reserve(device, arena, size + ALIGN)
            index = self.tables["buffers"].append(
                device=device,
                arena=fmt.ARENAS.index(arena),
                offset=offset,
                bytes=size,
                rows=tensor.rows,
                cols=tensor.cols,
                dtype=fmt.DTYPES.index(tensor.dtype),
            )
            self.buffers[key] = PlacedBuffer(index, tensor, device, arena, offset, size, program)
        return self.buffers[key]
