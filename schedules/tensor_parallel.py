"""tensor_parallel: every operator over all devices, replicated where it must be.

Heads and intermediate rows are divided (after Megatron-LM, arXiv 1909.08053): the projections into them by rows, those
out of them by columns, whose partial sums every device adds for itself (a one-shot all-reduce). What the indexer, the
router and the low-rank projections compute is small, and wanted everywhere: each device computes all of it. The lm_head
is divided by rows of the vocabulary.
"""

from __future__ import annotations

import re

from tilecompile.graph import OpGraph
from tilecompile.ops.base import OpNode
from tilecompile.plan import Placement, Split

ROWS = r"(gate_proj|up_proj|^lm_head|\.lm_head)$"
"""Divided by rows of the weight, in whole panels where they suffice; of a fused pair the last name decides."""

COLS = r"(down_proj)$"
"""Divided by columns of the weight."""


def place(graph: OpGraph, devices: int) -> Placement:
    """Shards by heads, intermediate rows and vocabulary. ValueError for a single device."""
    if devices < 2:
        raise ValueError(f"placement tensor_parallel is for 2 devices or more, got {devices}")
    everywhere = tuple(range(devices))
    heads = max((n.inputs[0].shape[1] for n in graph.nodes if n.op == "mla_attention"), default=1)
    producer = graph.producer()
    splits: dict[str, Split] = {}
    for node in graph.nodes:
        made = [producer[v.tensor] for v in node.inputs[:1] if v.tensor in producer]
        by_heads = any(splits[p.name].axis is not None for p in made) and node.op in ("head_linear", "rope")
        if node.op == "mla_attention" or by_heads:
            splits[node.name] = Split.shared("heads", heads, devices)
        elif node.name.endswith("self_attn.q_b_proj"):
            splits[node.name] = Split.shared("rows", heads, devices, node.weights[0].shape[0] // heads)
        elif node.name.endswith("self_attn.o_proj"):
            splits[node.name] = _summed(
                node, Split.shared("cols", heads, devices, node.weights[0].shape[1] // heads), devices
            )
        elif node.weights and re.search(ROWS, node.name):
            size = node.weights[0].shape[-2]
            splits[node.name] = Split.shared("rows", *_units(size, devices))
        elif node.weights and re.search(COLS, node.name):
            size = node.weights[0].shape[-1]
            splits[node.name] = _summed(node, Split.shared("cols", *_units(size, devices)), devices)
        else:
            splits[node.name] = Split.whole(everywhere)
    return Placement("tensor_parallel", devices, splits)


def _units(size: int, devices: int) -> tuple[int, int, int]:
    """How many units of how many elements to divide: whole panels where there are enough, else single elements."""
    unit = 16 if size % 16 == 0 and size // 16 >= devices else 1
    return size // unit, devices, unit


def _summed(node: OpNode, split: Split, devices: int) -> Split:
    """The split with every device adding all of the result."""
    return split.one_shot(node.outputs[0].shape[-1], devices)
