"""argmax: the most likely token. The lowest index wins ties, and NaN never wins."""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling, whole
from tilecompile.ops.argmax.gpu import gpu
from tilecompile.ops.base import TileOp, register


@torch.library.custom_op("tilecompile::argmax", mutates_args=())
def argmax(logits: torch.Tensor) -> torch.Tensor:
    """Index of the largest logit of each token; 0 if none is a number. logits: f32 [T, V]; returns i32 [T]."""
    best = logits.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(-1, keepdim=True)
    return (logits == best).int().argmax(-1).int()


@argmax.register_fake
def _(logits: torch.Tensor) -> torch.Tensor:
    return torch.empty((logits.shape[0],), dtype=torch.int32, device=logits.device)


def tile(node: OpNode, parts: int) -> Tiling:
    """One task: the row is one reduction."""
    logits = node.inputs[0]
    return Tiling(
        coords=np.zeros((1, 4), np.int32),
        reads=(whole(node, 0),),
        writes=(whole(node, 1),),
        weights=((),),
        cost=np.array([4.0 * logits.shape[0] * logits.shape[1]]),
    )


def cpu(node: OpNode) -> str:
    """The call of `argmax` with the node's shapes."""
    logits, y = node.operands
    return (
        f"argmax(c.tokens(0), {logits.shape[1]}, c.arg<const float>(0), {logits.strides[0]}, "
        f"c.arg<int32_t>(1), {y.strides[0]});"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """The eager value of a node."""
    y: torch.Tensor = argmax(inputs[0])
    return y


register(TileOp("argmax", tile, cpu, reference, gpu=gpu, samples=True))
