"""direct: what an operator makes for other devices it stores there itself, where its epilogue can.

A push of exactly what one operator has written is a task, an event and a look at the event more than the exchange
needs. Such an operator gets the peers' copies as further outputs, all of the same values, and its tasks notify the
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
    """Where a view lies in its tensor, if it has no gaps between columns; else nothing that a push can equal."""
    begin, end = view.columns
    whole = View.of("", view.shape, view.dtype).strides[1:] == view.strides[1:]
    return (view.shape[0], begin, end) if whole else ()


def _as(view: View, like: View) -> View:
    """A push's view of columns in the shape of what the producer writes."""
    return View(view.tensor, like.shape, like.strides, view.offset, view.dtype)
