"""Dependencies between operators: against their definition, pair by pair."""

from __future__ import annotations

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st

from support.small import glm5_graphs
from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import OpNode, View
from tilecompile.ops.base import op_of
from tilecompile.passes.dag import dag, depths

COLS = 8
TENSORS = ("a", "b", "c")


@st.composite
def views(draw: st.DrawFn) -> View:
    """Columns of a tensor, some with gaps between two runs of them."""
    whole = View.of(draw(st.sampled_from(TENSORS)), (1, 2, COLS // 2), "f32")
    axis, size = draw(st.sampled_from(((1, 2), (2, COLS // 2))))
    begin = draw(st.integers(0, size - 1))
    return whole.narrow(axis, begin, draw(st.integers(begin + 1, size)))


@st.composite
def graphs(draw: st.DrawFn) -> OpGraph:
    """Operators that read, write and overwrite anything: the last is a sink, a cache_append overwrites its input 0."""
    nodes = []
    for i in range(draw(st.integers(0, 8))):
        op = draw(st.sampled_from(("map", "cache_append")))
        inputs = tuple(draw(st.lists(views(), min_size=op == "cache_append", max_size=3)))
        outputs = tuple(draw(st.lists(views(), max_size=2)))
        nodes.append(OpNode(f"n{i}", op, inputs, (), outputs))
    nodes.append(OpNode("end", "commit", (), (), ()))
    return OpGraph("decode", 1, {}, nodes)


def elements(view: View) -> set[tuple[str, int]]:
    """The elements of a tensor that a view has."""
    found = {view.offset}
    for size, stride in zip(view.shape, view.strides, strict=True):
        found = {place + i * stride for place in found for i in range(size)}
    return {(view.tensor, place) for place in found}


def conflicts(first: OpNode, second: OpNode) -> bool:
    """Whether one of two operators writes what the other one reads or writes."""
    touched, written = [], []
    for node in (first, second):
        mutated = node.inputs[: len(op_of(node).mutated)]
        touched.append({e for v in node.operands for e in elements(v)})
        written.append({e for v in (*mutated, *node.outputs) for e in elements(v)})
    return bool(written[0] & touched[1] or touched[0] & written[1])


@given(graphs())
def test_operators_that_conflict_are_ordered_as_in_the_graph(graph: OpGraph) -> None:
    found = dag(graph)
    want = nx.DiGraph()
    want.add_nodes_from(range(len(graph.nodes)))
    for b, later in enumerate(graph.nodes):
        want.add_edges_from((a, b) for a in range(b) if later.op == "commit" or conflicts(graph.nodes[a], later))
    assert set(found.edges) <= set(want.edges)
    assert nx.transitive_closure(found).edges == nx.transitive_closure(want).edges


@given(graphs())
def test_depth_is_that_of_the_longest_chain(graph: OpGraph) -> None:
    found, depth = dag(graph), depths(graph)
    for place, node in enumerate(graph.nodes):
        chain = nx.dag_longest_path_length(found.subgraph({place, *nx.ancestors(found, place)}))
        assert depth[node.name] == chain + 1


def test_a_sink_is_deeper_than_all_else() -> None:
    for graph in glm5_graphs():
        depth = depths(graph)
        assert list(depth) != []
        assert max(depth, key=lambda name: depth[name]) == graph.nodes[-1].name
        assert sorted(set(depth.values())) == list(range(1, depth[graph.nodes[-1].name] + 1))
