"""bodies: what the tasks of an operator touch and stream, stated by their tile coordinates; a part of `schedule`.

A body sees its tile's coordinates, its operands and its weight runs, and nothing else. So a bound of what it touches is
a constant, or a coordinate of the tile times a constant plus another; the proof makes every region from these
statements again (`verify/bodies.py`). An op whose tiling rule has other bounds must put them among the coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tilecompile.ir.node import View
from tilecompile.ir.tasks import Ints, TaskGrid
from tilecompile.ir.tiling import Access, Bound
from tilecompile.ops.base import TraitError
from tilecompile.passes.table_builder import TableBuilder
from tilecompile.passes.tile import items_of
from tilecompile.runtime import format as fmt
from tilecompile.runtime.weight_formats import FORMATS

Stated = tuple[int, int, int]
"""A bound: the coordinate that it follows, or NONE, what that is multiplied by, and what is added."""

DIMS = 4
"""Most dimensions of a view that is stated, as `View` and `Access` of `runtime/format` have it."""

_Views = tuple[tuple[int, int, int, tuple[int, ...]], ...]
_Accesses = tuple[tuple[int, int, int, tuple[Stated, ...]], ...]


class Bodies:
    """Appends operators, and their bodies once each, to the tables `operators`, `bodies`, `views` and `accesses`."""

    def __init__(self, tables: TableBuilder, devices: int) -> None:
        self.tables, self.devices = tables, devices
        self._known: dict[tuple[_Views, _Accesses, int], int] = {}

    def operator(
        self,
        grid: TaskGrid,
        program: int,
        kind: int,
        operand_begin: int,
        arenas: Sequence[str],
        weights: Mapping[str, int],
    ) -> None:
        """Appends the operator of a grid: `arenas` are those of its operands, `weights` numbers the streamed weights.

        TraitError where the tiling rule bounds what a task touches or streams by something else than its coordinates.
        """
        tiling, node = grid.tiling, grid.node
        accesses = self._accesses(grid)
        runs = _runs(grid)
        names = tiling.weights[0][0][0].tensors if runs else ()
        streams = [(fmt.NONE, 0, 0)] * 5 if not runs else _streams(grid)
        followed = {at for *_, bounds in accesses for at, *_ in bounds} | {at for at, *_ in streams}
        weight, second = (*(weights[name] for name in names), fmt.NONE, fmt.NONE)[:2]
        views = tuple(_view(view, arena) for view, arena in zip(node.operands, arenas, strict=True))
        self.tables["operators"].append(
            program=program,
            device=grid.device,
            kind=kind,
            flags=fmt.PREDICATED if node.predicate else 0,
            body=self._body(views, accesses, FORMATS[node.weights[0].dtype].code if runs else fmt.NONE),
            operand_begin=operand_begin,
            runs=runs,
            weight=weight,
            second=second,
            tile=tuple(0 if k in followed else _constant(grid, k) for k in range(4)),
            **_columns(streams),
        )

    def _accesses(self, grid: TaskGrid) -> _Accesses:
        found = []
        for mode, accesses in ((fmt.READ, grid.tiling.reads), (fmt.WRITE, grid.tiling.writes)):
            for access in accesses:
                bounds = _box(grid, access)
                for item in items_of(access, grid.node.operands[access.operand], self.devices):
                    found.append((access.operand, mode, fmt.NONE if item is None else item, bounds))
        return tuple(found)

    def _body(self, views: _Views, accesses: _Accesses, stored: int) -> int:
        key = views, accesses, stored
        if key not in self._known:
            tables = self.tables
            begin, first = len(tables["views"]), len(tables["accesses"])
            for dtype, arena, rows, stride in views:
                tables["views"].append(dtype=dtype, arena=arena, rows=rows, stride=stride)
            for operand, mode, item, bounds in accesses:
                tables["accesses"].append(operand=operand, mode=mode, item=item, **_columns(bounds))
            counts = {"view_count": len(views), "access_count": len(accesses)}
            self._known[key] = tables["bodies"].append(view_begin=begin, access_begin=first, format=stored, **counts)
        return self._known[key]


def _columns(bounds: Sequence[Stated]) -> dict[str, tuple[int, ...]]:
    """The fields of a row that state its bounds."""
    return dict(zip(("at", "by", "add"), zip(*bounds, strict=True), strict=True))


def _view(view: View, arena: str) -> tuple[int, int, int, tuple[int, ...]]:
    strides = (*view.strides, 0, 0, 0)[:DIMS]
    return fmt.DTYPES.index(view.dtype), fmt.ARENAS.index(arena), view.shape[0], strides


def _box(grid: TaskGrid, access: Access) -> tuple[Stated, ...]:
    """The bounds of an access in four dimensions, of which the last may have one element."""
    if len(access.box) > DIMS:
        raise TraitError(f"tile op {grid.node.op} has an operand of {len(access.box)} dimensions, want at most {DIMS}")
    what = f"operand {access.operand}"
    bounds = [_bound(grid, bound, what) for ends in access.box for bound in ends]
    return (*bounds, *((fmt.NONE, 0, 0), (fmt.NONE, 0, 1)) * (DIMS - len(access.box)))


def _bound(grid: TaskGrid, bound: Bound | Ints, what: str) -> Stated:
    """A bound of all tasks as a constant, or by a coordinate: best of all it is one."""
    values = np.broadcast_to(np.asarray(bound, np.int64), (grid.tasks,))
    if (values == values[0]).all():
        return fmt.NONE, 0, int(values[0])
    found = []
    other = int(np.flatnonzero(values != values[0])[0])
    for k, coordinate in enumerate(grid.tiling.coords.T.astype(np.int64)):
        if coordinate[other] != coordinate[0]:
            by = int(values[other] - values[0]) // int(coordinate[other] - coordinate[0])
            rest = values - by * coordinate
            if (rest == rest[0]).all():
                found.append((abs(by - 1), abs(int(rest[0])), (k, by, int(rest[0]))))
    if found:
        return min(found)[2]
    some = ", ".join(map(str, values[:4]))
    want = "want a constant, or a tile coordinate times a constant plus another"
    raise TraitError(f"tile op {grid.node.op} bounds {what} by {some}, …, {want}")


def _constant(grid: TaskGrid, k: int) -> int:
    """A coordinate that bounds nothing, which must be the same for all tasks, as nothing would tell them apart."""
    found = grid.tiling.coords[:, k]
    if (found != found[0]).any():
        raise TraitError(f"tile op {grid.node.op} has a tile coordinate {k} that bounds nothing")
    return int(found[0])


def _runs(grid: TaskGrid) -> int:
    """The number of weight runs of a task."""
    counts = {len(runs) for runs in grid.tiling.weights}
    if len(counts) != 1:
        raise TraitError(f"tile op {grid.node.op} has tasks of {sorted(counts)} weight runs, want one number")
    return counts.pop()


def _streams(grid: TaskGrid) -> list[Stated]:
    """The bounds of a task's weight runs: slot of the first, matrices, rows. All runs are the same but for the slot."""
    weights = grid.tiling.weights
    for runs in weights:
        tile, slot = runs[0]
        if any(run != (tile, slot + i) for i, run in enumerate(runs)) or tile.tensors != weights[0][0][0].tensors:
            raise TraitError(f"tile op {grid.node.op} has weight runs that aren't of one tile, slot after slot")
    first = [runs[0] for runs in weights]
    fields = ("begin", "end", "row_begin", "row_end")
    columns = [[slot for _, slot in first], *([getattr(tile, name) for tile, _ in first] for name in fields)]
    return [_bound(grid, np.array(column, np.int64), "its weights") for column in columns]
