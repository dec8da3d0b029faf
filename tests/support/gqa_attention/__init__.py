"""gqa_attention: attention of grouped heads over all cached positions; an op outside the package.

Several query heads share a key-value head: head h reads head h // group of the caches. A new op has this form:
one folder, with all that the compiler must know of it in one `TileOp`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Access, Tiling, split, whole
from tilecompile.ops.base import Indices, RowsRead, SplitAxis, TaskWork, TileOp


@torch.library.custom_op("tilecompile::gqa_attention", mutates_args=())
def gqa_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor, scale: float
) -> torch.Tensor:
    """y[t, h] = Σ_s softmax_s(scale · query[t, h] · keys[s, h // group]) · values[s, h // group], s ≤ position + t.

    query: f32 [T, H, D], keys and values: f32 [S, G, D], position: i32 [1]; H = G · group. Returns f32 [T, H, D].
    """
    tokens, heads, _ = query.shape
    group = heads // keys.shape[1]
    scores = torch.einsum("thd,shd->ths", query, keys.repeat_interleave(group, 1)) * scale
    seen = torch.arange(keys.shape[0]) <= position + torch.arange(tokens)[:, None]
    weights = torch.softmax(scores.masked_fill(~seen[:, None], -torch.inf), 2)
    # Rows behind the context may hold anything, NaN included.
    used = values.repeat_interleave(group, 1).masked_fill(~seen.any(0)[:, None, None], 0.0)
    return torch.einsum("ths,shd->thd", weights, used)


@gqa_attention.register_fake
def _(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor, scale: float
) -> torch.Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


def group_of(node: OpNode) -> int:
    """Query heads of a key-value head."""
    return node.inputs[0].shape[1] // node.inputs[1].shape[1]


def tile(node: OpNode, parts: int) -> Tiling:
    """Ranges of key-value heads with their query heads; the coordinates are (first, one past the last)."""
    query, keys = node.inputs[:2]
    tokens, _, width = query.shape
    rows, groups, _ = keys.shape
    bounds = split(groups, parts, 1)
    lo, hi = bounds[:-1], bounds[1:]
    coords = np.zeros((len(lo), 4), np.int32)
    coords[:, 0], coords[:, 1] = lo, hi
    heads = (lo * group_of(node), hi * group_of(node))
    cache = ((0, rows), (lo, hi), (0, width))
    return Tiling(
        coords=coords,
        reads=(Access(0, ((0, tokens), heads, (0, width))), Access(1, cache), Access(2, cache), whole(node, 3)),
        writes=(Access(4, ((0, tokens), heads, (0, width))),),
        weights=((),) * len(lo),
        cost=np.asarray((hi - lo) * 8 * rows * width, np.float64),
        scratch=4 * rows,
    )


def cpu(node: OpNode) -> str:
    """The call of `gqa_attention` with the node's shapes and strides."""
    query, keys, values, _, y = node.operands
    return (
        f"gqa_attention<{query.shape[2]}, {group_of(node)}>(c, c.tokens(0), c.arg<const float>(0), "
        f"{query.strides[0]}, {query.strides[1]}, c.arg<const float>(1), {keys.strides[0]}, {keys.strides[1]}, "
        f"c.arg<const float>(2), {values.strides[0]}, {values.strides[1]}, c.arg<const int32_t>(3)[0], "
        f"{float(node.attrs['scale'])!r}f, c.arg<float>(4), {y.strides[0]}, {y.strides[1]});"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    y: torch.Tensor = gqa_attention(*inputs, node.attrs["scale"])
    return y


def reads(node: OpNode) -> Mapping[int, RowsRead]:
    """All rows of the context, of both caches."""
    return {1: RowsRead(), 2: RowsRead()}


def work(node: OpNode, tiles: Indices, context: int) -> TaskWork:
    """What tasks do at a context: each reads its key-value heads for their query heads."""
    width, group = node.inputs[0].shape[2], group_of(node)
    groups = tiles[:, 1] - tiles[:, 0]
    read = 2 * 4 * context * groups * width
    return TaskWork(groups * group * (context + 2 * width), 2 * context * groups * group * width, read, read)


GQA_ATTENTION = TileOp(
    "gqa_attention",
    tile,
    cpu,
    reference,
    split_axes={"heads": SplitAxis({0: 1, 1: 1, 2: 1}, output=1, unit=group_of)},
    reads=reads,
    work=work,
)
