"""topk_select: the positions with the `topk` largest scores of each token, in ascending order."""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling, whole
from tilecompile.ops.base import TileOp, register
from tilecompile.ops.topk_select.gpu import gpu


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
        scratch=4 * (2 * size + 2048),
    )


def cpu(node: OpNode) -> str:
    """The call of `topk_select` with the node's shapes and strides."""
    scores, _, selection = node.operands
    return (
        f"topk_select<{scores.shape[0]}, {scores.shape[1]}, {node.attrs['topk']}>(c, c.arg<const float>(0), "
        f"{scores.strides[0]}, c.arg<const int32_t>(1)[0], c.arg<int32_t>(2), {selection.strides[0]});"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    y: torch.Tensor = topk_select(*inputs, node.attrs["topk"])
    return y


register(TileOp("topk_select", tile, cpu, reference, gpu=gpu))
