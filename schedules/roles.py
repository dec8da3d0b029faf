"""roles: one device selects, the others attend, all of them do the rest: the split of the published GLM-5 engines.

TileRT 0.1.5 (closed kernels, open Python) describes it for GLM-5 on 8 GPUs: the first one selects, seven do the
attention, eight the MLPs and experts. Here:

- Device 0 has the indexer of every layer and its cache. It pushes the selected positions to the devices that attend;
  a layer that shares an earlier selection finds it there.
- The others have the latent cache, each all of it, and a share of the heads (64 over 7: 9 each and 10). No head is
  padded. With more devices than heads those at the end don't attend.
- The query's low-rank projection, which both need, is computed by both: for GLM-5 it is 2.6 µs of a device's memory
  bandwidth (12.6 MB in FP8 on an H200), not more than the hop that would bring it.
- Intermediate rows, the vocabulary and the two projections that begin a draft are divided over all devices; all of
  them add the sums (`shares.summed` chooses the form). The router is computed everywhere.
- Embedding, sampling and what else only begins or ends a step is on device 0.
"""

from __future__ import annotations

import re

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import OpNode
from tilecompile.ir.placement import Placement, Split
from tilecompile.schedules.shares import by_heads, by_rows_or_cols, divided, summed

INDEXER = r"\.self_attn\.indexer\."
ATTENTION = r"\.self_attn\."
QUERY = r"\.self_attn\.q_a_proj$"
DRAFT = r"\.eh_proj_(embed|hidden)$"
ENDS = ("embed", "argmax", "commit")
"""Ops of the step's begin and end."""


def place(graph: OpGraph, devices: int, reduction: str | None = None) -> Placement:
    """Index selection, attention and the rest. ValueError for devices that the model can't be split over."""
    if devices < 2:
        raise ValueError(f"placement roles is for 2 devices or more, got {devices}")
    heads = by_heads(graph, tuple(range(1, devices)))
    attends = max(({p.device for p in split.parts} for split in heads.values()), key=len, default={1})
    splits: dict[str, Split] = {}
    for node in graph.nodes:
        split = heads.get(node.name) or _split(node, devices, tuple(sorted(attends)))
        splits[node.name] = summed(node, split, devices, reduction) if split.axis == "cols" else split
    return Placement("roles", devices, splits)


def _split(node: OpNode, devices: int, attends: tuple[int, ...]) -> Split:
    """Where an operator runs that works on no head."""
    everywhere = tuple(range(devices))
    if node.op in ENDS or re.search(INDEXER, node.name):
        return Split.whole((0,))
    if re.search(QUERY, node.name):
        return Split.whole((0, *attends))
    if re.search(ATTENTION, node.name):
        return Split.whole(attends)
    if re.search(DRAFT, node.name):
        return divided(node, "rows", node.weights[0].shape[0], everywhere)
    return by_rows_or_cols(node, everywhere) or Split.whole(everywhere)
