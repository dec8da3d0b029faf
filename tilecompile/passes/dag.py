"""Which operators of a graph must come before which, as a networkx graph."""

from __future__ import annotations

from collections import defaultdict

import networkx as nx

from tilecompile.ir.graph import OpGraph
from tilecompile.ops.base import op_of


def dag(graph: OpGraph) -> nx.DiGraph:
    """The dependencies between operators, which are named by their places in `graph.nodes`.

    An operator comes after those whose result it reads or overwrites, and after those that read what it overwrites.
    Accesses to disjoint columns of a tensor are independent. A sink comes after all others.
    """
    edges: list[tuple[int, int]] = []
    touched: dict[str, list[tuple[int, int, int, bool]]] = defaultdict(list)  # (begin, end, place, wrote) of columns
    for place, node in enumerate(graph.nodes):
        mutated = range(len(op_of(node).mutated))
        touches = []
        for number, view in enumerate(node.operands):
            writes = number in mutated or number >= len(node.inputs)
            earlier = touched[view.tensor]
            for begin, end in view.runs:
                edges += [(p, place) for b, e, p, wrote in earlier if b < end and begin < e and (writes or wrote)]
                touches.append((earlier, (begin, end, place, writes)))
        for earlier, touch in touches:  # only now: an operator doesn't come after itself
            earlier.append(touch)
        if op_of(node).is_sink:
            ends = set(range(place)).difference(before for before, _ in edges)
            edges += [(end, place) for end in ends]
    found = nx.DiGraph()
    found.add_nodes_from(range(len(graph.nodes)))
    found.add_edges_from(edges)
    return found


def depths(graph: OpGraph) -> dict[str, int]:
    """The depth of each operator, by name: one more than the greatest depth of those that it comes after."""
    generations = nx.topological_generations(dag(graph))
    return {graph.nodes[place].name: depth for depth, places in enumerate(generations, 1) for place in places}
