"""tile: operators to grids of tasks with the regions that they read and write, by each op's tiling rule."""

from __future__ import annotations

import numpy as np

from tilecompile.graph import OpGraph, Tensor
from tilecompile.ops.base import REGISTRY, Access, OpNode, View
from tilecompile.plan import PlacedGraph, Region, TaskGrid, TaskGrids


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


def tile(placed: PlacedGraph, parts: int) -> TaskGrids:
    """Splits every operator into about `parts` tasks on each of its devices; the sink becomes the last grid."""
    graph = placed.graph
    grids: list[TaskGrid] = []
    for node in graph.nodes:
        tiling = REGISTRY[node.op].tile(node, parts)
        for device in placed.placement.owners[node.name]:
            reads, writes = (
                tuple(
                    region_of(
                        a, node.operands[a.operand], graph.tensors[node.operands[a.operand].tensor], len(tiling.coords)
                    )
                    for a in accesses
                    if not optional or _ordered(graph, node, a)
                )
                for accesses, optional in ((tiling.reads, True), (tiling.writes, False))
            )
            grids.append(TaskGrid(len(grids), node, device, tiling, reads, writes))
    return TaskGrids(graph, placed.placement, grids)


def _ordered(graph: OpGraph, node: OpNode, access: Access) -> bool:
    """Whether reads of the operand need ordering; nothing ever writes constants, which the proof checks."""
    return graph.tensors[node.operands[access.operand].tensor].role != "constant"
