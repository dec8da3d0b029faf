"""single: every operator on one device."""

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.placement import Placement, Split


def place(graph: OpGraph, devices: int, reduction: str | None = None) -> Placement:
    """Puts every operator on device 0. ValueError unless `devices` is 1, and for a reduction."""
    if devices != 1:
        raise ValueError(f"placement single is for 1 device, got {devices}")
    if reduction is not None:
        raise ValueError(f"placement single has no sums over devices, which reduction {reduction} is for")
    return Placement("single", devices, {node.name: Split.whole((0,)) for node in graph.nodes})
