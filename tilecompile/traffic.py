"""How many bytes a step must read: the model's formula, without padding and without replication."""

from __future__ import annotations

from tilecompile.graph import OpGraph
from tilecompile.runtime.format import DTYPE_BYTES


def bytes_per_step(graph: OpGraph, context: int) -> int:
    """Distinct bytes of weights and caches that one step at a context of `context` positions must read.

    Streamed weights count once; stacked experts count for as many as the step has slots; a table counts the rows of the
    step's tokens; a latent cache counts the selected rows, an index cache all rows of the context, and none while the
    context is at most the selection.
    """
    total = 0
    seen: set[str] = set()
    for node in graph.nodes:
        slots = node.inputs[_slot_operand(node.attrs)].shape[1] if node.op.startswith("expert_") else 1
        for w in node.weights:
            if w.tensor in seen:
                continue
            seen.add(w.tensor)
            size = DTYPE_BYTES[w.dtype]
            for extent in w.shape:
                size *= extent
            total += size * slots // w.shape[0] if node.op.startswith("expert_") else size
        for view in node.inputs:
            tensor = graph.tensors[view.tensor]
            row = tensor.cols * DTYPE_BYTES[tensor.dtype]
            if tensor.role == "constant" and view.tensor not in seen:
                seen.add(view.tensor)
                total += row * (graph.tokens if node.op == "embed" else tensor.rows)
            elif tensor.role == "cache" and node.op == "index_score":
                total += row * context if context > node.attrs["topk"] else 0
            elif tensor.role == "cache" and node.op == "mla_attention":
                total += row * min(context, node.inputs[3].shape[1])
    return total


def _slot_operand(attrs: dict[str, object]) -> int:
    """Input number of an expert op's slot table: after x and the weight of a folded norm."""
    return 1 + (attrs.get("norm") is not None)
