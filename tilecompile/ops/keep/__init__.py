"""keep: puts the rows of a step's tokens into a tensor of role `state`, for another step program.

What one step program hands to another, such as the hidden rows that an MTP layer begins with, lives beyond the step:
the proof orders it over all pairs of programs, as it does caches.
"""

from __future__ import annotations

import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.tiling import Tiling
from tilecompile.ops.base import TileOp, register
from tilecompile.ops.keep.gpu import gpu
from tilecompile.ops.kit.copying import by_columns


@torch.library.custom_op("tilecompile::keep", mutates_args=("state",))
def keep(state: torch.Tensor, x: torch.Tensor) -> None:
    """state[t] = x[t] for the tokens of the step. state: f32 or i32 [S, W], x: [T, W] of the same type, T at most S."""
    state[: x.shape[0]] = x


@keep.register_fake
def _(state: torch.Tensor, x: torch.Tensor) -> None:
    return None


def tile(node: OpNode, parts: int) -> Tiling:
    """Ranges of columns, for all tokens; the coordinates are (first, one past the last)."""
    tokens, size = node.inputs[1].shape
    return by_columns(parts, size, tokens, (1, tokens), (0, tokens))


def cpu(node: OpNode) -> str:
    """The call of `keep`; f32 and i32 have four bytes."""
    state, x = node.inputs
    return (
        f"keep(c.tokens(1), c.arg<uint32_t>(0), {state.strides[0]}, c.arg<const uint32_t>(1), "
        f"{x.strides[0]}, c.tile(0), c.tile(1));"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> None:
    """The eager effect of a node, on its first input."""
    keep(inputs[0], inputs[1])


register(TileOp("keep", tile, cpu, reference, mutated=("state",), gpu=gpu, keeps_state=True, divides_activations=True))
