"""attention_merge: the softmax over all positions from the parts that `mla_attention` makes.

Part s of a head has sums p, largest score m and denominator l; the result is Σ_s e^(m_s - M) p_s / Σ_s e^(m_s - M) l_s,
M the largest m, added in the order of the parts. (FlashDecoding: Dao, Haziza, Massa, Sizov 2023.)
"""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Access, Tiling, pieces, split
from tilecompile.ops.attention_merge.gpu import gpu
from tilecompile.ops.base import TileOp, register


def tile(node: OpNode, parts: int) -> Tiling:
    """Head ranges, for all tokens; the coordinates are (first head, one past the last)."""
    tokens, count, heads, width = node.inputs[0].shape
    bounds = split(heads, pieces(parts, tokens * count * heads * width), unit=1)
    lo, hi = bounds[:-1], bounds[1:]
    coords = np.zeros((len(lo), 4), np.int32)
    coords[:, 0], coords[:, 1] = lo, hi
    return Tiling(
        coords=coords,
        reads=(Access(0, ((0, tokens), (0, count), (lo, hi), (0, width))),),
        writes=(Access(1, ((0, tokens), (lo, hi), (0, width - 2))),),
        weights=((),) * len(lo),
        cost=np.asarray((hi - lo) * tokens * (count + 1) * width * 4, np.float64),
    )


def cpu(node: OpNode) -> str:
    """The call of `attention_merge` with the node's shapes and strides."""
    parts, y = node.operands
    return (
        f"attention_merge<{parts.shape[1]}, {y.shape[2]}>(c.tokens(0), c.arg<const float>(0), "
        f"{parts.strides[0]}, {parts.strides[1]}, {parts.strides[2]}, c.arg<float>(1), {y.strides[0]}, {y.strides[1]}, "
        "c.tile(0), c.tile(1));"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """f32 [T, H, R] from parts f32 [T, parts, H, R + 2]; parts whose denominator is 0 are ignored."""
    sums, largest, denominator = torch.split(inputs[0], [inputs[0].shape[3] - 2, 1, 1], 3)
    largest = largest.masked_fill(denominator == 0, -torch.inf)
    factor = torch.exp(largest - largest.amax(1, keepdim=True))
    return torch.as_tensor((factor * sums).sum(1) / (factor * denominator).sum(1))


ATTENTION_MERGE = register(TileOp("attention_merge", tile, cpu, reference, gpu=gpu, divides_activations=True))
