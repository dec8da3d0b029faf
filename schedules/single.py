"""single: every operator on one device."""

from tilecompile.graph import OpGraph
from tilecompile.plan import Placement, Split


def place(graph: OpGraph, devices: int) -> Placement:
    """Puts every operator on device 0; `devices` must be 1."""
    if devices != 1:
        raise ValueError(f"placement single is for 1 device, got {devices}")
    return Placement("single", devices, {node.name: Split.whole((0,)) for node in graph.nodes})
