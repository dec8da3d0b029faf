"""topk_select: the positions with the `topk` largest scores of each token, in ascending order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.placement import Split
from tilecompile.ir.tiling import Tiling, whole
from tilecompile.ops.base import Distribution, Indices, TaskWork, TileOp, register
from tilecompile.ops.context import parts_of, rows_of
from tilecompile.ops.topk_candidates import TOPK_CANDIDATES
from tilecompile.ops.topk_merge import TOPK_MERGE
from tilecompile.ops.topk_select.gpu import gpu
from tilecompile.runtime.format import INTERVAL_BITS, KEY_WORDS
from tilecompile.runtime.names import MERGE, PART


@torch.library.custom_op("tilecompile::topk_select", mutates_args=())
def topk_select(scores: torch.Tensor, position: torch.Tensor, topk: int) -> torch.Tensor:
    """Selected positions i32 [T, topk], ascending; -1 in the unused entries at the end.

    scores: f32 [T, S], position: i32 [1]. Token t sees positions up to position + t; a token that sees at most `topk`
    gets them all, and its scores don't count. Of equal scores that of the lowest position wins.
    """
    size = scores.shape[1]
    context = (position + 1 + torch.arange(scores.shape[0], device=scores.device))[:, None]
    seen = torch.arange(size, device=scores.device) < context
    ranked = torch.where(seen & (context > topk), scores, torch.where(seen, 0.0, -torch.inf))
    order = torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, :topk]
    chosen = torch.where(order < context, order, size).sort(dim=1).values
    selection = torch.full((scores.shape[0], topk), -1, dtype=torch.int32, device=scores.device)
    selection[:, : chosen.shape[1]] = torch.where(chosen < size, chosen, -1).to(torch.int32)
    return selection


@topk_select.register_fake
def _(scores: torch.Tensor, position: torch.Tensor, topk: int) -> torch.Tensor:
    return torch.empty((scores.shape[0], topk), dtype=torch.int32, device=scores.device)


def tile(node: OpNode, parts: int) -> Tiling:
    """One task: what is left to do after the scores is short."""
    tokens, size = node.inputs[0].shape
    return Tiling(
        coords=np.zeros((1, 4), np.int32),
        reads=(whole(node, 0), whole(node, 1)),
        writes=(whole(node, 2),),
        weights=((),),
        cost=np.array([16.0 * tokens * size]),
        scratch=4 * (2 * size + (1 << INTERVAL_BITS)),
    )


def cpu(node: OpNode) -> str:
    """The call of `topk_select` with the node's shapes and strides."""
    scores, _, selection = node.operands
    return (
        f"topk_select<{scores.shape[1]}, {node.attrs['topk']}>(c, c.tokens(0), c.arg<const float>(0), "
        f"{scores.strides[0]}, c.arg<const int32_t>(1)[0], c.arg<int32_t>(2), {selection.strides[0]});"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    y: torch.Tensor = topk_select(*inputs, node.attrs["topk"])
    return y


def work(node: OpNode, tiles: Indices, context: int) -> TaskWork:
    """What the task does at a context: without a choice it only writes the positions."""
    topk = node.attrs["topk"]
    return TaskWork(topk + (rows_of(node, context) if context > topk else 0))


def by_context(distribution: Distribution, node: OpNode, split: Split) -> None:
    """Each device pushes the best of its own positions; each finds which of its own are among the best of all."""
    scores, position = node.inputs
    (selection,) = node.outputs
    tokens, topk = selection.shape
    parts = list(parts_of(node, split))
    room = min(topk, parts[0][1].rows(scores.shape[1]))
    keys = distribution.make(f"{selection.tensor}.candidates", (tokens, len(parts), room, KEY_WORDS), "i32")
    for device, context, own in parts:
        inputs = (distribution.shard(scores.tensor, device, context), position)
        candidates = replace(own, name=f"{node.name}.candidates", op=TOPK_CANDIDATES.name, role=PART)
        distribution.add(candidates, device, inputs, (), (keys.select(1, context.index),))
    for device, context, own in parts:
        size = min(topk, context.rows(scores.shape[1]))
        result = distribution.make_shard(selection.tensor, device, context, (tokens, size))
        merge = replace(own, name=f"{node.name}.merge", op=TOPK_MERGE.name, role=MERGE)
        distribution.add(merge, device, (keys, position), (), (result,), private=True)


register(TileOp("topk_select", tile, cpu, reference, gpu=gpu, work=work, context_rule=by_context, chooses="positions"))
