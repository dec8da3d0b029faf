"""split_attention: where a device has more workers than heads, attention is divided by selected positions too.

One task a head would read all selected rows alone, while most workers have nothing to do. Each part attends to a range
of the selection's entries, and `attention_merge` adds the parts of a head in their order. (FlashDecoding: Dao, Haziza,
Massa, Sizov 2023.)
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from tilecompile.ir.graph import Tensor
from tilecompile.ir.node import OpNode, View
from tilecompile.ir.placement import PlacedGraph
from tilecompile.ir.tiling import split
from tilecompile.ops.context import is_part
from tilecompile.passes.order import by_depth

ENTRIES = 64
"""Entries of the selection below which a part isn't worth a task and its share of the merging."""
UNIT = 16


def split_attention(placed: PlacedGraph, workers: int) -> PlacedGraph:
    """The placed graph with attention in parts, for so many workers a device; the same if no worker would be idle."""
    graph = placed.graph
    tensors, nodes = dict(graph.tensors), list[OpNode]()
    for node in graph.nodes:
        cuts = _cuts(node, workers)
        if cuts < 2:
            nodes.append(node)
            continue
        *others, selection, position = node.inputs
        (y,) = node.outputs
        tokens, heads, latent = y.shape
        shape = (tokens, heads, cuts, latent + 2)  # what a head's merging reads is in one piece
        by_head = View.of(f"%{_named(node, '.parts')}", shape, y.dtype)
        parts = by_head.swapped(1, 2)
        tensors[parts.tensor] = Tensor(parts.tensor, shape, y.dtype, "activation", node.device)
        bounds = split(selection.shape[1], cuts, UNIT).tolist()
        for i, (begin, end) in enumerate(pairwise(bounds)):
            inputs = (*others, selection.narrow(1, begin, end), position)
            outputs = (parts.select(1, i),)
            attrs = {**node.attrs, "part": True}
            nodes.append(replace(node, name=_named(node, f".part{i}"), inputs=inputs, outputs=outputs, attrs=attrs))
        gate = {"gate": node.attrs["gate"]} if node.attrs.get("gate") else {}
        merge = replace(node, name=_named(node, ".merge"), op="attention_merge", inputs=(parts,), attrs=gate)
        nodes.append(merge)
    if len(nodes) == len(graph.nodes):
        return placed
    return replace(placed, graph=by_depth(replace(graph, tensors=tensors, nodes=nodes)))


def _named(node: OpNode, ending: str) -> str:
    """The node's name with an ending, before its device."""
    name, at, device = node.name.partition("@")
    return f"{name}{ending}{at}{device}"


def _cuts(node: OpNode, workers: int) -> int:
    """In how many parts a node's selection is divided."""
    if node.op != "mla_attention" or is_part(node):
        return 1
    entries = node.inputs[3].shape[1]
    return min(workers // node.inputs[0].shape[1], entries // ENTRIES)
