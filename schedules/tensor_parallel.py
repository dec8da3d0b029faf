"""tensor_parallel: every operator over all devices, replicated where it must be.

Heads and intermediate rows are divided (`shares.py`); every device reduces the partial sums for itself (a one-shot
all-reduce), unless the two-step form is requested. The results of the indexer, the router and the low-rank projections
are small and needed everywhere: each device computes all of them. The lm_head is divided by rows of the vocabulary, and
device 0 gathers the logits.
"""

from __future__ import annotations

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.placement import Placement, Split
from tilecompile.ops.base import op_of
from tilecompile.schedules.shares import COLS, by_heads, mlps, summed


def place(graph: OpGraph, devices: int, reduction: str | None = None) -> Placement:
    """Shards by heads, intermediate rows and vocabulary. ValueError for devices that the model can't be split over."""
    if devices < 2:
        raise ValueError(f"placement tensor_parallel is for 2 devices or more, got {devices}")
    everywhere = tuple(range(devices))
    heads, pairs = by_heads(graph, everywhere), mlps(graph, everywhere)
    splits: dict[str, Split] = {}
    for node in graph.nodes:
        if op_of(node).samples:
            splits[node.name] = Split.whole((0,))
            continue
        split = heads.get(node.name) or pairs.get(node.name) or Split.whole(everywhere)
        splits[node.name] = summed(node, split, devices, reduction or "one_shot") if split.axis == COLS else split
    return Placement("tensor_parallel", devices, splits)
