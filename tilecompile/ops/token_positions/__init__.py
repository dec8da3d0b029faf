"""token_positions: the position of each of a step's tokens, of which `last_token` takes the last one's."""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling, whole
from tilecompile.ops.base import TileOp, register
from tilecompile.ops.token_positions.gpu import gpu


@torch.library.custom_op("tilecompile::token_positions", mutates_args=())
def token_positions(position: torch.Tensor, tokens: int) -> torch.Tensor:
    """y[t] = position + t, i32 [T, 1], of T = `tokens` tokens. position: i32 [1]."""
    return (position + torch.arange(tokens, dtype=torch.int32, device=position.device))[:, None]


@token_positions.register_fake
def _(position: torch.Tensor, tokens: int) -> torch.Tensor:
    return position.new_empty((tokens, 1))


def tile(node: OpNode, parts: int) -> Tiling:
    """One task: a number a token."""
    return Tiling(
        coords=np.zeros((1, 4), np.int32),
        reads=(whole(node, 0),),
        writes=(whole(node, 1),),
        weights=((),),
        cost=np.array([4.0 * (1 + node.outputs[0].shape[0])]),
    )


def cpu(node: OpNode) -> str:
    """The call of `token_positions`."""
    return f"token_positions(c.tokens(1), *c.arg<const int32_t>(0), c.arg<int32_t>(1), {node.outputs[0].strides[0]});"


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    y: torch.Tensor = token_positions(inputs[0], node.outputs[0].shape[0])
    return y


register(TileOp("token_positions", tile, cpu, reference, gpu=gpu))
