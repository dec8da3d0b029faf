"""The last rewrite of fuse: operators by depth, so that a worker finds independent work before work that must wait.

A worker runs its instructions in the graph's order. In the order in which a model is written, a chain of dependent
operators (q_a, q_b, …) stands before operators that could run at once (kv_a, the indexer's key); sorted by depth, every
operator comes after all that are less deep, and the waits of a chain are filled with the others' work.
"""

from __future__ import annotations

from tilecompile.ir.graph import OpGraph
from tilecompile.passes.dag import depths


def by_depth(graph: OpGraph) -> OpGraph:
    """The graph's operators sorted by depth; among equals the order stays."""
    depth = depths(graph)
    return graph.replaced(sorted(graph.nodes, key=lambda node: depth[node.name]))
