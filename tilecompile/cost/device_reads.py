"""What each device reads in a step.

Bytes of weights are those of the tapes, padding of panels and expert slots included. Of a cache that is
sharded by context a device reads its own rows; its part of the positions that attention selects is taken to be its
part of the context.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import OpNode
from tilecompile.ops.base import RowsRead, cache_reads, op_of
from tilecompile.ops.context import Context, rows_of
from tilecompile.runtime.format import DTYPE_BYTES


def node_reads(graph: OpGraph, node: OpNode, context: int) -> float:
    """Bytes that an operator reads of weights, constants and caches at a context, the step's own position included."""
    dtype = {w.tensor: w.dtype for w in node.weights}
    tiling = op_of(node).tile(node, 1) if node.weights else None
    total = 0.0
    for task in tiling.weights if tiling else ():
        total += sum(tile.bytes(dtype[tile.tensors[0]]) for tile, _ in task)
    stated = cache_reads(node, graph.caches(node))
    for i, view in enumerate(node.inputs):
        tensor = graph.tensors[view.tensor]
        if tensor.role == "constant":
            rows = stated[i].at(context) if i in stated else tensor.rows
            total += tensor.cols * DTYPE_BYTES[tensor.dtype] * rows
        elif tensor.role == "cache" and i in stated:
            total += prod(view.shape[1:]) * DTYPE_BYTES[tensor.dtype] * _rows(node, stated[i], context)
    return total


def _rows(node: OpNode, stated: RowsRead, context: int) -> float:
    """Rows that a node reads of a cache: the average where the cache is a shard of the context."""
    rows = stated.at(context)
    return rows if Context.of(node) is None else rows * rows_of(node, context) / max(1, context)


def distinct_reads(graph: OpGraph, context: int) -> Iterable[tuple[OpNode, float]]:
    """Each operator with the bytes that no earlier operator of its device reads."""
    seen: set[tuple[int, str]] = set()
    for node in graph.nodes:
        again = 0
        looked_up = {node.inputs[i].tensor for i in op_of(node).reads(node)}
        for name in dict.fromkeys(v.tensor for v in node.inputs if graph.tensors[v.tensor].role == "constant"):
            tensor = graph.tensors[name]
            if name not in looked_up and (node.device, name) in seen:
                again += tensor.rows * tensor.cols * DTYPE_BYTES[tensor.dtype]
            seen.add((node.device, name))
        yield node, node_reads(graph, node, context) - again
