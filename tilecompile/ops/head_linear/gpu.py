"""The GPU body of head_linear: see gpu.cuh."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilecompile.ops.kit.body import StreamBody
from tilecompile.ops.linear.gpu import Shape

if TYPE_CHECKING:
    from tilecompile.ir.node import OpNode


def gpu(node: OpNode) -> StreamBody:
    """The body for the node's shapes and strides."""
    x, y = node.operands
    strides = f"c.arg<const float>(0), {x.strides[0]}, {x.strides[1]}, c.arg<float>(1), {y.strides[0]}, {y.strides[1]}"
    shape = Shape.of(node, x.shape[0], x.shape[2])
    return shape.body(f"head_linear<S>(c, {strides});", ("linear", "head_linear"))
