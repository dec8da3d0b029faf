"""rope_angles: cosines and sines of the step's rotary angles, once for all layers."""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling, whole
from tilecompile.ops.base import TileOp, register
from tilecompile.ops.rope_angles.gpu import gpu


@torch.library.custom_op("tilecompile::rope_angles", mutates_args=())
def rope_angles(position: torch.Tensor, inv_freq: torch.Tensor, tokens: int) -> torch.Tensor:
    """y[t] = (cos a, sin a), a = (position + t) · inv_freq. position: i32 [1], inv_freq: f32 [R/2].

    Returns f32 [T, 2, R/2]. The angle is rounded to f32, as transformers does; its cosine and sine are exact to f32.
    """
    at = (position + torch.arange(tokens, dtype=torch.int32, device=position.device)).float()
    angle = (at[:, None] * inv_freq).double()
    return torch.stack([angle.cos(), angle.sin()], 1).float()


@rope_angles.register_fake
def _(position: torch.Tensor, inv_freq: torch.Tensor, tokens: int) -> torch.Tensor:
    return torch.empty((tokens, 2, inv_freq.shape[0]), dtype=torch.float32, device=inv_freq.device)


def tile(node: OpNode, parts: int) -> Tiling:
    """One task: there are R/2 angles a token."""
    y = node.outputs[0]
    return Tiling(
        coords=np.zeros((1, 4), np.int32),
        reads=(whole(node, 0), whole(node, 1)),
        writes=(whole(node, 2),),
        weights=((),),
        cost=np.array([8.0 * y.shape[0] * y.shape[2]]),
    )


def cpu(node: OpNode) -> str:
    """The call of `rope_angles` with the node's shapes."""
    y = node.outputs[0]
    return (
        f"rope_angles(c.tokens(2), {y.shape[2]}, *c.arg<const int32_t>(0), c.arg<const float>(1), c.arg<float>(2), "
        f"{y.strides[0]}, {y.strides[1]});"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    y: torch.Tensor = rope_angles(inputs[0], inputs[1], node.outputs[0].shape[0])
    return y


register(TileOp("rope_angles", tile, cpu, reference, gpu=gpu))
