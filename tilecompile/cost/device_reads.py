"""What each device reads in a step.

Bytes of weights are those of the tapes, padding of panels and expert slots included. Of a cache in shares of the
context a device reads its own rows; of the positions that attention selects it is taken to hold as large a part as it
holds of the context.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import OpNode
from tilecompile.ir.placement import PlacedGraph
from tilecompile.ops.base import REGISTRY
from tilecompile.ops.context import rows_of
from tilecompile.runtime.format import DTYPE_BYTES


def node_reads(graph: OpGraph, node: OpNode, context: int) -> float:
    """Bytes that an operator reads of weights, constants and caches at a context, the step's own position included."""
    dtype = {w.tensor: w.dtype for w in node.weights}
    tiling = REGISTRY[node.op].tile(node, 1) if node.weights else None
    total = 0.0
    for task in tiling.weights if tiling else ():
        total += sum(tile.bytes(dtype[tile.tensors[0]]) for tile, _ in task)
    for view in node.inputs:
        tensor = graph.tensors[view.tensor]
        row = tensor.cols * DTYPE_BYTES[tensor.dtype]
        if tensor.role == "constant":
            total += row * (graph.tokens if node.op == "embed" else tensor.rows)
        elif tensor.role == "cache" and node.op == "index_score" and context > node.attrs["topk"]:
            total += row * rows_of(node, context)
        elif tensor.role == "cache" and node.op == "mla_attention":
            total += row * _selected(node, context)
    return total


def _selected(node: OpNode, context: int) -> float:
    """Positions that the node attends to, on the average."""
    selection = node.inputs[3]
    if node.attrs.get("context") is None:
        return max(0, min(context - selection.offset, selection.shape[1]))
    return min(context, int(node.attrs["topk"])) * rows_of(node, context) / max(1, context)


def device_reads(placed: PlacedGraph, context: int) -> list[float]:
    """Bytes that each device reads in a step at a context. A constant that several operators read counts once."""
    reads = [0.0] * placed.placement.devices
    for node, size in distinct_reads(placed.graph, context):
        reads[node.device] += size
    return reads


def distinct_reads(graph: OpGraph, context: int) -> Iterable[tuple[OpNode, float]]:
    """Operators with the bytes that they are the first of their device to read."""
    seen: set[tuple[int, str]] = set()
    for node in graph.nodes:
        again = 0
        for name in dict.fromkeys(v.tensor for v in node.inputs if graph.tensors[v.tensor].role == "constant"):
            tensor = graph.tensors[name]
            if node.op != "embed" and (node.device, name) in seen:
                again += tensor.rows * tensor.cols * DTYPE_BYTES[tensor.dtype]
            seen.add((node.device, name))
        yield node, node_reads(graph, node, context) - again


def tape_reads(tables: Mapping[str, npt.NDArray[np.void]], program: int, devices: int) -> list[int]:
    """Bytes that the tapes of each device read in a step of a program, one expert for each slot."""
    reads = [0] * devices
    instructions, tape = tables["instructions"], tables["tape"]
    for stream in tables["streams"][tables["streams"]["program"] == program]:
        for ins in instructions[stream["begin"] : stream["end"]]:
            begin = int(ins["tape_begin"])
            reads[int(stream["device"])] += int(tape["bytes"][begin : begin + int(ins["tape_count"])].sum())
    return reads
