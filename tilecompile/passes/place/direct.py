"""direct: an operator stores its results on other devices itself, where its epilogue can.

A push of exactly what one operator has written costs a task, an event and a wait that the exchange doesn't need.
Instead, the operator gets the peers' copies as further outputs, all with the same values, and its tasks notify the
peers' events.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from tilecompile.ir.graph import OpGraph
from tilecompile.ir.node import OpNode, View
from tilecompile.ops.base import op_of
from tilecompile.runtime.names import PUSH


def direct(graph: OpGraph) -> OpGraph:
    """The graph without the pushes that their producers take over."""
    makes = {(view.tensor, *_window(view)): node for node in graph.nodes if _can(node) for view in node.outputs}
    further: dict[str, list[View]] = defaultdict(list)
    kept = []
    for node in graph.nodes:
        made = makes.get((node.inputs[0].tensor, *_window(node.inputs[0]))) if node.role == PUSH else None
        if made is None:
            kept.append(node)
        else:
            further[made.name] += node.outputs
    return graph.replaced(
        replace(node, outputs=(*node.outputs, *(_as(view, node.outputs[0]) for view in further[node.name])))
        if node.name in further
        else node
        for node in kept
    )


def _can(node: OpNode) -> bool:
    return op_of(node).stores_to_peers and len(node.outputs) == 1


def _window(view: View) -> tuple[int, ...]:
    """Rows and columns of a view in its tensor; empty, which equals no push's window, if its columns have gaps."""
    begin, end = view.columns
    whole = View.of("", view.shape, view.dtype).strides[1:] == view.strides[1:]
    return (view.shape[0], begin, end) if whole else ()


def _as(view: View, like: View) -> View:
    """A push's view of columns in the shape of what the producer writes."""
    return View(view.tensor, like.shape, like.strides, view.offset, view.dtype)
