"""tile: splits operators into grids of tasks with the regions that they read and write, by each op's tiling rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tilecompile.ir.graph import OpGraph, Tensor
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.placement import PlacedGraph
from tilecompile.ir.tasks import Region, TaskGrid, TaskGrids
from tilecompile.ir.tiling import Access, Tiling, WeightTile
from tilecompile.ops.base import check_traits, op_of


def region_of(access: Access, view: View, tensor: Tensor, tasks: int) -> Region:
    """The boxes of an access in the tensor's [rows, cols] matrix.

    Dimension 0 gives the rows. The inner dimensions of the view become one column interval that covers the box: exact
    for a window without gaps, larger otherwise, which may add a dependency but never loses one.
    """
    ones = np.ones(tasks, np.int64)
    begin, last = view.offset * ones, view.offset * ones
    for (lo, hi), stride in zip(access.box[1:], view.strides[1:], strict=True):
        begin = begin + lo * ones * stride
        last = last + (hi * ones - 1) * stride
    lo, hi = access.box[0]
    return Region(tensor.name, lo * ones, hi * ones, begin, last + 1)


def items_of(access: Access, view: View, devices: int) -> list[int | None]:
    """The regions of an access: [None] for one of its whole box, or one for each element of dimension 1.

    On several devices gaps between those elements may hold what another device computes, so nothing may seem to be
    read there. Tasks have as many of these regions as their range in dimension 1 has elements; further ones are empty.
    """
    if devices == 1 or len(view.runs) == 1:
        return [None]
    lo, hi = (np.asarray(bound) for bound in access.box[1])
    return list(range(int((hi - lo).max())))


def regions_of(access: Access, view: View, tensor: Tensor, tasks: int, devices: int) -> list[Region]:
    """The regions of an access: see `items_of`."""
    return [_region(access, view, tensor, tasks, item) for item in items_of(access, view, devices)]


def _region(access: Access, view: View, tensor: Tensor, tasks: int, item: int | None) -> Region:
    if item is None:
        return region_of(access, view, tensor, tasks)
    lo, hi = (bound * np.ones(tasks, np.int64) for bound in access.box[1])
    box = (access.box[0], (lo + item, lo + item + 1), *access.box[2:])
    found = region_of(Access(access.operand, box), view, tensor, tasks)
    bounds = (found.row_begin, found.row_end, found.col_begin, found.col_end)
    return Region(tensor.name, *(np.where(lo + item < hi, b, 0) for b in bounds))


def tile(placed: PlacedGraph, parts: int, layout: str = "rows") -> TaskGrids:
    """Splits every operator into about `parts` tasks, with weight tiles in a layout; the sink becomes the last grid."""
    graph, devices = placed.graph, placed.placement.devices
    grids: list[TaskGrid] = []
    for node in graph.nodes:
        tiling = _whole_tensor(graph, node, op_of(node).tile(node, parts), layout)
        check_traits(node, graph.caches(node), tiling)
        reads, writes = (
            tuple(
                region
                for access in accesses
                for view in [node.operands[access.operand]]
                for region in regions_of(access, view, graph.tensors[view.tensor], len(tiling.coords), devices)
            )
            for accesses in (tiling.reads, tiling.writes)
        )
        grids.append(TaskGrid(len(grids), node, node.device, tiling, reads, writes))
    return TaskGrids(graph, placed.placement, grids)


def _whole_tensor(graph: OpGraph, node: OpNode, tiling: Tiling, layout: str) -> Tiling:
    """The tiling with weight tiles in a layout, as parts of the whole tensor where the operator has a window of it."""
    if not node.weights or (node.weights[0].offset == 0 and layout == "rows"):
        return tiling
    view = node.weights[0]
    *_, rows, cols = graph.tensors[view.tensor].shape
    matrix, row, col = view.offset // (rows * cols), view.offset // cols % rows, view.offset % cols

    def shifted(tile: WeightTile) -> WeightTile:
        return replace(
            tile,
            begin=tile.begin + matrix,
            end=tile.end + matrix,
            row_begin=tile.row_begin + row,
            row_end=tile.row_end + row,
            col_begin=col,
            layout=layout,
        )

    return replace(tiling, weights=tuple(tuple((shifted(t), s) for t, s in task) for task in tiling.weights))
