"""topk_candidates: what a shard of the context contributes to the choice of the `topk` best positions of all.

Among the `topk` best of all positions a shard has at most its own `topk` best, so those are its candidates. A candidate
is a 64-bit key, as two i32: the high word orders as the scores do, the low one is the complement of the position, so
that of equal scores that of the lowest position wins. `topk_merge` decides.
"""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling, whole
from tilecompile.ops.base import Indices, TaskWork, TileOp, register
from tilecompile.ops.context import Context, rows_of
from tilecompile.ops.topk_candidates.gpu import gpu
from tilecompile.runtime.format import INTERVAL_BITS


def ordered(scores: torch.Tensor) -> torch.Tensor:
    """i64 0 … 2³² - 1 that compare as the f32 scores do; -0 equals 0."""
    bits = (scores + 0.0).view(torch.int32).long()
    return torch.where(bits < 0, ~bits, bits | 0x80000000) & 0xFFFFFFFF


def tile(node: OpNode, parts: int) -> Tiling:
    """One task, as for topk_select; coordinate 3 is the shard."""
    tokens, size = node.inputs[0].shape
    return Tiling(
        coords=np.array([[0, 0, 0, node.attrs["context"][0]]], np.int32),
        reads=(whole(node, 0), whole(node, 1)),
        writes=(whole(node, 2),),
        weights=((),),
        cost=np.array([16.0 * tokens * size]),
        scratch=4 * (2 * size + (1 << INTERVAL_BITS)),
    )


def cpu(node: OpNode) -> str:
    """The call of `topk_candidates` with the node's shapes and strides."""
    scores, _, keys = node.operands
    context = Context(*node.attrs["context"])
    return (
        f"topk_candidates<{scores.shape[1]}, {node.attrs['topk']}, {keys.shape[1]}>"
        f"(c, c.tokens(0), {context.cpp()}, c.arg<const float>(0), {scores.strides[0]}, c.arg<const int32_t>(1)[0], "
        f"c.arg<uint32_t>(2), {keys.strides[0]});"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """Keys i32 [T, K, 2] in the order of positions, zero in unused entries, and in all while no choice is needed.

    scores: f32 [T, rows], those of the shard's rows; position: i32 [1]. Token t sees positions up to position + t, and
    chooses if these are more than `topk`. K is at least the smaller of `topk` and the shard's rows.
    """
    scores, position = inputs
    context, topk = Context(*node.attrs["context"]), node.attrs["topk"]
    keys = torch.zeros(node.outputs[0].shape, dtype=torch.int32)
    for t, row in enumerate(scores):
        seen = int(position[0]) + t + 1
        if seen > topk:
            row = row[: context.rows(seen)]
            best = torch.sort(row, descending=True, stable=True).indices[:topk].sort().values
            positions = torch.tensor([context.position(r) for r in best.tolist()], dtype=torch.long)
            words = torch.stack([~positions & 0xFFFFFFFF, ordered(row[best])], 1)
            keys[t, : len(best)] = torch.where(words < 1 << 31, words, words - (1 << 32)).to(torch.int32)
    return keys


def work(node: OpNode, tiles: Indices, context: int) -> TaskWork:
    """What the task does at a context: nothing while no choice is needed, but for `topk` entries."""
    topk = node.attrs["topk"]
    return TaskWork(topk + (rows_of(node, context) if context > topk else 0))


TOPK_CANDIDATES = register(
    TileOp("topk_candidates", tile, cpu, reference, headers=("topk_select",), gpu=gpu, work=work)
)
