"""topk_merge: a shard's part of the `topk` best positions, from the candidates of all shards of the context.

Every device makes the same choice as `topk_select` would on one device, and keeps the positions that its own cache
holds, as rows of it.
"""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling, whole
from tilecompile.ops.base import TileOp, register
from tilecompile.ops.context import Context
from tilecompile.ops.topk_merge.gpu import gpu
from tilecompile.runtime.format import INTERVAL_BITS, KEY_WORDS


def tile(node: OpNode, parts: int) -> Tiling:
    """One task; coordinate 3 is the shard."""
    tokens, shards, room, _ = node.inputs[0].shape
    return Tiling(
        coords=np.array([[0, 0, 0, node.attrs["context"][0]]], np.int32),
        reads=(whole(node, 0), whole(node, 1)),
        writes=(whole(node, 2),),
        weights=((),),
        cost=np.array([32.0 * tokens * shards * room]),
        scratch=4 * (KEY_WORDS * shards * room + (1 << INTERVAL_BITS)),
    )


def cpu(node: OpNode) -> str:
    """The call of `topk_merge` with the node's shapes and strides."""
    keys, _, selection = node.operands
    context = Context(*node.attrs["context"])
    return (
        f"topk_merge<{keys.shape[1]}, {keys.shape[2]}, {node.attrs['topk']}, {selection.shape[1]}>"
        f"(c, c.tokens(0), {context.cpp()}, c.arg<const uint32_t>(0), {keys.strides[0]}, c.arg<const int32_t>(1)[0], "
        f"c.arg<int32_t>(2), {selection.strides[0]});"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """Selected rows i32 [T, K] of the shard's cache, ascending; -1 in the unused entries at the end.

    keys: i32 [T, shards, room, 2] of `topk_candidates`, position: i32 [1]. A token that sees at most `topk` positions
    gets all of them. K is the smaller of `topk` and the shard's rows.
    """
    keys, position = inputs
    context, topk = Context(*node.attrs["context"]), node.attrs["topk"]
    words = keys.long() & 0xFFFFFFFF
    ranks = ((words[..., 1] - (1 << 31)) << 32) + words[..., 0]
    selection = torch.full(node.outputs[0].shape, -1, dtype=torch.int32)
    for t in range(len(keys)):
        seen = int(position[0]) + t + 1
        rows = list(range(context.rows(seen)))
        if seen > topk:
            least = ranks[t].flatten().sort(descending=True).values[topk - 1]
            own = words[t, context.index, ranks[t, context.index] >= least, 0]
            rows = [context.rows(p) for p in (~own & 0xFFFFFFFF).tolist()]
        selection[t, : len(rows)] = torch.tensor(rows, dtype=torch.int32)
    return selection


TOPK_MERGE = register(
    TileOp("topk_merge", tile, cpu, reference, headers=("topk_select",), gpu=gpu, chooses="positions")
)
