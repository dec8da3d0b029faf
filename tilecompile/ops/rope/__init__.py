"""rope: rotary position embedding over interleaved pairs (Su et al., arXiv 2104.09864)."""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Access, Tiling, pieces, split, whole
from tilecompile.ops.base import SplitAxis, TileOp, register
from tilecompile.ops.rope.gpu import gpu


@torch.library.custom_op("tilecompile::rope", mutates_args=())
def rope(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotates the pairs (2i, 2i+1) of the first R of D by angle i; the layout stays, the rest is copied.

    x: f32 [T, H, D], angles: f32 [T, 2, R/2] of cosines and sines; returns f32 [T, H, D].
    """
    cos, sin = angles[:, None, 0], angles[:, None, 1]
    size = 2 * cos.shape[-1]
    even, odd = x[..., 0:size:2], x[..., 1:size:2]
    rotated = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
    return torch.cat([rotated, x[..., size:]], -1)


@rope.register_fake
def _(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def tile(node: OpNode, parts: int) -> Tiling:
    """Ranges of heads, for all tokens; the coordinates are (first head, one past the last)."""
    tokens, heads, size = node.inputs[0].shape
    bounds = split(heads, pieces(parts, tokens * heads * size), unit=1)
    lo, hi = bounds[:-1], bounds[1:]
    coords = np.zeros((len(lo), 4), np.int32)
    coords[:, 0], coords[:, 1] = lo, hi
    box = ((0, tokens), (lo, hi), (0, size))
    return Tiling(
        coords=coords,
        reads=(Access(0, box), whole(node, 1)),
        writes=(Access(2, box),),
        weights=((),) * len(lo),
        cost=np.asarray((hi - lo) * tokens * size * 8, np.float64),
    )


def cpu(node: OpNode) -> str:
    """The call of `rope` with the node's shapes."""
    x, angles, y = node.operands
    return (
        f"rope<{x.shape[2]}, {2 * angles.shape[2]}>(c.tokens(0), "
        f"c.arg<const float>(0), {x.strides[0]}, {x.strides[1]}, "
        f"c.arg<const float>(1), {angles.strides[0]}, {angles.strides[1]}, "
        f"c.arg<float>(2), {y.strides[0]}, {y.strides[1]}, c.tile(0), c.tile(1));"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    y: torch.Tensor = rope(inputs[0], inputs[1])
    return y


register(TileOp("rope", tile, cpu, reference, split_axes={"heads": SplitAxis({0: 1}, output=1)}, gpu=gpu))
