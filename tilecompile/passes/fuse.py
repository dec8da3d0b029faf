"""fuse: named rewrites of the operator graph that save hops between workers.

Each rewrite takes a graph and returns one; `REWRITES` lists them in order. They move work into the prologue or epilogue
of an operator that streams weights: a norm into the operators that read it, elementwise work (activations, residuals)
into the operator that produces its last input, two weights with the same input into one stream. The last one sorts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tilecompile.ir.expr import Expr, leaves, substitute
from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import OpNode, View
from tilecompile.ops.base import op_of
from tilecompile.passes.order import by_depth

MAX_LEAVES = 64
"""Most leaves of an expression, in which a value that is used twice is written twice."""


def compose_maps(graph: OpGraph) -> OpGraph:
    """A map whose result only another map reads becomes part of that map's expression."""
    nodes = {node.name: node for node in graph.nodes}
    producer = {tensor: node.name for tensor, node in graph.producer().items()}
    readers = {tensor: {node.name for node in found} for tensor, found in graph.consumers().items()}
    for name in [node.name for node in graph.nodes if op_of(node).is_elementwise]:
        while True:
            node = nodes[name]
            made = [nodes[producer[v.tensor]] for v in node.inputs if v.tensor in producer]
            made = [p for p in made if op_of(p).is_elementwise and _mergeable(p, node, readers, graph)]
            inner = next((p for p in made if leaves(_inline(node, p).attrs["expr"]) <= MAX_LEAVES), None)
            if inner is None:
                break
            nodes[name] = _inline(node, inner)
            del nodes[inner.name]
            for view in inner.inputs:
                readers[view.tensor] = readers[view.tensor] - {inner.name} | {name}
    return graph.replaced(nodes.values())


def fold_norm(graph: OpGraph) -> OpGraph:
    """An RMS norm that only streaming operators read is computed by each of them: cheaper than a hop."""
    consumers = graph.consumers()
    folded: dict[str, OpNode] = {}
    for node in graph.nodes:
        readers = consumers[node.outputs[0].tensor] if op_of(node).is_norm and _movable(node, graph) else []
        out = node.outputs[0] if node.outputs else None
        if readers and all(
            op_of(r).takes_norm and r.inputs[0] == out and r.attrs.get("norm") is None and out not in r.inputs[1:]
            for r in readers
        ):
            folded[node.outputs[0].tensor] = node
    nodes = []
    for node in graph.nodes:
        if op_of(node).is_norm and node.outputs[0].tensor in folded:
            continue
        norm = folded.get(node.inputs[0].tensor) if op_of(node).takes_norm else None
        if norm is not None:
            inputs = (norm.inputs[0], norm.inputs[1], *node.inputs[1:])
            node = replace(node, inputs=inputs, attrs={**node.attrs, "norm": norm.attrs["eps"]})
        nodes.append(node)
    return graph.replaced(nodes)


def fold_epilogue(graph: OpGraph) -> OpGraph:
    """A map joins the streaming operator that produces its last input; a pair with equal input shares one stream."""
    producer, order = graph.producer(), {node.name: i for i, node in enumerate(graph.nodes)}
    readers = {tensor: {node.name for node in found} for tensor, found in graph.consumers().items()}
    fused: dict[str, OpNode] = {}
    merged: set[str] = set()
    for node in graph.nodes:
        if not op_of(node).is_elementwise or any(v.shape[-1] > 1 and v.strides[-1] != 1 for v in node.inputs):
            continue  # epilogues load whole vectors of the last dimension
        made = [producer[v.tensor] for v in node.inputs if v.tensor in producer]
        made = [p for p in made if op_of(p).takes_epilogue and p.attrs.get("epilogue") is None]
        made = [p for p in made if _mergeable(p, node, readers, graph)]
        if not made:
            continue
        last = max(made, key=lambda p: order[p.name])
        pair = next((p for p in made if p is not last and _same_stream(p, last)), None)
        parts = [last] if pair is None else [pair, last]
        fused[node.name] = _absorb(node, parts)
        merged |= {p.name for p in parts}
    return graph.replaced(fused.get(n.name, n) for n in graph.nodes if n.name not in merged)


def predicate_logits(graph: OpGraph) -> OpGraph:
    """Steps that only feed a prompt token skip what nothing but the logits needs: lm_head and argmax do nothing."""
    needed: set[str] = set()
    nodes: list[OpNode] = []
    for node in reversed(graph.nodes):
        mutates = bool(op_of(node).mutated)
        outputs = {v.tensor for v in node.outputs}
        if mutates or outputs & needed:
            needed |= {v.tensor for v in node.inputs}
        elif not op_of(node).is_sink:
            node = replace(node, attrs={**node.attrs, "predicate": "logits"})
        nodes.append(node)
    return graph.replaced(reversed(nodes))


REWRITES: tuple[Callable[[OpGraph], OpGraph], ...] = (
    compose_maps,
    fold_norm,
    fold_epilogue,
    predicate_logits,
    by_depth,
)


def fuse(graph: OpGraph) -> OpGraph:
    """All rewrites, in order."""
    for rewrite in REWRITES:
        graph = rewrite(graph)
    return graph


def _mergeable(node: OpNode, reader: OpNode, readers: dict[str, set[str]], graph: OpGraph) -> bool:
    """Whether a node that `reader` reads may become part of it: only `reader` reads it, and reads all of it."""
    (out,) = node.outputs
    whole = all(v == out for v in reader.inputs if v.tensor == out.tensor)
    return whole and readers[out.tensor] == {reader.name} and out.tensor not in graph.outputs and _movable(node, graph)


def _movable(node: OpNode, graph: OpGraph) -> bool:
    """Whether the node may run later with the same result: it reads no cache or state, which may be written by then."""
    return all(graph.tensors[v.tensor].role not in ("cache", "state") for v in node.inputs)


def _inline(node: OpNode, inner: OpNode) -> OpNode:
    """`node` with the expression of the map `inner` in place of its result."""
    inputs: list[View] = []

    def leaf_of(view: View) -> Expr:
        if view not in inputs:
            inputs.append(view)
        return ("in", inputs.index(view))

    def outer(leaf: Expr) -> Expr:
        if leaf[0] != "in":
            return leaf
        view = node.inputs[leaf[1]]
        if view == inner.outputs[0]:
            return substitute(inner.attrs["expr"], lambda e: leaf_of(inner.inputs[e[1]]) if e[0] == "in" else e)
        return leaf_of(view)

    expr = substitute(node.attrs["expr"], outer)
    return replace(node, inputs=tuple(inputs), attrs={**node.attrs, "expr": expr})


def _same_stream(a: OpNode, b: OpNode) -> bool:
    """Whether two streaming operators read the same input with weights of the same shape, one weight each."""
    same = (a.op, a.inputs, a.attrs) == (b.op, b.inputs, b.attrs) and op_of(a).takes_norm
    weights = [(len(n.weights), n.weights[0].shape, n.weights[0].dtype) for n in (a, b)]
    return same and weights[0] == weights[1] and weights[0][0] == 1


def _absorb(node: OpNode, producers: list[OpNode]) -> OpNode:
    """The streaming operator(s) with the map `node` as epilogue; the map's other inputs become extra inputs."""
    results = [p.outputs[0] for p in producers]
    extra: list[View] = []

    def leaf(e: Expr) -> Expr:
        if e[0] != "in":
            return e
        view = node.inputs[e[1]]
        if view in results:
            return ("acc", results.index(view))
        if view not in extra:
            extra.append(view)
        return ("in", extra.index(view))

    expr = substitute(node.attrs["expr"], leaf)
    host = producers[-1]
    return replace(
        host,
        name="+".join(p.name for p in producers),
        family="+".join(p.family for p in producers),
        inputs=(*host.inputs, *extra),
        weights=tuple(w for p in producers for w in p.weights),
        outputs=node.outputs,
        attrs={**host.attrs, "epilogue": expr},
    )
