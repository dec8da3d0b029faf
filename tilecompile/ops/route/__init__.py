"""route: the experts of each token, chosen by sigmoid scores plus a bias that counts for the choice only.

The weights are the unbiased scores of the chosen experts, as in DeepSeek-V3 (arXiv 2412.19437) and GLM-5.
"""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling, whole
from tilecompile.ops.base import TileOp, register
from tilecompile.ops.route.gpu import gpu


@torch.library.custom_op("tilecompile::route", mutates_args=())
def route(
    logits: torch.Tensor, bias: torch.Tensor, topk: int, normalize: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The topk largest of s + bias, s = sigmoid(logits), in descending order; of equal ones the lowest index wins.

    logits: f32 [T, E], bias: f32 [E], finite. Returns ids i32 [T, topk] and weights f32 [T, topk]: the s of those,
    divided by (their sum + 1e-20) if `normalize`, times `scale`.
    """
    # In f64, so that equal logits get equal scores wherever they stand in the row.
    scores = torch.sigmoid(logits.double()).to(logits.dtype)
    ids = torch.sort(scores + bias, dim=-1, descending=True, stable=True).indices[:, :topk]
    weights = scores.gather(-1, ids)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids.to(torch.int32), weights * scale


@route.register_fake
def _(
    logits: torch.Tensor, bias: torch.Tensor, topk: int, normalize: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (logits.shape[0], topk)
    return (
        torch.empty(shape, dtype=torch.int32, device=logits.device),
        torch.empty(shape, dtype=logits.dtype, device=logits.device),
    )


def tile(node: OpNode, parts: int) -> Tiling:
    """One task: a few hundred scores a token."""
    tokens, experts = node.inputs[0].shape
    return Tiling(
        coords=np.zeros((1, 4), np.int32),
        reads=(whole(node, 0), whole(node, 1)),
        writes=(whole(node, 2), whole(node, 3)),
        weights=((),),
        cost=np.array([4.0 * (tokens + 1) * experts]),
    )


def cpu(node: OpNode) -> str:
    """The call of `route` with the node's shapes."""
    logits, _, ids, weights = node.operands
    return (
        f"route<{logits.shape[1]}, {ids.shape[1]}>(c.tokens(0), c.arg<const float>(0), {logits.strides[0]}, "
        f"c.arg<const float>(1), c.arg<int32_t>(2), {ids.strides[0]}, c.arg<float>(3), {weights.strides[0]}, "
        f"{'true' if node.attrs['normalize'] else 'false'}, {float(node.attrs['scale'])!r}f);"
    )


def reference(
    node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The eager value of a node."""
    a = node.attrs
    result: tuple[torch.Tensor, torch.Tensor] = route(inputs[0], inputs[1], a["topk"], a["normalize"], a["scale"])
    return result


register(TileOp("route", tile, cpu, reference, gpu=gpu, chooses="experts"))
