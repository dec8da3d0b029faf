"""The GPU body of expert_combine: see gpu.cuh."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilecompile.ops.kit.body import StreamBody
from tilecompile.ops.linear.gpu import Shape, epilogue
from tilecompile.runtime.format import PANEL

if TYPE_CHECKING:
    from tilecompile.ir.node import OpNode


def gpu(node: OpNode) -> StreamBody:
    """The body for the node's shapes and epilogue."""
    x, _, weight = node.inputs[:3]
    tokens, slots, cols = x.shape
    store = epilogue(node, 3)
    statement = (
        f"expert_combine_rows<S, {slots}>(c, c.arg<const float>(0), {x.strides[0]}, {x.strides[1]}, "
        f"c.arg<const int32_t>(1), c.arg<const float>(2), {weight.strides[0]}, {store});"
    )
    return Shape.of(node, tokens, cols).body(statement, ("linear", "expert_combine"), 4 * tokens * PANEL)
