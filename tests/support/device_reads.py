"""What each device of a placed graph reads."""

from __future__ import annotations

from tilecompile.cost.device_reads import distinct_reads
from tilecompile.ir.placement import PlacedGraph


def device_reads(placed: PlacedGraph, context: int) -> list[float]:
    """Bytes that each device reads in a step at a context. A constant that several operators read counts once."""
    reads = [0.0] * placed.placement.devices
    for node, size in distinct_reads(placed.graph, context):
        reads[node.device] += size
    return reads
