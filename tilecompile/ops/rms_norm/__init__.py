"""rms_norm: root-mean-square normalisation over the last dimension (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling, whole
from tilecompile.ops.base import TileOp, register
from tilecompile.ops.rms_norm.gpu import gpu


@torch.library.custom_op("tilecompile::rms_norm", mutates_args=())
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """y = x / sqrt(mean(x²) + eps) · weight. x: f32 [T, N], weight: f32 [N]; returns f32 [T, N]."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


@rms_norm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def tile(node: OpNode, parts: int) -> Tiling:
    """One task: the row is one reduction."""
    x = node.inputs[0]
    return Tiling(
        coords=np.zeros((1, 4), np.int32),
        reads=(whole(node, 0), whole(node, 1)),
        writes=(whole(node, 2),),
        weights=((),),
        cost=np.array([8.0 * x.shape[0] * x.shape[1]]),
    )


def cpu(node: OpNode) -> str:
    """The call of `rms_norm` with the node's shapes."""
    x, _, y = node.operands
    return (
        f"rms_norm<{x.shape[1]}>(c.tokens(0), c.arg<float>(0), {x.strides[0]}, c.arg<float>(1), "
        f"c.arg<float>(2), {y.strides[0]}, {node.attrs['eps']!r}f);"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    y: torch.Tensor = rms_norm(inputs[0], inputs[1], node.attrs["eps"])
    return y


register(TileOp("rms_norm", tile, cpu, reference, gpu=gpu, is_norm=True))
