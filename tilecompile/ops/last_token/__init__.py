"""last_token: the row of a step's last token, for what only that one needs: the logits of a prompt, the next draft."""

from __future__ import annotations

import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling
from tilecompile.ops.base import TileOp, register
from tilecompile.ops.kit.copying import by_columns
from tilecompile.ops.last_token.gpu import gpu


@torch.library.custom_op("tilecompile::last_token", mutates_args=())
def last_token(x: torch.Tensor) -> torch.Tensor:
    """y[0] = x[n - 1] of the n tokens of the step. x: f32 or i32 [T, W]; returns [1, W] of the same type."""
    return x[-1:].clone()


@last_token.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty((1, x.shape[1]))


def tile(node: OpNode, parts: int) -> Tiling:
    """Ranges of columns; the coordinates are (first, one past the last)."""
    tokens, size = node.inputs[0].shape
    return by_columns(parts, size, 1, (0, tokens), (1, 1))


def cpu(node: OpNode) -> str:
    """The call of `last_token`; f32 and i32 have four bytes."""
    x = node.inputs[0]
    return (
        f"last_token(c.tokens(0), c.arg<const uint32_t>(0), {x.strides[0]}, c.arg<uint32_t>(1), c.tile(0), c.tile(1));"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    y: torch.Tensor = last_token(inputs[0])
    return y


register(TileOp("last_token", tile, cpu, reference, gpu=gpu, divides_activations=True))
