"""roles: one device selects, the others attend, all share the rest: the split of the published GLM-5 engines.

TileRT 0.1.5 (closed kernels, open Python) describes it for GLM-5 on 8 GPUs: the first one selects, seven do the
attention, eight the MLPs and experts. Here:

- Device 0 has the indexer of every layer and its cache. It pushes the selected positions to the devices that attend;
  a layer that shares an earlier selection finds it there.
- The others have the latent cache, each all of it, and a share of the heads (64 over 7: 9 each and 10). No head is
  padded. With more devices than heads the last devices don't attend.
- The query's low-rank projection, which both need, is computed by both: for GLM-5 it is 2.6 µs of a device's memory
  bandwidth (12.6 MB in FP8 on an H200), not more than the hop that would bring it.
- Intermediate rows, the vocabulary and the two projections that begin a draft are divided over all devices; all of
  them reduce the sums (`shares.summed` chooses the form). The router is computed everywhere.
- Embedding, sampling and what else only begins or ends a step is on device 0.
"""

from __future__ import annotations

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.placement import Placement, Split
from tilecompile.ops.base import op_of
from tilecompile.schedules.shares import (
    COLS,
    ROWS,
    by_heads,
    divided,
    feeding,
    looks_up,
    mlps,
    query_projections,
    summed,
)


def place(graph: OpGraph, devices: int, reduction: str | None = None) -> Placement:
    """Index selection, attention and the rest. ValueError for devices that the model can't be split over."""
    if devices < 2:
        raise ValueError(f"placement roles is for 2 devices or more, got {devices}")
    everywhere = tuple(range(devices))
    heads, pairs = by_heads(graph, everywhere[1:]), mlps(graph, everywhere)
    attends = max(({p.device for p in split.parts} for split in heads.values()), key=len, default={1})
    selects = feeding(graph, {n.name for n in graph.nodes if op_of(n).chooses == "positions"})
    routes = feeding(graph, {n.name for n in graph.nodes if op_of(n).chooses == "experts"})
    attention = feeding(graph, {name for name, split in heads.items() if split.axis != COLS}, without=selects)
    both = query_projections(graph, heads)
    splits: dict[str, Split] = {}
    for node in graph.nodes:
        op = op_of(node)
        if node.name in heads:
            split = heads[node.name]
        elif looks_up(node) or op.samples or op.is_sink or node.name in selects:
            split = Split.whole((0,))
        elif node.name in both:
            split = Split.whole((0, *sorted(attends)))
        elif node.name in attention:
            split = Split.whole(tuple(sorted(attends)))
        elif node.name in pairs:
            split = pairs[node.name]
        elif ROWS in op.split_axes and node.name not in routes:
            split = divided(node, ROWS, everywhere)
        else:
            split = Split.whole(everywhere)
        splits[node.name] = summed(node, split, devices, reduction) if split.axis == COLS else split
    return Placement("roles", devices, splits)
