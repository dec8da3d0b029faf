"""dispatch: the routing of all tokens of a step as expert slots, so that an expert that several chose is read once."""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling, whole
from tilecompile.ops.base import TileOp, register
from tilecompile.ops.dispatch.gpu import gpu


@torch.library.custom_op("tilecompile::dispatch", mutates_args=())
def dispatch(ids: torch.Tensor, weights: torch.Tensor, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct experts in ascending order, one a slot, and each token's weight for each slot.

    ids: i32 [T, k], weights: f32 [T, k]; there are at most `slots` distinct ids. Returns expert i32 [1, slots], -1 in
    inactive slots, and slot_weight f32 [T, slots], 0 where a token does not use the slot.
    """
    distinct = torch.unique(ids)
    if len(distinct) > slots:
        raise ValueError(f"dispatch: {len(distinct)} distinct experts for {slots} slots")
    expert = torch.full((1, slots), -1, dtype=torch.int32, device=ids.device)
    expert[0, : len(distinct)] = distinct
    chosen = ids[:, :, None] == expert[0]
    return expert, (chosen * weights[:, :, None]).sum(1)


@dispatch.register_fake
def _(ids: torch.Tensor, weights: torch.Tensor, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.empty((1, slots), dtype=torch.int32, device=ids.device),
        torch.empty((ids.shape[0], slots), dtype=weights.dtype, device=ids.device),
    )


def tile(node: OpNode, parts: int) -> Tiling:
    """One task: at most a few dozen ids."""
    tokens, k = node.inputs[0].shape
    return Tiling(
        coords=np.zeros((1, 4), np.int32),
        reads=(whole(node, 0), whole(node, 1)),
        writes=(whole(node, 2), whole(node, 3)),
        weights=((),),
        cost=np.array([8.0 * tokens * (k + node.outputs[0].shape[1])]),
    )


def cpu(node: OpNode) -> str:
    """The call of `dispatch` with the node's shapes."""
    ids, weights, expert, slot_weight = node.operands
    return (
        f"dispatch<{ids.shape[1]}>(c.tokens(0), {expert.shape[1]}, c.arg<const int32_t>(0), {ids.strides[0]}, "
        f"c.arg<const float>(1), {weights.strides[0]}, c.arg<int32_t>(2), c.arg<float>(3), {slot_weight.strides[0]});"
    )


def reference(
    node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The eager value of a node."""
    result: tuple[torch.Tensor, torch.Tensor] = dispatch(inputs[0], inputs[1], node.outputs[0].shape[1])
    return result


register(TileOp("dispatch", tile, cpu, reference, gpu=gpu))
