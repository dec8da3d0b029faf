"""keep_selection: puts what a step's tokens selected, and where they are, into a tensor of role `state`.

A later step of another program goes on with it: see `share_selection`. With `attrs["context"]` (see `ops/context.py`)
the selection is a shard's rows, and so is what is kept.
"""

from __future__ import annotations

import numpy as np
import torch

from tilecompile.ir.node import OpNode
from tilecompile.ir.placement import Split
from tilecompile.ir.tiling import Access, Tiling, whole
from tilecompile.ops.base import Distribution, TileOp, register
from tilecompile.ops.context import parts_of
from tilecompile.ops.keep_selection.gpu import gpu


@torch.library.custom_op("tilecompile::keep_selection", mutates_args=("state",))
def keep_selection(state: torch.Tensor, selection: torch.Tensor, position: torch.Tensor) -> None:
    """state[t] = [position + t, selection[t], -1 …] for the tokens of the step.

    state: i32 [S, 1 + W], selection: i32 [T, K] as of `topk_select`, position: i32 [1]; T at most S, K at most W.
    """
    tokens, entries = selection.shape
    state[:tokens] = -1
    state[:tokens, 0] = position + torch.arange(tokens, dtype=torch.int32, device=position.device)
    state[:tokens, 1 : 1 + entries] = selection


@keep_selection.register_fake
def _(state: torch.Tensor, selection: torch.Tensor, position: torch.Tensor) -> None:
    return None


def tile(node: OpNode, parts: int) -> Tiling:
    """One task: a row of numbers a token."""
    state, selection, _ = node.inputs
    tokens = selection.shape[0]
    return Tiling(
        coords=np.zeros((1, 4), np.int32),
        reads=(whole(node, 1), whole(node, 2)),
        writes=(Access(0, ((0, tokens), (0, state.shape[1]))),),
        weights=((),),
        cost=np.array([8.0 * tokens * state.shape[1]]),
    )


def cpu(node: OpNode) -> str:
    """The call of `keep_selection`."""
    state, selection, _ = node.inputs
    return (
        f"keep_selection(c.tokens(1), c.arg<int32_t>(0), {state.shape[1]}, {state.strides[0]}, "
        f"c.arg<const int32_t>(1), {selection.shape[1]}, {selection.strides[0]}, *c.arg<const int32_t>(2));"
    )


def reference(node: OpNode, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> None:
    """The eager effect of a node, on its first input."""
    keep_selection(*inputs)


def by_context(distribution: Distribution, node: OpNode, split: Split) -> None:
    """Each device keeps the rows of its own blocks."""
    state, selection, position = node.inputs
    for device, context, own in parts_of(node, split):
        kept = distribution.make_shard(state.tensor, device, context, state.shape)
        chosen = distribution.shard(selection.tensor, device, context)
        distribution.add(own, device, (kept, chosen, position), (), ())


register(
    TileOp(
        "keep_selection",
        tile,
        cpu,
        reference,
        mutated=("state",),
        gpu=gpu,
        context_rule=by_context,
        keeps_state=True,
    )
)
