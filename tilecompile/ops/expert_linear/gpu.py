"""The GPU body of expert_linear: linear's rows, for the expert that a slot holds. The loader chooses the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilecompile.ops.kit.body import StreamBody
from tilecompile.ops.linear.gpu import Shape, epilogue, normed_input

if TYPE_CHECKING:
    from tilecompile.ir.node import OpNode


def gpu(node: OpNode) -> StreamBody:
    """The body for the node's shapes, prologue and epilogue; nothing for an inactive slot, which has no weights."""
    tokens, cols = node.inputs[0].shape
    first = 3 + (node.attrs.get("norm") is not None)
    norm, x = normed_input(node)
    weight = f"c.arg<const float>({first - 1})[t * {node.inputs[first - 1].strides[0]} + slot]"
    store = epilogue(node, first, slot=True, guard=f"if ({weight} == 0.f) return;")
    statement = (
        f"const int slot = c.tile(2);\n  if (c.arg<const int32_t>({first - 2})[slot] < 0) return;\n"
        f"  linear_rows<S, {norm}>(c, {x}, {store});"
    )
    return Shape.of(node, tokens, cols).body(statement, ("linear",))
