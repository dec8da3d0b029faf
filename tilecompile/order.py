"""The last rewrite of fuse: operators by depth, so that a worker finds independent work before work that must wait.

A worker runs its instructions in the graph's order. In the order in which a model is written, a chain of dependent
operators (q_a, q_b, …) stands before operators that could run at once (kv_a, the indexer's key); sorted by depth, every
operator comes after all that are less deep, and the waits of a chain are filled with the others' work.
"""

from __future__ import annotations

from collections import defaultdict

from tilecompile.graph import OpGraph
from tilecompile.ops.base import REGISTRY


def by_depth(graph: OpGraph) -> OpGraph:
    """The graph's operators sorted by depth; among equals the model's order stays.

    The depth of an operator is one more than that of any operator whose result it reads, whose result it overwrites, or
    that read what it overwrites.
    """
    written: dict[str, int] = defaultdict(int)
    read: dict[str, int] = defaultdict(int)
    depth: dict[str, int] = {}
    for node in graph.nodes:
        mutated = {v.tensor for v in node.inputs[: len(REGISTRY[node.op].mutated)]}
        reads = {v.tensor for v in node.inputs}
        writes = mutated | {v.tensor for v in node.outputs}
        deep = 1 + max([written[t] for t in reads | writes] + [read[t] for t in writes], default=0)
        if node.op == "commit":
            deep = 1 + max(depth.values(), default=0)
        depth[node.name] = deep
        for tensor in reads:
            read[tensor] = max(read[tensor], deep)
        for tensor in writes:
            written[tensor] = max(written[tensor], deep)
    return graph.replaced(sorted(graph.nodes, key=lambda node: depth[node.name]))
