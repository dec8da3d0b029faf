"""The last rewrite of fuse: operators by depth, so that a worker finds independent work before work that must wait.

A worker runs its instructions in the graph's order. In the order in which a model is written, a chain of dependent
operators (q_a, q_b, …) stands before operators that could run at once (kv_a, the indexer's key); sorted by depth, every
operator comes after all that are less deep, and the waits of a chain are filled with the others' work.
"""

from __future__ import annotations

from collections import defaultdict

from tilecompile.ir.graph import OpGraph
from tilecompile.ops.base import op_of


def by_depth(graph: OpGraph) -> OpGraph:
    """The graph's operators sorted by depth; among equals the order stays."""
    depth = depths(graph)
    return graph.replaced(sorted(graph.nodes, key=lambda node: depth[node.name]))


def depths(graph: OpGraph) -> dict[str, int]:
    """The depth of each operator, by name.

    The depth of an operator is one more than that of any operator whose result it reads, whose result it overwrites, or
    that read what it overwrites. Different columns of a tensor are different things.
    """
    touched: dict[str, list[tuple[int, int, int, bool]]] = defaultdict(
        list
    )  # (begin, end, depth, wrote) of its columns
    depth: dict[str, int] = {}
    for node in graph.nodes:
        mutated = len(op_of(node).mutated)
        views = [(v, i < mutated) for i, v in enumerate(node.inputs)] + [(v, True) for v in node.outputs]
        deep = 0
        for view, writes in views:
            for begin, end in view.runs:
                for b, e, other, wrote in touched[view.tensor]:
                    if other > deep and (writes or wrote) and b < end and begin < e:
                        deep = other
        if op_of(node).is_sink:
            deep = max(depth.values(), default=0)
        depth[node.name] = deep + 1
        for view, writes in views:
            touched[view.tensor] += [(*run, deep + 1, writes) for run in view.runs]
    return depth
