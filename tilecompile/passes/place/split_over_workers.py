"""split_over_workers: where a device has more workers than an operator has tasks, the operator is divided further.

The op says how (`TileOp.split_over_workers`): attention with fewer heads than workers is divided by selected positions
too, and `attention_merge` merges the parts. (FlashDecoding: Dao, Haziza, Massa, Sizov 2023.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tilecompile.ir.graph import Tensor
from tilecompile.ir.node import OpNode
from tilecompile.ir.placement import PlacedGraph
from tilecompile.ops.base import op_of
from tilecompile.passes.order import by_depth
from tilecompile.passes.place.copies import on_device


def split_over_workers(placed: PlacedGraph, workers: int) -> PlacedGraph:
    """The placed graph with operators in parts, for `workers` workers a device; unchanged if none would be idle."""
    graph = placed.graph
    tensors, nodes = dict(graph.tensors), list[OpNode]()
    for node in graph.nodes:
        split = op_of(node).split_over_workers
        found = split(node, workers, _namer(node, placed.placement.devices)) if split else None
        if found is None:
            nodes.append(node)
            continue
        made = found.made
        tensors[made.tensor] = Tensor(made.tensor, made.shape, made.dtype, "activation", node.device, layer=node.layer)
        nodes += [*found.parts, found.merge]
    if len(nodes) == len(graph.nodes):
        return placed
    return replace(placed, graph=by_depth(replace(graph, tensors=tensors, nodes=nodes)))


def _namer(node: OpNode, devices: int) -> Callable[[str], str]:
    """Names the parts of a node: the undivided operator's name with an ending, on the node's device."""
    if devices == 1:
        return lambda ending: node.undivided + ending
    return lambda ending: on_device(node.undivided + ending, node.device)
