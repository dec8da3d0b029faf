"""push: columns of a tensor copied to the same columns of its copy on another device.

An exchange between devices is a task like any other: it runs on the device that has the data, writes to the peer's
memory, and notifies an event there.
"""

from __future__ import annotations

import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling
from tilecompile.ops.base import TileOp, register
from tilecompile.ops.kit.copying import by_columns
from tilecompile.ops.push.gpu import gpu


def tile(node: OpNode, parts: int) -> Tiling:
    """Ranges of columns, for all tokens; the coordinates are (first, one past the last)."""
    tokens, size = node.inputs[0].shape
    return by_columns(parts, size, tokens, (0, tokens), (1, tokens))


def cpu(node: OpNode) -> str:
    """The call of `push`; all types that are exchanged have four bytes."""
    x, y = node.operands
    return (
        f"push(c.tokens(0), c.arg<const uint32_t>(0), {x.strides[0]}, c.arg<uint32_t>(1), {y.strides[0]}, "
        "c.tile(0), c.tile(1));"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    return inputs[0].clone()


PUSH = register(TileOp("push", tile, cpu, reference, gpu=gpu, divides_activations=True))
