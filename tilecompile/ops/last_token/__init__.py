"""last_token: the row of a step's last token, for what only that one needs: the logits of a prompt, the next draft."""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Access, Tiling, pieces, split
from tilecompile.ops.base import TileOp, register
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
    bounds = split(size, pieces(parts, size))
    lo, hi = bounds[:-1], bounds[1:]
    coords = np.zeros((len(lo), 4), np.int32)
    coords[:, 0], coords[:, 1] = lo, hi
    return Tiling(
        coords=coords,
        reads=(Access(0, ((0, tokens), (lo, hi))),),
        writes=(Access(1, ((0, 1), (lo, hi))),),
        weights=((),) * len(lo),
        cost=np.asarray((hi - lo) * 8, np.float64),
    )


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
