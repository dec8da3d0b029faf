"""layer_norm: normalisation to mean 0 and variance 1 over the last dimension (Ba et al., arXiv 1607.06450)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling, whole
from tilecompile.ops.base import TileOp, register
from tilecompile.ops.layer_norm.gpu import gpu


@torch.library.custom_op("tilecompile::layer_norm", mutates_args=())
def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias. x: f32 [T, N], weight and bias: f32 [N].

    Returns f32 [T, N]; the variance is the mean of the squares, without Bessel's correction.
    """
    return F.layer_norm(x, (x.shape[1],), weight, bias, eps)


@layer_norm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def tile(node: OpNode, parts: int) -> Tiling:
    """One task: the row is one reduction."""
    x = node.inputs[0]
    return Tiling(
        coords=np.zeros((1, 4), np.int32),
        reads=(whole(node, 0), whole(node, 1), whole(node, 2)),
        writes=(whole(node, 3),),
        weights=((),),
        cost=np.array([8.0 * x.shape[0] * x.shape[1]]),
    )


def cpu(node: OpNode) -> str:
    """The call of `layer_norm` with the node's shapes."""
    x, _, _, y = node.operands
    return (
        f"layer_norm<{x.shape[1]}>(c.tokens(0), c.arg<const float>(0), {x.strides[0]}, c.arg<const float>(1), "
        f"c.arg<const float>(2), c.arg<float>(3), {y.strides[0]}, {node.attrs['eps']!r}f);"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    y: torch.Tensor = layer_norm(inputs[0], inputs[1], inputs[2], node.attrs["eps"])
    return y


register(TileOp("layer_norm", tile, cpu, reference, gpu=gpu))
